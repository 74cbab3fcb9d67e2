"""Check that a dry run takes real steps on the longest rows, and leaves nothing behind."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from quick_recipe import QUICK

from kit.data.dataset import Dataset
from kit.errors import BackboneError
from kit.model.backbones import ResolvedBackbone, resolve_backbone
from kit.recipe.load import load_recipe
from kit.task import HOLDOUT, TEXTS
from kit.training import dry_run
from kit.training.dry_run import try_steps


def files_below(*folders: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.micro_batch_size=4", "train.patience=1", "train.head_only=0.5"),
    ],
)
def test_two_steps_are_taken_and_nothing_is_left(
    processed: Dataset, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run.tempfile, "tempdir", str(tmp_path))
    before = files_below(processed.folder)
    recipe = load_recipe("tiny-electra", [*QUICK, "model.features=true", *overrides])
    tried = try_steps(recipe, resolve_backbone(recipe.backbone), processed, HOLDOUT, lambda _: None)

    assert len(tried.seconds) == len(tried.tokens) == 2
    assert min(tried.seconds) > 0
    assert tried.tokens_per_second > 0
    assert 0.1 < tried.peak_gib < 100
    # The longest rows fill their budget of tokens.
    assert tried.tokens == [16 * 2 * 32] * 2
    assert files_below(processed.folder) == before
    assert list(tmp_path.iterdir()) == []


def test_few_rows_are_seen_twice(processed: Dataset):
    recipe = load_recipe("tiny-electra", [*QUICK, "train.batch_size=150"])
    tried = try_steps(recipe, resolve_backbone(recipe.backbone), processed, HOLDOUT, lambda _: None)
    assert len(tried.seconds) == 2
    assert min(tried.tokens) > 0


def test_the_rows_with_the_most_text_are_tried(processed: Dataset):
    rows = dry_run._longest_rows(processed, 0, 5)
    train, _ = processed.fold_rows(0)
    table = processed.train(list(TEXTS)).to_pylist()
    sizes = np.array([sum(len(turn) for turns in row.values() for turn in turns) for row in table])
    assert set(rows) <= set(train)
    assert sizes[rows].min() >= np.sort(sizes[train])[-5]


def test_what_a_training_would_refuse_is_refused(processed: Dataset, tmp_path: Path):
    backbone = dataclasses.replace(resolve_backbone("roberta"), source=tmp_path)
    assert isinstance(backbone, ResolvedBackbone)
    with pytest.raises(BackboneError, match="cannot be used"):
        try_steps(load_recipe("roberta", QUICK), backbone, processed, HOLDOUT, lambda _: None)
