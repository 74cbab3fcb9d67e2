"""Create and open the folder of a sweep. Use `SweepDefinition`, `Sweep` and `find_sweep`.

    sweeps/<name>/recipe.toml   the recipe that is varied, --set included
                  sweep.json    the keys and their values, seeds, fold and rows
                  study.db      the trials, in Optuna's SQLite format

What decides the result is in the definition, and its hash is in the name. How long to search is
not, so that a sweep can go on. The runs are where all runs are.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from kit.errors import KitError, RecipeError
from kit.recipe.load import change_recipe, choose_recipe, is_hub_id, load_recipe
from kit.recipe.spec import KEYS, Recipe
from kit.storage.atomic import read_text_file, write_json, write_text
from kit.sweeps.space import Point, SweptKey, as_overrides, parse_key, value_text
from kit.wording import name_nearest

DEFINITION_FILE = "sweep.json"
_RECIPE_FILE = "recipe.toml"
_DATABASE_FILE = "study.db"

# Where sweeps are, if no other folder is named.
SWEEPS = Path("sweeps")

_RESTORE = "Restore it, or delete the folder: the runs are elsewhere, and are used again."


@dataclass(frozen=True)
class SweepDefinition:
    """What a sweep searches, and how a point is judged.

    Attributes:
        recipe: what is varied.
        keys: by name.
        seeds: how many trainings a point gets, with the recipe's seed and those after it.
        fold: what is validated on, as `kit train --fold` takes it.
        rows: the hash of the training rows, or how they are prepared on Kaggle.
        prune: whether a point that looks worse than most is ended early.
        sampler_seed: of the points that are drawn.
        command: how `kit train` is asked for the recipe, without the keys; no part of what the
            sweep is.
    """

    recipe: Recipe
    keys: tuple[SweptKey, ...]
    seeds: int
    fold: str
    rows: str
    prune: bool = True
    sampler_seed: int = 0
    command: str = ""

    @property
    def default_name(self) -> str:
        """The recipe's name with eight hex digits of a hash of all but the rows."""
        content = {**self._settings(), "recipe": self.recipe.hash}
        del content["rows"]
        text = json.dumps(content, sort_keys=True)
        return f"{self.recipe.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def values(self) -> dict[str, str]:
        """Return everything that two definitions may differ in, in words."""
        values = {name: _in_words(value) for name, value in self._settings().items()}
        plain = asdict(self.recipe)
        for name in ("name", "backbone", *KEYS):
            section, _, key = name.partition(".")
            values[name] = value_text(plain[section][key] if key else plain[section])
        return values

    def _settings(self) -> dict[str, Any]:
        return {
            "keys": [key.text for key in self.keys],
            "seeds": self.seeds,
            "fold": self.fold,
            "rows": self.rows,
            "pruning": self.prune,
            "sampler seed": self.sampler_seed,
        }


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep."""

    path: Path
    definition: SweepDefinition

    @classmethod
    def create(cls, path: Path, definition: SweepDefinition) -> "Sweep":
        """Return the sweep in this folder, creating it if it is new.

        Raises:
            KitError: there is a sweep of another definition, or the folder cannot have this name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", path.name):
            raise KitError(
                f"{path.name!r} cannot name a folder", "Use letters, digits, '.', '_' and '-'."
            )
        if not (path / DEFINITION_FILE).exists():
            write_text(path / _RECIPE_FILE, definition.recipe.to_toml())
            content = definition._settings() | {"command": definition.command}
            write_json(path / DEFINITION_FILE, content)
            return cls(path, definition)

        before = cls.open(path).definition.values()
        now = definition.values()
        changes = [
            f"{name}: {before.get(name, '')}, now {value}"
            for name, value in now.items()
            if before.get(name) != value
        ]
        if changes:
            raise KitError(
                f"{path} is a sweep of another definition: {'; '.join(changes)}",
                "Leave out --name, or choose another one.",
            )
        return cls(path, definition)

    @classmethod
    def open(cls, path: Path) -> "Sweep":
        """Open the sweep in a folder.

        Raises:
            KitError: its definition is missing or damaged.
        """
        file = path / DEFINITION_FILE
        try:
            content = json.loads(read_text_file(file))
            definition = SweepDefinition(
                recipe=load_recipe(path / _RECIPE_FILE),
                keys=tuple(parse_key(text) for text in content["keys"]),
                seeds=int(content["seeds"]),
                fold=str(content["fold"]),
                rows=str(content["rows"]),
                prune=bool(content["pruning"]),
                sampler_seed=int(content["sampler seed"]),
                command=str(content["command"]),
            )
        except RecipeError as error:
            raise KitError(f"{path}: {error.problem}", _RESTORE) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise KitError(f"{file}: cannot be read: {error!r}", _RESTORE) from error
        return cls(path, definition)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.name

    @property
    def database(self) -> Path:
        """The SQLite file of the trials."""
        return self.path / _DATABASE_FILE

    def recipe(self, point: Point, seed: int) -> Recipe:
        """Return the recipe of one training of a point, as `kit train --set …` would have it.

        Args:
            seed: its number, from 0.

        Raises:
            RecipeError: the values of the point cannot be combined.
        """
        first = self.definition.recipe.train.seed
        changes = [*as_overrides(point), f"train.seed={(first + seed) % 2**32}"]
        return change_recipe(self.definition.recipe, changes)


def choose_base(requested: str, overrides: Sequence[str] = ()) -> tuple[Recipe, str]:
    """Return the recipe that a sweep varies, and the command that trains it.

    Args:
        requested: a name from `kit recipes` or `kit backbones`, a TOML file, a hub id, or a folder
            in Hugging Face layout.

    Raises:
        RecipeError: there is no such recipe, or an override is not allowed.
    """
    is_backbone = is_hub_id(requested) or Path(requested).is_dir()
    if is_backbone:
        recipe = choose_recipe(requested, None, overrides)
    else:
        recipe = choose_recipe(None, requested, overrides)
    words = ["kit train", "--backbone" if is_backbone else "--recipe", quote(requested)]
    return recipe, " ".join([*words, *(f"--set {quote(text)}" for text in overrides)])


def list_sweeps(folder: Path) -> list[Path]:
    """Return the folders of all sweeps, the newest first."""
    files = folder.glob(f"*/{DEFINITION_FILE}")
    return [file.parent for file in sorted(files, key=_changed, reverse=True)]


def find_sweep(name: str, folder: Path) -> Sweep:
    """Return a sweep by its path, its name in `folder`, or a part of the name.

    Raises:
        KitError: there is no such sweep, or more than one.
    """
    for path in (Path(name), folder / name):
        if (path / DEFINITION_FILE).is_file():
            return Sweep.open(path)
    known = list_sweeps(folder)
    matching = [path for path in known if name in path.name]
    if len(matching) == 1:
        return Sweep.open(matching[0])
    if matching:
        names = _join(path.name for path in matching)
        raise KitError(f"{name} may be {names}", "Write more of the name.")
    option = "" if folder == SWEEPS else f" --sweeps {quote(str(folder))}"
    where = f"`kit sweep show{option}` lists all." if known else "None is there."
    hint = name_nearest(name, [path.name for path in known], where)
    raise KitError(f"no sweep {name} in {folder}", hint)


def _changed(file: Path) -> float:
    """Return when a sweep last ended a trial, or was made, in seconds since 1970."""
    database = file.parent / _DATABASE_FILE
    return (database if database.is_file() else file).stat().st_mtime


def _join(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _in_words(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else value_text(value)
