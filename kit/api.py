"""Use kit from Python: preprocess, plan, train, calibrate, ensemble, score, report.

Use these functions as `kit.train` and so on; the commands of the same names call them. (`kit.load`
is in `kit.predictor`.) A file may be given by its path, or its content as a DataFrame. A mistake of
the caller is raised as a `kit.errors.KitError`, which says what is wrong and what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from kit.errors import DataError, KitError, RunError
from kit.task import HOLDOUT, PREDICTION_COLUMNS

# Each function imports what it needs, so that `score` does not wait for torch or matplotlib.
if TYPE_CHECKING:
    from kit.data.dataset import Dataset
    from kit.ensembling.blend import Blend
    from kit.ensembling.fit_blend import BlendFit
    from kit.ensembling.fit_calibration import CalibrationFit, CalibrationMethod
    from kit.ensembling.pool import PoolMethod
    from kit.evaluation.metrics import Score
    from kit.planning.plan import Plan
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
        out: the folder to write to. Rows of an earlier call are replaced, unless they come from the
            same files and options.
        options: as `kit.data.preprocess.preprocess_files` takes them: extra, soft_labels, text,
            split, folds, valid, seed, allow_test_prompts.

    Returns:
        The dataset. Its `manifest` has counts, repairs and class frequencies; `reused` is True if
        the folder was up to date.

    Raises:
        DataError: an input file cannot be used; names the file, row and id.
        KitError: an option is out of range.

    Example:
        dataset = kit.preprocess("data/raw", folds=5)
    """
    from kit.data.dataset import open_dataset
    from kit.data.preprocess import preprocess_files

    manifest = preprocess_files(raw, out, **options)
    return replace(open_dataset(out), reused=manifest["reused"])


def train(
    backbone: str | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    data: Dataset | PathLike = "data/processed",
    runs: PathLike = "runs",
    fold: str | int = HOLDOUT,
    teachers: Sequence[Run | PathLike] = (),
    resume: bool = False,
    guard: bool = True,
    restarts: int = 0,
    report_to: str | Sequence[str] | None = None,
    scratch: str | Path | None = None,
    max_hours: float = math.inf,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    log: Callable[[str], None] = lambda _: None,
) -> Run:
    """Fine-tune a backbone, and return its run.

    Args:
        backbone: a name from `kit backbones`, a folder in Hugging Face layout, an encoder of the
            Hugging Face hub, such as "microsoft/deberta-v3-small", or "length", "tfidf" or
            "boosted": a classical model, for which only `data`, `runs`, `fold` and `log` count.
        recipe: a name from `kit recipes`, a TOML file, or a `Recipe`; by default the backbone's
            own.
        overrides: recipe keys to change, such as {"train.lr": 2e-5} or ["train.lr=2e-5"].
        data: the processed rows.
        runs: the folder to put the run in. A run that is already finished there is returned as it
            is.
        fold: "holdout", a fold's number, or "all".
        teachers: runs, or files of out-of-fold predictions, to learn from beside the labels.
        resume: continue an interrupted training.
        guard: stop a training that learns nothing.
        restarts: how often to try again, at half the learning rates, if a training collapses.
        report_to: where its curves go, too: "tensorboard", "wandb", "mlflow" or several of them.
        max_hours: stop in time to end within so many hours.
        scratch: a folder, as on a larger disk, for the checkpoints of unfinished folds.
        on_progress: called with a `TrainingProgress` whenever losses are logged, and once a second.
        log: called with each message.

    Returns:
        The run: `metrics`, `oof` (with all folds) and `path`.

    Raises:
        KitError: the recipe, data, backbone or device cannot be used, or the training failed.

    Example:
        run = kit.train("deberta", overrides={"train.lr": 2e-5}, fold="all", log=print)
    """
    from kit.baselines import BASELINES
    from kit.data.dataset import open_dataset
    from kit.model.backbones import resolve_backbone
    from kit.run import Run

    folder = _data_folder(data)
    if backbone in BASELINES:
        if recipe or list(overrides):
            raise KitError(
                f"{backbone} is a classical model, which has no recipe",
                "Leave out recipe= and overrides=.",
            )
        from kit.baselines.run import run_baseline

        return Run(Path(run_baseline(backbone, folder, Path(runs), str(fold), log)["run"]))

    chosen = _chosen_recipe(backbone, recipe, overrides)
    if not Run(Path(runs) / chosen.run_name).origin_path.exists():
        # Refused before torch is imported, which takes seconds.
        open_dataset(folder)
        resolve_backbone(chosen.backbone).require_files()

    from kit.training.train import train_recipe

    summary = train_recipe(
        chosen,
        folder,
        Path(runs),
        str(fold),
        teachers=[item.path if isinstance(item, Run) else Path(item) for item in teachers],
        resume=resume,
        guard=guard,
        restarts=restarts,
        report_to=report_to,
        scratch=Path(scratch) if scratch else None,
        max_hours=max_hours,
        listen=on_progress,
        say=log,
    )
    return Run(Path(summary["run"]))


