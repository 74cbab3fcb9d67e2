"""Check that a training is split over as many sessions as it needs, or refused with what fits."""

import re
from pathlib import Path

import pytest

from kit.costs import sessions
from kit.errors import KitError
from kit.kaggle import session_hours
from kit.kaggle.session_hours import plan_sessions
from kit.recipe.load import load_recipe, shipped_recipes

# Judges for larger GPUs or a session of 12 hours, and recipes without a backbone of their own.
NOT_FOR_T4 = {"gemma-2-9b", "phi-3-mini", "qwen3-4b", "default", "judge"}


def test_every_shipped_recipe_fits_at_least_fold_by_fold() -> None:
    for name in set(shipped_recipes()) - NOT_FOR_T4:
        plan = plan_sessions(load_recipe(name), "0", 5, 9.0)
        assert plan.folds == ["0"]
        assert 0 < plan.fold_hours < 8.75


def test_folds_that_fit_together_share_a_session() -> None:
    assert plan_sessions(load_recipe("deberta"), "all", 5, 9.0).folds == ["all"]
    assert plan_sessions(load_recipe("tiny-electra"), "all", 5, 0.3).folds == ["all"]


def test_folds_that_do_not_fit_together_have_a_session_each() -> None:
    recipe = load_recipe("deberta-large")
    plan = plan_sessions(recipe, "all", 5, 9.0)
    assert plan.folds == ["0", "1", "2", "3", "4"]
    assert f"about {plan.fold_hours:.1f} h a fold on two T4, " in plan.summary
    assert "all 5 folds do not fit into 9 h" in plan.summary
    assert plan_sessions(recipe, "3", 5, 9.0).folds == ["3"]
    assert plan_sessions(recipe, "holdout", 5, 9.0).folds == ["holdout"]
    assert plan_sessions(recipe, "all", 5, 9.0, gpu="none").folds == ["all"]


def test_outputs_that_do_not_fit_together_have_a_session_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (sessions, session_hours):
        monkeypatch.setattr(module, "KAGGLE_OUTPUT_BYTES", 1e9)
    plan = plan_sessions(load_recipe("deberta"), "all", 5, 9.0)
    assert len(plan.folds) == 5
    assert "do not fit into the 1 GB" in plan.summary
    with pytest.raises(KitError, match="takes 2 GB"):
        plan_sessions(load_recipe("deberta-large"), "0", 5, 9.0)


def test_a_backbone_of_ones_own_is_estimated_too(fixed_backbone: Path) -> None:
    recipe = load_recipe("default", backbone=str(fixed_backbone))
    assert plan_sessions(recipe, "all", 5, 9.0).fold_hours > 0

    adapted = load_recipe("roberta", ["train.lora_rank=8"])
    plain = plan_sessions(load_recipe("roberta"), "0", 5, 9.0)
    assert plan_sessions(adapted, "0", 5, 9.0).fold_hours != plain.fold_hours


def test_a_backbone_without_sizes_is_not_held_up(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "perceiver"}')
    plan = plan_sessions(load_recipe("default", backbone=str(tmp_path)), "all", 5, 9.0)
    assert plan.folds == ["all"]
    assert "no estimate" in plan.summary


@pytest.mark.parametrize(
    ("overrides", "max_hours"),
    [
        ((), 3.0),
        (("train.epochs=9",), 9.0),
        (("train.max_steps=20000",), 9.0),
        (("train.epochs=9", "train.evals_per_epoch=20"), 9.0),
    ],
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
    assert plan_sessions(recipe, "0", 5, fits).folds == ["0"]


def test_a_session_that_is_too_short_for_anything_says_so() -> None:
    overrides = ("train.epochs=0.1", "encode.max_tokens=8192", "train.r_drop=1.0")
    recipe = load_recipe("deberta-large", (*overrides, "train.evals_per_epoch=1000"))
    with pytest.raises(KitError, match="takes about") as caught:
        plan_sessions(recipe, "0", 5, 0.3)
    assert "--max-hours" in caught.value.hint or "smaller backbone" in caught.value.hint
