"""Check the folder of a sweep: its name, its definition, and which sweep a name means."""

import json
from pathlib import Path

import pytest
from fake_training import MakeSweep

from kit.errors import KitError
from kit.sweeps.space import parse_keys
from kit.sweeps.sweep import Sweep, choose_base, find_sweep, list_sweeps


def test_the_name_says_what_is_searched_in_whatever_order_it_is_typed(make_sweep: MakeSweep):
    names = ("train.lr=1e-4..1e-2:log", "model.head=symmetric,fusion")
    one, other = (make_sweep(keys=parse_keys(keys)) for keys in (names, names[::-1]))
    assert one == other
    assert one.name.startswith("tiny-electra-")

    changes = [
        {"keys": parse_keys(names[:1])},
        {"seeds": 3},
        {"fold": "0"},
        {"prune": False},
        {"sampler_seed": 1},
        {"recipe": choose_base("tiny-electra")[0]},
    ]
    assert len({make_sweep(**change).name for change in [{}, *changes]}) == 7


def test_the_definition_is_read_back(make_sweep: MakeSweep):
    sweep = make_sweep()
    assert Sweep.open(sweep.path) == sweep


def test_another_definition_under_the_same_name_is_refused_with_what_differs(
    make_sweep: MakeSweep,
):
    sweep = make_sweep()
    for change, said in (
        ({"rows": "other"}, "now other"),
        ({"seeds": 5}, "seeds: 2, now 5"),
        ({"recipe": choose_base("tiny-electra")[0]}, "encode.max_tokens: 32, now 128"),
        ({"keys": parse_keys(["train.lr=0.1,0.2"])}, "now train.lr=0.1,0.2"),
    ):
        other = make_sweep("others", **change)
        with pytest.raises(KitError, match="another definition") as caught:
            Sweep.create(sweep.path, other.definition)
        assert said in caught.value.problem
    assert Sweep.open(sweep.path) == sweep


@pytest.mark.parametrize("name", ["..", ".hidden", "a b"])
def test_a_name_that_is_no_folder_is_refused(make_sweep: MakeSweep, tmp_path: Path, name: str):
    with pytest.raises(KitError, match="cannot name a folder"):
        Sweep.create(tmp_path / name, make_sweep().definition)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda text: text[:40], "cannot be read"),
        (lambda text: text.replace("seeds", "seed"), "cannot be read"),
        (lambda text: text.replace("train.lr", "train.rate"), "unknown key train.rate"),
    ],
)
def test_a_damaged_definition_is_one_error(make_sweep: MakeSweep, damage, problem: str):
    sweep = make_sweep()
    file = sweep.path / "sweep.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(KitError, match=problem) as caught:
        Sweep.open(sweep.path)
    assert str(sweep.path) in caught.value.problem


def test_a_recipe_of_another_kit_is_one_error(make_sweep: MakeSweep):
    sweep = make_sweep()
    recipe = sweep.path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs", "rounds"))
    with pytest.raises(KitError, match=r"unknown key train\.rounds"):
        Sweep.open(sweep.path)


def test_a_part_of_a_name_is_enough_if_no_other_sweep_has_it(make_sweep: MakeSweep):
    one, other = make_sweep(), make_sweep(seeds=3)
    folder = one.path.parent
    assert find_sweep(one.name[-6:], folder) == one
    assert find_sweep(str(other.path), folder) == other
    assert set(list_sweeps(folder)) == {one.path, other.path}
    with pytest.raises(KitError, match=f"may be .*{one.name}"):
        find_sweep("tiny", folder)
    with pytest.raises(KitError, match="no sweep none") as caught:
        find_sweep("none", folder)
    assert f"kit sweep show --sweeps {folder}" in caught.value.hint
    with pytest.raises(KitError, match=f"Did you mean {one.name}"):
        find_sweep(one.name[1:] + "x", folder)


def test_what_is_varied_is_chosen_as_train_chooses_it(fixed_backbone: Path):
    recipe, command = choose_base("deberta-xsmall", ["train.lr=3e-5", "model.head=fusion"])
    assert (recipe.name, recipe.backbone, recipe.train.lr) == ("deberta", "deberta", 3e-5)
    assert command == (
        "kit train --recipe deberta-xsmall --set train.lr=3e-5 --set model.head=fusion"
    )
    recipe, command = choose_base("microsoft/deberta-v3-small")
    assert recipe.backbone == "microsoft/deberta-v3-small"
    assert command == "kit train --backbone microsoft/deberta-v3-small"
    recipe, command = choose_base(str(fixed_backbone))
    assert (recipe.name, command) == ("fixed", f"kit train --backbone {fixed_backbone}")


def test_the_file_of_the_definition_lists_the_keys_as_they_are_typed(make_sweep: MakeSweep):
    content = json.loads((make_sweep().path / "sweep.json").read_text())
    assert content["keys"] == ["model.head=symmetric,fusion", "train.lr=0.0001..0.01:log"]
