"""Check diagnoses, slices and disputed rows against the predictions they are computed from."""

from pathlib import Path

import pytest
from made_runs import make_run

from kit.baselines.run import run_baseline
from kit.data.dataset import Dataset
from kit.ensembling.blend import Blend, write_blend
from kit.evaluation.metrics import row_losses
from kit.reporting import slices
from kit.reporting.report import Report, build_report


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


def test_confusion_and_bins_contain_every_row_once(processed: Dataset, tmp_path: Path):
    report = build_report([make_run(tmp_path, processed)], processed.folder)
    diagnosis = report.diagnosis[0]
    figures = report.comparison.lines[-1].valid
    assert sum(map(sum, diagnosis.confusion)) == figures.rows
    assert sum(bucket.rows for bucket in diagnosis.bins) == figures.rows

    correct = sum(diagnosis.confusion[label][label] for label in range(3))
    assert correct / figures.rows == pytest.approx(figures.accuracy)
    gaps = [bucket.rows * abs(bucket.confidence - bucket.accuracy) for bucket in diagnosis.bins]
    assert sum(gaps) / figures.rows == pytest.approx(figures.calibration_error)


def test_cases_are_the_most_disputed_rows_one_of_each_prompt(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed) for seed in range(3)]
    report = build_report(runs, processed.folder)
    cases = [case for case in report.cases if case.rows == "holdout"]
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
        return [(case.id, case.divergence) for case in report.cases if case.rows == "holdout"]

    alone = build_report(runs, processed.folder)
    report = build_report([*runs, *constants], processed.folder, blends=[tmp_path / "b.json"])
    assert ranking(report) == ranking(alone)
    assert {"baseline-uniform", "b"} <= set(report.cases[0].probabilities)
    assert not ranking(build_report([runs[0], *constants], processed.folder))


def test_test_rows_without_labels_are_shown_but_not_scored(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed) for seed in range(2)]
    report = build_report(runs, processed.folder)
    assert [case.rows for case in report.cases] == ["holdout"] * 8 + ["test"] * 3
    assert {case.label for case in report.cases[8:]} == {None}
    assert all(line.test is None for line in report.comparison.lines)
