"""Check that a plan counts real rows, says how each figure is known, and judges what fits."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import kit
from kit.data.dataset import Dataset
from kit.data.tokenize import tokenize_cached
from kit.errors import KitError, RecipeError
from kit.model.backbones import local_backbone, resolve_backbone
from kit.model.encoder import load_tokenizer
from kit.model.registry import BACKBONES
from kit.planning import plan as planning
from kit.planning.plan import Plan, make_plan
from kit.planning.rows import count_lengths
from kit.recipe.load import load_recipe
from kit.training.setup import tiny_folder


@pytest.fixture(scope="module")
def tiny_plan() -> Plan:
    return make_plan(load_recipe("tiny-electra"))


def test_tokens_are_counted_on_the_real_rows(processed: Dataset, tmp_path: Path):
    recipe = load_recipe("tiny-electra", ["encode.max_tokens=64"])
    backbone = resolve_backbone(recipe.backbone)
    lengths = count_lengths(recipe, backbone, processed, 0)

    folder = tiny_folder(BACKBONES["tiny-electra"], processed)
    tokenizer = load_tokenizer(local_backbone(folder))
    table = processed.train()
    tokens = tokenize_cached(table, "digest", tokenizer, recipe.encode, tmp_path)
    train, valid = processed.fold_rows(0)
    assert (lengths.train_rows, lengths.valid_rows) == (len(train), len(valid))

    # A toy's tokenizer is trained on the rows at hand, which are a fold fewer.
    assert lengths.mean_tokens == pytest.approx(tokens.lengths[train].mean(), rel=0.02)
    assert lengths.source == "counted on all rows"


def test_of_many_rows_some_are_counted(processed: Dataset, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kit.planning.rows.SAMPLED_ROWS", 50)
    recipe = load_recipe("tiny-electra")
    lengths = count_lengths(recipe, resolve_backbone(recipe.backbone), processed, 0)
    assert lengths.tokens.shape == (50, 2)
    assert lengths.train_rows > 50
    assert lengths.source == "counted on 50 rows"


def test_without_a_tokenizer_characters_are_counted(processed: Dataset):
    # Its tokenizer is on the hub, and there is no network.
    recipe = load_recipe("roberta", ["encode.max_tokens=512"])
    lengths = count_lengths(recipe, resolve_backbone("roberta"), processed, 0)
    assert "from characters" in lengths.source

    rows = processed.train().take(processed.fold_rows(0)[0]).to_pylist()
    first = [
        min(512, int(sum(map(len, [*row["prompt"], *row["response_a"]])) / 4 + 3)) for row in rows
    ]
    np.testing.assert_array_equal(lengths.tokens[:, 0], first)


def test_without_data_the_rows_are_the_competitions(tiny_plan: Plan):
    assert tiny_plan.train_rows + tiny_plan.valid_rows == 57_477
    assert tiny_plan.rows_from == "the competition's"
    assert tiny_plan.tokens_from == "modelled on the competition's"
    assert tiny_plan.device == "2 x T4"
    assert tiny_plan.parts == [f"fold{number}" for number in range(5)]
    assert tiny_plan.memory_from == "counted"
    assert tiny_plan.verdict == "fits into 9 h"


def test_a_plan_is_json(tiny_plan: Plan):
    values = json.loads(json.dumps(tiny_plan.as_dict()))
    assert values["fits"]
    assert values["folds"] == 5
    assert values["hours"] == pytest.approx(5 * values["fold_hours"])


def test_the_verdict_follows_memory_and_hours(tiny_plan: Plan):
    def verdict(**changes: object) -> str:
        changed = dataclasses.replace(tiny_plan, **changes)
        assert changed.fits == ("does not" not in changed.verdict)
        return changed.verdict

    assert "needs 20.0 GiB of one T4, which has 14.0" in verdict(memory_gib=20.0)
    changed = dataclasses.replace(tiny_plan, refused="it overflows")
    assert (changed.fits, changed.verdict) == (False, "refused: it overflows")
    assert verdict(memory_gib=None) == "fits into 9 h"
    assert "one fold takes longer than 9 h" in verdict(sessions=0)
    assert verdict(sessions=5) == "fits into 9 h fold by fold: 5 sessions"
    assert verdict(sessions=None) == "fits into memory"


def test_a_plan_for_this_machine_measures_it(data: Path):
    plan = kit.plan("tiny-electra", data=data, fold="holdout", gpu="cpu")
    assert plan.device == "CPU"
    assert plan.rows_from == "counted"
    assert plan.parts == ["holdout"]
    assert plan.fold_hours > 0
    assert plan.memory_from == "estimated"
    assert plan.memory_gib > 1.5
    assert plan.sessions is None


def test_a_plan_of_a_folder_and_of_adapters(fixed_backbone: Path):
    plan = make_plan(load_recipe("default", ["train.lora_rank=4"], str(fixed_backbone)), fold="0")
    assert 0 < plan.trained < plan.parameters
    assert plan.folds == 1


def test_an_encoder_that_cannot_be_counted_is_planned(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise NotImplementedError("no kernel on meta\nand more")

    monkeypatch.setattr(planning, "count_memory", fail)
    plan = make_plan(load_recipe("tiny-electra"))
    assert plan.memory_gib is None
    assert plan.memory_from == "cannot be counted for this encoder: no kernel on meta"
    assert plan.fits


def test_what_cannot_be_planned_is_refused(data: Path):
    with pytest.raises(KitError, match="no figures for a GPU 'abacus'"):
        kit.plan("tiny-electra", gpu="abacus")
    with pytest.raises(RecipeError, match="have folds 0 to 2"):
        kit.plan("tiny-electra", data=data, fold=7)
    with pytest.raises(RecipeError, match="not a multiple"):
        kit.plan("tiny-electra", overrides={"train.batch_size": 5}, gpu="t4")
