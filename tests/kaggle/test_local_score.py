"""Check that a submission's local score is that of its runs, on rows that they have not seen."""

from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run

import kit
from kit.data.dataset import Dataset
from kit.kaggle.ledger import LedgerEntry
from kit.kaggle.local_score import estimate_local_score
from kit.run import Run
from kit.storage.atomic import write_json


@pytest.fixture
def runs(processed: Dataset, tmp_path: Path) -> Path:
    """Two runs with all folds, and one with a holdout only."""
    for seed in (0, 1):
        make_run(tmp_path / "runs", processed, seed, parts=(0, 1, 2))
    make_run(tmp_path / "runs", processed, 2, recipe="tiny-deberta")
    return tmp_path / "runs"


def job(*members: tuple[str, float], **more: Any) -> dict[str, Any]:
    """Return an inference job of these runs and weights."""
    sources = [{"ref": f"me/{name}", "runs": [name], "weight": w} for name, w in members]
    return {"sources": sources, "method": "mean"} | more


def test_the_score_of_one_run_is_its_out_of_fold_or_holdout_loss(runs: Path, data: Path):
    for path in runs.iterdir():
        metrics = Run(path).metrics
        scored = metrics.get("oof") or metrics["parts"]["holdout"]
        assert estimate_local_score(job((path.name, 1.0)), runs, data) == scored["log_loss"]


def test_the_score_of_a_blend_is_computed_from_out_of_fold_rows(runs: Path, data: Path):
    names = sorted(path.name for path in runs.glob("tiny-electra*"))
    files = [runs / name / "oof.csv" for name in names]
    for method, weights in (("mean", None), ("geometric", None), ("weights", [3.0, 1.0])):
        blended = kit.ensemble(files, method=method, weights=weights).predictions
        asked = job(*zip(names, weights or (1.0, 1.0), strict=True), method=method)
        expected = kit.score(blended, data / "train.parquet").log_loss
        assert estimate_local_score(asked, runs, data) == pytest.approx(expected)


def test_a_run_is_found_by_the_kernel_that_it_was_collected_from(runs: Path, data: Path):
    (path,) = runs.glob("tiny-deberta*")
    asked = {"sources": [{"ref": "me/kit-train", "weight": 1.0}]}
    assert estimate_local_score(asked, runs, data) is None
    write_json(path / "kernels.json", {"holdout": "me/kit-train/3"})
    assert (
        estimate_local_score(asked, runs, data) == Run(path).metrics["parts"]["holdout"]["log_loss"]
    )


def test_what_is_not_known_is_left_open(runs: Path, data: Path, tmp_path: Path):
    one, other = sorted(path.name for path in runs.glob("tiny-electra*"))
    (holdout,) = (path.name for path in runs.glob("tiny-deberta*"))
    for asked in (
        {},
        job(("not-here", 1.0)),
        job((one, 1.0), ("not-here", 1.0)),
        # These two have predicted different rows.
        job((one, 1.0), (holdout, 1.0)),
        job((one, 1.0), blend={}),
    ):
        assert estimate_local_score(asked, runs, data) is None
    assert estimate_local_score(job((one, 1.0), (other, 1.0)), runs, tmp_path) is None


def test_the_public_score_is_compared_with_the_local_one():
    entry = LedgerEntry("t", "1", "c", local_score="1.00", public_score="0.98")
    assert entry.public_minus_local == pytest.approx(-0.02)
    assert LedgerEntry("t", "1", "c", local_score="1.00").public_minus_local is None
