"""Check sizes, steps, operations, hours and disk that are calculated from recipe and config."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from kit.costs.devices import T4, find_device
from kit.costs.disk import training_disk
from kit.costs.estimate import (
    TrainingEstimate,
    estimate_prediction,
    estimate_training,
    sequences_per_row,
    step_seconds,
)
from kit.costs.lengths import (
    COMPETITION_ROWS,
    RowLengths,
    competition_lengths,
    model_lengths,
    sequence_lengths,
)
from kit.costs.sessions import sessions_needed
from kit.costs.sizes import model_sizes
from kit.costs.steps import training_steps
from kit.errors import BackboneError, KitError
from kit.model.encoder import count_parameters
from kit.model.registry import BACKBONES
from kit.recipe.load import load_recipe
from kit.recipe.spec import ModelSpec, Recipe

# Decoders' configurations as on the hub, and their parameters without the embeddings in billions,
# as their model cards have them.
DECODERS: list[tuple[dict[str, Any], float]] = [
    (
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "vocab_size": 151936,
        },
        0.36,
    ),
    (
        {
            "model_type": "qwen2",
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "vocab_size": 151936,
        },
        1.31,
    ),
]


def estimate_of(name: str, *overrides: str, devices: int = 2) -> TrainingEstimate:
    recipe = load_recipe(name, overrides)
    sizes = model_sizes(BACKBONES[recipe.backbone].config)
    return estimate_training(recipe, sizes, competition_lengths(recipe), T4, devices)


def judge(recipe: Recipe, head: str = "symmetric") -> Recipe:
    """Return the recipe with another shape, whether or not it is a choice of the key yet."""
    return dataclasses.replace(recipe, model=ModelSpec(shape="judge", head=head))  # ty: ignore


@pytest.mark.parametrize(
    "name", ["deberta", "mdeberta", "roberta", "electra-small", "modernbert-base", "xlm-roberta"]
)
def test_parameters_are_those_that_are_counted(name: str):
    sizes = model_sizes(BACKBONES[name].config)
    counted = count_parameters(BACKBONES[name].config)
    assert sizes.layer_parameters == pytest.approx(counted["backbone"], rel=0.015)
    assert sizes.parameters == pytest.approx(counted["total"], rel=0.005)


@pytest.mark.parametrize(("config", "billions"), DECODERS)
def test_parameters_of_decoders_are_those_of_their_cards(config: dict[str, Any], billions: float):
    sizes = model_sizes(config)
    assert sizes.causal
    assert sizes.gated
    assert sizes.layer_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_config_in_other_words_is_read_and_one_without_sizes_refused():
    names = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 100}
    sizes = model_sizes({"model_type": "distilbert", **names})
    assert (sizes.hidden, sizes.layers, sizes.inner) == (32, 2, 64)
    with pytest.raises(BackboneError, match="no num_attention_heads"):
        model_sizes({"hidden_size": 32, "num_hidden_layers": 2})


def test_operations_follow_weights_tokens_and_passes():
    # Short sequences, so that attention hardly counts.
    config, _ = DECODERS[1]
    sizes = model_sizes(config)
    recipe = judge(load_recipe("roberta", ["train.epochs=1"]))
    lengths = RowLengths(np.full((10, 2), 20), 320, 10)

    def passes(**changes: Any) -> float:
        changed = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))
        estimate = estimate_training(changed, sizes, lengths, T4)
        return estimate.operations_per_row / (2 * 20 * sizes.layer_parameters)

    assert passes() == pytest.approx(6, rel=0.05)
    assert passes(gradient_checkpointing=True) == pytest.approx(8, rel=0.05)
    assert passes(lora_rank=8) == pytest.approx(4, rel=0.05)
    assert passes(lora_rank=8, gradient_checkpointing=True) == pytest.approx(6, rel=0.05)
    assert passes(r_drop=1.0) == 2 * passes()


def test_a_frozen_encoder_reads_all_rows_once_for_all_folds_and_its_head_takes_no_time():
    tuned = estimate_of("roberta", "train.epochs=1", devices=1)
    frozen = estimate_of("roberta", "train.frozen=true", devices=1)
    assert estimate_of("roberta", "train.frozen=true", "train.epochs=9", devices=1) == frozen
    assert frozen.operations_per_row == pytest.approx(tuned.operations_per_row / 3, rel=0.05)
    assert frozen.operations == pytest.approx(57_477 * frozen.operations_per_row)
    assert frozen.hours_of(5) == pytest.approx(frozen.hours)
    assert frozen.hours < tuned.hours
    assert tuned.hours_of(5) == 5 * tuned.hours
    assert sessions_needed(2.5, 5, shared_hours=2.5) == 1

    sizes = model_sizes(BACKBONES["roberta"].config)
    use = training_disk(sizes, load_recipe("roberta", ["train.frozen=true"]), 1000)
    assert use.output < 1_000_000


def test_a_shorter_training_takes_less_time():
    whole = estimate_of("deberta-large")
    assert estimate_of("deberta-large", "train.epochs=1").hours == pytest.approx(
        whole.hours / 2, rel=0.05
    )
    assert estimate_of("deberta-large", "encode.max_tokens=256").hours < 0.6 * whole.hours
    assert estimate_of("deberta-large", "train.max_steps=100").training_hours == pytest.approx(
        whole.training_hours * 100 / 2874, rel=0.01
    )
    assert whole.hours < estimate_of("deberta-large", devices=1).hours < 2.1 * whole.hours
    assert 0.05 < whole.evaluation_hours / whole.hours < 0.2


def test_passes_of_few_rows_are_slower():
    assert (
        estimate_of("deberta-large", "train.micro_batch_size=2").seconds_per_row
        > 1.05 * estimate_of("deberta-large").seconds_per_row
    )
    by_tokens = estimate_of("deberta-large", "train.micro_tokens=1600")
    assert by_tokens.seconds_per_row > 1.05 * estimate_of("deberta-large").seconds_per_row


def test_a_tiny_encoder_waits_for_the_host():
    slow = dataclasses.replace(T4, launch_seconds=1e-3)
    recipe = load_recipe("tiny-electra")
    sizes = model_sizes(BACKBONES["tiny-electra"].config)
    fast, waiting = (
        estimate_training(recipe, sizes, competition_lengths(recipe), device)
        for device in (T4, slow)
    )
    assert waiting.seconds_per_row > 5 * fast.seconds_per_row


def test_sequences_of_a_row_depend_on_shape_head_and_orders():
    siamese = load_recipe("roberta")
    assert sequences_per_row(siamese, training=True) == 2
    assert sequences_per_row(siamese, training=False, both_orders=False) == 2

    symmetric, plain = judge(siamese), judge(siamese, "fusion")
    assert sequences_per_row(symmetric, training=False, both_orders=False) == 2
    one_order = dataclasses.replace(siamese.train, swap_augmentation=False)
    assert sequences_per_row(dataclasses.replace(plain, train=one_order), training=True) == 1
    assert sequences_per_row(plain, training=False, both_orders=False) == 1
    assert sequences_per_row(plain, training=False) == 2

    sizes = model_sizes(DECODERS[0][0])
    lengths = competition_lengths(plain)
    one, both = (
        estimate_prediction(plain, sizes, lengths, 1000, T4, both_orders=both)
        for both in (False, True)
    )
    assert both == 2 * one


def test_lengths_are_modelled_and_cut():
    recipe = load_recipe("deberta")
    lengths = model_lengths(2000, recipe)
    assert lengths.shape == (2000, 2)
    assert lengths.max() == recipe.encode.max_tokens
    assert 300 < lengths.mean() < 450
    np.testing.assert_array_equal(lengths, model_lengths(2000, recipe))

    rows = competition_lengths(recipe, folds=10)
    assert rows.train_rows + rows.valid_rows == COMPETITION_ROWS
    assert rows.valid_rows == 5748


def test_a_joint_sequence_has_prompt_and_both_answers():
    prompt, answers = np.array([40]), [np.array([400]), np.array([800])]
    siamese = load_recipe("deberta")
    np.testing.assert_array_equal(sequence_lengths(prompt, answers, siamese), [[113, 213]])
    cross = load_recipe("deberta-cross")
    np.testing.assert_array_equal(sequence_lengths(prompt, answers, cross), [[316, 316]])


def test_steps_and_evaluations_are_counted():
    spec = load_recipe("roberta", ["train.epochs=2", "train.batch_size=32"]).train
    steps = training_steps(spec, 3200)
    assert (steps.per_epoch, steps.total, steps.between_evaluations) == (100, 200, 50)
    assert steps.evaluations == 4


def test_an_exchange_is_added_with_several_devices():
    alone, together = (step_seconds(10**8, 10**7, T4, count) for count in (1, 2))
    assert alone == 40 * 10**8 / T4.bandwidth
    assert together > alone


def test_devices_are_found_by_name_and_number():
    assert find_device("t4") == (T4, 2)
    assert find_device("t4x1") == (T4, 1)
    device, count = find_device("A100x4")
    assert (device.name, count) == ("A100", 4)
    for name in ("abacus", "", "t4x0", "x4"):
        with pytest.raises(KitError, match="no figures"):
            find_device(name)


def test_sessions_hold_all_folds_or_one():
    assert sessions_needed(1.0, 5) == 1
    assert sessions_needed(2.5, 5) == 5
    assert sessions_needed(9.0, 5) == 0
    assert sessions_needed(8.7, 1) == 1
    assert sessions_needed(1.0, 5, fold_bytes=5e9) == 5
    assert sessions_needed(1.0, 5, fold_bytes=21e9) == 0


def test_adapters_make_checkpoints_small_and_those_of_a_judge_its_output():
    sizes = model_sizes(BACKBONES["roberta"].config)
    plain = load_recipe("roberta")
    adapted = load_recipe("roberta", ["train.lora_rank=8"])
    use = [training_disk(sizes, recipe, 1000) for recipe in (plain, adapted)]
    assert use[0].output == use[1].output == pytest.approx(4 * sizes.parameters, rel=0.01)
    assert use[1].checkpoints < 0.4 * use[0].checkpoints
    assert training_disk(sizes, judge(plain), 1000).output == use[0].output

    lora = dataclasses.replace(judge(adapted), train=adapted.train)
    assert training_disk(sizes, lora, 1000).output < 0.05 * use[0].output
