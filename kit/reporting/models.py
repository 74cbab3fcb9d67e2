"""Read the models of a report: references, runs, prediction files and saved blends.

Each becomes a `ReportModel` with predictions of the same rows: use `reference_models`,
`read_run_models`, `read_file_models` and `read_blend_model`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.data.dataset import Dataset
from kit.ensembling.blend import Blend, read_blend
from kit.ensembling.pool import stack_predictions
from kit.ensembling.serialize import read_fitted
from kit.ensembling.weights import BlendRows, fit_weights
from kit.errors import DataError
from kit.evaluation.crossfit import too_few_rows
from kit.evaluation.metrics import class_prior
from kit.evaluation.truth import align_to_truth, row_positions
from kit.predictions import read_predictions
from kit.run import Run
from kit.task import HOLDOUT, ID, LABEL

UNIFORM, PRIOR, FLOOR = "uniform", "class prior", "Bayes floor"

# The `kit baseline` that is the same model as a reference.
BASELINE_OF_REFERENCE = {UNIFORM: "uniform", PRIOR: "prior"}

# The methods of `kit ensemble` that fit weights to labels.
FITTED_METHODS = ("arithmetic", "geometric", "greedy")


@dataclass(frozen=True)
class ReportRows:
    """N rows that models are compared on.

    Attributes:
        name: "holdout", "out-of-fold" or "test".
        ids: int64 (N,).
        groups: prompt groups, int64 (N,).
        labels: int64 (N,), None where they are not known.
    """

    name: str
    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None

    @property
    def known_labels(self) -> np.ndarray:
        """The labels (N,) of rows that models are scored on."""
        if self.labels is None:
            raise ValueError(f"the labels of the {self.name} rows are not known")
        return self.labels


@dataclass(frozen=True)
class SavedBlend:
    """A blend that was read from a file.

    Attributes:
        name: the model's name, which is the file's name without ".json".
        blend: members, weights, pool and calibration.
        fitted: what the file says about the fit; empty if it says nothing.
        cross_fitted: whether the validation predictions are cross-fitted.
        note: what they are otherwise, or why there are none, as the end of a sentence.
    """

    name: str
    blend: Blend
    fitted: Mapping[str, Any]
    cross_fitted: bool = False
    note: str = ""


@dataclass(frozen=True)
class ReportModel:
    """A model of the report.

    Attributes:
        name: unique within the report.
        predictions: probabilities (N, 3) by split, "valid" or "test", in the order of the report's
            rows; a split that the model did not predict is missing.
        reference: whether it needs no training: uniform, the class prior, the Bayes floor.
        run: the run directory of a trained model or a baseline.
        saved: the saved blend.
    """

    name: str
    predictions: Mapping[str, np.ndarray]
    reference: bool = False
    run: Run | None = None
    saved: SavedBlend | None = None

    def is_constant(self, split: str) -> bool:
        """Return whether every row of a split has the same prediction."""
        # Reading and normalising a file can change a probability in its last digits.
        return bool(np.ptp(self.predictions[split], axis=0).max() < 1e-9)

    def part_metrics(self, validation: str) -> dict[str, dict[str, Any]]:
        """Return, by folder name, the metrics of the parts that predicted the validation rows.

        Args:
            validation: "holdout" for the holdout part, "out-of-fold" for the folds.
        """
        folds = self.run.finished() if self.run else []
        return {
            fold.name: fold.metrics
            for fold in folds
            if (fold.name == HOLDOUT) == (validation == HOLDOUT)
        }


def reference_models(
    processed: Dataset, prior_labels: np.ndarray, rows: Mapping[str, ReportRows]
) -> list[ReportModel]:
    """Return uniform, the class prior, and the Bayes floor where the rows are a sample's.

    Args:
        processed: the processed folder.
        prior_labels: the labels that the class prior is computed from.
        rows: the rows by split; only splits with labels are predicted.
    """
    scored = {split: subset for split, subset in rows.items() if subset.labels is not None}
    constants = {UNIFORM: np.full(3, 1 / 3), PRIOR: class_prior(prior_labels)}
    models = []
    for name, constant in constants.items():
        predictions = {
            split: np.tile(constant, (len(subset.ids), 1)) for split, subset in scored.items()
        }
        models.append(ReportModel(name, predictions, reference=True))

    bayes_file = processed.bayes_file()
    if bayes_file:
        # One file has the true probabilities of the rows of both splits.
        bayes = read_predictions(bayes_file)
        predictions = {
            split: _align_to_rows(bayes[bayes[ID].isin(subset.ids)], subset, str(bayes_file))
            for split, subset in scored.items()
        }
        models.append(ReportModel(FLOOR, predictions, reference=True))
    return models


def read_run_models(
    runs: Sequence[Run], validation: str, rows: Mapping[str, ReportRows]
) -> list[ReportModel]:
    """Read the predictions of runs that have finished the validation rows.

    Args:
        runs: trained models and baselines.
        validation: which of a run's predictions are compared: "holdout" or "out-of-fold".
        rows: the rows by split.

    Raises:
        DataError: a file is not of these rows.
    """
    counts = Counter(run.name for run in runs)
    models = []
    for run in runs:
        valid = run.oof_path
        if validation == HOLDOUT:
            valid = run.fold(HOLDOUT).predictions_path
        files = [file for file in (valid, run.test_path) if file.is_file()]

        # Two runs of one name, as from two machines, are shown with their parent folders.
        name = run.name
        if counts[name] > 1:
            name = f"{run.path.resolve().parent.name}/{name}"
        models.append(ReportModel(name, _read_probabilities(files, rows), run=run))
    return models


def has_baseline_run(reference: ReportModel, run_models: Sequence[ReportModel]) -> bool:
    """Return whether a baseline run is the same model and predicted the same splits."""
    baseline = BASELINE_OF_REFERENCE.get(reference.name)
    return baseline is not None and any(
        model.run is not None
        and model.run.baseline == baseline
        and reference.predictions.keys() <= model.predictions.keys()
        for model in run_models
    )


def read_file_models(
    frames: Sequence[tuple[str, Path]], rows: Mapping[str, ReportRows]
) -> list[ReportModel]:
    """Read prediction files, given as (name, file); files of one name are one model.

    Raises:
        DataError: a file is not of these rows, or two files of one name are of the same rows.
    """
    models = []
    for name in dict.fromkeys(name for name, _ in frames):
        files = [file for other, file in frames if other == name]
        models.append(ReportModel(name, _read_probabilities(files, rows)))
    return models


def _read_probabilities(
    files: Sequence[Path], rows: Mapping[str, ReportRows]
) -> dict[str, np.ndarray]:
    """Read prediction files as probabilities (N, 3) by split; a file's ids decide its split."""
    predictions: dict[str, np.ndarray] = {}
    for file in files:
        frame = read_predictions(file)
        ids = set(frame[ID])
        split = next(
            (name for name, subset in rows.items() if ids == set(subset.ids.tolist())), None
        )
        if split is None:
            raise DataError(
                f"{file}: its {len(ids)} ids are neither those of the {len(rows['valid'].ids)} "
                f"validation rows nor those of the {len(rows['test'].ids)} test rows",
                "Compare predictions of the same rows: `kit predict RUN --split valid` or "
                "`--split test`.",
            )
        if split in predictions:
            raise DataError(
                f"{file}: predicts the same rows as another file of this name",
                "Give each file its own name with --frame NAME=FILE.",
            )
        predictions[split] = _align_to_rows(frame, rows[split], str(file))
    return predictions


