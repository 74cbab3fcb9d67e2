"""Load recipes: shipped ones by name or the user's TOML files, with overrides, every value checked.

Use `load_recipe`, or `choose_recipe` for what a command line asks for. `change_recipe`
changes one that is loaded; `parse_override` and `check_value` are for single keys, and
`name_nearest_key` for one that is not known.
"""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from kit.attention.families import is_language_model
from kit.errors import RecipeError
from kit.recipe.spec import KEYS, RETIRED, Recipe
from kit.storage.atomic import read_text_file
from kit.wording import find_nearest, name_nearest, propose

SHIPPED = Path(__file__).parent / "shipped"

# Recipes without a backbone of their own, for folders of encoders and of decoders.
GENERAL = ("default", "judge")
# The full names of backbones, and of their recipes, whose short name does not say the size. Recipes
# keep the short name, because the hash in a run's name is made of it.
SHORT_NAMES = {
    "deberta-xsmall": "deberta",
    "roberta-base": "roberta",
    "electra-large": "electra",
    "mdeberta-base": "mdeberta",
    "xlm-roberta-base": "xlm-roberta",
    "reward-deberta-large": "reward-deberta",
}

# Words in the name of an encoder on the hub, by which the nearest recipe is found.
_FAMILIES = ("mdeberta", "deberta", "xlm-roberta", "roberta", "electra", "modernbert")
_SIZES = ("xsmall", "small", "base", "large")
_DECODERS = ("qwen", "llama", "gemma", "mistral", "smollm", "phi")

# Of an override, so many characters are repeated in an error.
_SHOWN = 60

# A repository on the Hugging Face hub.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

TYPE_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def shipped_recipes() -> dict[str, Path]:
    """Return the files of the recipes that come with kit, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def is_hub_id(name: str) -> bool:
    """Whether a name can only mean OWNER/NAME on the Hugging Face hub: there is no such folder."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.exists()


def load_recipe(
    name_or_file: str | Path, overrides: Iterable[str] = (), backbone: str | None = None
) -> Recipe:
    """Read a recipe and apply overrides.

    Args:
        name_or_file: a shipped recipe's name, or a TOML file.
        overrides: as `--set` takes them, such as "train.lr=2e-5".
        backbone: used in place of the recipe's own; the recipe's name gets it as a suffix.

    Raises:
        RecipeError: there is no such recipe, or a key, type or value is wrong. The message names
            what comes near, or the choices.
    """
    return _load_recipe(name_or_file, overrides, backbone, {})


def _load_recipe(
    name_or_file: str | Path,
    overrides: Iterable[str],
    backbone: str | None,
    words: Mapping[str, str],
) -> Recipe:
    """Read a recipe as `load_recipe` does; `words` are its name and purpose in place of its own."""
    requested = str(name_or_file)
    shipped = shipped_recipes().get(SHORT_NAMES.get(requested, requested))
    path = shipped or Path(name_or_file)
    values = _read_toml(path, requested)

    backbone = SHORT_NAMES.get(backbone or "", backbone)
    if backbone and backbone != values.get("backbone"):
        values["backbone"] = backbone
        # A folder that is not there is reported by whoever looks for the backbone.
        folder = Path(backbone)
        suffix = folder.resolve().name if folder.is_dir() else folder.name
        values["name"] = suffix if path.stem in GENERAL else f"{values['name']}-{suffix}"

    # A shipped recipe is called by its name: its file is kit's, and nothing for a user to mend.
    source = f"recipe {shipped.stem}" if shipped else str(path)
    return _change_values(values | dict(words), overrides, source)


