"""Share a small definition, sweeps made of it, and a training that takes no time."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_training import RECIPE, Fake, FakeTraining, MakeSweep

from kit.data.dataset import Dataset
from kit.recipe.spec import Recipe
from kit.sweeps import run
from kit.sweeps.space import parse_keys
from kit.sweeps.sweep import Sweep, SweepDefinition, choose_base


@pytest.fixture
def definition(processed: Dataset) -> SweepDefinition:
    base, command = choose_base("tiny-electra", RECIPE)
    return SweepDefinition(
        recipe=base,
        keys=parse_keys(["train.lr=1e-4..1e-2:log", "model.head=symmetric,fusion"]),
        seeds=2,
        fold="holdout",
        rows=processed.digest("train"),
        command=command,
    )


@pytest.fixture
def make_sweep(definition: SweepDefinition, tmp_path: Path) -> MakeSweep:
    """Return a function that creates a sweep in a folder, with some of its definition changed."""

    def make(folder: str = "sweeps", **changes: object) -> Sweep:
        changed = dataclasses.replace(definition, **changes)
        return Sweep.create(tmp_path / folder / changed.default_name, changed)

    return make


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Return a function that replaces trainings by fakes, which have the loss that it is given."""

    def replace(loss: Callable[[Recipe], float]) -> FakeTraining:
        training = FakeTraining(loss)
        monkeypatch.setattr(run, "train_recipe", training)
        # There is nothing to free, and it takes a third of a second.
        monkeypatch.setattr(run, "free_after_failure", lambda: None)
        return training

    return replace
