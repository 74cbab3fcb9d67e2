"""Use kit from Python: `load`, `preprocess`, `train`, `ensemble`, `score`, `report`, exported from `kit`.

The commands of the same names call these functions. Files may be given as paths, tables as
DataFrames. Whatever the caller can cause is raised as a `kit.errors.KitError`, which says what is
wrong and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from kit.errors import KitError, RunError
from kit.task import HOLDOUT, ID

# Each function imports what it needs: `score` must not wait for torch, nor for what a report draws
# with.
if TYPE_CHECKING:
    from kit.data.dataset import Dataset
    from kit.ensembling.blend import Blend
    from kit.ensembling.fit_blend import BlendFit
    from kit.evaluation.metrics import Score
    from kit.predict import RunPredictor
    from kit.recipe.spec import Recipe
    from kit.reporting.report import Report
    from kit.run import Run
    from kit.training.callbacks import TrainingProgress

PathLike = str | Path


def preprocess(
    raw: PathLike = "data/raw", out: PathLike = "data/processed", **options: Any
) -> Dataset:
    """Clean, label and split the competition's files.

    Args:
        raw: the folder of train.csv and test.csv.
        out: the folder to write to; what an earlier call left there is replaced.
        options: as `kit.data.preprocess.preprocess_files` takes them: extra, soft_labels, text,
            split, folds, valid, seed, allow_test_prompts.

    Returns:
        The dataset; its `manifest` has counts, repairs and class frequencies.

    Example:
        dataset = kit.preprocess("data/raw", folds=5)
    """
    from kit.data.dataset import open_dataset
    from kit.data.preprocess import preprocess_files

    preprocess_files(raw, out, **options)
    return open_dataset(out)


def train(
    backbone: str | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    data: Dataset | PathLike = "data/processed",
    runs: PathLike = "runs",
    fold: str | int = HOLDOUT,
    resume: bool = False,
    guard: bool = True,
    restarts: int = 0,
    report_to: str | None = None,
    max_hours: float = math.inf,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Run:
    """Fine-tune a backbone, and return its run.

    Args:
        backbone: a name from `kit backbones`, or a folder in Hugging Face layout.
        recipe: a name from `kit recipes`, a TOML file, or a `Recipe`; by default the backbone's
            own.
        overrides: recipe keys to change, such as {"train.lr": 2e-5}.
        fold: "holdout", a fold's number, or "all".
        resume: continue an interrupted training.
        guard: end a training that learns nothing.
        restarts: how often to try again, at half the rates, where a training collapses.
        report_to: "tensorboard" for its curves.
        max_hours: end within this time.
        on_progress: called with a `TrainingProgress` every few steps.
        log: called with each message.

    Returns:
        The run: `metrics`, `oof` (with all folds) and `path`.

    Example:
        run = kit.train("deberta", overrides={"train.lr": 2e-5}, fold="all", log=print)
    """
    from kit.data.dataset import Dataset
    from kit.recipe.load import choose_recipe
    from kit.recipe.spec import Recipe
    from kit.run import Run
    from kit.training.train import train_recipe

    if not isinstance(recipe, Recipe):
        if isinstance(overrides, Mapping):
            overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        recipe = choose_recipe(backbone, str(recipe) if recipe else None, overrides)
    folder = data.folder if isinstance(data, Dataset) else Path(data)
    summary = train_recipe(
        recipe,
        folder,
        Path(runs),
        str(fold),
        resume=resume,
        guard=guard,
        restarts=restarts,
        report_to=report_to,
        max_hours=max_hours,
        listen=on_progress,
        say=log,
    )
    return Run(Path(summary["run"]))


class Predictor:
    """Trained models, loaded once, that predict any number of DataFrames. Made by `load`.

    Several runs are averaged, or blended as a saved blend says.
    """

    def __init__(self, members: Sequence[RunPredictor], blend: Blend | None = None):
        self.members = list(members)
        self.blend = blend

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the probabilities of each row in submission form, in the frame's order and index.

        Args:
            frame: columns prompt, response_a, response_b: texts, lists of turns, or Kaggle's JSON
                lists; `id` if there is one, else rows are numbered from 0.

        Returns:
            Columns id, winner_model_a, winner_model_b, winner_tie; each row sums to 1.

        Raises:
            DataError: a column is missing, or a cell is not a text.

        Example:
            predictor.predict_proba(pd.DataFrame({"prompt": ["2+2?"], "response_a": ["4"],
            "response_b": ["5"]}))
        """
        from kit.data.from_frame import frame_to_table
        from kit.ensembling.blend import apply_blend
        from kit.ensembling.pool import blend_predictions
        from kit.predictions import make_predictions

        frames = []
        for member in self.members:
            table = frame_to_table(frame, member.run.option("text", str))
            frames.append(make_predictions(table[ID].to_numpy(), member.predict_table(table)))

        names = [member.run.name for member in self.members]
        if self.blend:
            predictions = apply_blend(self.blend, frames, names)
        else:
            predictions = blend_predictions(frames, names)
        predictions.index = frame.index
        return predictions