def change_recipe(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a recipe with some keys changed, as `--set` changes them.

    Raises:
        RecipeError: a key, type or value is wrong, or the values cannot be combined.
    """
    return _change_values(dataclasses.asdict(recipe), overrides, recipe.name)


def _change_values(values: dict[str, Any], overrides: Iterable[str], source: str) -> Recipe:
    """Return the Recipe of plain values after some of them are changed, and all are checked."""
    # The overrides are also kept by themselves, to refuse some that would have no effect.
    changes: dict[str, Any] = {}
    given = list(overrides)
    for override in given:
        change = parse_override(override)
        _merge(values, change, override)
        _merge(changes, change, override)
        _check_values(change, f"--set {override[:_SHOWN]}")

    if "backbone" not in values:
        raise RecipeError(
            f"{source} names no backbone", "Add `--backbone NAME`; `kit backbones` lists them."
        )
    values["backbone"] = SHORT_NAMES.get(str(values["backbone"]), values["backbone"])
    recipe = Recipe(**_check_values(values, source))
    options = " ".join(f"--set {override[:_SHOWN]}" for override in given)
    _check_combinations(recipe, changes, f"{source} with {options}" if options else source)
    return recipe


def choose_recipe(
    backbone: str | None, recipe: str | None, overrides: Iterable[str] = ()
) -> Recipe:
    """Load the recipe for `--backbone` and `--recipe`: the backbone's own, a named one, or both.

    An encoder of the hub gets the recipe of its family that is nearest in size, such as `deberta`
    for microsoft/deberta-v3-small, or `default`; a folder gets `default`, or `judge` for a language
    model. The purpose then says which recipe was taken.

    Raises:
        RecipeError: neither is given; or as for `load_recipe`.
    """
    if not backbone and not recipe:
        raise RecipeError(
            "no backbone and no recipe given",
            "Add --backbone NAME (`kit backbones`) or --recipe NAME.",
        )
    if recipe or not backbone:
        return load_recipe(recipe or "default", overrides, backbone)
    if not is_hub_id(backbone):
        own = SHORT_NAMES.get(backbone, backbone)
        if own in shipped_recipes():
            return load_recipe(own, overrides, backbone)
        general = _general_recipe(backbone)
        words = {"purpose": f"the recipe {general} with {backbone}"}
        return _load_recipe(general, overrides, backbone, words)

    nearest = _nearest_recipe(backbone)
    purpose = f"the recipe {nearest} with {backbone}"
    words = {"name": Path(backbone).name, "purpose": purpose}
    return _load_recipe(nearest, overrides, backbone, words)


def _nearest_recipe(hub_id: str) -> str:
    """Return the shipped recipe for a model, by the family and the size in its name."""
    words = re.split(r"[^a-z0-9]+", Path(hub_id).name.lower())
    if any(word.startswith(_DECODERS) for word in words):
        return "judge"
    family = next((name for name in _FAMILIES if set(name.split("-")) <= {*words}), "")
    size = next((place for place, name in enumerate(_SIZES) if name in words), _SIZES.index("base"))
    for near in sorted(range(len(_SIZES)), key=lambda place: abs(place - size)):
        full = f"{family}-{_SIZES[near]}"
        name = SHORT_NAMES.get(full, full)
        if name in shipped_recipes():
            return name
    return "default"


def _general_recipe(backbone: str) -> str:
    """Return the recipe for a backbone folder: "judge" for a language model, else "default"."""
    try:
        config = json.loads(read_text_file(Path(backbone) / "config.json"))
        return "judge" if is_language_model(config) else "default"
    # Whether the folder can be used is found out when it is read for the training.
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "default"


def _read_toml(path: Path, requested: str) -> dict[str, Any]:
    """Return the values of a TOML file, which is called as the user `requested` it in errors."""
    if not path.is_file():
        names = [*shipped_recipes(), *SHORT_NAMES]
        where = "`kit recipes` lists all; or name a TOML file."
        raise RecipeError(f"no recipe {requested!r}", name_nearest(requested, names, where))

    # ValueError includes invalid TOML, text that is not UTF-8, and numbers of a million digits.
    try:
        values = tomllib.loads(read_text_file(path))
    except (ValueError, RecursionError) as error:
        raise RecipeError(
            f"{path}: not valid TOML: {error}", "Compare with `kit recipes NAME`."
        ) from error
    return {"name": path.stem} | values


def parse_override(text: str, option: str = "--set") -> dict[str, Any]:
    """Read `KEY=VALUE` as a line of TOML, such as {"train": {"lr": 2e-5}}.

    A word needs no quotes, because shells would remove them.

    Args:
        option: what the text was given to, for errors.

    Raises:
        RecipeError: it is not KEY=VALUE, or the value is not TOML.
    """
    example = f"For example: {option} train.lr=2e-5"
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{option} {text!r} is not KEY=VALUE", example)

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        problem = error
    if re.fullmatch(r"\s*([A-Za-z./]|\d+[A-Za-z])[\w.\-/]*\s*", value):
        try:
            return tomllib.loads(f"{key}={json.dumps(value.strip())}")
        except (ValueError, RecursionError) as error:
            problem = error
    raise RecipeError(f"{option} {text!r}: {problem}", example)


def _merge(into: dict[str, Any], new: dict[str, Any], source: str) -> None:
    """Put the values of `new` into `into`, section by section; `source` is the override."""
    for key, value in new.items():
        if not isinstance(value, dict):
            into[key] = value
            continue

        section = into.setdefault(key, {})
        if not isinstance(section, dict):
            raise RecipeError(
                f"--set {source!r}: {key} is a value, not a section",
                "`kit recipes NAME` shows a whole recipe.",
            )
        _merge(section, value, source)


def _check_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return what a Recipe is built of after checking each of the plain values.

    Args:
        values: of a whole recipe, or some of them.
        source: their file or option, for errors.
    """
    kinds = get_type_hints(Recipe)
    _refuse_unknown(values, kinds, source)

    checked: dict[str, Any] = {}
    for name, value in values.items():
        kind = kinds[name]
        if not dataclasses.is_dataclass(kind):
            checked[name] = _check_type(value, kind, source, name, "…")
            continue

        if not isinstance(value, dict):
            raise RecipeError(
                f"{source}: [{name}] must be a section of keys", "`kit recipes NAME` shows one."
            )
        value = _without_retired(value, source, name)
        _refuse_unknown(value, get_type_hints(kind), source, name + ".")
        section = {key: check_value(v, source, f"{name}.{key}") for key, v in value.items()}
        checked[name] = kind(**section)

    name = checked.get("name", "unnamed")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RecipeError(
            f"{source}: the name {name!r} cannot name a folder",
            "Use letters, digits, '.', '_' and '-'.",
        )
    return checked


def _without_retired(values: dict[str, Any], source: str, section: str) -> dict[str, Any]:
    """Return the values of a section without keys that are gone, which have to be switched off."""
    for name, value in values.items():
        key = f"{section}.{name}"
        if key in RETIRED and value != RETIRED[key]:
            raise RecipeError(
                f"{source}: {key} = {value!r}, but kit has no {key} any more: in measurements "
                "nothing was gained by it",
                f"Leave {key} out. To use a run that was trained with it, install kit 0.1.",
            )
    return {name: value for name, value in values.items() if f"{section}.{name}" not in RETIRED}


def _refuse_unknown(
    values: dict[str, Any], known: Iterable[str], source: str, prefix: str = ""
) -> None:
    """Raise RecipeError for a key that is not `known`; `prefix` is its section and a dot."""
    for name, value in values.items():
        if name in known:
            continue
        # Of a section that is not known, its first key tells more than its own name.
        below = f".{next(iter(value))}" if isinstance(value, dict) and value else ""
        unknown = prefix + name + below
        raise RecipeError(f"{source}: unknown key {unknown}", name_nearest_key(unknown))


def name_nearest_key(name: str) -> str:
    """Return the hint for an unknown recipe key: the nearest ones, and where all of them are."""
    where = "`kit recipes --keys` lists all."
    last = name.rpartition(".")[2]
    same = [key for key in KEYS if key.rpartition(".")[2] == last]
    if same:
        return propose(same, where)

    # Sections are left out: two keys of one section would always be alike.
    outside = [field.name for field in dataclasses.fields(Recipe)]
    full = {key: key for key in outside} | {key.rpartition(".")[2]: key for key in KEYS}
    return propose((full[near] for near in find_nearest(last, full)), where)


def check_value(value: Any, source: str, name: str) -> Any:
    """Return the value of the key `name` in the key's type.

    Args:
        source: where the value comes from, for errors.

    Raises:
        RecipeError: it is of another type, out of range, or none of the choices.
    """
    key = KEYS[name]
    if key.choices and key.kind is not bool:
        if value not in key.choices:
            raise RecipeError(f"{source}: {name} = {value!r}", f"Choices: {', '.join(key.choices)}")
        return value

    value = _check_type(value, key.kind, source, name, json.dumps(key.default))
    if key.between and not key.between[0] <= value <= key.between[1]:
        raise RecipeError(
            f"{source}: {name} = {value} is out of range", f"Choose a value from {key.allowed}."
        )
    return value


def _check_type(value: Any, kind: type, source: str, name: str, example: str) -> Any:
    """Return the value as `kind`; raise RecipeError, with an example, if it is of another type."""
    # Somebody who writes `lr = 1` means 1.0. Beyond 2**53 the float would be another number.
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise RecipeError(
            f"{source}: {name} = {value!r} is not {TYPE_NAMES[kind]}",
            f"For example: {name}={example}",
        )
    return value


def _check_combinations(recipe: Recipe, changes: dict[str, Any], source: str) -> None:
    """Refuse keys that are valid but cannot be combined, before a run is created or pushed."""
    train = recipe.train
    if recipe.model.reward and recipe.model.shape != "siamese":
        raise RecipeError(
            f"{source}: model.reward = true, but a reward model reads one answer at a time",
            "Add --set model.shape=siamese, or --set model.reward=false.",
        )
    if train.lora_rank and train.reinit_layers:
        raise RecipeError(
            f"{source}: train.reinit_layers = {train.reinit_layers} with train.lora_rank = "
            f"{train.lora_rank}: fresh weights would stay random, since only adapters learn",
            "Set one of them to 0.",
        )

    _check_frozen(recipe, source)
    _check_quantized(recipe, source)
    _check_sharded(recipe, source)

    # A recipe file may contain the key, for use with --set model.head=fusion. As an override it
    # would have no effect.
    if recipe.model.head == "symmetric" and "swap_augmentation" in changes.get("train", {}):
        raise RecipeError(
            "--set train.swap_augmentation has no effect with the symmetric head, to which both "
            "orders are the same",
            "Leave it out, or add --set model.head=fusion.",
        )


def _check_frozen(recipe: Recipe, source: str) -> None:
    """Refuse keys that change an encoder which is to stay as it is."""
    train = recipe.train
    if not train.frozen:
        return
    changing = [
        name for name in ("lora_rank", "reinit_layers", "r_drop", "compile") if getattr(train, name)
    ]
    if changing:
        raise RecipeError(
            f"{source}: train.{changing[0]} with train.frozen = true, under which only pooling and "
            "head learn",
            f"Set train.{changing[0]}=0, or train.frozen=false.",
        )
    if recipe.model.pooling == "attention":
        raise RecipeError(
            f"{source}: model.pooling = attention learns from every token's state, and "
            "train.frozen = true keeps one vector a sequence",
            "Set model.pooling=mean, cls or last.",
        )


def _check_quantized(recipe: Recipe, source: str) -> None:
    """Refuse keys that need the weights which quantisation rounds."""
    train = recipe.train
    quantize = recipe.model.quantize
    if quantize == "none":
        return
    if not (train.lora_rank or train.frozen):
        raise RecipeError(
            f'{source}: model.quantize = "{quantize}" with train.lora_rank = 0: whole weights '
            f"cannot be trained in {quantize.removesuffix('bit')} bits",
            "Set train.lora_rank=32 or train.frozen=true, or model.quantize=none.",
        )
    if train.compile:
        raise RecipeError(
            f'{source}: train.compile = true with model.quantize = "{quantize}", whose products '
            "torch.compile does not know",
            "Set train.compile=false.",
        )


def _check_sharded(recipe: Recipe, source: str) -> None:
    """Refuse keys that do not go with a base which is shared out among GPUs."""
    train = recipe.train
    if not train.shard:
        return
    if not (train.lora_rank or train.frozen):
        raise RecipeError(
            f"{source}: train.shard = true with train.lora_rank = 0: only frozen weights are "
            "shared out",
            "Set train.lora_rank=32 or train.frozen=true, or train.shard=false.",
        )
    if recipe.model.quantize != "none" or train.compile:
        key = "train.compile" if train.compile else "model.quantize"
        raise RecipeError(
            f"{source}: train.shard = true does not go with {key}",
            "Leave one of them out.",
        )
