"""Check that the recipe decides how a training computes, and the environment does not."""

import os
from pathlib import Path

import pytest
import torch
from quick_recipe import QUICK
from trained_weights import weights

from kit.recipe.load import load_recipe
from kit.training.train import train_recipe

SETTINGS = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "3",
    "ACCELERATE_DYNAMO_BACKEND": "inductor",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_MEGATRON_LM": "true",
    "ACCELERATE_TORCH_DEVICE": "meta",
}


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the weights of a short training in an ordinary environment."""
    return short_training(data, tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_launchers_variable_changes_not_one_bit(
    name: str,
    plain: dict[str, bytes],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv(name, SETTINGS[name])
    assert short_training(data, tmp_path) == plain
    assert os.environ[name] == SETTINGS[name]


def test_products_in_float32_are_what_they_were_after_a_training_and_exact_in_it(
    data: Path, tmp_path: Path
):
    seen: list[str] = []
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2"))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        train_recipe(
            recipe,
            data,
            tmp_path,
            listen=lambda _: seen.append(torch.get_float32_matmul_precision()),
        )
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"highest"}


def short_training(data: Path, runs: Path) -> dict[str, bytes]:
    """Train two steps of several passes each, and return the weights."""
    short = ("train.max_steps=2", "train.micro_batch_size=8", "train.precision='fp32'")
    return weights(train_recipe(load_recipe("tiny-electra", (*QUICK, *short)), data, runs))
