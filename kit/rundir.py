"""A run directory: the only memory between commands.

    runs/<name>/recipe.toml            the experiment, defaults included; a baseline has none, nor any model
                origin.json            the data it was made from, and by which kit; the name of a baseline
                holdout/ or fold<k>/   model.safetensors, config.json, tokenizer, trainer_state.json, valid.csv,
                                       metrics.json
                oof.csv, metrics.json  once every fold asked for is done

`metrics.json` is written last, so its presence means done.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.atomic import write_json, write_text
from kit.errors import RunError
from kit.recipe import Recipe
from kit.recipes import load

HOLDOUT = "holdout"


@dataclass(frozen=True)
class RunDir:
    """A run on disk, by its folder."""

    path: Path

    @classmethod
    def create(cls, runs: Path, recipe: Recipe, origin: dict[str, Any]) -> "RunDir":
        """The folder for `recipe` under `runs`, made if new.

        Raises:
            RunError: it is there already and holds another recipe, or was trained on other data.
        """
        run = cls(runs / recipe.run_name)
        if not (run.path / "recipe.toml").exists():
            write_json(run.path / "origin.json", origin)
            write_text(run.path / "recipe.toml", recipe.to_toml())
            return run
        if run.recipe.hash != recipe.hash:
            raise RunError(f"{run.path}: its recipe.toml was edited since", "Restore it, or train into another --runs.")
        run.check_data(origin["data"])
        return run

    @classmethod
    def create_baseline(cls, runs: Path, name: str, origin: dict[str, Any]) -> "RunDir":
        """The folder of a baseline under `runs`, made if new.

        Raises:
            RunError: it is there already and was made from other data.
        """
        run = cls(runs / f"baseline-{name}")
        if (run.path / "origin.json").exists():
            run.check_data(origin["data"])
        else:
            write_json(run.path / "origin.json", origin | {"baseline": name})
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDir":
        """An existing run directory."""
        path = Path(path)
        run = cls(path)
        if (path / "origin.json").is_file() and ((path / "recipe.toml").is_file() or run.baseline):
            return run
        near = sorted(p.parent.name for p in path.parent.glob("*/origin.json")) if path.parent.is_dir() else []
        known = f"Runs in {path.parent}: {', '.join(near)}." if near else "`kit train` makes one."
        raise RunError(f"{path} is not a run directory", known)

    @property
    def name(self) -> str:
        """The run's name: recipe and hash."""
        return self.path.resolve().name

    @property
    def baseline(self) -> str | None:
        """The name of a reference model that keeps predictions only; None of a trained network."""
        return self.origin.get("baseline")

    @property
    def recipe(self) -> Recipe:
        """The experiment.

        Raises:
            RunError: a baseline has none.
        """
        self._require_model()
        return load(self.path / "recipe.toml")

    @property
    def origin(self) -> dict[str, Any]:
        """`data` (hash of the training rows), `text`, `split`, `folds`, `kit` (version)."""
        return _read(self.path / "origin.json")

    def check_data(self, data: str) -> None:
        """Raises unless the training rows, by their hash, are those that the run was made from."""
        if self.origin["data"] != data:
            raise RunError(
                f"{self.path} was trained on other rows than are in the data folder now",
                "Preprocess with the options in its origin.json, or train into another --runs folder.",
            )

    def part(self, fold: int | str) -> Path:
        """The folder of one fold, or of the holdout."""
        return self.path / (HOLDOUT if fold == HOLDOUT else f"fold{fold}")

    def done(self, fold: int | str) -> bool:
        """Whether that part was trained to its end."""
        return (self.part(fold) / "metrics.json").is_file()

    def parts(self) -> dict[str, dict[str, Any]]:
        """The metrics of every finished part, by folder name: the holdout first, then folds by number."""
        folders = [p.parent for p in self.path.glob("*/metrics.json")]
        folds = sorted((p for p in folders if re.fullmatch(r"fold\d+", p.name)), key=lambda p: int(p.name[4:]))
        holdout = [p for p in folders if p.name == HOLDOUT]
        return {p.name: _read(p / "metrics.json") for p in holdout + folds}

    def require_parts(self) -> list[Path]:
        """Folders of models to predict with: every fold if all are done, else the holdout, else the folds there are.

        Raises:
            RunError: nothing is finished yet, or it is a baseline.
        """
        self._require_model()
        finished = list(self.parts())
        folds = [name for name in finished if name != HOLDOUT]
        if not finished:
            raise RunError(
                f"{self.path}: no part of it has finished training",
                f"Go on with `kit train --recipe {self.path / 'recipe.toml'} --resume`.",
            )
        if HOLDOUT in finished and len(folds) < self.origin["folds"]:
            folds = [HOLDOUT]  # what the report shows beside it
        return [self.path / name for name in folds]

    def _require_model(self) -> None:
        if self.baseline:
            raise RunError(
                f"{self.path} is a baseline: it keeps no model, only predictions",
                f"Take its {self.path / 'test.csv'}, or the valid.csv of its parts.",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read: {error}", "Copy the run directory again, or train it again."
        ) from error