def _align_to_rows(frame: pd.DataFrame, rows: ReportRows, name: str) -> np.ndarray:
    """Return probabilities (N, 3) in the order of `rows`.

    Where rows are scored, the probabilities must be as exact as Kaggle's graders demand.
    """
    if rows.labels is not None:
        # The labels are here only to match the rows; they are those of the report already.
        return align_to_truth(frame, pd.DataFrame({ID: rows.ids, LABEL: rows.labels}), name)[0]
    # Rows that are only shown may be rounded, as published probabilities are.
    ids, members = stack_predictions([frame], [name])
    return members[0][row_positions(ids, rows.ids, name, "the test rows")]


def read_blend_model(path: Path, models: Sequence[ReportModel], valid: ReportRows) -> ReportModel:
    """Read a saved blend and predict with it.

    Test predictions are those of the blend as it was saved. Validation predictions are
    cross-fitted, as in the estimate of `kit ensemble`: weights and temperature of the same members
    are fitted anew, by the same method, to the other prompts. The saved weights would flatter the
    blend whichever rows they were fitted to, because the holdout's rows are also out-of-fold rows.
    A blend whose weights were not fitted is applied as it was saved, and one with too few
    validation rows for a fit gets no validation predictions.

    Args:
        path: a file that `kit ensemble --save` wrote.
        models: the other models of the report, among them the members.
        valid: the validation rows.

    Raises:
        DataError: the file is not a saved blend, or a member is missing or ambiguous.
    """
    blend = read_blend(path)
    fitted = read_fitted(path, "blend").get("fitted")
    fitted = fitted if isinstance(fitted, dict) else {}
    members = _find_members(path, blend, models)

    # Members that the fit dropped have weight 0, and need not be in the report.
    weights = tuple(weight for weight in blend.weights if weight > 0)
    used_blend = replace(blend, members=blend.used, weights=weights)

    predictions = {}
    if all("test" in member.predictions for member in members):
        predictions["test"] = used_blend.combine(_stack(members, "test"))

    cross_fitted = False
    note = ""
    if all("valid" in member.predictions for member in members):
        method = fitted.get("method", blend.pool)
        too_few = too_few_rows(valid.known_labels, valid.groups, len(blend.members))
        if method not in FITTED_METHODS:
            predictions["valid"] = used_blend.combine(_stack(members, "valid"))
            note = "is applied as it was saved, because its weights were not fitted to labels"
        elif too_few:
            note = (
                "has no validation scores: its weights may have been fitted to these labels, and "
                f"{too_few}"
            )
        else:
            predictions["valid"] = _cross_fit(method, _stack(members, "valid"), valid)
            cross_fitted = True

    name = path.name.removesuffix(".json")
    saved = SavedBlend(name, blend, fitted, cross_fitted, note)
    return ReportModel(name, predictions, saved=saved)


