"""Say in which recipe keys runs differ. Use `differing_keys`, and `describe_keys` for a short text.

Recipes are read as they are written, so that those of another version of kit can be compared, too.
"""

import dataclasses
import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.errors import KitError, RunError
from kit.recipe.load import load_recipe, name_nearest_key, shipped_recipes
from kit.recipe.spec import KEYS
from kit.run import Run
from kit.storage.atomic import read_text_file

# The keys in which runs differ, and their names without the section.
COMPARED = ("backbone", *KEYS)
FULL_NAMES = {name.rpartition(".")[2]: name for name in COMPARED}


def differing_keys(runs: Sequence[Run | str | Path]) -> list[dict[str, Any]]:
    """Return, for each run, the recipe keys that tell it from the others, with its values.

    Runs of one recipe are compared with each other, and with the recipe of that name that comes
    with kit: runs of two recipes have different names. If the runs were trained on
    different rows, `rows` is among the keys, with the beginning of the rows' hash. A baseline has
    no recipe, and so no other keys.
    """
    opened = [run if isinstance(run, Run) else Run(Path(run)) for run in runs]
    recipes = [recipe_values(run) for run in opened]
    groups: dict[Any, list[dict[str, Any]]] = {}
    for recipe in recipes:
        groups.setdefault(recipe.get("name"), []).append(recipe)
    varying = {name: _varying_keys(name, group) for name, group in groups.items()}
    found = [{key: recipe.get(key) for key in varying[recipe.get("name")]} for recipe in recipes]

    digests = [_rows_digest(run) for run in opened]
    if len(set(filter(None, digests))) > 1:
        for keys, digest in zip(found, digests, strict=True):
            keys["rows"] = digest[:8]
    return found


def describe_keys(keys: Mapping[str, Any]) -> str:
    """Return recipe keys as a short text, such as "lr=3e-05 seed=1", to be shown beside a hash."""
    return " ".join(f"{name.rpartition('.')[2]}={format_key(keys[name])}" for name in keys)


def format_key(value: Any) -> str:
    """Return the value of a recipe key as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def compare_recipes(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Return every recipe key in which two runs differ, with the values of both."""
    one, other = recipe_values(first), recipe_values(second)
    names = [name for name in COMPARED if one.get(name) != other.get(name)]
    return {name: (one.get(name), other.get(name)) for name in names}


def full_key(name: str) -> str:
    """Return a recipe key with its section, such as "train.lr" for "lr".

    Raises:
        KitError: there is no such key.
    """
    if name in COMPARED:
        return name
    if name not in FULL_NAMES:
        raise KitError(f"there is no recipe key {name!r}", name_nearest_key(name))
    return FULL_NAMES[name]


def recipe_values(run: Run) -> dict[str, Any]:
    """Return a recipe's keys by their full names, with the defaults of those that it lacks.

    A run without a recipe, or with one that cannot be read, has none.
    """
    try:
        content = tomllib.loads(read_text_file(run.recipe_path))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: key.default for name, key in KEYS.items()} | _flatten(content)


def _varying_keys(name: Any, group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that are not the same in all runs of a recipe and in the shipped recipe."""
    compared = [*group, *_shipped_values(str(name))]
    return [
        key for key in COMPARED if any(other.get(key) != compared[0].get(key) for other in compared)
    ]


@functools.cache
def _shipped_values(name: str) -> tuple[dict[str, Any], ...]:
    """Return the keys of the recipe of that name that comes with kit, if there is one."""
    # `default` names no backbone.
    if name not in shipped_recipes() or name == "default":
        return ()
    return (_flatten(dataclasses.asdict(load_recipe(name))),)


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of all sections by their full names, and those outside of sections."""
    values: dict[str, Any] = {}
    for name, value in content.items():
        section = value if isinstance(value, Mapping) else None
        values |= {name: value} if section is None else {f"{name}.{k}": section[k] for k in section}
    return values


def _rows_digest(run: Run) -> str:
    """Return the hash of the rows that a run was trained on, "" if its origin cannot be read."""
    try:
        return str(run.origin.get("data", ""))
    except RunError:
        return ""
