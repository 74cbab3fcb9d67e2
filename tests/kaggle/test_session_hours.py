"""Check that a training is split over as many sessions as it needs, or refused with what fits."""

import re

import pytest

from kit.errors import KitError
from kit.kaggle.session_hours import estimate_fold_hours, plan_sessions
from kit.recipe.load import load_recipe, shipped_recipes

# Hours of one fold by the roofline of November 2026, and whether five fit into nine hours.
ESTIMATES = {
    "deberta": 0.6,
    "deberta-base": 1.0,
    "deberta-cross": 1.2,
    "roberta": 0.5,
    "roberta-large": 2.5,
    "electra": 2.5,
    "reward-deberta": 3.8,
    "modernbert-large": 3.7,
    "deberta-large": 4.4,
    "deberta-large-lora": 5.7,
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_the_estimate_of_a_shipped_recipe_is_that_of_the_table(name: str) -> None:
    assert estimate_fold_hours(load_recipe(name)) == pytest.approx(ESTIMATES[name], rel=0.15)


def test_every_shipped_recipe_fits_at_least_fold_by_fold() -> None:
    for name in shipped_recipes():
        assert plan_sessions(load_recipe(name), "0", 5, 9.0) == ["0"]


def test_folds_that_fit_together_share_a_session() -> None:
    assert plan_sessions(load_recipe("deberta"), "all", 5, 9.0) == ["all"]
    assert plan_sessions(load_recipe("tiny-electra"), "all", 5, 0.1) == ["all"]


def test_folds_that_do_not_fit_together_have_a_session_each() -> None:
    recipe = load_recipe("deberta-large")
    assert plan_sessions(recipe, "all", 5, 9.0) == ["0", "1", "2", "3", "4"]
    assert plan_sessions(recipe, "3", 5, 9.0) == ["3"]
    assert plan_sessions(recipe, "holdout", 5, 9.0) == ["holdout"]
    assert plan_sessions(recipe, "all", 5, 9.0, gpu="none") == ["all"]


def test_shorter_trainings_take_less_time() -> None:
    hours = estimate_fold_hours(load_recipe("deberta-large"))
    for override, factor in (
        ("train.epochs=1", 1 / 2),
        ("train.max_steps=100", 100 * 32 / (2 * 57_477 * 0.8)),
        ("encode.max_tokens=256", 221 / 379),
    ):
        recipe = load_recipe("deberta-large", (override,))
        assert estimate_fold_hours(recipe) == pytest.approx(factor * hours, rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "max_hours"),
    [((), 3.0), (("train.epochs=9",), 9.0), (("train.max_steps=20000",), 9.0)],
)
def test_a_fold_that_does_not_fit_is_refused_with_what_would(
    overrides: tuple[str, ...], max_hours: float
) -> None:
    with pytest.raises(KitError, match="takes about") as caught:
        plan_sessions(load_recipe("deberta-large", overrides), "0", 5, max_hours)

    # What the hint says is not refused.
    hint = caught.value.hint
    hours = re.search(r"--max-hours ([\d.]+)", hint)
    override = re.search(r"--set (\S+=[\d.]+)", hint)
    assert hours or override
    changed = (*overrides, override[1].rstrip(".,")) if override else overrides
    recipe = load_recipe("deberta-large", changed)
    fits = float(hours[1].rstrip(".")) if hours else max_hours
    assert plan_sessions(recipe, "0", 5, fits) == ["0"]