def _find_members(path: Path, blend: Blend, models: Sequence[ReportModel]) -> list[ReportModel]:
    """Return the models that have a weight in the blend, in the blend's order."""
    # A blend knows runs by the names of their folders. The report may show a longer name, where
    # two runs share one.
    candidates = [
        (model.run.name if model.run else model.name, model)
        for model in models
        if not model.reference
    ]
    counts = Counter(name for name, _ in candidates)
    wrong = [name for name in blend.used if counts[name] != 1]
    if wrong:
        raise DataError(
            f"{path}: the blend needs predictions of {', '.join(wrong)}, and the report has "
            f"{counts[wrong[0]] or 'none'} called {wrong[0]}",
            "Name each member once: a run by its folder, any other file as --frame NAME=FILE.",
        )

    by_name = dict(candidates)
    return [by_name[name] for name in blend.used]


def _stack(members: Sequence[ReportModel], split: str) -> np.ndarray:
    """Return the members' predictions of a split, (M, N, 3)."""
    return np.stack([member.predictions[split] for member in members])


def _cross_fit(method: str, members: np.ndarray, valid: ReportRows) -> np.ndarray:
    """Blend members (M, N, 3), each row with weights fitted to other prompts: (N, 3)."""
    rows = BlendRows.from_predictions(members, valid.known_labels, valid.groups)
    return fit_weights(method, rows).cross_fitted
