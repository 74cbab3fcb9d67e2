"""The command line: every command helps, fails in one message with the right code, and never overwrites silently."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from quick_recipe import QUICK

from kit.cli.main import main
from kit.errors import KitError
from kit.predictions import read_predictions, write_predictions

ROOT = Path(__file__).parents[2]


OTHERS = (  # options of fitting, with the weights that a person gives instead
    ("--fit", "x.csv"),
    ("--weights", "1"),
    ("--method", "mean"),
    ("--truth", "t.csv"),
    ("--subset",),
    ("--save", "s.json"),
)


def paths(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """Every command by what a user types after `kit`, groups too."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[f"{before}{name}"] = command
        if isinstance(command, click.Group):
            found |= paths(command, f"{before}{name} ")
    return found


COMMANDS = paths(main)


def kit(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps_with_an_example(name: str):
    result = kit(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"kit {name}" in result.output.partition("Example:")[2]
    summary = COMMANDS[name].get_short_help_str(200)
    assert re.fullmatch(r"[A-Z][^.]*\.?", summary), "one imperative sentence"


@pytest.mark.parametrize(
    "name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)]
)
def test_what_prints_results_prints_them_as_json_too(name: str):
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str):
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str):
    assert f"kit {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_come_in_pipeline_order():
    order = [
        line.split()[0]
        for line in kit("--help").output.partition("Commands:")[2].strip().splitlines()
    ]
    pipeline = [
        "doctor",
        "sample",
        "download",
        "preprocess",
        "train",
        "predict",
        "ensemble",
        "validate",
        "score",
    ]
    pipeline += ["report", "kernels", "submit", "submissions", "demo"]
    assert [name for name in order if name in pipeline] == pipeline


def test_a_user_error_is_one_message_without_a_traceback(tmp_path: Path):
    result = kit("score", tmp_path / "none.csv", "--truth", tmp_path / "none.csv")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "none.csv: no such file" in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path):
    result = kit("--debug", "score", tmp_path / "none.csv", "--truth", tmp_path / "none.csv")
    assert isinstance(result.exception, KitError)


def test_wrong_usage_exits_with_two():
    assert kit("score").exit_code == 2
    assert kit("train", "--no-such-option").exit_code == 2
    assert kit("ensemble", "a.csv", "-o", "b.csv", "--weights", "one").exit_code == 2


def test_a_file_of_the_system_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "train.csv"))

    monkeypatch.setattr("kit.sample.generate.write_sample", full)
    result = kit("sample", "--out", tmp_path)
    assert result.exit_code == 1
    assert "train.csv: No space left on device" in result.stderr


def test_ctrl_c_exits_with_130_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kit.sample.generate.write_sample", interrupt)
    result = kit("sample", "--out", tmp_path)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["Interrupted."]


