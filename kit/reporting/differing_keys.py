"""Find the recipe keys in which runs differ. Use `differing_keys` and `read_recipe_values`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kit.errors import KitError
from kit.run import Run

# A recipe's name and purpose are words about it: the hash in a run's name leaves them out too.
NOT_KEYS = ("name", "purpose")


def differing_keys(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, for each run, its values of the keys that are not the same in all runs.

    Args:
        recipes: each run's values by key, such as {"train.lr": 2e-5}, as `read_recipe_values`
            returns them. A key that a run lacks counts as None.
    """
    keys = dict.fromkeys(key for values in recipes.values() for key in values)
    differing = [
        key for key in keys if len({repr(values.get(key)) for values in recipes.values()}) > 1
    ]
    return {run: {key: values.get(key) for key in differing} for run, values in recipes.items()}


def read_recipe_values(run: Run) -> dict[str, Any] | None:
    """Return the values of a run's recipe by key, such as {"train.lr": 2e-5}.

    Returns:
        None for a baseline, and for a recipe that was edited or is of another version of kit.
    """
    if run.baseline:
        return None
    try:
        content = dataclasses.asdict(run.recipe)
    except KitError:
        return None
    values: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in NOT_KEYS:
            values[name] = value
    return values
