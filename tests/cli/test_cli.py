"""Check the commands: help, exit codes, one message for an error, JSON, no silent overwriting."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from quick_recipe import QUICK

from kit.baselines.models import baseline_run_name
from kit.cli.main import main
from kit.errors import KitError
from kit.predictions import read_predictions, write_predictions

ROOT = Path(__file__).parents[2]

# Options of `kit ensemble` for fitting, and those for weights by hand.
BLEND_OPTIONS = (
    ("--fit", "x.csv"),
    ("--weights", "1"),
    ("--method", "mean"),
    ("--truth", "t.csv"),
    ("--subset",),
    ("--save", "s.json"),
)


def list_commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    """Return every command and group by what a user types after `kit`."""
    commands: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        commands[f"{prefix}{name}"] = command
        if isinstance(command, click.Group):
            commands |= list_commands(command, f"{prefix}{name} ")
    return commands


COMMANDS = list_commands(main)
LEAVES = [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)]


def kit(*arguments: object) -> Result:
    """Run a command in this process, so that a test can replace functions of kit."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_has_a_summary_and_an_example(name: str):
    result = kit(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"kit {name}" in result.output.partition("Example:")[2]
    summary = COMMANDS[name].get_short_help_str(200)
    assert re.fullmatch(r"[A-Z][^.]*\.?", summary), "one imperative sentence"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_line_of_a_help_is_wider_than_80_columns(name: str):
    shown = CliRunner().invoke(main, [*name.split(), "--help"], terminal_width=80).output
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_a_json_option(name: str):
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str):
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str):
    assert f"kit {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_commands_come_in_pipeline_order():
    listing = kit("--help").output.partition("Commands:")[2].strip()
    order = [line.split()[0] for line in listing.splitlines()]
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
        "report",
        "kernels",
        "submit",
        "submissions",
        "demo",
    ]
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


def test_wrong_usage_exits_with_2():
    assert kit("score").exit_code == 2
    assert kit("train", "--no-such-option").exit_code == 2
    assert kit("ensemble", "a.csv", "-o", "b.csv", "--weights", "one").exit_code == 2


def test_an_error_of_the_system_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "train.csv"))

    monkeypatch.setattr("kit.sample.generate.write_sample", fail)
    result = kit("sample", "--out", tmp_path)
    assert result.exit_code == 1
    assert "train.csv: No space left on device" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["runs", "list"], "`kit runs` alone lists the runs."),
        (["sweep", "list"], "`kit sweep show` lists the sweeps."),
    ],
)
def test_a_command_list_that_is_not_there_is_answered_with_the_one_that_lists(
    arguments: list[str], answer: str
):
    result = kit(*arguments)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: No such command 'list': {answer}\n")


def test_a_baseline_shows_the_columns_that_it_fills_and_what_is_next(data: Path, tmp_path: Path):
    assert "tfidf" in kit("baseline", "--help").output.partition("Options:")[0].partition("\n\n")[2]
    result = kit("baseline", "prior", "--data", data, "--runs", tmp_path)
    assert re.search(r"fold +log loss +accuracy +minutes\n", result.stdout)
    assert result.stderr.endswith(f"Next: kit report {tmp_path}/* --data {data}\n")


def test_parameters_of_toys_are_shown_in_millions():
    shown = kit("backbones").stdout
    assert "0.00B" not in shown
    assert re.search(r"tiny-qwen +0\.[0-9]M +0\.[0-9]M", shown)


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
    other = raw / "sample_submission.csv"
    refused = kit("ensemble", source, other, "-o", target)
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    assert target.read_bytes() == before
    assert kit("ensemble", source, "-o", target, "--force").exit_code == 0
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
def test_with_json_the_output_is_only_json(
    arguments: list[str], raw: Path, data: Path, tmp_path: Path
):
    filled = [argument.format(raw=raw, data=data, tmp=tmp_path) for argument in arguments]
    result = kit(*filled, "--json")
    assert result.exit_code == 0, result.output
    json.loads(result.stdout)


