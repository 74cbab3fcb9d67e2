"""Check that recipes load as written, refuse wrong values, and have hashes that identify them."""

import dataclasses
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import RecipeError
from kit.model.registry import BACKBONES, max_positions
from kit.recipe.keys import RecipeKey
from kit.recipe.load import GENERAL, SHORT_NAMES, choose_recipe, load_recipe, shipped_recipes
from kit.recipe.spec import KEYS, EncodeSpec, ModelSpec, PredictSpec, Recipe, TrainSpec
from kit.storage.atomic import write_text

SECTIONS = {"encode": EncodeSpec, "model": ModelSpec, "train": TrainSpec, "predict": PredictSpec}
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def values(key: str) -> st.SearchStrategy:
    """Draw any value that a key may have."""
    kind = KEYS[key].kind
    if kind is str:
        return st.text("0123456789abcdef", max_size=8)
    if kind is bool:
        return st.booleans()
    if KEYS[key].choices:
        return st.sampled_from(KEYS[key].choices)
    return {int: st.integers, float: st.floats}[kind](*KEYS[key].between)


def sections() -> dict[str, st.SearchStrategy]:
    """Draw the four sections of a recipe, by name."""
    return {
        section: st.builds(
            spec, **{name: values(f"{section}.{name}") for name in get_type_hints(spec)}
        )
        for section, spec in SECTIONS.items()
    }


def another_value(key: str, value: Any) -> Any:
    """Return a different value of the same type."""
    if type(value) is bool:
        return not value
    if KEYS[key].choices:
        return next(choice for choice in KEYS[key].choices if choice != value)
    return f"{value}a" if type(value) is str else value + 1


def with_another_value(recipe: Recipe, key: str) -> Recipe:
    """Return the recipe with a different value of one key."""
    section, _, name = key.partition(".")
    spec = getattr(recipe, section)
    changed = dataclasses.replace(spec, **{name: another_value(key, getattr(spec, name))})
    return dataclasses.replace(recipe, **{section: changed})


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_fits_its_backbone(name: str):
    recipe = load_recipe(name, backbone="tiny-qwen" if name in GENERAL else None)
    assert recipe.purpose
    assert shipped_recipes()[name].stem in (recipe.name, *GENERAL)
    limit = max_positions(BACKBONES[recipe.backbone].config)
    assert limit is None or recipe.encode.max_tokens <= limit
    assert recipe.train.batch_size % (recipe.train.micro_batch_size or 1) == 0


def test_every_backbone_has_a_recipe_of_its_name():
    for name in BACKBONES:
        assert load_recipe(name).backbone == name


@pytest.mark.parametrize("backbone", ["deberta", "roberta", "electra"])
def test_the_reference_recipes_follow_the_reference_study(backbone: str):
    recipe = load_recipe(f"{backbone}-reference")
    train = recipe.train
    assert recipe.backbone == backbone
    assert recipe.encode.max_tokens < 384
    assert recipe.model.head == "fusion"
    assert not recipe.model.features

    assert (train.lr, train.head_lr, train.layer_decay, train.warmup) == (1e-5, 1e-5, 1.0, 0.0)
    assert (train.weight_decay, train.label_smoothing, train.schedule) == (0.01, 0.1, "plateau")
    assert (train.epochs, train.max_steps) == (10, 0)
    assert 0 < train.patience / train.evals_per_epoch < train.epochs
    assert not train.swap_augmentation


@pytest.mark.parametrize(
    "name", sorted(name for name in shipped_recipes() if not name.endswith("-reference"))
)
def test_other_recipes_use_features_and_both_orders(name: str):
    recipe = load_recipe(name, backbone="tiny-electra" if name in GENERAL else None)
    assert recipe.model.features
    if recipe.model.head == "symmetric":
        assert recipe.train.swap_augmentation


def test_features_and_both_orders_are_off_by_default():
    """Recipes of users from before these keys keep their meaning."""
    recipe = Recipe("old", "tiny-electra")
    assert not recipe.model.features
    assert not recipe.train.swap_augmentation


def test_the_reference_recipes_differ_only_in_the_backbone():
    first, *others = (
        dataclasses.replace(load_recipe(f"{name}-reference"), name="x", purpose="", backbone="x")
        for name in ("deberta", "roberta", "electra")
    )
    assert all(other == first for other in others)


# A full name is read as the short one. Hypothesis finds such words in the sources.
OWN_BACKBONES = st.text(min_size=1).filter(lambda name: name not in SHORT_NAMES)


