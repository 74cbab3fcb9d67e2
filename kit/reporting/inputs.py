"""Gather what a report compares: the rows, and the models with predictions of them.

Rows are matched by id, so that row i of every array is the same row. Use `gather_inputs`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.dataset import Dataset, open_dataset
from kit.errors import DataError, RunError
from kit.evaluation.truth import read_truth, restrict_truth, row_positions
from kit.predictions import read_predictions
from kit.reporting.models import (
    ReportModel,
    ReportRows,
    has_baseline_run,
    read_blend_model,
    read_file_models,
    read_run_models,
    reference_models,
)
from kit.run import Run
from kit.task import GROUP, HOLDOUT, ID, LABEL, TEXTS

OOF = "out-of-fold"
Split = Literal["valid", "test"]


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report is computed from.

    Attributes:
        processed: the processed folder that the runs were trained on.
        rows: the rows of the splits "valid" and "test".
        models: references, runs, files and blends, in the order of the report's tables.
        unfinished: the names of runs without a finished part, which are left out.
    """

    processed: Dataset
    rows: Mapping[str, ReportRows]
    models: tuple[ReportModel, ...]
    unfinished: tuple[str, ...]

    @property
    def validation(self) -> str:
        """What the validation rows are: "holdout" or "out-of-fold"."""
        return self.rows["valid"].name

    @property
    def holdout_unused(self) -> bool:
        """Whether the runs are compared out of fold and could be compared on the holdout too."""
        runs = [model.run for model in self.models if model.run]
        return (
            self.validation == OOF
            and bool(runs)
            and all(run.fold(HOLDOUT).is_finished for run in runs)
        )

    @property
    def scored_splits(self) -> tuple[Split, ...]:
        """The splits with known labels."""
        splits: tuple[Split, ...] = ("valid", "test")
        return tuple(split for split in splits if self.rows[split].labels is not None)

    @property
    def main_split(self) -> Split:
        """The split for close inspection: the one with labels that most models have predicted.

        Among equals it is test, because no checkpoint was chosen by those labels.
        """
        return max(
            self.scored_splits, key=lambda split: (len(self.models_with(split)), split == "test")
        )

    def models_with(self, split: str, references: bool = False) -> list[ReportModel]:
        """Return the models with predictions of a split, with or without the references."""
        return [
            model
            for model in self.models
            if split in model.predictions and (references or not model.reference)
        ]

    def read_texts(self, split: str, positions: np.ndarray | None = None) -> pa.Table:
        """Return id, prompt and answers of a split's rows, or only of those at `positions`."""
        dataset = self.processed
        table = (dataset.train if split == "valid" else dataset.test)([ID, *TEXTS])
        ids = self.rows[split].ids if positions is None else self.rows[split].ids[positions]
        # The table has other rows too: training rows that are not validated on, and extra rows.
        return table.take(pd.Index(table[ID].to_numpy()).get_indexer(ids)).combine_chunks()


def gather_inputs(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
) -> ReportInputs:
    """Read runs, prediction files and saved blends, and add the references.

    The references are uniform, the class prior and, for the embedded sample, the Bayes floor. A
    baseline run of the same kind replaces uniform or the class prior, if it predicted the same
    splits.

    Args:
        runs: run directories, or none. Validation predictions are those that training left, test
            predictions those of the run's test.csv.
        data: the processed folder that the runs were trained on.
        frames: (name, file) of further predictions. The ids decide whether a file is of validation
            or of test rows; files of one name are one model.
        blends: saved blends of the runs and frames.
        truth: a file with the labels of the test rows, where they are known.

    Raises:
        RunError: no run has a finished part, the runs have no validation rows in common, or a run
            was trained on other data or is not whole.
        DataError: a frame is neither of the validation nor of the test rows, the truth does not
            match the test rows, two models have one name, a blend's member is missing, or there
            are no predictions of rows with labels.
    """
    processed = open_dataset(data)
    # A run that is named twice, perhaps by two different paths, counts once.
    opened = list({Run.open(path).path.resolve(): Run.open(path) for path in runs}.values())
    finished = [run for run in opened if run.finished()]
    if opened and not finished:
        opened[0].models()  # raises the error that names the next command
    # Ids alone would not show that a run was trained on other rows: they can be the same numbers.
    for run in finished:
        run.check_data(processed.digest("train"))
        run.check_files(weights=False)

    validation = choose_validation(finished, processed, frames)
    rows, prior_labels = _read_rows(processed, validation, truth)

    references = reference_models(processed, prior_labels, rows)
    run_models = read_run_models(finished, validation, rows)
    models = [model for model in references if not has_baseline_run(model, run_models)]
    models += run_models
    models += read_file_models(frames, rows)
    # Blends come last, because their members are looked up among the models before them.
    models += [read_blend_model(path, models, rows["valid"]) for path in blends]

    counts = Counter(model.name for model in models)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(
            f"two models are called {repeated[0]!r}",
            "Give one of them another name with --frame NAME=FILE.",
        )

    unfinished = tuple(run.name for run in opened if run not in finished)
    inputs = ReportInputs(processed, rows, tuple(models), unfinished)
    if not inputs.models_with(inputs.main_split):
        raise DataError(
            "all predictions are of the test rows, whose labels are not known",
            "Name a file with the labels with --truth FILE.",
        )
    return inputs