@pytest.mark.parametrize("command", ["calibrate {b} {t}", "ensemble --fit {b} --fit {s} {t}"])
def test_a_fit_warns_if_the_truth_does_not_tell_which_rows_share_a_prompt(
    command: str, raw: Path, data: Path, tmp_path: Path
):
    rows = pd.read_parquet(data / "train.parquet")
    bayes = read_predictions(raw / "bayes.csv").set_index("id").loc[rows["id"]].reset_index()
    files = {name: tmp_path / f"{name}.csv" for name in "bs"}
    write_predictions(bayes, files["b"])
    write_predictions(bayes[::-1], files["s"])

    for truth, is_warned in ((raw / "train.csv", True), (data / "train.parquet", False)):
        result = kit(*command.format(**files, t=f"--truth {truth} --subset").split())
        assert result.exit_code == 0, result.stderr
        warning = f"{truth} does not tell which rows share a prompt"
        assert (warning in result.stderr) == is_warned


def test_validate_exits_with_1_and_lists_every_problem(tmp_path: Path, raw: Path):
    lines = (raw / "sample_submission.csv").read_text().splitlines()
    lines[3] = lines[3].replace("0.3333333333333333", "0.9", 1)
    del lines[5]
    (tmp_path / "bad.csv").write_text("\n".join(lines) + "\n")

    result = kit("validate", tmp_path / "bad.csv", "--sample", raw / "sample_submission.csv")
    assert result.exit_code == 1
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem:")]
    assert any("row 4" in line for line in problems)
    assert any("59 rows" in line for line in problems)


def test_validate_says_only_that_a_missing_file_cannot_be_read(tmp_path: Path):
    result = kit("validate", tmp_path / "none.csv")
    assert result.exit_code == 1
    assert "No such file" in result.output
    assert "warning" not in result.output


def test_an_unknown_recipe_key_is_blamed_on_the_option():
    result = kit("train", "--backbone", "tiny-electra", "--set", "lr=1e-4")
    assert result.exit_code == 1
    assert "Error: --set lr=1e-4: unknown key lr\n  Did you mean train.lr?" in result.stderr


def test_a_trained_run_predicts_and_its_predictions_are_not_overwritten(data: Path, tmp_path: Path):
    overrides = (*QUICK, "train.max_steps=2")
    settings = [argument for override in overrides for argument in ("--set", override)]
    folders = ("--data", data, "--runs", tmp_path)
    trained = kit("train", "--backbone", "tiny-electra", *folders, *settings, "--json")
    assert trained.exit_code == 0, trained.stderr
    run = json.loads(trained.stdout)["run"]

    predicted = kit("predict", run, "--data", data)
    assert predicted.exit_code == 0, predicted.stderr
    assert (Path(run) / "test.csv").is_file()
    assert f"Next: kit validate {run}/test.csv" in predicted.stderr

    # Several runs can be blended, but not a file elsewhere.
    other = Path(run).with_name("other")
    other.mkdir()
    (other / "test.csv").write_bytes((Path(run) / "test.csv").read_bytes())
    again = kit("predict", run, "--data", data, "--force")
    assert f"Next: kit ensemble {tmp_path}/*/test.csv -o" in again.stderr
    elsewhere = kit("predict", run, "--data", data, "-o", tmp_path / "full.csv")
    assert f"Next: kit validate {tmp_path / 'full.csv'}" in elsewhere.stderr
    assert kit("predict", run, "--data", data).exit_code == 1


def test_predict_refuses_input_with_split_or_without_out():
    assert kit("predict", "run", "--split", "test", "--input", "x", "-o", "y").exit_code == 2
    assert kit("predict", "run", "--input", "x.csv").exit_code == 2


