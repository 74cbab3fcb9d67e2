"""Whatever a user brings together: one run or ten, folds or a holdout, with truth or without, the report is whole."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import make_run
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.cli.main import main
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensemble import blend as blends
from kit.errors import DataError, KitError, RunError
from kit.evaluation.metrics import row_losses
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.report import slices
from kit.report.export import write_report
from kit.report.html import render_html
from kit.report.markdown import render_markdown
from kit.report.report import build_report


def written(found) -> Page:
    """The page, which must parse; the JSON and the Markdown must be possible too."""
    json.dumps(found.as_dict(), allow_nan=False)
    assert render_markdown(found)
    return Page(render_html(found))


def test_one_run_without_test_predictions(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed, test=False)
    page = written(build_report([run], processed.folder))
    assert "Correlation between models" not in page.text
    assert "Where models disagree most" not in page.text
    table = page.tables["All models"]
    assert not any("test" in title for title in table.rows[0])
    assert (
        len(page.tables[f"Against the best on holdout rows, {run.name}"].rows) == 2
    )  # the class prior


def test_the_facts_say_which_rows_a_model_has_taught(processed: Dataset, raw: Path, tmp_path: Path):
    ids = processed.train(["id"])["id"].to_numpy()
    write_predictions(
        make_predictions(ids, np.random.default_rng(0).dirichlet([1, 1, 1], len(ids))),
        tmp_path / "oof.csv",
    )
    preprocess_files(raw, tmp_path / "soft", folds=3, valid=0.2, soft_labels=[tmp_path / "oof.csv"])
    soft = open_dataset(tmp_path / "soft")
    told = f"soft labels: {len(ids)} rows, by models that may have seen validation labels"
    assert told in render_markdown(build_report([make_run(tmp_path / "one", soft)], soft.folder))
    assert "soft labels" not in render_markdown(
        build_report([make_run(tmp_path / "two", processed)], processed.folder)
    )


def test_runs_of_all_folds_show_a_curve_of_each_fold(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, parts=(0, 1, 2)) for seed in range(2)]
    found = build_report(runs, processed.folder)
    assert found.main == "out-of-fold"
    page = written(found)
    assert [row[1] for row in page.tables["Trained parts"].rows[1:]] == [
        "fold0",
        "fold1",
        "fold2",
    ] * 2
    line = found.comparison.lines[-1]
    sizes = [len(processed.fold_rows(fold)[1]) for fold in range(3)]
    assert line.swap_gap == pytest.approx(np.average([0.01, 0.02, 0.03], weights=sizes))
    assert line.minutes == pytest.approx(4.5)


def test_baselines_alone_have_no_learning_curves(processed: Dataset, tmp_path: Path):
    runs = [run_baseline(name, processed.folder, tmp_path)["run"] for name in ("length", "prior")]
    found = build_report(runs, processed.folder)
    page = written(found)
    assert "Learning curves" not in page.text
    assert found.comparison.lines[-2].swap_gap == pytest.approx(0, abs=1e-6)
    prior = found.evidence.models[-1].predictions["valid"][0]
    assert found.comparison.lines[-1].swap_gap == pytest.approx(2 * abs(prior[0] - prior[1]) / 3)
    row = next(
        row
        for row in page.tables["Correlation of predictions on the holdout rows"].rows
        if "prior" in row[0]
    )
    assert set(row[1:]) == {"constant"}


def test_a_baseline_run_stands_for_the_reference_that_it_is(
    processed: Dataset, raw: Path, tmp_path: Path
):
    uniform, prior = (
        Path(run_baseline(name, processed.folder, tmp_path)["run"]) for name in ("uniform", "prior")
    )
    trained, truth = make_run(tmp_path, processed), raw / "truth.csv"

    def names(*runs: Path) -> list[str]:
        found = build_report(runs, processed.folder, truth=truth)
        written(found)
        return [line.name for line in found.comparison.lines if line.name != "Bayes floor"]

    assert names(trained, uniform, prior) == [trained.name, "baseline-uniform", "baseline-prior"]
    assert names(prior) == ["uniform", "baseline-prior"]
    (uniform / "test.csv").unlink()
    assert names(trained, uniform) == ["uniform", "class prior", trained.name, "baseline-uniform"]


def test_test_rows_without_labels_are_shown_but_not_scored(processed: Dataset, tmp_path: Path):
    found = build_report(
        [make_run(tmp_path, processed, seed) for seed in range(2)], processed.folder
    )
    assert [case.rows for case in found.cases] == ["holdout"] * 8 + ["test"] * 3
    assert {case.label for case in found.cases[8:]} == {None}
    page = written(found)
    assert f"test row {found.cases[-1].id}" in page.text
    assert page.text.count("True class:") == 8


def test_ten_runs_and_their_ninety_pairs(processed: Dataset, raw: Path, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed / 3) for seed in range(10)]
    found = build_report(runs, processed.folder, truth=raw / "truth.csv")
    for each in found.significance:
        assert len(each.pairs) == 11 * 10
        losses = [line for line in found.comparison.lines if line.name in each.models]
        split = "valid" if each.rows == "holdout" else "test"
        assert list(each.models) == [
            x.name for x in sorted(losses, key=lambda line: getattr(line, split).log_loss)
        ]
    text = render_html(found)
    Page(text)
    assert len(text) < 1_500_000


def test_the_main_rows_are_those_of_most_models(processed: Dataset, raw: Path, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, test=seed == 0) for seed in range(2)]
    assert build_report(runs, processed.folder, truth=raw / "truth.csv").main == "holdout"
    assert build_report(runs[:1], processed.folder, truth=raw / "truth.csv").main == "test"


def test_a_truth_of_some_test_rows_is_refused_before_any_frame(
    processed: Dataset, raw: Path, tmp_path: Path
):
    lines = (raw / "truth.csv").read_text().splitlines(keepends=True)
    lacking, unknown = tmp_path / "lacking.csv", tmp_path / "unknown.csv"
    lacking.write_text("".join(lines[:-2]))
    unknown.write_text("".join([*lines, "1,1,0,0\n"]))
    ids = ", ".join(line.split(",")[0] for line in lines[-2:])
    with pytest.raises(DataError, match=rf"lacking\.csv lacks 2 ids \({ids}\) of test\.csv"):
        build_report([make_run(tmp_path, processed)], processed.folder, truth=lacking)
    with pytest.raises(
        DataError, match=r"unknown\.csv has 1 id \(1\) that test\.csv does not have"
    ):
        build_report([make_run(tmp_path, processed)], processed.folder, truth=unknown)


def test_a_run_named_twice_counts_once_and_namesakes_are_told_apart(
    processed: Dataset, tmp_path: Path
):
    one, other = (make_run(tmp_path / place, processed) for place in ("first", "second"))
    names = [
        line.name for line in build_report([one, one, other], processed.folder).comparison.lines
    ]
    assert names[-2:] == [f"first/{one.name}", f"second/{one.name}"]


def test_two_models_of_one_name_are_refused(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    with pytest.raises(DataError, match="two models are called 'uniform'"):
        build_report([run], processed.folder, frames=[("uniform", run / "test.csv")])
    with pytest.raises(DataError, match="of the same rows as another file"):
        build_report(
            [run], processed.folder, frames=[("x", run / "test.csv"), ("x", run / "test.csv")]
        )


def test_a_pair_is_the_difference_of_the_two_losses(processed: Dataset, tmp_path: Path):
    found = build_report(
        [make_run(tmp_path, processed, seed, skill=seed) for seed in range(2)], processed.folder
    )
    rows, (bad, good) = found.evidence.rows["valid"], found.evidence.models[-2:]
    gap = row_losses(bad.predictions["valid"], rows.labels) - row_losses(
        good.predictions["valid"], rows.labels
    )
    pair = found.significance[0].pair(bad.name, good.name)
    assert pair.mean == pytest.approx(gap.mean())
    assert pair.low < pair.mean < pair.high
    back = found.significance[0].pair(good.name, bad.name)
    assert (back.mean, back.low, back.high) == pytest.approx((-pair.mean, -pair.high, -pair.low))
    assert {pair.verdict, back.verdict} in ({"worse", "better"}, {"can't tell"})


def test_slices_hold_every_row_once(processed: Dataset, tmp_path: Path):
    found = build_report([make_run(tmp_path, processed)], processed.folder)
    name, rows = found.evidence.models[-1].name, len(found.evidence.rows["valid"].ids)
    for by in ("answer length", "turns", "script"):
        some = [each for each in found.slices if each.by == by]
        assert sum(each.rows for each in some) == rows
        mean = sum(each.rows * each.losses[name].log_loss for each in some) / rows
        assert mean == pytest.approx(found.comparison.lines[-1].valid.log_loss)
        assert all(each.losses[name].low is None for each in some if each.prompts < 6)


def test_slices_are_measured_some_rows_at_a_time(
    processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, processed)
    whole, rows, histogram = build_report([run], processed.folder).slices, [], slices.histogram
    monkeypatch.setattr(slices, "ROWS", 7)
    monkeypatch.setattr(
        slices, "character_histogram", lambda texts: rows.append(len(texts)) or histogram(texts)
    )
    assert build_report([run], processed.folder).slices == whole
    assert max(rows) == 7


def test_confusion_and_bins_hold_every_row_once(processed: Dataset, tmp_path: Path):
    found = build_report([make_run(tmp_path, processed)], processed.folder)
    diagnosis, line = found.diagnosis[0], found.comparison.lines[-1].valid
    assert (
        sum(map(sum, diagnosis.confusion)) == sum(each.rows for each in diagnosis.bins) == line.rows
    )
    assert sum(diagnosis.confusion[k][k] for k in range(3)) / line.rows == pytest.approx(
        line.accuracy
    )
    gap = (
        sum(each.rows * abs(each.confidence - each.accuracy) for each in diagnosis.bins) / line.rows
    )
    assert gap == pytest.approx(line.calibration_error)


def test_cases_are_the_most_disputed_rows_one_of_each_prompt(processed: Dataset, tmp_path: Path):
    found = build_report(
        [make_run(tmp_path, processed, seed) for seed in range(3)], processed.folder
    )
    cases = [case for case in found.cases if case.rows == "holdout"]
    groups = dict(
        zip(found.evidence.rows["valid"].ids, found.evidence.rows["valid"].groups, strict=True)
    )
    assert len({groups[case.id] for case in cases}) == len(cases)
    assert [case.divergence for case in cases] == sorted(
        (case.divergence for case in cases), reverse=True
    )
    table = processed.train().to_pandas().set_index("id")
    for case in cases:
        assert case.texts[1] == tuple(table.loc[case.id, "response_a"])
        assert case.label == table.loc[case.id, "label"]


def test_constants_and_blends_do_not_choose_the_disputed_rows(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed, test=False) for seed in range(2)]
    alone = build_report(runs, processed.folder)
    blends.write_blend(
        blends.Blend((runs[0].name,), (1.0,), "arithmetic"), tmp_path / "b.json", {"method": "mean"}
    )
    constants = [
        Path(run_baseline(name, processed.folder, tmp_path)["run"]) for name in ("uniform", "prior")
    ]
    found = build_report([*runs, *constants], processed.folder, blends=[tmp_path / "b.json"])

    def ranked(some):
        return [(case.id, case.divergence) for case in some.cases if case.rows == "holdout"]

    assert ranked(found) == ranked(alone)
    assert {"baseline-uniform", "b"} <= set(found.cases[0].probabilities)
    one = build_report([runs[0], *constants], processed.folder)
    assert not [case for case in one.cases if case.rows == "holdout"]


def test_the_page_says_what_the_validation_figures_of_blends_are(
    processed: Dataset, raw: Path, tmp_path: Path
):
    runs = [make_run(tmp_path, processed, seed, parts=("holdout", 0, 1, 2)) for seed in range(2)]
    made = blends.Blend(tuple(run.name for run in runs), (0.5, 0.5), "arithmetic")
    blends.write_blend(made, tmp_path / "folds.json", {"method": "arithmetic"})
    blends.write_blend(made, tmp_path / "plain.json", {"method": "mean"})
    files = [tmp_path / "folds.json", tmp_path / "plain.json"]
    page = written(build_report(runs, processed.folder, blends=files))
    assert "plain is applied as it was saved: its weights were not fitted." in page.text
    assert "The validation figures of folds are cross-fitted: the weights" in page.text
    holdout = [("mean", runs[0] / "holdout" / "valid.csv")]
    found = build_report(
        runs, processed.folder, blends=files, frames=holdout, truth=raw / "truth.csv"
    )
    page = written(found)
    assert (
        "folds has no validation figures: its weights may have seen these labels, and " in page.text
    )
    assert "cross-fitted: the weights" not in page.text
    held, test = found.significance
    assert "folds" not in held.models
    assert "folds" in test.models


def test_out_of_fold_rows_come_before_the_holdout_where_all_runs_have_both(
    processed: Dataset, tmp_path: Path
):
    both = [
        make_run(tmp_path / "both", processed, seed, parts=("holdout", 0, 1, 2))
        for seed in range(2)
    ]
    found = build_report(both, processed.folder)
    assert found.evidence.validation == "out-of-fold"
    note = "Compared out of fold; each run has a holdout too."
    assert note in written(found).text
    shown = CliRunner().invoke(main, ["report", *map(str, both), "--data", str(processed.folder)])
    assert shown.stderr.splitlines()[-1] == note
    folds = make_run(tmp_path / "folds", processed, 2, parts=(0, 1, 2))
    assert build_report([*both, folds], processed.folder).comparison.note == ""
    holdout = make_run(tmp_path / "holdout", processed, 3)
    assert build_report([*both, holdout], processed.folder).evidence.validation == "holdout"
    frames = [("mean", both[0] / "holdout" / "valid.csv")]
    assert build_report(both, processed.folder, frames=frames).evidence.validation == "holdout"


def test_runs_without_common_rows_are_told_the_shortest_way_to_some(
    processed: Dataset, tmp_path: Path
):
    whole = make_run(tmp_path, processed, 0, parts=(0, 1, 2))
    begun = make_run(tmp_path, processed, 1, parts=(0, 1))
    holdout = make_run(tmp_path, processed, 2)
    for runs, problem, hint in (
        ([whole, begun], "not every fold of this one", "--fold all`, or leave it out."),
        ([begun], "not every fold of this one", "--fold all`."),
        ([holdout, begun], "no finished holdout", "--fold holdout`, or every fold of each run."),
    ):
        with pytest.raises(RunError, match=problem) as caught:
            build_report(runs, processed.folder)
        assert str(begun) in caught.value.problem
        assert caught.value.hint.endswith(hint)


def test_a_damaged_log_of_a_training_is_named(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    (run / "holdout" / "trainer_state.json").write_text('{"log_history": [1]}')
    with pytest.raises(RunError, match=r"trainer_state\.json: not a log of a training"):
        render_html(build_report([run], processed.folder))


def test_a_report_is_a_page_or_markdown(processed: Dataset, tmp_path: Path):
    found = build_report([make_run(tmp_path, processed)], processed.folder)
    write_report(found, tmp_path / "r.MD")
    assert (tmp_path / "r.MD").read_text(encoding="utf-8") == render_markdown(found)
    with pytest.raises(KitError, match=r"report\.html or report\.md") as caught:
        write_report(found, tmp_path / "report.pdf")
    assert not (tmp_path / "report.pdf").exists()
    assert caught.value.hint


def test_the_command_writes_prints_and_refuses(processed: Dataset, tmp_path: Path):
    run, runner = make_run(tmp_path / "runs", processed), CliRunner()
    command = ["report", str(run), "--data", str(processed.folder)]
    page = tmp_path / "report.html"
    shown = runner.invoke(main, [*command, "-o", str(page), "-o", str(tmp_path / "report.md")])
    assert shown.exit_code == 0, shown.output
    assert "can't tell" in shown.stdout or "worse" in shown.stdout
    assert shown.stderr.splitlines()[-1] == f"Written: {page}, {tmp_path / 'report.md'}"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    printed = runner.invoke(main, [*command, "--markdown"])
    assert "Written" not in printed.stderr
    assert printed.stdout == (tmp_path / "report.md").read_text(encoding="utf-8")
    assert runner.invoke(main, [*command, "-o", str(page)]).exit_code == 1
    assert json.loads(runner.invoke(main, [*command, "--json"]).stdout)["validation"] == "holdout"
    assert runner.invoke(main, [*command, "--json", "--markdown"]).exit_code == 2
    wrong = runner.invoke(main, [*command, "-o", str(tmp_path / "report.pdf")])
    assert (wrong.exit_code, "report.html" in wrong.stderr) == (1, True)


def test_the_same_file_to_write_twice_is_a_usage_error(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path / "runs", processed)
    twice = ["-o", str(tmp_path / "r.md"), "-o", str(tmp_path / "runs" / ".." / "r.md")]
    refused = CliRunner().invoke(
        main, ["report", str(run), "--data", str(processed.folder), *twice]
    )
    assert (refused.exit_code, "-o names the same file twice" in refused.stderr) == (2, True)
    assert not (tmp_path / "r.md").exists()


def test_a_frame_needs_no_training_to_be_compared(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    mean = read_predictions(run / "holdout" / "valid.csv")
    write_predictions(mean.iloc[::-1], tmp_path / "reversed.csv")
    found = build_report([run], processed.folder, frames=[("reversed", tmp_path / "reversed.csv")])
    assert found.comparison.lines[-1].valid == found.comparison.lines[-2].valid
    assert found.significance[0].pair("reversed", run.name).verdict == "can't tell"
    assert found.correlation.values[0][1] == pytest.approx(1)


def test_frames_alone_are_compared_by_a_paired_bootstrap(
    processed: Dataset, raw: Path, tmp_path: Path
):
    runs = [
        make_run(tmp_path, processed, seed, parts=("holdout", 0, 1, 2), skill=seed)
        for seed in range(2)
    ]

    def printed(*files: Path, code: int = 0, more: tuple[str, ...] = ()):
        named = [
            word
            for name, file in zip("xy", files, strict=True)
            for word in ("--frame", f"{name}={file}")
        ]
        shown = CliRunner().invoke(
            main, ["report", *named, "--data", str(processed.folder), "--json", *more]
        )
        assert shown.exit_code == code, shown.output
        return json.loads(shown.stdout) if code == 0 else shown.stderr

    for files, rows, more in (
        ([run / "oof.csv" for run in runs], "out-of-fold", ()),
        ([run / "holdout" / "valid.csv" for run in runs], "holdout", ()),
        ([run / "test.csv" for run in runs], "test", ("--truth", str(raw / "truth.csv"))),
    ):
        found = printed(*files, more=more)
        (each,) = found["significance"]
        assert each["rows"] == rows
        told = next(pair for pair in each["pairs"] if (pair["model"], pair["other"]) == ("x", "y"))
        with_runs = build_report(
            runs,
            processed.folder,
            frames=list(zip("xy", files, strict=True)),
            truth=raw / "truth.csv",
        )
        beside = next(one for one in with_runs.significance if one.rows == rows).pair("x", "y")
        assert (told["mean"], told["verdict"]) == (pytest.approx(beside.mean), beside.verdict)
        assert told["low"] <= told["mean"] <= told["high"]
        assert found["note"] == ""
    unknown = printed(*(run / "test.csv" for run in runs), code=1)
    assert "test rows, whose labels are not known" in unknown
    assert "--truth" in unknown


def test_a_report_of_nothing_is_wrong_usage(processed: Dataset):
    refused = CliRunner().invoke(main, ["report", "--data", str(processed.folder)])
    assert (refused.exit_code, "--frame NAME=FILE" in refused.stderr) == (2, True)