def choose_validation(
    runs: Sequence[Run], processed: Dataset, frames: Sequence[tuple[str, Path]]
) -> str:
    """Choose the validation rows that all runs have predicted: "holdout" or "out-of-fold".

    Out-of-fold rows come first, since there are more of them. If both kinds are possible, or there
    are no runs, a frame of exactly the holdout's rows decides for the holdout.

    Raises:
        RunError: the runs have no validation rows in common.
    """
    has_folds = [run.oof_path.is_file() for run in runs]
    has_holdout = [run.fold(HOLDOUT).is_finished for run in runs]
    if all(has_folds) and all(has_holdout):
        holdout_rows = processed.fold_rows(HOLDOUT)[1]
        ids = set(processed.train([ID])[ID].to_numpy()[holdout_rows].tolist())
        is_holdout = any(set(read_predictions(file)[ID]) == ids for _, file in frames)
        return HOLDOUT if is_holdout else OOF
    if all(has_folds):
        return OOF
    if all(has_holdout):
        return HOLDOUT

    # Name the command after which most of what is there already can be compared.
    prefer_folds = not any(has_holdout) or sum(has_folds) > sum(has_holdout)
    if prefer_folds:
        run = runs[has_folds.index(False)]
        lacking = "this run has not finished every fold"
        otherwise = ", or leave it out" if len(runs) > 1 else ""
    else:
        run = runs[has_holdout.index(False)]
        lacking = "this run has not finished the holdout"
        otherwise = ", or every fold of each run"

    fold = "all" if prefer_folds else HOLDOUT
    raise RunError(
        f"{run.path}: the runs have no validation rows in common: {lacking}",
        f"Run `{run.command} --fold {fold}`{otherwise}.",
    )


def _read_rows(
    processed: Dataset, validation: str, truth: Path | None
) -> tuple[dict[str, ReportRows], np.ndarray]:
    """Return the rows by split, and the labels that the class prior is computed from."""
    # The truth leaves out extra rows, which are trained on and never scored.
    train = read_truth(processed.folder / "train.parquet")
    if validation == HOLDOUT:
        holdout_rows = processed.fold_rows(HOLDOUT)[1]
        valid = restrict_truth(train, processed.train([ID]).take(holdout_rows).to_pandas())
        # A prior that had seen the holdout's labels would be a better constant than it can be.
        prior_rows = train[~train[ID].isin(valid[ID])]
    else:
        # Every row is trained on by all folds but one, whose priors hardly differ.
        valid = train
        prior_rows = train

    test = processed.test([ID, GROUP]).to_pandas()
    if truth:
        known = read_truth(truth)
        positions = row_positions(known[ID], test[ID], str(truth), "test.csv")
        test[LABEL] = known[LABEL].to_numpy()[positions]

    rows = {"valid": _report_rows(validation, valid), "test": _report_rows("test", test)}
    return rows, prior_rows[LABEL].to_numpy(np.int64)


def _report_rows(name: str, table: pd.DataFrame) -> ReportRows:
    labels = table[LABEL].to_numpy(np.int64) if LABEL in table else None
    return ReportRows(name, table[ID].to_numpy(np.int64), table[GROUP].to_numpy(np.int64), labels)
