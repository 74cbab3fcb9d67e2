"""Check that numbers do not depend on the process or the batch, and that no file gets a NaN."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from quick_recipe import QUICK
from sklearn import metrics as sklearn

from kit.errors import DataError
from kit.evaluation.metrics import EPS, log_loss
from kit.model import memory
from kit.predict import predict_split
from kit.predictions import make_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.task import CLASSES, ID
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.max_steps=3", "train.evals_per_epoch=1")
EXTREME = st.sampled_from(
    [0.0, 1.0, EPS, EPS / 2, 1 - EPS, 1e-300, 5e-324, 0.5, 1 / 3, 1e-7, 1 - 1e-9]
)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = load_recipe("tiny-electra", SHORT)
    return Path(train_recipe(recipe, data, tmp_path_factory.mktemp("runs"))["run"])


def test_a_fresh_process_with_another_hash_seed_trains_the_same_bits(
    trained: Path, data: Path, tmp_path: Path
):
    command = [sys.executable, "-m", "kit", "train", "--backbone", "tiny-electra"]
    command += ["--data", str(data), "--runs", str(tmp_path)]
    command += [word for override in SHORT for word in ("--set", override)]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)

    for name in ("model.safetensors", "valid.csv", "tokenizer.json", "config.json"):
        ours = trained / "holdout" / name
        theirs = tmp_path / trained.name / "holdout" / name
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize("tokens", [1, 100, 1_000, 10**6])
def test_every_batch_size_predicts_the_same(
    trained: Path, data: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
):
    expected = predict_split(trained, "test", data)
    monkeypatch.setitem(memory.BATCH_TOKENS, "cpu", tokens)
    found = predict_split(trained, "test", data)

    assert found[ID].equals(expected[ID])
    difference = found[list(CLASSES)].to_numpy() - expected[list(CLASSES)].to_numpy()
    assert np.abs(difference).max() < 1e-5


@settings(max_examples=200, deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=EXTREME),
    st.randoms(),
)
def test_log_loss_equals_scikit_learns_on_extreme_probabilities(
    weights: np.ndarray, rng: random.Random
):
    # A row without any weight becomes uniform.
    probabilities = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1.0)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    labels = np.array([rng.randrange(3) for _ in probabilities])

    expected = sklearn.log_loss(labels, probabilities, labels=[0, 1, 2])
    assert log_loss(probabilities, labels) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_not_written(tmp_path: Path, value: float):
    table = pd.DataFrame([[1, value, 0.5, 0.5]], columns=[ID, *CLASSES])
    with pytest.raises(DataError, match="not finite"):
        write_predictions(table, tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []

    with pytest.raises(DataError, match="not finite"):
        make_predictions(np.array([1]), np.array([[value, 0.5, 0.5]]))
