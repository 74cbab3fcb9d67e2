"""Read the models of a report: references, runs and prediction files.

Each run or file is first a `ModelSource`, which knows the parts that it has predicted; once the
rows are chosen it becomes a `ReportModel`. Use `reference_models`, `read_run_sources` and
`read_file_sources`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.data.dataset import Dataset
from kit.ensembling.blend import Blend
from kit.ensembling.pool import stack_predictions
from kit.errors import DataError
from kit.evaluation.metrics import class_prior
from kit.evaluation.truth import align_to_truth, row_positions
from kit.predictions import read_predictions
from kit.reporting.rows import Parts, ReportRows
from kit.run import Run
from kit.task import HOLDOUT, ID, LABEL

UNIFORM, PRIOR, FLOOR = "uniform", "class prior", "Bayes floor"

# The `kit baseline` that is the same model as a reference.
BASELINE_OF_REFERENCE = {UNIFORM: "uniform", PRIOR: "prior"}


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

    def part_metrics(self, parts: Parts) -> dict[str, dict[str, Any]]:
        """Return, by folder name, the metrics of those `parts` that the run has finished."""
        folds = self.run.finished() if self.run else []
        return {fold.name: fold.metrics for fold in folds if fold.name in parts}


@dataclass(frozen=True)
class ModelSource:
    """A run, or prediction files of one name, before the rows to compare on are chosen.

    Attributes:
        name: unique within the report.
        parts: the parts whose validation rows it has predicted.
        run: the run directory.
        valid: the validation predictions of files, by path; those of a run are read by part.
        test: the file of test predictions and what is in it.
    """

    name: str
    parts: frozenset[str]
    run: Run | None = None
    valid: tuple[tuple[Path, pd.DataFrame], ...] = ()
    test: tuple[Path, pd.DataFrame] | None = None

    def covers(self, rows: ReportRows) -> bool:
        """Return whether every one of these validation rows was predicted."""
        return bool(rows.parts) and set(rows.parts) <= self.parts

    def as_model(self, rows: Mapping[str, ReportRows]) -> ReportModel:
        """Return the model with its predictions of these rows, by split.

        Raises:
            DataError: a file is not of these rows, or has no probabilities.
        """
        predictions = {}
        if self.covers(rows["valid"]):
            predictions["valid"] = self._align_valid(rows["valid"])
        if self.test and "test" in rows:
            path, frame = self.test
            predictions["test"] = align_to_rows(frame, rows["test"], str(path))
        return ReportModel(self.name, predictions, run=self.run)

    def _align_valid(self, rows: ReportRows) -> np.ndarray:
        if self.run:
            folds = [self.run.fold(part) for part in rows.parts]
            files = [(fold.predictions_path, fold.predictions) for fold in folds]
        else:
            files = list(self.valid)
        frame = pd.concat([frame for _, frame in files], ignore_index=True)
        if not self.run:
            # A file of all folds is also one of each fold.
            frame = frame[frame[ID].isin(rows.ids)]
        return align_to_rows(frame, rows, ", ".join(str(path) for path, _ in files))


def reference_models(
    processed: Dataset | None, prior_labels: np.ndarray, rows: Mapping[str, ReportRows]
) -> list[ReportModel]:
    """Return uniform, the class prior, and the Bayes floor where the rows are a sample's.

    Args:
        processed: the processed folder, if there is one.
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

    bayes_file = processed.bayes_file() if processed else None
    if bayes_file:
        # One file has the true probabilities of the rows of both splits.
        bayes = read_predictions(bayes_file)
        predictions = {
            split: align_to_rows(bayes[bayes[ID].isin(subset.ids)], subset, str(bayes_file))
            for split, subset in scored.items()
        }
        models.append(ReportModel(FLOOR, predictions, reference=True))
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


def read_run_sources(runs: Sequence[Run]) -> list[ModelSource]:
    """Return the sources of runs with finished parts: trained models and baselines."""
    counts = Counter(run.name for run in runs)
    sources = []
    for run in runs:
        # Two runs of one name, as from two machines, are shown with their parent folders.
        name = run.name
        if counts[name] > 1:
            name = f"{run.path.resolve().parent.name}/{name}"
        parts = frozenset(fold.name for fold in run.finished())
        test = None
        # Those of other models than predict now would be compared under the wrong name.
        if run.test_path.is_file() and not run.outdated_test:
            test = (run.test_path, read_predictions(run.test_path))
        sources.append(ModelSource(name, parts, run, test=test))
    return sources


def read_file_sources(
    frames: Sequence[tuple[str, Path]],
    part_ids: Mapping[str, frozenset[int]],
    test_ids: frozenset[int],
) -> list[ModelSource]:
    """Return the sources of prediction files, given as (name, file); files of one name are one.

    Args:
        frames: names and files.
        part_ids: the ids of the rows of each part.
        test_ids: the ids of the test rows.

    Raises:
        DataError: a file is of other rows, or two files of one name are of the same rows.
    """
    sources = []
    for name in dict.fromkeys(name for name, _ in frames):
        parts: frozenset[str] = frozenset()
        valid = []
        test = None
        for file in (file for other, file in frames if other == name):
            frame = read_predictions(file)
            ids = frozenset(frame[ID].tolist())
            found = find_parts(ids, part_ids)
            if not found and ids != test_ids:
                raise DataError(
                    f"{file}: its {len(ids)} ids are neither those of a fold, of all folds or of "
                    f"the holdout, nor those of the {len(test_ids)} test rows",
                    "Compare predictions of the same rows: `kit predict RUN --split valid` or "
                    "`--split test`.",
                )

            if found & parts or (not found and test):
                raise DataError(
                    f"{file}: predicts the same rows as another file of this name",
                    "Give each file its own name with --frame NAME=FILE.",
                )
            if found:
                parts |= found
                valid.append((file, frame))
            else:
                test = (file, frame)
        sources.append(ModelSource(name, parts, None, tuple(valid), test))
    return sources


def find_parts(ids: frozenset[int], part_ids: Mapping[str, frozenset[int]]) -> frozenset[str]:
    """Return the parts that together have exactly these ids; none if there are no such parts.

    The holdout's rows are in folds too, so a part of exactly these ids comes first.
    """
    for part, rows in part_ids.items():
        if rows == ids:
            return frozenset([part])
    folds = [part for part, rows in part_ids.items() if part != HOLDOUT and rows and rows <= ids]
    together = frozenset().union(*(part_ids[part] for part in folds))
    return frozenset(folds if together == ids else ())


def align_to_rows(frame: pd.DataFrame, rows: ReportRows, name: str) -> np.ndarray:
    """Return probabilities (N, 3) in the order of `rows`.

    Where rows are scored, the probabilities must be as exact as Kaggle's graders demand.
    """
    if rows.labels is not None:
        # The labels are here only to match the rows; they are those of the report already.
        return align_to_truth(frame, pd.DataFrame({ID: rows.ids, LABEL: rows.labels}), name)[0]
    # Rows that are only shown may be rounded, as published probabilities are.
    ids, members = stack_predictions([frame], [name])
    return members[0][row_positions(ids, rows.ids, name, "the test rows")]
