"""Reading recipes: the shipped TOML files beside this one or the user's own, overrides, and every check of a value."""

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kit.errors import RecipeError
from kit.recipe.spec import RANGES, EncodeSpec, ModelSpec, PredictSpec, Recipe, TrainSpec


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with kit, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "shipped").glob("*.toml"))}


def load_recipe(
    name_or_file: str | Path, overrides: Iterable[str] = (), backbone: str | None = None
) -> Recipe:
    """Reads a shipped recipe by name, or a TOML file, and applies `--set` overrides such as `train.lr=2e-5`.

    Raises:
        RecipeError: no such recipe, or a key, type or value that cannot be; the message lists the choices.
    """
    path = shipped_recipes().get(str(name_or_file)) or Path(name_or_file)
    if not path.is_file():
        raise RecipeError(
            f"no recipe {str(name_or_file)!r}",
            f"Shipped: {', '.join(shipped_recipes())}; or name a TOML file.",
        )
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (
        ValueError,
        RecursionError,
    ) as error:  # not TOML, not UTF-8, or a number or nesting beyond all bounds
        raise RecipeError(
            f"{path}: not valid TOML: {error}", "Compare with `kit recipes NAME`."
        ) from error
    values.setdefault("name", path.stem)
    if backbone and backbone != values.get("backbone"):
        values["backbone"] = backbone
        suffix = Path(backbone).resolve().name if Path(backbone).is_dir() else backbone
        values["name"] = suffix if path.stem == "default" else f"{values['name']}-{suffix}"
    changes: dict[str, Any] = {}
    for override in overrides:
        for into in (values, changes):
            _merge(into, _parse_override(override), override)
    if "backbone" not in values:
        raise RecipeError(
            f"{path}: it names no backbone", "Add `--backbone NAME`; `kit backbones` lists them."
        )
    recipe = _build(Recipe, values, str(path), "")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe.name):
        raise RecipeError(
            f"{path}: the name {recipe.name!r} cannot name a folder", "Use letters, digits, '.-_'."
        )
    _refuse_what_excludes_each_other(recipe, str(path))
    if recipe.model.head == "symmetric" and "swap_augmentation" in changes.get("train", {}):
        raise RecipeError(  # a recipe may have it, for --set model.head=fusion
            "--set train.swap_augmentation does nothing under the symmetric head, to which both orders are one",
            "Leave it out, or add --set model.head=fusion.",
        )
    return recipe


def choose_recipe(
    backbone: str | None, recipe: str | None, overrides: Iterable[str] = ()
) -> Recipe:
    """The experiment a command line asks for: a backbone with its own recipe, a recipe with its own backbone, or both.

    Raises:
        RecipeError: neither is named, or as `load`.
    """
    if not backbone and not recipe:
        raise RecipeError(
            "no backbone and no recipe", "Add --backbone NAME (`kit backbones`) or --recipe NAME."
        )
    return load_recipe(
        recipe or (backbone if backbone in shipped_recipes() else "default"), overrides, backbone
    )


def _parse_override(text: str) -> dict[str, Any]:
    """`--set KEY=VALUE` is read as the TOML line it is; a bare word may go unquoted, since shells eat quotes."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {text!r} is not KEY=VALUE", "For example: --set train.lr=2e-5")
    for line in (text, f"{key}={json.dumps(value.strip())}"):
        try:
            return tomllib.loads(line)
        except (ValueError, RecursionError) as error:
            failure = error
            if not re.fullmatch(r"\s*[A-Za-z./][\w.\-/]*\s*", value):
                break
    raise RecipeError(f"--set {text!r}: {failure}", "For example: --set train.lr=2e-5")


def _merge(into: dict[str, Any], new: dict[str, Any], source: str) -> None:
    for key, value in new.items():
        if isinstance(value, dict):
            inner = into.setdefault(key, {})
            if not isinstance(inner, dict):
                raise RecipeError(
                    f"--set {source!r}: {key} is a value, not a section",
                    "`kit recipes NAME` shows all.",
                )
            _merge(inner, value, source)
        else:
            into[key] = value


def _build(kind: type, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise RecipeError(
            f"{source}: [{prefix.rstrip('.')}] must be a section of keys",
            "`kit recipes NAME` shows one.",
        )
    types = get_type_hints(kind)
    unknown = [key for key in values if key not in types]
    if unknown:
        raise RecipeError(
            f"{source}: unknown key {prefix}{unknown[0]}",
            f"Choices: {', '.join(prefix + name for name in types)}",
        )
    built = {key: _check(types[key], value, source, prefix + key) for key, value in values.items()}
    return kind(**built)


def _check(kind: Any, value: Any, source: str, key: str) -> Any:
    """The value as its type, or an error that says what would have been right."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, source, key + ".")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise RecipeError(
                f"{source}: {key} = {value!r}", f"Choices: {', '.join(get_args(kind))}"
            )
        return value
    if kind is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise RecipeError(
            f"{source}: {key} = {value!r} is not {_article(kind)}",
            f"For example: {key}={_example(key)}",
        )
    if key in RANGES and not RANGES[key][0] <= value <= RANGES[key][1]:
        low, high = RANGES[key]
        raise RecipeError(
            f"{source}: {key} = {value} is out of range", f"It lies between {low:g} and {high:g}."
        )
    return value


def _refuse_what_excludes_each_other(recipe: Recipe, source: str) -> None:
    """Raises for keys that are each in order and together cannot be, before a run is begun or pushed."""
    train = recipe.train
    if recipe.model.reward and recipe.model.shape == "cross":
        raise RecipeError(
            f"{source}: model.reward = true, but a reward model reads one answer at a time",
            "Add --set model.shape=siamese, or --set model.reward=false.",
        )
    if train.lora_rank and train.reinit_layers:
        raise RecipeError(
            f"{source}: train.reinit_layers = {train.reinit_layers} with train.lora_rank = {train.lora_rank}: fresh "
            "weights would stay as they were drawn, since adapters alone learn",
            "Set one of them to 0.",
        )


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[kind]


def _example(key: str) -> str:
    section, _, name = key.rpartition(".")
    spec = {
        "encode": EncodeSpec,
        "model": ModelSpec,
        "train": TrainSpec,
        "predict": PredictSpec,
    }.get(section)
    default = (
        next((f.default for f in dataclasses.fields(spec) if f.name == name), "…") if spec else "…"
    )
    return json.dumps(default, ensure_ascii=False)
