"""Check that every table fits 80 columns, and that no number and no word in it is broken."""

import shutil
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner
from made_runs import make_run

from kit.baselines.run import run_baseline
from kit.cli import output
from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.predictions import read_predictions, write_predictions

WIDTH = 80


@pytest.fixture(scope="module")
def files(
    processed: Dataset, data: Path, raw: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Folders and files for the commands: three runs with long names, and the sample."""
    folder = tmp_path_factory.mktemp("tables")
    runs = folder / "runs"
    for seed, recipe in ((0, "tiny-electra"), (1, "tiny-electra"), (0, "tiny-deberta")):
        make_run(runs, processed, seed, parts=(0, 1, 2), recipe=recipe)
    rows = pd.read_parquet(data / "train.parquet")
    bayes = read_predictions(raw / "bayes.csv").set_index("id").loc[rows["id"]].reset_index()
    write_predictions(bayes, folder / "bayes.csv")
    one, other, _ = sorted(runs.iterdir())
    return {
        "folder": folder,
        "runs": runs,
        "data": data,
        "raw": raw,
        "bayes": folder / "bayes.csv",
        "one": one,
        "other": other,
    }


@pytest.mark.parametrize(
    "command",
    [
        "backbones",
        "baseline length --data {data} --runs {folder}/baselines --fold all",
        "recipes",
        "recipes --keys",
        "preprocess --raw {raw} --out {data} --folds 3 --valid 0.2",
        "runs --runs {runs} --truth {raw}/truth.csv",
        "runs show {one}",
        "runs diff {one} {other}",
        "plan tiny-electra --data {data} --gpu t4",
        "plan deberta-large --data {data} --gpu a100",
        "report {one} {other} --data {data} --truth {raw}/truth.csv",
        "report {one} {other} --data {data}",
        "report --frame a={one}/test.csv --frame b={other}/test.csv --data {data} "
        "--truth {raw}/truth.csv",
        "report --frame a={one}/test.csv --frame b={other}/test.csv --data {folder}/none "
        "--truth {raw}/truth.csv",
        "ensemble --fit {one}/oof.csv --fit {other}/oof.csv --truth {data}/train.parquet",
        "calibrate {bayes} --truth {data}/train.parquet",
        "score {bayes} --truth {data}/train.parquet",
    ],
)
def test_a_table_fits_and_nothing_in_it_is_broken(
    command: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    # The age of a run would be another one at the second call.
    monkeypatch.setattr("kit.tracking.listing.time.time", lambda: 2e9)

    def run(columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        result = CliRunner().invoke(main, command.format(**files).split())
        assert result.exit_code == 0, result.output
        return result.stdout

    fitted, whole = run(WIDTH), run(2000)
    table = [line for line in fitted.splitlines() if line.startswith(" ")]
    assert max(map(len, table), default=0) <= WIDTH
    lines = {word for word in fitted.split() if set(word) == {"─"}}
    assert set(fitted.split()) - lines <= set(whole.split())


@pytest.mark.parametrize("command", ["rm {one.name} {other.name}", "clean"])
def test_what_would_be_deleted_fits(
    command: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(files["folder"])
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setattr("kit.cli.runs.can_ask", lambda: True)
    (files["one"] / "fold0/checkpoints/checkpoint-3").mkdir(parents=True, exist_ok=True)

    arguments = ["runs", *command.format(**files).split()]
    result = CliRunner().invoke(main, arguments, input="n\n")
    assert result.exit_code == 1
    assert files["one"].exists()
    assert "runs/" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= WIDTH


def test_judges_fit_with_all_their_columns(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    judges = CliRunner().invoke(main, ["backbones"]).stdout.partition("Judges")[2]
    assert "remarks" in judges
    assert "not commercial" in judges
    assert max(map(len, judges.splitlines()[1:])) <= WIDTH


def test_columns_are_left_out_in_the_given_order_only_where_wide_can_bring_them_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "20")

    def show(wide: bool | None) -> tuple[list[str], str]:
        monkeypatch.setattr(output, "_wide", lambda: wide)
        with click.Context(click.Command("show")):
            for _ in range(2):
                output.print_table("", ["first", "second", "third"], [["a" * 9] * 3], drop=(1,))
        shown = capsys.readouterr()
        return shown.out.split(), shown.err

    # The note is about the command, and comes once for all its tables.
    words, notes = show(False)
    assert words[:2] == ["first", "third"]
    assert notes == "Add --wide for all columns\n"
    for wide in (True, None):
        words, notes = show(wide)
        assert words[:3] == ["first", "second", "third"]
        assert notes == ""


def test_a_column_that_no_row_fills_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(output, "_wide", lambda: False)
    columns = ["model", "loss", "loss without a cell", "minutes"]
    rows = [["a", 1.0, None, ""], ["b", None, "", "2"]]

    # Rows apart are references: they alone are no reason for a column.
    output.print_table("", columns, rows, apart=[["c", 3.0, 4.0, ""]])
    shown = capsys.readouterr()
    assert "without" not in shown.out + shown.err
    assert "4.0" not in shown.out
    words = [line.split() for line in shown.out.splitlines() if line.strip("─ ")]
    assert words == [["model", "loss", "minutes"], ["a", "1.0000"], ["b", "2"], ["c", "3.0000"]]

    for printed in (columns, rows), (columns, []):
        output.print_table("", *printed, keep_empty=True)
        assert "without" in capsys.readouterr().out
    output.print_table("", columns, [])
    assert "without" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "titles"),
    [
        # Without labels of the test rows there is no test loss.
        (
            "report {one} {other} --data {data}",
            "model out-of-fold log loss [95%] accuracy best epoch parameters minutes",
        ),
        # The references have out-of-fold losses, the files have not.
        (
            "report --frame a={one}/test.csv --data {data} --truth {raw}/truth.csv",
            "model test log loss [95%] accuracy",
        ),
        (
            "report --frame a={one}/test.csv --data {folder}/none --truth {raw}/truth.csv",
            "model log loss [95%] accuracy",
        ),
        # A baseline has no epochs and no padding.
        (
            "baseline prior --data {data} --runs {folder}/priors",
            "fold log loss accuracy minutes",
        ),
    ],
)
def test_only_columns_that_a_model_fills_are_shown(
    command: str, titles: str, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(main, command.format(**files).split())
    assert result.exit_code == 0, result.output
    heads = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert titles in heads


def test_a_run_that_has_nothing_is_still_beside_the_other(
    files: dict[str, Path], processed: Dataset, tmp_path: Path
):
    begun = Path(run_baseline("prior", processed.folder, tmp_path)["run"])
    shutil.rmtree(begun / "holdout")
    (begun / "test.csv").unlink()
    shown = CliRunner().invoke(main, ["runs", "diff", str(files["one"]), str(begun)])
    assert shown.exit_code == 0, shown.output
    assert begun.name in shown.stdout


def test_only_prose_is_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "40")
    interval = "0.8294 [0.7724, 0.8900]"
    output.print_table("", ["loss", "text"], [[interval, "many words " * 9]], prose=("text",))
    printed = capsys.readouterr().out
    assert interval in printed
    assert printed.count("many words") == 9
