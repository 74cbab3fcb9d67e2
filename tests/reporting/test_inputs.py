"""Check what a report compares: which rows, which models, and what is refused."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from made_runs import make_run

from kit.baselines.run import run_baseline
from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.errors import DataError, RunError
from kit.predictions import read_predictions, write_predictions
from kit.reporting.report import build_report

FOLDS = (0, 1, 2)
BOTH = ("holdout", *FOLDS)


def test_a_baseline_run_replaces_its_reference(processed: Dataset, raw: Path, tmp_path: Path):
    uniform, prior = (
        Path(run_baseline(name, processed.folder, tmp_path)["run"]) for name in ("uniform", "prior")
    )
    trained = make_run(tmp_path, processed)

    def names(*runs: Path) -> list[str]:
        report = build_report(runs, processed.folder, truth=raw / "truth.csv")
        return [line.name for line in report.comparison.lines if line.name != "Bayes floor"]

    assert names(trained, uniform, prior) == [trained.name, "baseline-uniform", "baseline-prior"]
    assert names(prior) == ["uniform", "baseline-prior"]
    (uniform / "test.csv").unlink()
    assert names(trained, uniform) == ["uniform", "class prior", trained.name, "baseline-uniform"]


def test_the_main_rows_are_those_of_most_models(processed: Dataset, raw: Path, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, test=seed == 0) for seed in range(2)]
    truth = raw / "truth.csv"
    assert build_report(runs, processed.folder, truth=truth).main_rows == "holdout"
    assert build_report(runs[:1], processed.folder, truth=truth).main_rows == "test"


def test_a_truth_of_other_rows_is_refused(processed: Dataset, raw: Path, tmp_path: Path):
    run = make_run(tmp_path, processed)
    lines = (raw / "truth.csv").read_text().splitlines(keepends=True)
    lacking = tmp_path / "lacking.csv"
    lacking.write_text("".join(lines[:-2]))
    unknown = tmp_path / "unknown.csv"
    unknown.write_text("".join([*lines, "1,1,0,0\n"]))

    ids = ", ".join(line.split(",")[0] for line in lines[-2:])
    with pytest.raises(DataError, match=rf"lacking\.csv .*2 ids \({ids}\).* test\.csv"):
        build_report([run], processed.folder, truth=lacking)
    with pytest.raises(DataError, match=r"unknown\.csv has 1 id \(1\).* test\.csv"):
        build_report([run], processed.folder, truth=unknown)


def test_a_run_counts_once_and_runs_of_one_name_differ_by_folder(
    processed: Dataset, tmp_path: Path
):
    first, second = (make_run(tmp_path / place, processed) for place in ("first", "second"))
    report = build_report([first, first, second], processed.folder)
    names = [line.name for line in report.comparison.lines]
    assert names[-2:] == [f"first/{first.name}", f"second/{second.name}"]


def test_two_models_of_one_name_are_refused(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    test = run / "test.csv"
    with pytest.raises(DataError, match="two models are called 'uniform'"):
        build_report([run], processed.folder, frames=[("uniform", test)])
    copy = Path(shutil.copy(test, tmp_path / "copy.csv"))
    with pytest.raises(DataError, match="the same rows as another file of this name"):
        build_report([run], processed.folder, frames=[("x", test), ("x", copy)])


def test_a_file_under_two_names_is_refused_and_a_copy_is_not(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    test = run / "test.csv"
    link = tmp_path / "link.csv"
    link.symlink_to(test)
    for again in (test, link, run / ".." / run.name / "test.csv"):
        with pytest.raises(DataError, match="are the same file"):
            build_report([run], processed.folder, frames=[("a", test), ("b", again)])

    # A blend in which one member has all the weight predicts what that member does.
    copy = Path(shutil.copy(test, tmp_path / "copy.csv"))
    build_report([run], processed.folder, frames=[("a", test), ("b", copy)])


def test_a_frame_is_matched_by_id(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    frame = read_predictions(run / "holdout" / "valid.csv")
    write_predictions(frame.iloc[::-1], tmp_path / "reversed.csv")
    frames = [("reversed", tmp_path / "reversed.csv")]
    report = build_report([run], processed.folder, frames=frames)
    assert report.comparison.lines[-1].valid == report.comparison.lines[-2].valid
    assert report.significance[0].pair("reversed", run.name).verdict == "can't tell"
    assert report.correlation.values[0][1] == pytest.approx(1)


def test_out_of_fold_rows_are_preferred_to_the_holdout(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path / "both", processed, seed, parts=BOTH) for seed in range(2)]
    report = build_report(runs, processed.folder)
    note = "Compared on out-of-fold rows; every run has a holdout too."
    assert report.inputs.validation == "out-of-fold"
    assert report.comparison.note == note
    shown = CliRunner().invoke(main, ["report", *map(str, runs), "--data", str(processed.folder)])
    assert shown.stderr.splitlines()[-1] == note

    # One run without a holdout: there is nothing else to compare on, and nothing to note.
    folds = make_run(tmp_path / "folds", processed, 2, parts=FOLDS)
    assert build_report([*runs, folds], processed.folder).comparison.note == ""

    # A run or a frame of the holdout alone decides for it.
    holdout = make_run(tmp_path / "holdout", processed, 3)
    assert build_report([*runs, holdout], processed.folder).inputs.validation == "holdout"
    frames = [("mean", runs[0] / "holdout" / "valid.csv")]
    report = build_report(runs, processed.folder, frames=frames)
    assert report.inputs.validation == "holdout"


def test_the_error_for_no_common_rows_names_the_next_command(processed: Dataset, tmp_path: Path):
    whole = make_run(tmp_path, processed, 0, parts=FOLDS)
    begun = make_run(tmp_path, processed, 1, parts=(0, 1))
    holdout = make_run(tmp_path, processed, 2)
    for runs, problem, hint in (
        ([whole, begun], "not finished every fold", "--fold all`, or leave it out."),
        ([begun], "not finished every fold", "--fold all`."),
        ([holdout, begun], "not finished the holdout", "holdout`, or every fold of each run."),
    ):
        with pytest.raises(RunError, match=problem) as caught:
            build_report(runs, processed.folder)
        assert str(begun) in caught.value.problem
        assert caught.value.hint.endswith(hint)