def load(
    source: Run | PathLike | Sequence[Run | PathLike],
    *,
    blend: PathLike | None = None,
    runs: PathLike = "runs",
    swap: bool | None = None,
) -> Predictor:
    """Load trained models on the best device there is.

    Args:
        source: a run or its folder; a list of them; a folder with runs in it, such as a training
            kernel's output on Kaggle; or a saved blend (blend.json), whose members are looked up in
            `runs`.
        blend: a saved blend of the runs; by default they are averaged.
        swap: average over both orders of the answers; by default as each recipe says.

    Raises:
        RunError: there is no such run, it is not finished, or it is a baseline.
        DataError: the blend cannot be read, or needs a run that is not there.

    Example:
        predictor = kit.load("runs/deberta-1a2b3c4d")
        predictor = kit.load(["runs/deberta-1a2b3c4d", "runs/roberta-5e6f7a8b"], blend="blend.json")
    """
    from kit.ensembling.blend import read_blend
    from kit.predict import RunPredictor
    from kit.run import Run

    sources = [source] if isinstance(source, Run | str | Path) else list(source)
    if len(sources) == 1 and not isinstance(sources[0], Run) and Path(sources[0]).suffix == ".json":
        blend = sources[0]
        sources = [Path(runs) / name for name in read_blend(blend).used]

    opened = [run for each in sources for run in _open_runs(each)]
    if not opened:
        raise RunError("no runs to load", "Name a run directory; `kit train` makes one.")

    saved = None
    if blend:
        # Members without weight need not be loaded.
        saved = read_blend(blend)
        by_name = {run.name: run for run in opened}
        missing = [name for name in saved.used if name not in by_name]
        if missing:
            raise RunError(
                f"{blend} needs the run {missing[0]}", "Name the folders of all its members."
            )
        opened = [by_name[name] for name in saved.used]
    return Predictor([RunPredictor(run, swap=swap).load() for run in opened], saved)


def _open_runs(source: Run | PathLike) -> list[Run]:
    """Open a run, or all runs in a folder."""
    from kit.run import ORIGIN_FILE, Run

    if isinstance(source, Run):
        return [source]
    folder = Path(source)
    inside = sorted(path.parent for path in folder.glob(f"**/{ORIGIN_FILE}"))
    if (folder / ORIGIN_FILE).is_file() or not inside:
        return [Run.open(folder)]
    return [Run.open(path) for path in inside]


@dataclass(frozen=True)
class Ensemble:
    """A blend of predictions.

    Attributes:
        predictions: in submission form; None where only weights were fitted.
        blend: weights, pool and calibration, where it was fitted or read.
        fit: losses and intervals of a fit.
        notes: what a reader of the fit should know.
    """

    predictions: pd.DataFrame | None
    blend: Blend | None = None
    fit: BlendFit | None = None
    notes: tuple[str, ...] = ()


