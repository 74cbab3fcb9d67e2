"""Check diagnoses, slices and disputed rows against the predictions they are computed from."""

from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run
from scipy.stats import binomtest

from kit.baselines.models import baseline_run_name
from kit.baselines.run import run_baseline
from kit.data.dataset import Dataset
from kit.ensembling.blend import Blend, write_blend
from kit.evaluation.metrics import log_loss, row_losses
from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth
from kit.predictions import read_predictions
from kit.reporting import slices
from kit.reporting.report import Report, build_report

FOLDS = (0, 1, 2)


def test_a_pair_is_the_difference_of_the_two_losses(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed) for seed in range(2)]
    report = build_report(runs, processed.folder)
    worse, better = report.inputs.models[-2:]
    labels = report.inputs.rows["valid"].labels
    losses = [row_losses(model.predictions["valid"], labels) for model in (worse, better)]

    pair = report.significance[0].pair(worse.name, better.name)
    assert pair.mean == pytest.approx((losses[0] - losses[1]).mean())
    assert pair.low < pair.mean < pair.high
    reverse = report.significance[0].pair(better.name, worse.name)
    expected = (-pair.mean, -pair.high, -pair.low)
    assert (reverse.mean, reverse.low, reverse.high) == pytest.approx(expected)
    assert {pair.verdict, reverse.verdict} in ({"worse", "better"}, {"can't tell"})


def test_slices_contain_every_row_once(processed: Dataset, tmp_path: Path):
    report = build_report([make_run(tmp_path, processed)], processed.folder)
    name = report.inputs.models[-1].name
    total = len(report.inputs.rows["valid"].ids)
    for by in ("answer length", "turns", "script"):
        parts = [part for part in report.slices if part.by == by]
        assert sum(part.rows for part in parts) == total
        mean = sum(part.rows * part.losses[name].log_loss for part in parts) / total
        assert mean == pytest.approx(report.comparison.lines[-1].valid.log_loss)
        assert all(part.losses[name].low is None for part in parts if part.prompts < 6)


def test_slices_do_not_depend_on_the_block_size(
    processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, processed)
    expected = build_report([run], processed.folder).slices
    sizes = []
    histogram = slices.character_histogram

    def counting_histogram(texts):
        sizes.append(len(texts))
        return histogram(texts)

    monkeypatch.setattr(slices, "ROWS", 7)
    monkeypatch.setattr(slices, "character_histogram", counting_histogram)
    assert build_report([run], processed.folder).slices == expected
    assert max(sizes) == 7


def test_confusion_bins_and_bars_contain_every_row_once(processed: Dataset, tmp_path: Path):
    report = build_report([make_run(tmp_path, processed, parts=FOLDS)], processed.folder)
    diagnosis = report.diagnosis[0]
    figures = report.comparison.lines[-1].valid
    labels = report.inputs.rows["valid"].labels
    assert sum(map(sum, diagnosis.confusion)) == figures.rows
    assert sum(bar.rows for bar in diagnosis.confidence) == figures.rows
    correct = sum(diagnosis.confusion[label][label] for label in range(3))
    assert correct == sum(bar.correct for bar in diagnosis.confidence)
    assert correct / figures.rows == pytest.approx(figures.accuracy)

    for label, bins in enumerate(diagnosis.reliability):
        sizes = [each.rows for each in bins]
        assert sum(sizes) == figures.rows
        assert max(sizes) - min(sizes) <= 1
        hits = sum(each.rows * each.observed for each in bins)
        assert hits == pytest.approx((labels == label).sum())
        for each in bins:
            # The binomial interval of scipy is the reference.
            count = round(each.rows * each.observed)
            expected = binomtest(count, each.rows).proportion_ci(method="wilson")
            assert (each.low, each.high) == pytest.approx(tuple(expected), abs=1e-6)


def test_the_spread_is_that_of_the_losses_of_the_folds(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed, parts=FOLDS)
    frame = ("same", run / "oof.csv")
    report = build_report([run], processed.folder, frames=[frame])
    of_run, of_file = report.folds
    assert of_run.losses == of_file.losses
    truth = read_truth(processed.folder / "train.parquet")
    for part, loss in of_run.losses.items():
        frame = read_predictions(run / part / "valid.csv")
        aligned = align_to_truth(frame, restrict_truth(truth, frame), part)
        assert loss == pytest.approx(log_loss(*aligned))
    assert of_run.deviation == pytest.approx(np.std(list(of_run.losses.values()), ddof=1))
    assert build_report([make_run(tmp_path, processed, 1)], processed.folder).folds == ()


def test_cases_are_the_most_disputed_rows_one_of_each_prompt(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed) for seed in range(3)]
    report = build_report(runs, processed.folder)
    cases = [case for case in report.disagreements if case.rows == "holdout"]
    rows = report.inputs.rows["valid"]
    group_of = dict(zip(rows.ids, rows.groups, strict=True))
    assert len({group_of[case.id] for case in cases}) == len(cases)
    divergences = [case.divergence for case in cases]
    assert divergences == sorted(divergences, reverse=True)

    table = processed.train().to_pandas().set_index("id")
    for case in cases:
        assert case.texts[1] == tuple(table.loc[case.id, "response_a"])
        assert case.label == table.loc[case.id, "label"]


def test_constants_and_blends_do_not_choose_the_disputed_rows(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed, test=False) for seed in range(2)]
    constants = [
        Path(run_baseline(name, processed.folder, tmp_path)["run"]) for name in ("uniform", "prior")
    ]
    blend = Blend((runs[0].name,), (1.0,), "arithmetic")
    write_blend(blend, tmp_path / "b.json", {"method": "mean"})

    def ranking(report: Report) -> list[tuple[int, float]]:
        return [
            (case.id, case.divergence) for case in report.disagreements if case.rows == "holdout"
        ]

    alone = build_report(runs, processed.folder)
    report = build_report([*runs, *constants], processed.folder, blends=[tmp_path / "b.json"])
    assert ranking(report) == ranking(alone)
    assert {baseline_run_name("uniform"), "b"} <= set(report.disagreements[0].probabilities)
    assert not ranking(build_report([runs[0], *constants], processed.folder))


def test_test_rows_without_labels_are_shown_but_not_scored(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed) for seed in range(2)]
    report = build_report(runs, processed.folder)
    assert [case.rows for case in report.disagreements] == ["holdout"] * 8 + ["test"] * 3
    assert {case.label for case in report.disagreements[8:]} == {None}
    assert all(line.test is None for line in report.comparison.lines)


def test_the_worst_rows_are_those_of_the_highest_loss(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed) for seed in range(2)]
    report = build_report(runs, processed.folder)
    model = report.inputs.models[-1]
    assert report.answer.best == model.name
    losses = row_losses(model.predictions["valid"], report.inputs.rows["valid"].labels)
    assert report.worst[0].loss == pytest.approx(losses.max())
    shown = [case.loss for case in report.worst]
    assert shown == sorted(shown, reverse=True)
    assert all(
        -np.log(case.probabilities[model.name][case.label]) == pytest.approx(case.loss)
        for case in report.worst
    )