def plan(
    backbone: str | None = None,
    *,
    recipe: str | Path | Recipe | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    data: Dataset | PathLike | None = None,
    fold: str | int = "all",
    gpu: str = "t4",
    max_hours: float | None = None,
    steps: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Say what a training takes, without training.

    Args:
        backbone, recipe, overrides: as of `train`.
        data: the processed rows; by default data/processed if it is there. "kaggle", or the default
            where it is not: as many rows as the competition has, of modelled lengths.
        fold: "holdout", a fold's number, or "all".
        gpu: "t4" (Kaggle's two), "a100", "a100x4", …; "cpu"; or "here" for what this machine trains
            on, whose speed is then measured for a moment.
        max_hours: of a session; by default Kaggle's nine hours on "t4", else none.
        steps: also load the model and take two real steps here on the longest rows of `data`;
            nothing is left behind.
        log: called with each message of these steps.

    Returns:
        The plan: `train_rows`, `steps`, `fold_hours`, `memory_gib`, `fits` and more; `as_dict()`
        has all figures.

    Raises:
        KitError: the recipe, data or backbone cannot be used, or there is no such device.

    Example:
        kit.plan("deberta-large", max_hours=9).verdict
    """
    from kit.data.dataset import MANIFEST
    from kit.planning.plan import make_plan

    chosen = _chosen_recipe(backbone, recipe, overrides)
    folder = Path("data/processed") if data is None else _data_folder(data)
    is_missing = not (folder / MANIFEST).is_file()
    if is_missing and (data is None or str(data) == "kaggle"):
        folder = None
    return make_plan(chosen, folder, str(fold), gpu, max_hours, steps, log)


def _chosen_recipe(
    backbone: str | None,
    recipe: str | Path | Recipe | None,
    overrides: Mapping[str, Any] | Iterable[str],
) -> Recipe:
    """Return the recipe that a caller names, changes or gives.

    Raises:
        KitError: a `Recipe` is given with something that would change it, or nothing is given.
    """
    from kit.recipe.load import choose_recipe
    from kit.recipe.spec import Recipe

    # Numbers, texts and booleans look the same in JSON and in the TOML that overrides are read as.
    if isinstance(overrides, Mapping):
        changes = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    else:
        changes = list(overrides)
    if not isinstance(recipe, Recipe):
        return choose_recipe(backbone, str(recipe) if recipe else None, changes)
    if backbone or changes:
        raise KitError(
            "a Recipe is used as it is, without backbone= or overrides=",
            "Make it with kit.recipe.load.load_recipe(name, overrides, backbone).",
        )
    return recipe


def _data_folder(data: Dataset | PathLike) -> Path:
    from kit.data.dataset import Dataset

    return data.folder if isinstance(data, Dataset) else Path(data)


@dataclass(frozen=True)
class Ensemble:
    """The result of `ensemble`.

    Attributes:
        predictions: the blended prediction frame; None if there were no members to blend.
        blend: weights, pool and calibration, if they were fitted or read from a file.
        fit: losses and intervals, if weights were fitted.
        notes: warnings about the rows that weights were fitted to.
    """

    predictions: pd.DataFrame | None
    blend: Blend | None = None
    fit: BlendFit | None = None
    notes: tuple[str, ...] = ()

    def save(self, path: PathLike) -> None:
        """Write the fitted blend as JSON, for `kit.load` and `kit ensemble --apply`.

        Raises:
            KitError: nothing was fitted.
        """
        from kit.ensembling.blend import write_blend

        if not self.fit:
            raise KitError("no weights were fitted, so there is no blend to save", "Pass fit=.")
        write_blend(self.fit.blend, path, self.fit.fitted)


def ensemble(
    members: Run | PathLike | pd.DataFrame | Sequence[Run | PathLike | pd.DataFrame] = (),
    *,
    method: PoolMethod | None = None,
    weights: Sequence[float] | None = None,
    fit: bool | Sequence[Run | PathLike] = False,
    truth: PathLike | pd.DataFrame | None = None,
    subset: bool = False,
    blend: PathLike | Blend | None = None,
) -> Ensemble:
    """Blend predictions of the same rows.

    Args:
        members: runs (their test predictions, which `kit predict` writes), prediction files, or
            prediction frames.
        method: "mean", "geometric" or "weights"; by default the mean, or weights where they are
            given.
        weights: one for each member; only their ratios count.
        fit: fit weights and a temperature to out-of-fold predictions: runs or files, or True for
            the members' runs.
        truth: labels of the out-of-fold rows, a file such as data/processed/train.parquet or a
            DataFrame.
        subset: fit on the rows that the out-of-fold files predict, such as validation rows alone.
        blend: combine as a saved blend says.

    Raises:
        KitError: nothing to blend, ids differ, or what is needed for a fit is missing.

    Example:
        kit.ensemble([frame_a, frame_b]).predictions
        blend = kit.ensemble(fit=[run_a, run_b], truth="data/processed/train.parquet").blend
        kit.load([run_a, run_b], blend=blend).predict_proba(frame)
    """
    from kit.ensembling.blend import apply_blend, read_blend
    from kit.ensembling.members import read_members, refuse_repeated_paths
    from kit.ensembling.pool import blend_predictions

    members = _as_list(members)
    by_hand = method is not None or weights is not None
    if sum([by_hand, bool(fit), blend is not None]) > 1:
        raise KitError(
            "more than one source of weights: method= and weights=, fit=, blend=",
            "Pass one of them.",
        )

    fitted = None
    notes: tuple[str, ...] = ()
    if fit:
        if truth is None:
            raise KitError(
                "fitting needs labels", "Pass truth=, such as data/processed/train.parquet."
            )
        fitted, notes = _fit_ensemble(members if fit is True else list(fit), truth, subset)
        blend = fitted.blend
    elif isinstance(blend, str | Path):
        blend = read_blend(blend)

    if blend and not members:
        return Ensemble(None, blend, fitted, notes)
    if blend:
        # A blend finds its members by the names of their runs, so these must be files.
        files = [_run_file(member, "test_path") for member in members]
        names, frames = read_members(files)
        return Ensemble(apply_blend(blend, frames, names, files), blend, fitted, notes)

    names, frames = _read_test_members(members)
    refuse_repeated_paths([name for name in names if not name.startswith("members[")])
    method = method or ("weights" if weights is not None else "mean")
    return Ensemble(blend_predictions(frames, names, method, weights))


def _read_test_members(
    members: Sequence[Run | PathLike | pd.DataFrame],
) -> tuple[list[str], list[pd.DataFrame]]:
    """Return what errors call each member, and its test predictions."""
    names = []
    frames = []
    for number, member in enumerate(members):
        if isinstance(member, pd.DataFrame):
            name = f"members[{number}]"
            frame = _check_frame(member, name)
        else:
            name = str(_run_file(member, "test_path"))
            frame = _read_frame(name)
        names.append(name)
        frames.append(frame)
    return names, frames


def _fit_ensemble(
    members: Sequence[Run | PathLike | pd.DataFrame], truth: PathLike | pd.DataFrame, subset: bool
) -> tuple[BlendFit, tuple[str, ...]]:
    """Fit a blend to out-of-fold predictions, and return it with warnings about the rows."""
    from kit.ensembling.fit_blend import fit_blend
    from kit.ensembling.members import read_members, unknown_run_warnings
    from kit.evaluation.truth import prompt_group_warnings, restrict_truth

    files = [_run_file(member, "oof_path") for member in members]
    names, frames = read_members(files)
    labels = _read_labels(truth)
    notes = [*prompt_group_warnings(labels, _name(truth)), *unknown_run_warnings(files)]
    if subset and frames:
        labels = restrict_truth(labels, frames[0])
    return fit_blend(frames, names, labels, files=files), tuple(notes)


def calibrate(
    predictions: Run | PathLike | pd.DataFrame,
    truth: PathLike | pd.DataFrame,
    *,
    method: CalibrationMethod | None = None,
    subset: bool = False,
) -> CalibrationFit:
    """Fit a temperature, and perhaps a bias, to out-of-fold predictions.

    Args:
        predictions: of rows that the model was not trained on: a run (its out-of-fold
            predictions), a file or a frame.
        truth: labels of the rows, a file such as data/processed/train.parquet or a DataFrame.
        method: "temperature" or "bias"; by default the better one, or none.
        subset: fit on the rows that are predicted, such as validation rows.

    Returns:
        The fit. `apply(frame)` calibrates predictions of other rows, and `save(path)` writes the
        calibration. `cross_fitted` has the calibrated predictions of the rows that it was fitted
        to; `before` and `after` have their losses.

    Raises:
        KitError: a file cannot be used, ids do not match, or there is no such method.

    Example:
        calibrated = kit.calibrate(run, "data/processed/train.parquet").apply(predictions)
    """
    from kit.ensembling.fit_calibration import fit_calibration
    from kit.ensembling.members import unknown_run_warnings
    from kit.evaluation.truth import prompt_group_warnings, restrict_truth

    warnings = []
    if not isinstance(predictions, pd.DataFrame):
        predictions = _run_file(predictions, "oof_path")
        warnings += unknown_run_warnings([predictions])
    frame = _read_frame(predictions)

    labels = _read_labels(truth)
    warnings += prompt_group_warnings(labels, _name(truth))
    if subset:
        labels = restrict_truth(labels, frame)

    fit = fit_calibration(frame, labels, _name(predictions), method)
    return replace(fit, warnings=tuple(warnings))


def score(
    predictions: PathLike | pd.DataFrame,
    truth: PathLike | pd.DataFrame,
    *,
    subset: bool = False,
) -> Score:
    """Compute log loss, accuracy and calibration error, and those of uniform and the class prior.

    Args:
        predictions: a prediction file or frame.
        truth: labels: a CSV like train.csv, a processed train.parquet, or a DataFrame with the
            columns of one of them.
        subset: score only the rows that are predicted, such as validation rows.

    Raises:
        DataError: a file cannot be used, or ids do not match.

    Example:
        kit.score(run.oof, "data/processed/train.parquet").log_loss
    """
    from kit.evaluation.metrics import score_predictions
    from kit.evaluation.truth import align_to_truth, restrict_truth

    frame = _read_frame(predictions)
    labels = _read_labels(truth)
    if subset:
        labels = restrict_truth(labels, frame)
    return score_predictions(*align_to_truth(frame, labels, _name(predictions)))


def report(
    runs: Run | PathLike | Sequence[Run | PathLike] = (),
    *,
    data: Dataset | PathLike = "data/processed",
    frames: Mapping[str, PathLike] | Sequence[tuple[str, PathLike]] = (),
    blends: Sequence[PathLike] = (),
    truth: PathLike | None = None,
    ledger: PathLike | None = None,
) -> Report:
    """Compare runs, and any prediction files, on the same rows.

    Runs without the rows of most are compared on those that they share, and named in `left_out`.

    Args:
        runs: runs or their folders.
        data: the processed rows that they were trained on. Frames with a truth need none.
        frames: further prediction files by name.
        blends: saved blends of the runs.
        truth: labels of the test rows, where they are known.
        ledger: the ledger of submissions, whose scores are shown beside the local ones.

    Returns:
        The report, with `answer`, `comparison`, `significance` and more; `as_dict()` has all
        numbers. A notebook displays it as a page.

    Raises:
        KitError: nothing to compare, no run was trained on these rows, or a file cannot be used.

    Example:
        kit.report([run_a, run_b], truth="data/raw/truth.csv")
    """
    from kit.data.dataset import Dataset
    from kit.kaggle.ledger import read_ledger
    from kit.reporting.leaderboard import parse_scores
    from kit.reporting.report import build_report
    from kit.run import Run

    named = frames.items() if isinstance(frames, Mapping) else frames
    return build_report(
        [run.path if isinstance(run, Run) else Path(run) for run in _as_list(runs)],
        data.folder if isinstance(data, Dataset) else Path(data),
        frames=[(name, Path(file)) for name, file in named],
        blends=[Path(file) for file in blends],
        truth=Path(truth) if truth else None,
        submissions=parse_scores(read_ledger(ledger)) if ledger else (),
    )


def runs(
    folder: PathLike = "runs",
    *,
    conditions: Iterable[str] = (),
    truth: PathLike | None = None,
) -> pd.DataFrame:
    """Return a table of the runs in a folder, the newest first.

    Args:
        folder: where run directories are.
        conditions: such as "state=finished", "oof<1.02" or "lr>=2e-5"; all have to hold.
        truth: labels of the test rows, for the column `test`.

    Returns:
        A DataFrame by the runs' names, with their path, state, finished parts, log losses (`oof`,
        `holdout`, `test`), minutes, size in bytes, tags, and each recipe key in which they differ.

    Raises:
        KitError: there is no such folder, or a condition cannot be read.

    Example:
        kit.runs().sort_values("oof")
    """
    from kit.tracking.listing import list_runs

    lines = list_runs(folder, conditions=conditions, truth=truth)
    columns = ["path", "state", "folds", "finished", "oof", "holdout", "test"]
    columns += ["minutes", "size", "changed", "tags"]
    rows = [{column: getattr(line, column) for column in columns} | line.differs for line in lines]
    table = pd.DataFrame(rows, index=pd.Index([line.name for line in lines], name="run"))
    table = table.reindex(columns=[*columns, *table.columns.difference(columns)])
    return table.assign(changed=pd.to_datetime(table["changed"], unit="s", utc=True))


def _as_list(source: Any) -> list[Any]:
    """Return a list of one run, path or frame, or of several."""
    from kit.run import Run

    return [source] if isinstance(source, Run | str | Path | pd.DataFrame) else list(source)


def _run_file(
    member: Run | PathLike | pd.DataFrame, name: Literal["oof_path", "test_path"]
) -> Path:
    """Return the path of a prediction file: a file as it is, of a run the named one of its files.

    Raises:
        RunError: the run has no such predictions yet.
        KitError: the member is a DataFrame, which has no name.
    """
    from kit.run import Run

    if isinstance(member, pd.DataFrame):
        raise KitError(
            "a fitted or saved blend takes runs or files, not DataFrames: it finds members by name",
            "Pass runs or prediction files.",
        )
    if not isinstance(member, Run):
        if not Path(member).is_dir():
            return Path(member)
        member = Run.open(member)

    if name == "oof_path":
        file = member.oof_path
        problem = "has no out-of-fold predictions"
        hint = f"Run `{member.command} --fold all`."
    else:
        file = member.test_path
        problem = "has no test predictions"
        hint = f"Run `kit predict {member.path}`."
    if not file.is_file():
        raise RunError(f"{member.path} {problem}", hint)
    return file


def _read_frame(predictions: PathLike | pd.DataFrame) -> pd.DataFrame:
    from kit.ensembling.members import check_run_of_file
    from kit.predictions import read_predictions

    if isinstance(predictions, pd.DataFrame):
        return _check_frame(predictions, _name(predictions))
    check_run_of_file(predictions)
    return read_predictions(predictions)


def _check_frame(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the frame, or raise DataError for missing columns; its users check the values."""
    missing = [column for column in PREDICTION_COLUMNS if column not in frame.columns]
    if missing:
        raise DataError(
            f"{name} has no column {', '.join(missing)}",
            f"Predictions have the columns {', '.join(PREDICTION_COLUMNS)}.",
        )
    return frame


def _read_labels(truth: PathLike | pd.DataFrame) -> pd.DataFrame:
    from kit.evaluation.truth import read_truth, truth_from_frame

    return truth_from_frame(truth) if isinstance(truth, pd.DataFrame) else read_truth(truth)


def _name(table: PathLike | pd.DataFrame) -> str:
    """Return what messages call a table."""
    return "the DataFrame" if isinstance(table, pd.DataFrame) else str(table)