def ensemble(
    members: Sequence[Run | PathLike | pd.DataFrame] = (),
    *,
    method: str | None = None,
    weights: Sequence[float] | None = None,
    fit: bool | Sequence[PathLike] = False,
    truth: PathLike | pd.DataFrame | None = None,
    subset: bool = False,
    blend: PathLike | Blend | None = None,
) -> Ensemble:
    """Blend predictions of the same rows.

    Args:
        members: runs (their test predictions), prediction files, or prediction frames.
        method: "mean", "geometric" or "weights"; by default the mean, or weights where they are
            given.
        weights: one for each member; only their ratios count.
        fit: fit weights and a temperature to out-of-fold predictions: True for those of the runs,
            or their files.
        truth: labels of the out-of-fold rows, a file such as data/processed/train.parquet or a
            DataFrame.
        subset: fit on the rows that the out-of-fold files predict, such as validation rows alone.
        blend: combine as a saved blend says.

    Raises:
        KitError: nothing to blend, ids differ, or what is needed for a fit is missing.

    Example:
        kit.ensemble([run_a, run_b], fit=True, truth="data/processed/train.parquet").predictions
    """
    from kit.ensembling.blend import apply_blend, read_blend
    from kit.ensembling.fit_blend import fit_blend
    from kit.ensembling.members import read_members, unknown_run_warnings
    from kit.ensembling.pool import blend_predictions
    from kit.evaluation.truth import prompt_group_warnings, restrict_truth
    from kit.predictions import read_predictions

    if fit and truth is None:
        raise KitError("fitting needs labels", "Pass truth=, such as data/processed/train.parquet.")

    fitted = None
    notes: list[str] = []
    if fit:
        files = [_run_file(m, "oof_path") for m in members] if fit is True else list(fit)
        names, frames = read_members(files)
        labels = _read_labels(truth)
        notes = [*prompt_group_warnings(labels, _name(truth)), *unknown_run_warnings(files)]
        if subset:
            labels = restrict_truth(labels, frames[0])
        fitted = fit_blend(frames, names, labels, files=files)

    saved = fitted.blend if fitted else blend
    if isinstance(saved, str | Path):
        saved = read_blend(saved)
    if not members:
        return Ensemble(None, saved, fitted, tuple(notes))

    if saved:
        # A saved blend finds its members by the names of their runs.
        files = [_run_file(member, "test_path") for member in members]
        names, frames = read_members(files)
        predictions = apply_blend(saved, frames, names, files)
        return Ensemble(predictions, saved, fitted, tuple(notes))
    names = []
    frames = []
    for number, member in enumerate(members):
        is_frame = isinstance(member, pd.DataFrame)
        names.append(f"member {number + 1}" if is_frame else str(_run_file(member, "test_path")))
        frames.append(member if is_frame else read_predictions(names[-1]))
    method = method or ("weights" if weights is not None else "mean")
    return Ensemble(blend_predictions(frames, names, method, weights))


def score(
    predictions: PathLike | pd.DataFrame,
    truth: PathLike | pd.DataFrame,
    *,
    subset: bool = False,
) -> Score:
    """Compute log loss, accuracy and calibration error, with uniform and the class prior for comparison.

    Args:
        predictions: a prediction file or frame.
        truth: labels, a CSV like train.csv, a processed train.parquet, or a DataFrame of id and
            label.
        subset: score only the rows that are predicted, such as validation rows.

    Raises:
        DataError: a file cannot be used, or ids do not match.

    Example:
        kit.score(run.oof, "data/processed/train.parquet").log_loss
    """
    from kit.evaluation.metrics import score_predictions
    from kit.evaluation.truth import align_to_truth, restrict_truth
    from kit.predictions import read_predictions

    is_frame = isinstance(predictions, pd.DataFrame)
    frame = predictions if is_frame else read_predictions(predictions)
    labels = _read_labels(truth)
    if subset:
        labels = restrict_truth(labels, frame)
    return score_predictions(*align_to_truth(frame, labels, _name(predictions)))


def report(
    runs: Sequence[Run | PathLike] = (),
    *,
    data: Dataset | PathLike = "data/processed",
    frames: Mapping[str, PathLike] | Sequence[tuple[str, PathLike]] = (),
    blends: Sequence[PathLike] = (),
    truth: PathLike | None = None,
) -> Report:
    """Compare runs, and any prediction files, on the same rows.

    Args:
        frames: further prediction files by name.
        blends: saved blends of the runs.
        truth: labels of the test rows, where they are known.

    Returns:
        The report: `comparison`, `significance`, …; `as_dict()`; in a notebook it shows itself as a
        page.

    Example:
        kit.report([run_a, run_b], truth="data/raw/truth.csv")
    """
    from kit.data.dataset import Dataset
    from kit.reporting.report import build_report
    from kit.run import Run

    named = frames.items() if isinstance(frames, Mapping) else frames
    return build_report(
        [run.path if isinstance(run, Run) else Path(run) for run in runs],
        data.folder if isinstance(data, Dataset) else Path(data),
        frames=[(name, Path(file)) for name, file in named],
        blends=[Path(file) for file in blends],
        truth=Path(truth) if truth else None,
    )


def _run_file(member: Run | PathLike | pd.DataFrame, name: str) -> Path:
    """Return a member's file: of a run, the one of this name."""
    if isinstance(member, pd.DataFrame):
        raise KitError(
            "a fitted or saved blend takes runs or files, not DataFrames: it finds members by name",
            "Pass runs or prediction files.",
        )
    from kit.run import Run

    return getattr(member, name) if isinstance(member, Run) else Path(member)


def _read_labels(truth: PathLike | pd.DataFrame | None) -> pd.DataFrame:
    from kit.evaluation.truth import read_truth

    return truth if isinstance(truth, pd.DataFrame) else read_truth(truth)


def _name(table: PathLike | pd.DataFrame | None) -> str:
    """Return what errors and notes call a table."""
    return "the DataFrame" if isinstance(table, pd.DataFrame) else str(table)
