"""Check what a report compares: which rows, which models, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from made_runs import make_run

import kit
from kit.baselines.models import baseline_run_name
from kit.baselines.run import run_baseline
from kit.cli.main import main
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.errors import DataError, RunError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.reporting.markdown import render_markdown
from kit.reporting.report import build_report
from kit.reporting.rows import choose_parts, name_parts

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

    assert names(trained, uniform, prior) == [
        trained.name,
        baseline_run_name("uniform"),
        baseline_run_name("prior"),
    ]
    assert names(prior) == ["uniform", baseline_run_name("prior")]
    (uniform / "test.csv").unlink()
    assert names(trained, uniform) == [
        "uniform",
        "class prior",
        trained.name,
        baseline_run_name("uniform"),
    ]


def test_test_predictions_of_other_models_are_left_out_and_named(
    processed: Dataset, raw: Path, tmp_path: Path
):
    path = make_run(tmp_path, processed, parts=FOLDS)
    run = kit.Run.open(path)
    run.write_test(read_predictions(run.test_path), [run.fold(0)])
    words = ["report", path, "--data", processed.folder, "--truth", raw / "truth.csv", "--json"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "is of fold0, and now the models of fold0, fold1, fold2 predict" in result.stderr
    assert f"Next: kit predict {path}" in result.stderr
    assert build_report([path], processed.folder, truth=raw / "truth.csv").main_rows != "test"


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


def test_runs_of_other_parts_form_groups_by_the_rows_they_share(processed: Dataset, tmp_path: Path):
    whole = [make_run(tmp_path, processed, seed, parts=FOLDS) for seed in range(2)]
    begun = make_run(tmp_path, processed, 2, parts=(0,))
    holdout = make_run(tmp_path, processed, 3)
    report = build_report([*whole, begun, holdout], processed.folder)
    assert report.inputs.validation == "out-of-fold"
    assert set(report.ranking) == {run.name for run in whole}

    # The rows of fold 0 are compared with all that have them, the holdout's with nothing.
    names = {group.inputs.validation: set(group.ranking) for group in report.groups}
    assert names == {"fold 0": {begun.name, *report.ranking}, "holdout": {holdout.name}}
    for group in report.groups:
        rows = group.inputs.rows["valid"]
        part = "holdout" if rows.name == "holdout" else 0
        ids = processed.train(["id"])["id"].to_numpy()[processed.fold_rows(part)[1]]
        assert sorted(rows.ids) == sorted(ids)

    # The messages say which table they are in, and each table which rows it is about.
    sentences = [each.describe() for each in report.comparison.left_out]
    fold, held = (len(processed.fold_rows(part)[1]) for part in (0, "holdout"))
    assert sentences[0].startswith(
        f"{begun.name} is compared apart, on {fold} rows of fold 0: it has predicted fold 0 and not"
    )
    assert sentences[1].startswith(
        f"{holdout.name} is compared apart, on {held} holdout rows: it has predicted the holdout"
    )
    runs = [str(run) for run in (*whole, begun, holdout)]
    shown = CliRunner().invoke(main, ["report", *runs, "--data", str(processed.folder)])
    # Each table begins with its title; the last line is the answer.
    titles = [line for line in shown.stdout.splitlines()[:-1] if line.strip() == line != ""]
    every = f"{len(processed.train())} out-of-fold rows"
    assert titles[0] == f"{every}; intervals resample prompts"
    assert titles[1].startswith(f"{every}, the best is ")
    assert set(titles[2:]) == {
        f"Compared apart: {fold} rows of fold 0",
        f"Compared apart: {held} holdout rows",
    }
    assert "left out" not in shown.stderr

    reasons = {each.name: each.reason for each in report.comparison.left_out}
    assert reasons.keys() == {begun.name, holdout.name}
    assert "has predicted fold 0 and not the out-of-fold rows" in reasons[begun.name]
    assert reasons[begun.name].endswith("--fold all")


def test_runs_of_one_fold_are_compared_on_it(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, parts=(0,)) for seed in range(3)]
    runs.append(make_run(tmp_path, processed, 3, parts=FOLDS))
    report = build_report(runs, processed.folder)
    assert report.inputs.validation == "fold 0"
    assert set(report.ranking) == {run.name for run in runs}
    assert report.groups == ()
    assert build_report(runs[:1], processed.folder).inputs.validation == "fold 0"


@pytest.mark.parametrize(
    ("predicted", "chosen"),
    [
        ([], "out-of-fold"),
        (["012", "012h", "h"], "out-of-fold"),
        (["012h", "h", "h"], "holdout"),
        (["0", "0", "h"], "fold 0"),
        (["01", "012", "0"], "fold 0"),
        (["01", "01", "2"], "folds 0 and 1"),
        (["012", "012", "0"], "out-of-fold"),
    ],
)
def test_the_rows_of_most_models_are_chosen(predicted: list[str], chosen: str):
    parts = [
        {"holdout" if letter == "h" else f"fold{letter}" for letter in letters}
        for letters in predicted
    ]
    assert name_parts(choose_parts(parts, 3), 3) == chosen


def test_runs_of_other_data_are_listed_and_not_compared(
    processed: Dataset, raw: Path, tmp_path: Path
):
    run = make_run(tmp_path / "here", processed)
    preprocess_files(raw, tmp_path / "other", folds=4, valid=0.3)
    foreign = make_run(tmp_path / "there", open_dataset(tmp_path / "other"), 1)
    report = build_report([run, foreign], processed.folder)
    assert report.ranking == (run.name,)
    (found,) = report.inputs.foreign
    assert (found.name, found.losses) == (foreign.name, {"holdout": 1.0})
    assert foreign.name in render_markdown(report)
    with pytest.raises(RunError, match="different data"):
        build_report([foreign], processed.folder)


def test_files_with_a_truth_need_no_data_folder(raw: Path, tmp_path: Path):
    ids = pd.read_csv(raw / "truth.csv")["id"].to_numpy()
    generator = np.random.default_rng(0)
    frames = []
    for name, count in (("a", 60), ("b", 60), ("part", 20)):
        probabilities = generator.dirichlet([1, 1, 1], count)
        write_predictions(make_predictions(ids[:count], probabilities), tmp_path / f"{name}.csv")
        frames += ["--frame", f"{name}={tmp_path / name}.csv"]
    nothing = ["--data", str(tmp_path / "nothing"), "--truth", str(raw / "truth.csv"), "--json"]
    shown = CliRunner().invoke(main, ["report", *frames, *nothing])
    assert shown.exit_code == 0, shown.output
    content = json.loads(shown.stdout)
    assert content["validation"] == "labelled"
    losses = {line["name"]: line["valid"] for line in content["lines"]}
    assert losses["a"]["rows"] == losses["b"]["rows"] == 60
    scored = kit.score(tmp_path / "a.csv", raw / "truth.csv")
    assert losses["a"]["log_loss"] == pytest.approx(scored.log_loss)
    (group,) = content["groups"]
    assert {line["name"]: line["valid"]["rows"] for line in group["lines"]}["part"] == 20
    assert [each["name"] for each in content["left_out"]] == ["part"]

    shown = CliRunner().invoke(main, ["report", *frames, *nothing[:-1]])
    title = "60 rows of the truth file; intervals resample rows, as prompts are unknown"
    assert shown.stdout.splitlines()[0] == title
    assert "Compared apart: 20 rows of the truth file\n" in shown.stdout
    assert shown.stderr == (
        "part is compared apart, on 20 rows of the truth file: "
        "its rows are not the 60 of the first table\n"
    )


def test_intervals_say_whether_they_resample_prompts_or_rows(
    processed: Dataset, raw: Path, tmp_path: Path
):
    """The same file and labels have other intervals where prompts are known, with a reason."""
    frames = [("a", make_run(tmp_path, processed) / "test.csv")]
    truth = raw / "truth.csv"
    by_prompts, by_rows = (
        build_report([], folder, frames=frames, truth=truth)
        for folder in (processed.folder, tmp_path / "nothing")
    )
    figures = by_prompts.answer.figures, by_rows.answer.figures
    assert figures[0].log_loss == pytest.approx(figures[1].log_loss)
    assert (figures[0].low, figures[0].high) != (figures[1].low, figures[1].high)

    resampled = [report.as_dict()["resampled"] for report in (by_prompts, by_rows)]
    assert resampled == ["prompts", "rows"]
    pages = [render_markdown(report) for report in (by_prompts, by_rows)]
    assert "1,000 random resamples of the prompts, and" in pages[0]
    assert "1,000 random resamples of the rows, and" in pages[1]
    assert ["does not tell which rows share a prompt" in page for page in pages] == [False, True]
    assert [page.count("same resamples of the prompts") for page in pages] == [1, 0]

    # A truth that has prompt groups, as a processed table has, resamples them without the folder.
    table = processed.folder / "train.parquet"
    oof = make_run(tmp_path / "folds", processed, parts=FOLDS) / "oof.csv"
    report = build_report([], tmp_path / "nothing", frames=[("a", oof)], truth=table)
    assert report.comparison.resampled == "prompts"
