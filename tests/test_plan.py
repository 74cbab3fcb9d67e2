"""Check that the shipped recipes fit two T4, by the estimates of `kit.plan`."""

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch

from kit.attention import deberta
from kit.errors import RecipeError
from kit.model.backbones import BACKBONES
from kit.model.encoder import count_parameters
from kit.plan import (
    CONTEXT_GIB,
    GIB,
    MEMORY_LIMIT_GIB,
    MemoryEstimate,
    estimate_hours,
    estimate_memory,
    model_lengths,
    sessions_needed,
)
from kit.recipe.load import GENERAL, load_recipe, shipped_recipes

REAL = [
    name
    for name in shipped_recipes()
    if name not in GENERAL and "tiny" not in name and load_recipe(name).model.shape != "judge"
]

# Recipes that need more than a T4 has, with the counted GiB.
CASES = [(name, phase) for name in REAL for phase in ("training", "evaluation")]


@lru_cache
def memory_of(name: str, *overrides: str) -> MemoryEstimate:
    return estimate_memory(load_recipe(name, overrides))


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_a_shipped_recipe_fits_a_t4(name: str, phase: str):
    assert getattr(memory_of(name), phase) + CONTEXT_GIB <= MEMORY_LIMIT_GIB


def test_the_judge_with_the_fullest_passes_is_trained_on_a_t4():
    """The others are counted by `benchmarks/plan.py`; evaluations are cut to the free memory."""
    assert memory_of("qwen3-1.7b").training + CONTEXT_GIB <= MEMORY_LIMIT_GIB


def test_memory_follows_the_recipe():
    plain = memory_of("tiny-deberta")
    assert plain.parameters == plain.trained
    assert memory_of("tiny-deberta", "train.gradient_checkpointing=true").training < plain.training
    assert memory_of("tiny-deberta", "train.micro_batch_size=4").training < plain.training
    assert memory_of("tiny-deberta", "train.micro_tokens=1000").training < plain.training
    assert memory_of("tiny-deberta", "train.ema=0.9").training > plain.training
    assert memory_of("tiny-deberta", "train.awp=0.01").training > plain.training
    assert memory_of("tiny-deberta", "train.r_drop=1.0").training > 1.5 * plain.training
    adapted = memory_of("tiny-deberta", "train.lora_rank=2")
    assert adapted.trained < plain.trained < adapted.parameters
    assert plain.needed == max(plain.training, plain.evaluation) + CONTEXT_GIB


def test_weights_moments_and_gradients_are_in_the_count():
    alone = estimate_memory(load_recipe("tiny-electra", ["train.batch_size=1"]), gpus=1)
    fixed = alone.parameters * (4 + 8) / GIB
    assert alone.training > fixed + 4 * alone.parameters / GIB * 0.99
    encoder = count_parameters(BACKBONES["tiny-electra"].config)["total"]
    assert encoder < alone.parameters < 3 * encoder


def test_activations_grow_with_rows_and_tokens():
    few, many, long = (
        memory_of("tiny-deberta", f"train.micro_batch_size={rows}", f"encode.max_tokens={tokens}")
        for rows, tokens in ((4, 128), (8, 128), (4, 256))
    )
    fixed = 20 * few.parameters / GIB
    assert many.training - fixed == pytest.approx(2 * (few.training - fixed), rel=0.1)
    assert long.training > many.training


def test_operations_are_those_of_the_layers():
    recipe = load_recipe("electra-small")
    estimate = estimate_hours(recipe)
    layers = count_parameters(BACKBONES["electra-small"].config)["backbone"]

    # Six for each weight and token (Kaplan et al. 2020), and attention's besides.
    expected = 6 * layers * 2 * estimate.mean_tokens
    assert expected < estimate.operations_per_row < 2.2 * expected
    assert 0 < estimate.evaluation_hours < estimate.training_hours
    assert estimate.flat_hours[0] < estimate.flat_hours[1] < 1
    assert estimate.hours < 1


def test_lengths_are_modelled_and_cut():
    recipe = load_recipe("deberta")
    lengths = model_lengths(2000, recipe)
    assert lengths.shape == (2000, 2)
    assert lengths.max() == recipe.encode.max_tokens
    assert 300 < lengths.mean() < 450
    np.testing.assert_array_equal(lengths, model_lengths(2000, recipe))


def test_sessions_hold_whole_folds():
    assert sessions_needed(1.0) == 1
    assert sessions_needed(2.5) == 2
    assert sessions_needed(5.0) == 5
    assert sessions_needed(9.5) == 0


def test_an_estimate_leaves_nothing_behind():
    deberta.table_rows.cache_clear()
    recipe = load_recipe("tiny-deberta", ["train.gradient_checkpointing=true"])
    one = estimate_memory(recipe)
    assert not torch.is_autocast_enabled("cuda")
    assert type(torch.ones(2).device) is torch.device
    assert torch.ones(2).device.type == "cpu"
    rows = deberta.table_rows(160, 64, 512, 64, torch.device("cpu"))[2]
    assert rows.device.type == "cpu"
    assert rows.sum() > 0
    assert dataclasses.asdict(estimate_memory(recipe)) == dataclasses.asdict(one)


def test_a_recipe_of_another_batch_is_refused_as_in_training():
    recipe = load_recipe("tiny-electra", ["train.micro_batch_size=5"])
    with pytest.raises(RecipeError, match="not a multiple"):
        estimate_memory(recipe)
