"""Check which keys and values a sweep takes, and that what it draws is allowed by the recipe."""

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import RecipeError
from kit.recipe.keys import RecipeKey
from kit.recipe.load import load_recipe
from kit.recipe.spec import KEYS
from kit.sweeps.space import (
    SweptKey,
    as_overrides,
    grid_points,
    parse_key,
    parse_keys,
    space_size,
    spread_points,
)

NUMBERS = [key for key in KEYS.values() if key.between and key.name != "train.seed"]


@st.composite
def ranges(draw: st.DrawFn) -> SweptKey:
    """Return a range of a numeric key, within what the key allows."""
    key: RecipeKey = draw(st.sampled_from(NUMBERS))
    assert key.between
    low, high = key.between
    if key.kind is int:
        numbers = st.integers(int(low), min(int(high), 10**6))
    else:
        # Ends as people type them.
        numbers = st.floats(low, high).map(lambda x: float(f"{x:.4g}"))
        numbers = numbers.filter(lambda x: low <= x <= high)
    ends = draw(st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted))
    how = ""
    if ends[0] > 0:
        how = draw(st.sampled_from(["", ":log"]))
    if not how and draw(st.booleans()):
        width = ends[1] - ends[0]
        step = draw(st.integers(1, width)) if key.kind is int else f"{width / 7:.4g}"
        how = f":{step}"
        if key.kind is float and not 0 < float(step) <= width:
            how = ""
    return parse_key(f"{key.name}={ends[0]!r}..{ends[1]!r}{how}")


@given(ranges(), st.floats(0, 1, exclude_max=True), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_drawn_values_lie_in_the_range_and_are_allowed(key: SweptKey, share: float, seed: int):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    for value in (key.at(share), key.draw(study.ask())):
        assert key.low <= value <= key.high
        assert type(value) is KEYS[key.name].kind
        assert key.settle(value) == value

        # As an option it means the same value, to the last digit.
        [override] = as_overrides({key.name: value})
        section, _, name = key.name.partition(".")
        recipe = load_recipe("tiny-electra", (*COMPATIBLE, override))
        assert getattr(getattr(recipe, section), name) == value
    assert parse_key(key.text) == key


@pytest.mark.parametrize(
    ("text", "high", "size"),
    [
        ("train.lr=3.42e-28..0.8574:0.1429", 0.8574, 7),
        ("train.lr=0.1..0.3:0.1", 0.3, 3),
        ("train.lr=0.1..0.35:0.1", 0.3, 3),
    ],
)
def test_a_range_ends_with_its_last_whole_step(text: str, high: float, size: int):
    key = parse_key(text)
    assert (key.high, key.size) == (high, size)
    assert parse_key(key.text) == key


# What would refuse a combination with some other key.
COMPATIBLE = ("train.lora_rank=0", "train.reinit_layers=0")


@given(ranges())
@settings(max_examples=50, deadline=None)
def test_the_values_of_a_range_with_steps_are_as_many_as_its_size(key: SweptKey):
    if key.size > 1000:
        return
    values = list(key.values())
    assert len(values) == key.size
    assert len(set(values)) == len(values)
    assert all(key.low <= value <= key.high for value in values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("train.epochs=1..2:0.25", [1.0, 1.25, 1.5, 1.75, 2.0]),
        ("train.warmup=0..0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
        ("encode.max_tokens=128..500:128", [128, 256, 384]),
        ("train.patience=0..2", [0, 1, 2]),
        ("train.batch_size=16,32", [16, 32]),
        ("model.head=symmetric, fusion", ["symmetric", "fusion"]),
        ("model.features=true,false", [True, False]),
    ],
)
def test_steps_and_choices_give_these_values(text: str, values: list):
    key = parse_key(text)
    assert list(key.values()) == values
    assert parse_key(key.text) == key


def test_a_logarithmic_range_spreads_over_its_orders_of_magnitude():
    key = parse_key("train.lr=1e-6..1e-2:log")
    drawn = [key.at((n + 0.5) / 400) for n in range(400)]
    assert sum(value < 1e-4 for value in drawn) == pytest.approx(200, abs=2)

    # Three digits, so that a value can be typed.
    assert all(value == float(f"{value:.2e}") for value in drawn)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("train.lr", "is not KEY=LOW..HIGH"),
        ("train.lr=", "is not KEY=LOW..HIGH"),
        ("train.rate=1,2", "unknown key train.rate"),
        ("train.seed=0,1", "seeds are not searched"),
        ("train.teacher=a,b", "cannot be searched"),
        ("train.lr=0.1..2", "out of range"),
        ("train.lr=0.2..0.1", "is not below"),
        ("train.lr=0.1..0.1", "is not below"),
        ("train.lr=0..0.1:log", "begins above 0"),
        ("train.lr=0.1..0.2:loge", "neither `log` nor a step"),
        ("train.lr=0.1..0.2:0.2", "neither `log` nor a step"),
        ("train.lr=0.1..0.2:-1", "neither `log` nor a step"),
        ("train.lr=0.1..0.2:nan", "neither `log` nor a step"),
        ("train.lr=..0.2", "a value is missing"),
        ("train.lr=low..high", "is not a number"),
        ("train.batch_size=8..16.5", "is not a whole number"),
        ("train.batch_size=8..16:1.5", "neither `log` nor a step"),
        ("model.head=symmetric..fusion", "has no range"),
        ("model.head=symmetric,square", "model.head = 'square'"),
        ("model.head=fusion", "has one value"),
        ("train.lr=0.1,0.1", "names a value twice"),
        ("train.lr=0.1,,0.2", "a value is missing"),
        ("model.features=yes,no", "is not true or false"),
    ],
)
def test_what_a_key_does_not_allow_is_one_error_with_the_option(text: str, problem: str):
    with pytest.raises(RecipeError) as caught:
        parse_keys([text])
    assert problem in caught.value.problem
    assert "--key" in caught.value.problem
    assert "--set" not in caught.value.problem
    assert caught.value.hint


def test_a_key_is_given_once_and_not_set_as_well():
    with pytest.raises(RecipeError, match="twice"):
        parse_keys(["train.lr=0.1,0.2", "train.lr=0.1..0.2"])
    with pytest.raises(RecipeError, match="in --set and in --key"):
        parse_keys(["train.lr=0.1,0.2"], ["train.lr=0.3"])


def test_evenly_spread_points_are_different_and_more_points_begin_with_them():
    keys = parse_keys(["train.lr=1e-5..1e-3:log", "model.head=symmetric,fusion"])
    points = spread_points(keys, 12, seed=3)
    assert len({str(point) for point in points}) == 12
    assert spread_points(keys, 20, seed=3)[:12] == points
    assert spread_points(keys, 12, seed=4) != points

    # Both halves of each key are tried as often.
    assert sum(point["train.lr"] < 1e-4 for point in points[:8]) == 4
    assert sum(point["model.head"] == "fusion" for point in points[:8]) == 4


def test_all_points_of_a_small_space_are_drawn():
    keys = parse_keys(["train.patience=0..2", "model.head=symmetric,fusion"])
    assert space_size(keys) == 6
    assert spread_points(keys, 6, seed=0) == list(grid_points(keys))
    assert len(spread_points(keys, 5, seed=0)) == 5
    assert math.isinf(space_size(parse_keys(["train.lr=0.1..0.2"])))