def test_nothing_is_overwritten_silently(raw: Path, tmp_path: Path):
    source = raw / "bayes.csv"
    target = tmp_path / "blend.csv"
    assert kit("ensemble", source, "-o", target).exit_code == 0
    before = target.read_bytes()
    other = Path(shutil.copy(source, tmp_path / "other.csv"))
    refused = kit("ensemble", source, other, "-o", target)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert target.read_bytes() == before
    assert kit("ensemble", source, other, "-o", target, "--force").exit_code == 0
    assert kit("sample", "--out", raw).exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["backbones"],
        ["recipes"],
        ["recipes", "electra"],
        ["validate", "{raw}/sample_submission.csv", "--sample", "{raw}/test.csv"],
        ["score", "{raw}/sample_submission.csv", "--truth", "{raw}/truth.csv"],
        ["preprocess", "--raw", "{raw}", "--out", "{data}", "--folds", "3", "--valid", "0.2"],
        ["ensemble", "{raw}/bayes.csv", "-o", "{tmp}/blend.csv"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_json_is_json_and_nothing_else(arguments: list[str], raw: Path, data: Path, tmp_path: Path):
    result = kit(*(each.format(raw=raw, data=data, tmp=tmp_path) for each in arguments), "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)


@pytest.mark.parametrize("command", ["calibrate {b} {t}", "ensemble --fit {b} --fit {s} {t}"])
def test_a_truth_without_prompts_is_told_from_one_with_them(
    command: str, raw: Path, data: Path, tmp_path: Path
):
    rows = pd.read_parquet(data / "train.parquet")
    bayes = read_predictions(raw / "bayes.csv").set_index("id").loc[rows["id"]].reset_index()
    for name in "bs":
        write_predictions(bayes, tmp_path / f"{name}.csv")
    files = {name: tmp_path / f"{name}.csv" for name in "bs"}
    for truth, told in ((raw / "train.csv", True), (data / "train.parquet", False)):
        given = f"--truth {truth} --subset"
        result = kit(*command.format(**files, t=given).split())
        assert result.exit_code == 0, result.stderr
        assert (f"{truth} does not tell which rows share a prompt" in result.stderr) == told


def test_validate_exits_with_one_and_lists_every_problem(tmp_path: Path, raw: Path):
    lines = (raw / "sample_submission.csv").read_text().splitlines()
    lines[3] = lines[3].replace("0.3333333333333333", "0.9", 1)
    del lines[5]
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")
    result = kit("validate", tmp_path / "bad.csv", "--sample", raw / "sample_submission.csv")
    assert result.exit_code == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem:")]
    assert any("row 4" in line for line in problems)
    assert any("59 rows" in line for line in problems)


def test_of_a_file_that_is_not_there_nothing_else_is_said(tmp_path: Path):
    result = kit("validate", tmp_path / "none.csv")
    assert result.exit_code == 1
    assert "No such file" in result.output
    assert "warning" not in result.output


def test_an_unknown_recipe_key_lists_the_choices():
    result = kit("train", "--backbone", "tiny-electra", "--set", "train.rate=1")
    assert result.exit_code == 1
    assert "unknown key train.rate" in result.stderr
    assert "train.lr" in result.stderr


def test_training_from_the_command_line(data: Path, tmp_path: Path):
    settings = [
        argument for override in (*QUICK, "train.max_steps=2") for argument in ("--set", override)
    ]
    trained = kit(
        "train",
        "--backbone",
        "tiny-electra",
        "--data",
        data,
        "--runs",
        tmp_path,
        *settings,
        "--json",
    )
    assert trained.exit_code == 0, trained.stderr
    run = json.loads(trained.stdout)["run"]
    predicted = kit("predict", run, "--data", data)
    assert predicted.exit_code == 0, predicted.stderr
    assert (Path(run) / "test.csv").is_file()
    assert kit("predict", run, "--data", data).exit_code == 1, "overwrote test.csv"
    assert kit("predict", run, "--split", "test", "--input", "x.csv", "-o", "y.csv").exit_code == 2
    assert kit("predict", run, "--input", "x.csv").exit_code == 2


@pytest.mark.parametrize(
    "command",
    [["validate"], ["score", "--truth", "{raw}/truth.csv"], ["ensemble", "-o", "{tmp}/o.csv"]],
)
def test_numbers_need_no_torch(command: list[str], raw: Path, tmp_path: Path):
    arguments = [each.format(raw=raw, tmp=tmp_path) for each in command] + [
        str(raw / "sample_submission.csv")
    ]
    code = f"import sys, kit.cli.main; kit.cli.main.main({arguments!r}, standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.fixture(scope="module")
def baselines(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two baseline runs with out-of-fold and test predictions."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("length", "prior"):
        done = kit("baseline", name, "--data", data, "--runs", runs, "--fold", "all")
        assert done.exit_code == 0, done.stderr
        assert "out-of-fold" in done.stdout
    return [runs / "baseline-length", runs / "baseline-prior"]


def test_a_fitted_blend_is_saved_and_applied(baselines: list[Path], data: Path, tmp_path: Path):
    files = [run / "test.csv" for run in baselines]
    oof = [each for run in baselines for each in ("--fit", run / "oof.csv")]
    truth = ("--truth", data / "train.parquet")
    fitted = kit(
        "ensemble",
        *files,
        *oof,
        *truth,
        "-o",
        tmp_path / "fitted.csv",
        "--save",
        tmp_path / "blend.json",
    )
    assert fitted.exit_code == 0, fitted.stderr
    assert "baseline-length" in fitted.stdout
    applied = kit(
        "ensemble",
        *reversed(files),
        "--apply",
        tmp_path / "blend.json",
        "-o",
        tmp_path / "applied.csv",
    )
    assert applied.exit_code == 0, applied.stderr
    ours, theirs = (
        read_predictions(tmp_path / f"{name}.csv").set_index("id").sort_index()
        for name in ("fitted", "applied")
    )
    pd.testing.assert_frame_equal(ours, theirs, rtol=0, atol=1e-12)


def test_a_fit_whose_predictions_cannot_be_made_is_not_saved_either(
    baselines: list[Path], data: Path, tmp_path: Path
):
    truth, save = ("--truth", data / "train.parquet"), tmp_path / "saved.json"
    fit = [each for run in baselines for each in ("--fit", run / "oof.csv")]
    for arguments in (
        ["ensemble", *fit, tmp_path / "missing.csv", "-o", tmp_path / "o.csv"],
        ["ensemble", *fit, baselines[0] / "oof.csv", "-o", tmp_path],
        ["calibrate", baselines[0] / "oof.csv", "-o", tmp_path],
    ):
        assert kit(*arguments, *truth, "--save", save).exit_code == 1
        assert not save.exists()
    stranger = tmp_path / "stranger.csv"
    stranger.write_bytes((baselines[0] / "test.csv").read_bytes())
    refused = kit("ensemble", *fit, *truth, stranger, "-o", tmp_path / "o.csv", "--save", save)
    assert refused.exit_code == 1
    assert "does not know stranger" in refused.stderr
    assert not save.exists()


def test_a_fit_to_predictions_of_no_run_says_that_their_folds_are_not_known(
    baselines: list[Path], data: Path, tmp_path
):
    other, truth, known = (
        tmp_path / "other_folds.csv",
        ("--truth", data / "train.parquet"),
        baselines[0] / "oof.csv",
    )
    other.write_bytes((baselines[1] / "oof.csv").read_bytes())
    for arguments in (["ensemble", "--fit", known, "--fit", other], ["calibrate", other]):
        done = kit(*arguments, *truth)
        assert done.exit_code == 0, done.stderr
        assert "other_folds.csv is not in a run folder" in done.stderr
        assert "oof.csv is not in a run folder" not in done.stderr


def test_a_calibration_is_saved_and_applied(
    baselines: list[Path], data: Path, raw: Path, tmp_path: Path
):
    oof, truth = baselines[0] / "oof.csv", ("--truth", data / "train.parquet")
    done = kit(
        "calibrate",
        oof,
        *truth,
        "--method",
        "temperature",
        "--save",
        tmp_path / "t.json",
        "-o",
        tmp_path / "c.csv",
    )
    assert done.exit_code == 0, done.stderr
    assert "cross-fitted" in done.stdout
    assert sorted(read_predictions(tmp_path / "c.csv")["id"]) == sorted(read_predictions(oof)["id"])
    applied = kit(
        "calibrate",
        baselines[0] / "test.csv",
        "--apply",
        tmp_path / "t.json",
        "-o",
        tmp_path / "test.csv",
    )
    assert applied.exit_code == 0, applied.stderr
    assert (
        kit("validate", tmp_path / "test.csv", "--sample", raw / "sample_submission.csv").exit_code
        == 0
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["ensemble"],
        ["ensemble", "a.csv"],
        ["ensemble", "a.csv", "--method", "fit", "-o", "b.csv"],
        ["ensemble", "a.csv", "--fit", "b.csv", "-o", "c.csv"],
        ["ensemble", "a.csv", "--apply", "b.json", "--method", "mean", "-o", "c.csv"],
        ["calibrate", "a.csv"],
        ["calibrate", "a.csv", "--apply", "b.json"],
        ["calibrate", "a.csv", "--apply", "b.json", "--truth", "c.csv", "-o", "d.csv"],
    ],
    ids=" ".join,
)
def test_half_a_request_is_wrong_usage(arguments: list[str]):
    assert kit(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        *(
            (["ensemble", "a.csv", "--apply", "b.json", *more, "-o", "c.csv"], "--apply", more[0])
            for more in OTHERS
        ),
        *((["ensemble", "a.csv", *more, "-o", "c.csv"], "--fit", more[0]) for more in OTHERS[3:]),
        *(
            (["calibrate", "a.csv", "--apply", "b.json", *more, "-o", "c.csv"], "--apply", more[0])
            for more in OTHERS[3:]
        ),
        (
            ["calibrate", "a.csv", "--apply", "b.json", "--method", "bias", "-o", "c.csv"],
            "--apply",
            "--method",
        ),
        *(
            (["ensemble", "--fit", "a.csv", "--truth", "t.csv", *more], "--fit", more[0])
            for more in OTHERS[1:3]
        ),
        (
            ["ensemble", "a.csv", "--method", "mean", "--weights", "1", "-o", "c.csv"],
            "--method mean",
            "--weights",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_do_nothing_is_wrong_usage_and_both_are_named(
    arguments, first, second
):
    refused = kit(*arguments)
    assert refused.exit_code == 2
    said = refused.stderr.partition("Error: ")[2]
    assert first in said
    assert second in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "a.csv", "--truth", "b.csv"],
        ["ensemble", "a.csv", "--fit", "a.csv", "--truth", "b.csv"],
    ],
    ids=["calibrate", "ensemble"],
)
def test_the_fit_and_the_predictions_are_not_written_to_one_file(
    arguments: list[str], tmp_path: Path
):
    (tmp_path / "sub").mkdir()
    refused = kit(
        *arguments,
        "--save",
        tmp_path / "x.json",
        "-o",
        tmp_path / "sub" / ".." / "x.json",
        "--force",
    )
    assert refused.exit_code == 2
    assert "--save and -o name the same file" in refused.stderr
