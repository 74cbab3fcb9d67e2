"""Check what a training says about its time: as it begins, and after some steps."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from quick_recipe import QUICK

from kit.recipe.load import load_recipe
from kit.training import pace
from kit.training.pace import MEASURED_STEPS, PaceCallback, format_duration
from kit.training.sampler import LengthBuckets
from kit.training.train import train_recipe

LONG = 100


class Clock:
    """Stand in for the module `time`."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def run_steps(
    monkeypatch: pytest.MonkeyPatch,
    lengths: np.ndarray,
    *overrides: str,
    folds: int = 1,
    seconds_per_token: float = 0.01,
) -> list[str]:
    """Let a callback see steps whose time follows their tokens; return what it logs."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    spec = load_recipe("tiny-electra", ["train.batch_size=4", "train.epochs=1", *overrides]).train
    sampler = LengthBuckets(lengths, spec.batch_size, seed=0, heaviest_first=True)
    order = list(sampler)
    steps = len(order) // spec.batch_size
    said: list[str] = []
    callback = PaceCallback(spec, sampler, 10, folds, said.append)
    state: Any = SimpleNamespace(global_step=0, max_steps=steps)
    control: Any = None
    for step in range(steps):
        batch = order[step * spec.batch_size : (step + 1) * spec.batch_size]
        # The first step takes a minute more, and so does each evaluation.
        clock.now += seconds_per_token * lengths[batch].sum() + 60 * (step == 0)
        state.global_step += 1
        callback.on_step_end(control, state, control)
        if state.global_step % 10 == 0:
            clock.now += 60
            callback.on_evaluate(control, state, control)
    return said


def test_the_pace_is_that_of_rows_of_mean_length(monkeypatch: pytest.MonkeyPatch):
    # A tenth of the rows is ten times as long as the others.
    lengths = np.full((400, 2), 10)
    lengths[:40] = LONG
    said = run_steps(monkeypatch, lengths, "train.evals_per_epoch=1")
    assert len(said) == 1

    # A row of 38 tokens on average takes 0.38 s; left are about 79 of 100 steps, and an evaluation.
    found = re.fullmatch(r"measured: (.+) rows/s, (\d+) min left", said[0])
    assert found
    assert float(found[1]) == pytest.approx(1 / 0.38, abs=0.05)
    assert int(found[2]) == round((79 * 4 * 0.38 + 10 * 0.38 / 3) / 60)


def test_further_folds_are_added(monkeypatch: pytest.MonkeyPatch):
    said = run_steps(monkeypatch, np.full((400, 2), 50), folds=3)
    assert re.fullmatch(
        r"measured: 1.0 rows/s, 5 min left, 19 min with the 2 folds after it", said[0]
    )


def test_a_training_of_few_steps_says_nothing(monkeypatch: pytest.MonkeyPatch):
    assert run_steps(monkeypatch, np.full((4 * MEASURED_STEPS, 2), 50)) == []


def test_a_training_begins_with_its_estimated_time(data: Path, tmp_path: Path):
    said: list[str] = []
    recipe = load_recipe("tiny-electra", [*QUICK, "train.max_steps=1"])
    train_recipe(recipe, data, tmp_path, "all", say=said.append)
    counts = r"1\d\d rows of 2 x \d\d tokens, 1 steps: about .+"
    lines = [line for line in said if re.fullmatch(counts, line)]
    assert ["(estimated)" in line for line in lines] == [True, False, False]
    assert ["as long as the fold before" in line for line in lines] == [False, True, True]
    assert ["in all" in line for line in lines] == [True, True, False]


def test_durations_are_in_the_unit_that_suits():
    assert format_duration(0.2) == "1 s"
    assert format_duration(90) == "2 min"
    assert format_duration(4000) == "1.1 h"
