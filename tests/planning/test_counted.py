"""Check that the shipped recipes fit two T4, by counts on the meta device."""

import dataclasses
from functools import lru_cache

import pytest
import torch

from kit.attention import deberta
from kit.costs.devices import T4
from kit.costs.estimate import estimate_training
from kit.costs.lengths import competition_lengths
from kit.costs.sizes import model_sizes
from kit.costs.steps import evaluated_rows
from kit.errors import RecipeError
from kit.model.encoder import count_parameters
from kit.model.registry import BACKBONES
from kit.planning.counted import (
    CONTEXT_GIB,
    GIB,
    MEMORY_LIMIT_GIB,
    CountedMemory,
    count_memory,
    count_time,
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
def memory_of(name: str, *overrides: str) -> CountedMemory:
    return count_memory(load_recipe(name, overrides))


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
    assert memory_of("tiny-deberta", "train.r_drop=1.0").training > 1.5 * plain.training
    adapted = memory_of("tiny-deberta", "train.lora_rank=2")
    assert adapted.trained < plain.trained < adapted.parameters
    assert plain.needed == max(plain.training, plain.evaluation) + CONTEXT_GIB


def test_quantised_matrices_take_fewer_bytes():
    whole, eight, four = (
        memory_of("tiny-qwen", "train.lora_rank=4", f"model.quantize={kind}")
        for kind in ("none", "8bit", "4bit")
    )
    config = BACKBONES["tiny-qwen"].config
    matrices = count_parameters(config)["backbone"]
    largest = config["hidden_size"] * config["intermediate_size"]
    assert (whole.training - eight.training) * GIB == pytest.approx(
        matrices - 2 * largest, rel=0.02
    )
    assert eight.training - four.training == pytest.approx(0.484 * matrices / GIB, rel=0.02)


def test_a_base_that_is_shared_out_takes_less_of_each_gpu():
    whole = load_recipe("tiny-qwen", ("train.lora_rank=4",))
    shared = load_recipe("tiny-qwen", ("train.lora_rank=4", "train.shard=true"))
    two, four = (
        count_memory(whole, gpus).training - count_memory(shared, gpus).training for gpus in (2, 4)
    )
    assert two > 0
    assert four == pytest.approx(1.5 * two, rel=0.01)


def test_an_evaluation_takes_what_the_gpu_has_left():
    small = dataclasses.replace(T4, memory=0.7)
    limited = count_memory(load_recipe("tiny-qwen"), gpu=small)
    assert limited.evaluation < 0.7 - CONTEXT_GIB < memory_of("tiny-qwen").evaluation


def test_weights_moments_and_gradients_are_in_the_count():
    alone = count_memory(load_recipe("tiny-electra", ["train.batch_size=1"]), gpus=1)
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


# Gemma 3 has all the norms that a layer can have, and adapters.
@pytest.mark.parametrize("name", ["electra-small", "gemma-3-270m"])
def test_operations_and_time_are_those_of_the_formulas(name: str):
    recipe = load_recipe(name)
    lengths = competition_lengths(recipe)
    counted = count_time(recipe, lengths.tokens)
    estimate = estimate_training(recipe, model_sizes(BACKBONES[name].config), lengths, T4, 2)

    # The count has the scores that no causal kernel computes, and the adapters' products.
    if not recipe.train.lora_rank:
        assert estimate.operations_per_row == pytest.approx(counted.operations_per_row, rel=0.1)
    assert estimate.seconds_per_row == pytest.approx(counted.seconds_per_row, rel=0.1)
    evaluations = 2 * round(recipe.train.epochs)
    rows = evaluated_rows(evaluations, lengths.valid_rows)
    evaluated = rows * counted.evaluation_seconds / 2 / 3600
    assert estimate.evaluation_hours == pytest.approx(evaluated, rel=0.3)


def test_a_count_leaves_nothing_behind():
    deberta.table_rows.cache_clear()
    recipe = load_recipe("tiny-deberta", ["train.gradient_checkpointing=true"])
    one = count_memory(recipe)
    assert not torch.is_autocast_enabled("cuda")
    assert type(torch.ones(2).device) is torch.device
    assert torch.ones(2).device.type == "cpu"
    rows = deberta.table_rows(160, 64, 512, 64, torch.device("cpu"))[2]
    assert rows.device.type == "cpu"
    assert rows.sum() > 0
    assert dataclasses.asdict(count_memory(recipe)) == dataclasses.asdict(one)


def test_a_recipe_of_another_batch_is_refused_as_in_training():
    recipe = load_recipe("tiny-electra", ["train.micro_batch_size=5"])
    with pytest.raises(RecipeError, match="not a multiple"):
        count_memory(recipe)