@settings(deadline=None, max_examples=150)
@given(st.builds(Recipe, name=NAMES, backbone=OWN_BACKBONES, purpose=st.text(), **sections()))
def test_a_recipe_survives_a_round_trip_through_toml(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe
):
    # Some keys exclude each other.
    train = dataclasses.replace(recipe.train, frozen=False, shard=False)
    recipe = dataclasses.replace(recipe, train=train)
    if recipe.model.shape != "siamese":
        recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, reward=False))
    if not recipe.train.lora_rank or recipe.train.compile:
        model = dataclasses.replace(recipe.model, quantize="none")
        recipe = dataclasses.replace(recipe, model=model)
    if recipe.train.lora_rank:
        train = dataclasses.replace(recipe.train, reinit_layers=0)
        recipe = dataclasses.replace(recipe, train=train)
    file = tmp_path_factory.getbasetemp() / "round-trip.toml"
    write_text(file, recipe.to_toml())
    assert load_recipe(file) == recipe
    assert load_recipe(file).hash == recipe.hash


@pytest.mark.parametrize("key", KEYS)
def test_the_hash_changes_with_every_key(key: str):
    recipe = load_recipe("deberta")
    assert with_another_value(recipe, key).hash != recipe.hash


def test_a_recipe_with_keys_that_are_gone_is_the_same_while_they_are_off(tmp_path: Path):
    recipe = load_recipe("tiny-electra")
    file = tmp_path / "old.toml"
    off = "[train]\nema = 0.0\nawp = 0.0\nawp_start = 0.2\n"
    file.write_text(recipe.to_toml().replace("[train]\n", off))
    assert load_recipe(file).run_name == recipe.run_name == "tiny-electra-e8d5d21a"

    file.write_text(recipe.to_toml().replace("[train]\n", "[train]\nema = 0.9\n"))
    with pytest.raises(
        RecipeError, match=r"old\.toml: train\.ema = 0\.9, but kit has no"
    ) as caught:
        load_recipe(file)
    assert "kit 0.1" in caught.value.hint
    with pytest.raises(RecipeError, match=r"no train\.awp any more"):
        load_recipe("tiny-electra", ["train.awp=0.005"])


def test_the_hash_changes_with_the_backbone_and_not_with_name_or_purpose():
    recipe = load_recipe("deberta")
    assert dataclasses.replace(recipe, backbone="roberta").hash != recipe.hash

    renamed = dataclasses.replace(recipe, name="mine", purpose="other words")
    assert renamed.hash == recipe.hash
    assert renamed.run_name == f"mine-{recipe.hash}"
    assert re.fullmatch(r"[0-9a-f]{8}", recipe.hash)


def test_just_the_numbers_have_a_range():
    for key in KEYS.values():
        assert (key.between is not None) == (key.kind in (int, float)), key.name


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_every_key_has_a_meaning_and_a_source(key: RecipeKey):
    assert key.doc.strip()
    assert key.source.strip()


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.lr=2e-5", "train.lr", 2e-5),
        ("train.lr = 1", "train.lr", 1.0),
        ("train.epochs=2", "train.epochs", 2.0),
        ("train.seed=0x10", "train.seed", 16),
        ("train.batch_size=1_024", "train.batch_size", 1024),
        ("predict.swap=false", "predict.swap", False),
        ("model.head=fusion", "model.head", "fusion"),
        ('model.head="fusion"', "model.head", "fusion"),
        ("model.head = 'fusion' # as the reference has it", "model.head", "fusion"),
        ("train.precision=bf16", "train.precision", "bf16"),
        ('"train"."patience"=4', "train.patience", 4),
        ("train={patience=4}", "train.patience", 4),
    ],
)
def test_an_override_is_read_as_a_line_of_toml(override: str, key: str, value: Any):
    section, _, name = key.partition(".")
    recipe = load_recipe("deberta", [override])
    found = getattr(getattr(recipe, section), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("model.reward=true", "model.shape=cross"), "one answer at a time"),
        (("train.lora_rank=2", "train.reinit_layers=1"), "only adapters learn"),
    ],
)
def test_keys_that_exclude_each_other_are_refused_in_files_and_overrides(
    overrides: tuple[str, str], problem: str, tmp_path: Path
):
    with pytest.raises(RecipeError, match=problem):
        load_recipe("deberta", overrides)

    file = tmp_path / "mine.toml"
    write_text(file, load_recipe("deberta", overrides[:1]).to_toml())
    with pytest.raises(RecipeError, match=problem):
        load_recipe(file, overrides[1:])


