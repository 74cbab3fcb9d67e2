"""Check that shipped recipes build, and keep to the settings that are known to converge."""

import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from kit.cli.main import main
from kit.costs.devices import T4
from kit.costs.estimate import estimate_training
from kit.costs.lengths import competition_lengths
from kit.costs.sessions import sessions_needed
from kit.costs.sizes import model_sizes
from kit.model.encoder import build_encoder, count_parameters
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES, max_positions
from kit.recipe.load import load_recipe, shipped_recipes
from kit.recipe.spec import Recipe
from kit.training.optim import Schedule, make_optimizer

ALL = {
    name: load_recipe(name, backbone={"default": "roberta", "judge": "tiny-qwen"}.get(name))
    for name in shipped_recipes()
}
JUDGES = {
    name: recipe
    for name, recipe in ALL.items()
    if recipe.model.shape == "judge" and BACKBONES[recipe.backbone].hub_id
}
PRETRAINED = {
    name: recipe
    for name, recipe in ALL.items()
    if BACKBONES[recipe.backbone].hub_id and not name.endswith("-reference") and name not in JUDGES
}


@pytest.mark.parametrize("recipe", ALL.values(), ids=ALL)
def test_every_recipe_builds_at_full_size_on_the_meta_device(recipe: Recipe):
    record = BACKBONES[recipe.backbone]
    pooling = record.pooling if recipe.model.pooling == "auto" else recipe.model.pooling
    with torch.device("meta"):
        model = PairModel(
            build_encoder(record.config),
            record.config,
            dataclasses.replace(recipe.model, pooling=pooling),
        )
        vectors = torch.zeros(2, 2, record.sizes["hidden"] + recipe.model.reward)
        features = None
        if model.feature_names:
            side_names, pair_names = model.feature_names
            features = {
                "sides": torch.zeros(2, 2, len(side_names)),
                "pair": torch.zeros(2, len(pair_names)),
            }
        logits = model.head(vectors, features)

    assert logits.shape == (2, 3)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    Schedule(make_optimizer(model, recipe.train), recipe.train, 1000)


@pytest.mark.parametrize("recipe", PRETRAINED.values(), ids=PRETRAINED)
def test_recipes_keep_to_settings_that_converge(recipe: Recipe):
    # Backbones with absolute positions use them all.
    if max_positions(BACKBONES[recipe.backbone].config) == 512:
        assert recipe.encode.max_tokens == 512
    else:
        assert 256 <= recipe.encode.max_tokens <= 1024
    assert 0.15 <= recipe.encode.prompt_share <= 0.25

    train = recipe.train
    assert recipe.model.head == "symmetric" or train.swap_augmentation
    assert train.warmup >= 0.1
    assert train.schedule in ("linear", "cosine")
    assert train.layer_decay <= 0.95 or train.lora_rank
    assert train.head_lr >= train.lr
    assert 2 <= train.epochs <= 3
    assert 32 <= train.batch_size <= 64
    assert train.evals_per_epoch >= 2
    assert train.label_smoothing <= 0.05
    assert recipe.predict.swap


def fits_a_session(recipe: Recipe, spare: float = 0.0) -> bool:
    """Return whether a fold of the competition's rows fits a session on Kaggle, as estimated.

    Args:
        spare: the share of the time by which it might take longer.
    """
    sizes = model_sizes(BACKBONES[recipe.backbone].config)
    estimate = estimate_training(recipe, sizes, competition_lengths(recipe), T4, 2)
    return sessions_needed((1 + spare) * estimate.hours, folds=5) > 0


@pytest.mark.parametrize("name", [name for name in JUDGES if name != "gemma-2-9b"])
def test_a_judges_fold_fits_a_session(name: str):
    assert fits_a_session(JUDGES[name])


@pytest.mark.parametrize("recipe", JUDGES.values(), ids=JUDGES)
def test_judges_keep_to_what_the_winners_agree_on(recipe: Recipe):
    encode, train = recipe.encode, recipe.train

    # Fewer tokens only where a fold of as many as theirs would be too long, or nearly.
    longer = dataclasses.replace(recipe, encode=dataclasses.replace(encode, max_tokens=1024))
    assert encode.max_tokens == 1024 or not fits_a_session(longer, spare=0.1)
    assert 0.2 <= encode.prompt_share <= 0.25
    assert train.epochs == 1
    assert 8 <= train.batch_size <= 32
    assert train.schedule in ("linear", "cosine")
    assert train.warmup == 0.05
    assert (train.lr, train.head_lr, train.lora_alpha, train.lora_dropout) == (2e-4, 1e-4, 16, 0.05)
    assert not train.label_smoothing
    assert recipe.model.features
    assert recipe.predict.swap

    # Small models have narrower layers, and large ones see each row in one order for want of time.
    parameters = count_parameters(BACKBONES[recipe.backbone].config)["total"]
    assert train.lora_rank == (32 if parameters <= 1e9 else 64)
    one_order = 2e9 < parameters < 5e9
    assert (recipe.model.head, train.swap_augmentation) == (
        ("fusion", False) if one_order else ("symmetric", True)
    )

    # A row in both orders goes through in one pass, and passes are of whole rows.
    assert train.micro_tokens % (2 * encode.max_tokens) == 0


def test_larger_encoders_of_a_family_have_lower_rates():
    for family in (
        ("deberta", "deberta-base", "deberta-large"),
        ("electra-small", "electra-base", "electra"),
    ):
        rates = [ALL[name].train.lr for name in family]
        assert rates == sorted(rates, reverse=True)


def test_each_recipe_has_its_own_one_line_purpose():
    result = CliRunner().invoke(main, ["recipes", "--json"])
    purposes = {each["name"]: each["purpose"] for each in json.loads(result.output)}
    assert set(purposes) == set(shipped_recipes())
    assert len(set(purposes.values())) == len(purposes)
    assert all(30 <= len(purpose) <= 125 and "\n" not in purpose for purpose in purposes.values())


def test_a_cross_encoder_is_among_them():
    cross = ALL["deberta-cross"]
    assert cross.model.shape == "cross"

    # The budget has to hold both answers.
    assert cross.encode.max_tokens > ALL["deberta"].encode.max_tokens


def test_the_reward_models_recipe_uses_its_reward():
    assert ALL["reward-deberta"].model.reward
