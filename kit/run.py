"""A run directory: the only memory between commands.

    runs/<name>/recipe.toml            the experiment, defaults included; a baseline has none, nor any model
                origin.json            the data, recipe and backbone folder it was made from, by their hashes, and by
                                       which kit; the name of a baseline
                holdout/ or fold<k>/   model.safetensors, config.json, tokenizer, trainer_state.json, valid.csv,
                                       metrics.json
                oof.csv, metrics.json  once every fold asked for is done

`metrics.json` is written last, so its presence means done; a part's has the hashes of the files that make its model.
"""

import hashlib
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kit import __version__
from kit.errors import RecipeError, RunError
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.storage.atomic import file_sha256, write_json, write_text
from kit.task import HOLDOUT

T = TypeVar("T")
FORMAT = 1  # of origin.json; raised when an older kit could not use the run any more
LOGS = ("trainer_state.json", "tried.json", "metrics.json")  # of a part, which no prediction reads
MODEL_FILES = (".safetensors", ".json", ".model", ".txt")  # of a part, by suffix


@dataclass(frozen=True)
class Run:
    """A run on disk, by its folder."""

    path: Path

    @classmethod
    def create(cls, runs: Path, recipe: Recipe, origin: dict[str, Any]) -> "Run":
        """The folder for `recipe` under `runs`, made if new.

        Raises:
            RunError: it is there already and holds another recipe, or was trained on other data, or from a backbone
                folder with other content.
        """
        run = cls(runs / recipe.run_name)
        if not (run.path / "recipe.toml").exists():
            text = recipe.to_toml()
            write_json(
                run.path / "origin.json",
                {"format": FORMAT, **origin, "recipe": _digest_of_toml(text)},
            )
            write_text(run.path / "recipe.toml", text)
            return run
        if run.recipe.hash != recipe.hash:
            raise RunError(
                f"{run.path}: its recipe.toml was edited since",
                "Restore it, or train into another --runs.",
            )
        run.check_data(origin["data"])
        before, now = run.origin.get("backbone"), origin.get("backbone")
        if before and now and before != now:
            raise RunError(
                f"{run.path}: the files in the backbone folder {recipe.backbone} have changed since it was begun",
                "Restore them, or train into another --runs folder.",
            )
        return run

    @classmethod
    def create_baseline(cls, runs: Path, name: str, origin: dict[str, Any]) -> "Run":
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
    def open(cls, path: str | Path) -> "Run":
        """An existing run directory."""
        path = Path(path)
        run = cls(path)
        if (path / "origin.json").is_file() and ((path / "recipe.toml").is_file() or run.baseline):
            made = run.origin.get("format", FORMAT)
            if not isinstance(made, int) or made > FORMAT:
                raise RunError(
                    f"{path} was made by kit {run.origin.get('kit')}, newer than this {__version__}",
                    "Upgrade kit.",
                )
            return run
        near = (
            sorted(p.parent.name for p in path.parent.glob("*/origin.json"))
            if path.parent.is_dir()
            else []
        )
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
            RunError: a baseline has none; it was edited since, or is of a kit that knows other keys.
        """
        self._require_model()
        path, origin = self.path / "recipe.toml", self.origin
        if (
            "recipe" in origin
            and _digest_of_toml(path.read_text(encoding="utf-8")) != origin["recipe"]
        ):
            raise RunError(
                f"{path} was edited since the run was begun: its hash is not the one in origin.json",
                "Restore it: a run's recipe says how its model was made. For another experiment copy it and train.",
            )
        try:
            return load_recipe(path)
        except RecipeError as error:
            made = origin.get("kit")
            if made == __version__:
                raise
            raise RunError(
                f"{path} was written by kit {made}, and this is kit {__version__}: {error.problem}",
                f"Use kit {made} for this run, or train it again.",
            ) from error

    @property
    def origin(self) -> dict[str, Any]:
        """`data` (hash of the training rows), how these were prepared, `kit` (version).

        That is `text`, `split`, `folds` and, but for an older kit's runs, `valid` and `seed`. And since format 1
        `recipe` (hash of what recipe.toml says) and, of a folder, `backbone` (hash of its files).
        """
        return _read(self.path / "origin.json")

    def noted(self, name: str, kind: type[T]) -> T:
        """One of the origin's values.

        Raises:
            RunError: it is not there, or no such thing: the file was changed.
        """
        value = self.origin.get(name)
        if type(value) is not kind:
            raise RunError(f"{self.path / 'origin.json'}: {name} is {str(value)[:40]!r}", _AGAIN)
        return value

    def check_files(self, part: Path) -> None:
        """Raises unless the files that make a part's model are those that its training left, by their hashes."""
        files = _read(part / "metrics.json").get("files", {})  # an older kit noted none
        if not isinstance(files, dict):
            raise RunError(f"{part / 'metrics.json'}: files is no JSON object", _AGAIN)
        for name, digest in files.items():
            if (part / name).is_file() and file_sha256(part / name) != digest:
                raise RunError(
                    f"{part / name}: its SHA-256 is not the one in metrics.json: it was changed",
                    _AGAIN,
                )

    def check_data(self, data: str) -> None:
        """Raises unless the training rows, by their hash, are those that the run was made from."""
        if self.noted("data", str) != data:
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
        folds = sorted(
            (p for p in folders if re.fullmatch(r"fold\d+", p.name)), key=lambda p: int(p.name[4:])
        )
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
        if HOLDOUT in finished and len(folds) < self.noted("folds", int):
            folds = [HOLDOUT]  # what the report shows beside it
        return [self.path / name for name in folds]

    def _require_model(self) -> None:
        if self.baseline:
            raise RunError(
                f"{self.path} is a baseline: it keeps no model, only predictions",
                f"Take its {self.path / 'test.csv'}, or the valid.csv of its parts.",
            )


_AGAIN = "Copy the run directory again, or train it again."


def model_digests(part: Path) -> dict[str, str]:
    """The SHA-256 of each file that makes a part's model."""
    files = sorted(
        path for path in part.iterdir() if path.suffix in MODEL_FILES and path.name not in LOGS
    )
    return {path.name: file_sha256(path) for path in files}


def _digest_of_toml(text: str) -> str:
    """A hash of what TOML says, whatever its order, comments and line ends."""
    try:
        said = json.dumps(tomllib.loads(text), sort_keys=True, default=str)
    except ValueError:
        said = text
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read: {error}", _AGAIN) from error
    if not isinstance(content, dict):
        raise RunError(f"{path}: not the JSON object that kit writes there", _AGAIN)
    return content