@pytest.mark.parametrize(
    "override", ["train.swap_augmentation=false", "train={swap_augmentation=true}"]
)
def test_setting_swap_augmentation_is_refused_with_a_symmetric_head(override: str, tmp_path: Path):
    with pytest.raises(RecipeError, match="has no effect with the symmetric head") as caught:
        load_recipe("deberta", [override])
    assert "model.head=fusion" in caught.value.hint

    fusion = load_recipe("deberta", ["model.head=fusion", override])
    assert fusion.train.swap_augmentation == ("true" in override)

    # A run directory's recipe.toml has the key, as all keys, and loads.
    write_text(tmp_path / "run.toml", load_recipe("deberta").to_toml())
    assert load_recipe(tmp_path / "run.toml") == load_recipe("deberta")


def test_an_override_changes_one_key_and_the_last_one_wins():
    recipe = load_recipe("deberta", ["train.lr=1e-3", "train={patience=4}", "train.lr=2e-3"])
    assert recipe.train == dataclasses.replace(load_recipe("deberta").train, lr=2e-3, patience=4)


@pytest.mark.parametrize(
    "folder", ["encoders/mine", "./encoders/mine", "/data/encoders/mine", "../mine-2.0"]
)
def test_a_path_needs_no_quotes(folder: str):
    assert load_recipe("deberta", [f"backbone={folder}"]).backbone == folder


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.lrr=1", "train.lr"),
        ("trian.lr=1", "train.lr"),
        ("model.lr=1", "train.lr"),
        ("lr=1", "train.lr"),
        ("Max_Token=64", "encode.max_tokens"),
        ("backbon=mine", "backbone"),
        ("train.learning_speed=1", ""),
    ],
)
def test_an_unknown_key_names_the_nearest_and_where_all_are(override: str, near: str):
    with pytest.raises(RecipeError) as caught:
        load_recipe("deberta", [override])
    assert caught.value.problem == f"--set {override}: unknown key {override.partition('=')[0]}"
    meant = f"Did you mean {near}? " if near else ""
    assert caught.value.hint == f"{meant}`kit recipes --keys` lists all."


def test_an_unknown_key_of_a_file_is_blamed_on_the_file(tmp_path: Path):
    (tmp_path / "mine.toml").write_text('backbone = "deberta"\n[train]\nlrr = 1e-5\n')
    with pytest.raises(RecipeError, match=r"mine\.toml: unknown key train\.lrr"):
        load_recipe(tmp_path / "mine.toml", ["train.lr=1e-4"])


@pytest.mark.parametrize(
    ("override", "problem", "hint"),
    [
        ("train.lr=true", "train.lr = True is not a number", "train.lr=2e-05"),
        ("train.lr=fast", "train.lr = 'fast' is not a number", "train.lr=2e-05"),
        ("train.lr=nan", "train.lr = nan is not a number", "train.lr=2e-05"),
        ("train.lr=inf", "train.lr = inf is not a number", "train.lr=2e-05"),
        ("train.lr=[1]", "is not a number", "train.lr=2e-05"),
        ("train.lr=1" + "0" * 400, "is not a number", "train.lr=2e-05"),
        ("train.batch_size=1.5", "is not a whole number", "train.batch_size=32"),
        ("train.batch_size=true", "is not a whole number", "train.batch_size=32"),
        ("predict.swap=1", "predict.swap = 1 is not true or false", "predict.swap=true"),
        ("predict.swap=False", "predict.swap = 'False' is not true or false", "predict.swap=true"),
        ("purpose=1979-05-27", "is not a text", "purpose="),
        ("train.lr=2", "train.lr = 2.0 is out of range", "from 0 to 1."),
        ("train.epochs=0", "out of range", "from 0.001 to 1000."),
        ("encode.max_tokens=4", "out of range", "from 8 to 8192."),
        ("train.seed=-1", "out of range", "from 0 to 4294967295."),
        ("model.head=siamese", "model.head = 'siamese'", "symmetric, fusion"),
        ("model.pooling=1", "model.pooling = 1", "auto, mean, cls, attention"),
        ("train=3", "[train] must be a section", "kit recipes"),
        ("backbone.x=3", "backbone is a value, not a section", "kit recipes"),
        ("train.lr", "is not KEY=VALUE", "--set train.lr=2e-5"),
        ("=3", "is not KEY=VALUE", "--set train.lr=2e-5"),
        ("train.lr=", "train.lr=", "--set train.lr=2e-5"),
        ("train.lr=1 2", "train.lr=1 2", "--set train.lr=2e-5"),
        ("train lr=1", "train lr=1", "--set train.lr=2e-5"),
        ("train.seed=" + "1" * 5000, "train.seed", "--set train.lr=2e-5"),
        ("name=a/b", "cannot name a folder", "letters"),
        ("name=..", "cannot name a folder", "letters"),
        ("name=''", "cannot name a folder", "letters"),
    ],
    ids=lambda text: text[:30],
)
def test_a_wrong_value_is_refused_with_a_right_one(override: str, problem: str, hint: str):
    with pytest.raises(RecipeError) as caught:
        load_recipe("deberta", [override])
    assert problem in caught.value.problem
    assert hint in caught.value.hint
    assert caught.value.problem.startswith(f"--set {override[:60]}") or "--set '" in str(
        caught.value
    )