@pytest.mark.parametrize(
    "command",
    [["validate"], ["score", "--truth", "{raw}/truth.csv"], ["ensemble", "-o", "{tmp}/o.csv"]],
)
def test_commands_on_predictions_do_not_load_torch(command: list[str], raw: Path, tmp_path: Path):
    arguments = [argument.format(raw=raw, tmp=tmp_path) for argument in command]
    arguments.append(str(raw / "sample_submission.csv"))
    code = (
        "import sys, kit.cli.main\n"
        f"kit.cli.main.main({arguments!r}, standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr


@pytest.fixture(scope="module")
def baselines(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of two baselines with out-of-fold and test predictions."""
    runs = tmp_path_factory.mktemp("runs")
    for name in ("length", "prior"):
        done = kit("baseline", name, "--data", data, "--runs", runs, "--fold", "all")
        assert done.exit_code == 0, done.stderr
        assert "out-of-fold" in done.stdout
    return [runs / baseline_run_name("length"), runs / baseline_run_name("prior")]


def test_a_fitted_blend_is_saved_and_applied(baselines: list[Path], data: Path, tmp_path: Path):
    files = [run / "test.csv" for run in baselines]
    fit = fit_options(baselines)
    truth = ("--truth", data / "train.parquet")
    blend = tmp_path / "blend.json"
    fitted = kit("ensemble", *files, *fit, *truth, "-o", tmp_path / "fitted.csv", "--save", blend)
    assert fitted.exit_code == 0, fitted.stderr
    assert f"Next: kit validate {tmp_path / 'fitted.csv'}" in fitted.stderr
    assert baseline_run_name("length") in fitted.stdout

    # Members are found by name, so their order is free.
    arguments = (*reversed(files), "--apply", blend, "-o", tmp_path / "applied.csv")
    applied = kit("ensemble", *arguments)
    assert applied.exit_code == 0, applied.stderr
    first, second = (
        read_predictions(tmp_path / f"{name}.csv").set_index("id").sort_index()
        for name in ("fitted", "applied")
    )
    pd.testing.assert_frame_equal(first, second, rtol=0, atol=1e-12)


def fit_options(runs: list[Path]) -> list[object]:
    """Return `--fit RUN/oof.csv` for each run."""
    return [argument for run in runs for argument in ("--fit", run / "oof.csv")]


def test_a_fit_is_not_saved_if_its_predictions_cannot_be_made(
    baselines: list[Path], data: Path, tmp_path: Path
):
    truth = ("--truth", data / "train.parquet")
    save = tmp_path / "saved.json"
    fit = fit_options(baselines)
    for arguments in (
        ["ensemble", *fit, tmp_path / "missing.csv", "-o", tmp_path / "o.csv"],
        ["ensemble", *fit, baselines[0] / "oof.csv", "-o", tmp_path],
        ["calibrate", baselines[0] / "oof.csv", "-o", tmp_path],
    ):
        assert kit(*arguments, *truth, "--save", save).exit_code == 1
        assert not save.exists()

    unknown = tmp_path / "unknown.csv"
    unknown.write_bytes((baselines[0] / "test.csv").read_bytes())
    refused = kit("ensemble", *fit, *truth, unknown, "-o", tmp_path / "o.csv", "--save", save)
    assert refused.exit_code == 1
    assert "does not know unknown" in refused.stderr
    assert not save.exists()


def test_a_fit_warns_about_files_outside_a_run_folder(
    baselines: list[Path], data: Path, tmp_path: Path
):
    truth = ("--truth", data / "train.parquet")
    known = baselines[0] / "oof.csv"
    other = tmp_path / "other_folds.csv"
    other.write_bytes((baselines[1] / "oof.csv").read_bytes())
    for arguments in (["ensemble", "--fit", known, "--fit", other], ["calibrate", other]):
        done = kit(*arguments, *truth)
        assert done.exit_code == 0, done.stderr
        assert "other_folds.csv is not in a run folder" in done.stderr
        assert "oof.csv is not in a run folder" not in done.stderr


def test_predictions_that_a_run_lacks_are_answered_with_the_command_that_makes_them(
    data: Path, tmp_path: Path
):
    assert kit("baseline", "prior", "--data", data, "--runs", tmp_path).exit_code == 0
    run = tmp_path / baseline_run_name("prior")
    (run / "test.csv").unlink(missing_ok=True)
    truth = ("--truth", data / "train.parquet")

    fit = kit("ensemble", "--fit", run / "oof.csv", *truth)
    assert "kit baseline prior --fold all" in fit.stderr
    assert "kit baseline prior --fold all" in kit("calibrate", run, *truth).stderr
    assert f"kit predict {run}" in kit("score", run / "test.csv", *truth).stderr


def test_a_calibration_is_saved_and_applied(
    baselines: list[Path], data: Path, raw: Path, tmp_path: Path
):
    oof = baselines[0] / "oof.csv"
    saved = tmp_path / "saved.json"
    fit = ("--truth", data / "train.parquet", "--method", "temperature")
    done = kit("calibrate", oof, *fit, "--save", saved, "-o", tmp_path / "oof.csv")
    assert done.exit_code == 0, done.stderr
    assert "cross-fitted" in done.stdout
    calibrated = read_predictions(tmp_path / "oof.csv")
    assert sorted(calibrated["id"]) == sorted(read_predictions(oof)["id"])

    test = tmp_path / "test.csv"
    applied = kit("calibrate", baselines[0] / "test.csv", "--apply", saved, "-o", test)
    assert applied.exit_code == 0, applied.stderr
    validated = kit("validate", test, "--sample", raw / "sample_submission.csv")
    assert validated.exit_code == 0, validated.output


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
def test_incomplete_or_contradictory_options_are_wrong_usage(arguments: list[str]):
    assert kit(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "first", "second"),
    [
        *(
            (["ensemble", "a.csv", "--apply", "b.json", *more, "-o", "c.csv"], "--apply", more[0])
            for more in BLEND_OPTIONS
        ),
        *(
            (["ensemble", "a.csv", *more, "-o", "c.csv"], "--fit", more[0])
            for more in BLEND_OPTIONS[3:]
        ),
        *(
            (["calibrate", "a.csv", "--apply", "b.json", *more, "-o", "c.csv"], "--apply", more[0])
            for more in BLEND_OPTIONS[3:]
        ),
        (
            ["calibrate", "a.csv", "--apply", "b.json", "--method", "bias", "-o", "c.csv"],
            "--apply",
            "--method",
        ),
        *(
            (["ensemble", "--fit", "a.csv", "--truth", "t.csv", *more], "--fit", more[0])
            for more in BLEND_OPTIONS[1:3]
        ),
        (
            ["ensemble", "a.csv", "--method", "mean", "--weights", "1", "-o", "c.csv"],
            "--method mean",
            "--weights",
        ),
    ],
    ids=str,
)
def test_an_option_without_effect_is_refused_and_the_message_names_both(
    arguments: list[str], first: str, second: str
):
    refused = kit(*arguments)
    assert refused.exit_code == 2
    message = refused.stderr.partition("Error: ")[2]
    assert first in message
    assert second in message


@pytest.mark.parametrize(
    "arguments",
    [
        ["calibrate", "a.csv", "--truth", "b.csv"],
        ["ensemble", "a.csv", "--fit", "a.csv", "--truth", "b.csv"],
    ],
    ids=["calibrate", "ensemble"],
)
def test_save_and_out_must_be_different_files(arguments: list[str], tmp_path: Path):
    (tmp_path / "sub").mkdir()
    save = tmp_path / "x.json"
    same = tmp_path / "sub" / ".." / "x.json"
    refused = kit(*arguments, "--save", save, "-o", same, "--force")
    assert refused.exit_code == 2
    assert "--save and -o name the same file" in refused.stderr


def test_a_prediction_that_cannot_be_written_is_refused_before_it_is_made(tmp_path: Path):
    command = ["predict", str(tmp_path / "no-such-run"), "--force", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "is a directory" in result.stderr


def test_a_backbone_folder_that_is_not_there_is_said_to_be_none(data: Path, tmp_path: Path):
    for name in (tmp_path / "nothing", "microsoft/deberta-v3-base"):
        command = ["train", "--backbone", str(name), "--data", str(data)]
        result = CliRunner().invoke(main, [*command, "--runs", str(tmp_path / "runs")])
        assert result.exit_code == 1
        assert f"no backbone {str(name)!r}" in result.stderr or f"no folder {name}" in result.stderr