def test_keys_that_exclude_each_other_are_blamed_on_the_recipe_and_the_options():
    with pytest.raises(RecipeError) as caught:
        load_recipe("deberta", ["train.lora_rank=2", "train.reinit_layers=1"])
    start = "recipe deberta with --set train.lora_rank=2 --set train.reinit_layers=1: "
    assert caught.value.problem.startswith(start)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("debrta-large", "Did you mean deberta-large? "),
        ("tiny-debrta", "Did you mean tiny-deberta? "),
        ("Electra-Large", "Did you mean electra-large? "),
        ("nope", ""),
    ],
)
def test_an_unknown_recipe_names_the_nearest_and_where_all_are(name: str, near: str):
    with pytest.raises(RecipeError, match=f"no recipe '{name}'") as caught:
        load_recipe(name)
    assert caught.value.hint == f"{near}`kit recipes` lists all; or name a TOML file."


@pytest.mark.parametrize(
    "content", [b"backbone = ", b"\xff\xfe", b"a = 1\na = 2", b"train.seed = " + b"9" * 5000]
)
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes):
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml: not valid TOML"):
        load_recipe(tmp_path / "mine.toml")


def test_a_users_file_has_the_defaults_and_its_file_name(tmp_path: Path):
    (tmp_path / "mine.toml").write_text('backbone = "roberta"\n', encoding="utf-8")
    assert load_recipe(tmp_path / "mine.toml") == Recipe(name="mine", backbone="roberta")


def test_a_file_without_a_backbone_needs_the_option(tmp_path: Path):
    (tmp_path / "mine.toml").write_text("[train]\nlr = 1e-4\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="names no backbone"):
        load_recipe(tmp_path / "mine.toml")
    assert load_recipe(tmp_path / "mine.toml", backbone="roberta").name == "mine-roberta"


def test_a_recipe_on_another_backbone_has_another_name_and_hash():
    plain = load_recipe("deberta-reference")
    other = load_recipe("deberta-reference", backbone="roberta")
    assert (other.name, other.backbone) == ("deberta-reference-roberta", "roberta")
    assert other.hash != plain.hash
    assert load_recipe("deberta-reference", backbone="deberta") == plain


def test_a_backbone_has_its_own_recipe_and_a_folder_the_default_one(tmp_path: Path):
    assert choose_recipe("roberta", None) == load_recipe("roberta")
    assert choose_recipe(None, "roberta-reference") == load_recipe("roberta-reference")

    folder = tmp_path / "my-encoder"
    folder.mkdir()
    mine = choose_recipe(str(folder), None, ["train.lr=1e-4"])
    assert (mine.name, mine.backbone, mine.train.lr) == ("my-encoder", str(folder), 1e-4)
    assert mine.encode == load_recipe("default", backbone="roberta").encode
    assert mine.purpose == f"the recipe default with {folder}"

    with pytest.raises(RecipeError, match="no backbone and no recipe"):
        choose_recipe(None, None)


@pytest.mark.parametrize(
    ("name", "own"), [("deberta-xsmall", "deberta"), ("roberta-base", "roberta")]
)
def test_a_full_name_means_the_same_run_as_the_short_one(name: str, own: str):
    assert choose_recipe(name, None).run_name == load_recipe(own).run_name
    assert choose_recipe(None, name).run_name == load_recipe(own).run_name


@pytest.mark.parametrize(
    ("hub_id", "nearest"),
    [
        ("microsoft/deberta-v3-small", "deberta"),
        ("microsoft/mdeberta-v3-base", "mdeberta"),
        ("google/electra-large-generator", "electra"),
        ("answerdotai/ModernBERT-large", "modernbert-large"),
        ("sentence-transformers/all-MiniLM-L6-v2", "default"),
    ],
)
def test_an_encoder_of_the_hub_gets_the_nearest_recipe(hub_id: str, nearest: str):
    recipe = choose_recipe(hub_id, None, ("train.seed=1",))
    assert recipe.name == hub_id.partition("/")[2]
    assert recipe.backbone == hub_id
    assert recipe.purpose == f"the recipe {nearest} with {hub_id}"
    assert recipe.train.lr == load_recipe(nearest, (), "deberta").train.lr
    assert choose_recipe(hub_id, "deberta-cross").model.shape == "cross"
