"""What is compared: every model's predictions of the same rows, matched by id, so that row i is row i everywhere."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.dataset import Dataset, open_dataset
from kit.ensemble.pool import stack_predictions
from kit.errors import DataError
from kit.evaluation.metrics import class_prior
from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth, row_positions
from kit.predictions import read_predictions
from kit.report.blended import blended_models
from kit.report.models import ReportModel
from kit.report.validation import OOF, OOF_FILE, common_rows
from kit.run import Run
from kit.task import GROUP, HOLDOUT, ID, LABEL, TEST_FILE, TEXTS

UNIFORM, PRIOR, FLOOR = "uniform", "class prior", "Bayes floor"
BASELINES = {
    UNIFORM: "uniform",
    PRIOR: "prior",
}  # the baselines that are the same model, when they are there as runs
Split = Literal["valid", "test"]


@dataclass(frozen=True)
class ReportRows:
    """N rows that models are compared on.

    Attributes:
        name: "holdout", "out-of-fold" or "test".
        ids: int64 (N,).
        groups: prompt groups, int64 (N,).
        labels: int64 (N,), None where nobody knows them.
    """

    name: str
    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class ReportInputs:
    """The models with their predictions of `rows` by split, and the runs left out as unfinished."""

    processed: Dataset
    rows: Mapping[str, ReportRows]
    models: tuple[ReportModel, ...]
    unfinished: tuple[str, ...]

    @property
    def validation(self) -> str:
        """Which rows "validation" means: "holdout" or "out-of-fold"."""
        return self.rows["valid"].name

    @property
    def holdout_too(self) -> bool:
        """Whether the rows are out-of-fold ones and every run could have been compared on the holdout as well."""
        runs = [model.run for model in self.models if model.run]
        return self.validation == OOF and bool(runs) and all(run.done(HOLDOUT) for run in runs)

    @property
    def scored(self) -> tuple[Split, ...]:
        """The splits whose labels are known."""
        return tuple(split for split in ("valid", "test") if self.rows[split].labels is not None)

    def having(self, split: str, references: bool = False) -> list[ReportModel]:
        """The models with predictions of that split, in the order of the table; with or without the references."""
        return [
            model
            for model in self.models
            if split in model.predictions and (references or not model.reference)
        ]

    @property
    def main(self) -> Split:
        """The split to look at closely: with labels, and of most models; of equals test, where no epoch was chosen."""
        return max(self.scored, key=lambda split: (len(self.having(split)), split == "test"))

    def texts(self, split: str, places: np.ndarray | None = None) -> pa.Table:
        """The prompt and the answers of the rows of a split, or of those at `places` in it."""
        table = (self.processed.train if split == "valid" else self.processed.test)([ID, *TEXTS])
        ids = self.rows[split].ids if places is None else self.rows[split].ids[places]
        return table.take(pd.Index(table[ID].to_numpy()).get_indexer(ids)).combine_chunks()


def gather_inputs(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
) -> ReportInputs:
    """Reads runs, further prediction frames and saved blends, and adds uniform, the class prior and the Bayes floor.

    A baseline run that is uniform or the prior stands for that reference, if it has predictions of the same rows.

    Args:
        runs: run directories, or none. Their validation predictions are from training; of the test rows, their
            test.csv.
        data: the processed folder the runs were trained on.
        frames: (name, file) of further predictions; the ids decide whether they are of validation or of test rows,
            and files of one name are one model.
        blends: saved blends of the runs and frames.
        truth: labels of the test rows, where known.

    Raises:
        RunError: no run has a finished part; runs that have no validation rows in common; a run of other data.
        DataError: a frame whose ids are neither the validation nor the test rows; a truth of other rows than the test
            rows, or of some of them; two models of one name; a blend of models that are not there; no predictions of
            rows with labels.
    """
    processed = open_dataset(data)
    every = list({Run.open(run).path.resolve(): Run.open(run) for run in runs}.values())
    opened = [run for run in every if run.parts()]
    if every and not opened:
        every[0].require_parts()  # says what to do about it
    for run in opened:
        run.check_data(processed.digest("train"))
    kind = common_rows(opened, processed, frames)
    rows, trained_on = _rows(processed, kind, truth)
    names = Counter(run.name for run in opened)
    models = _references(processed, trained_on, rows)
    for run in opened:
        files = [
            run.part(HOLDOUT) / "valid.csv" if kind == HOLDOUT else run.path / OOF_FILE,
            run.path / TEST_FILE,
        ]
        name = run.name if names[run.name] == 1 else f"{run.path.resolve().parent.name}/{run.name}"
        models.append(
            ReportModel(name, _predictions([f for f in files if f.is_file()], rows), run=run)
        )
    models = [model for model in models if not (model.reference and _there_as_run(model, models))]
    for name in dict.fromkeys(name for name, _ in frames):
        models.append(
            ReportModel(name, _predictions([file for other, file in frames if other == name], rows))
        )
    valid = rows["valid"]
    models += [blended_models(path, models, valid.labels, valid.groups) for path in blends]
    twice = [name for name, count in Counter(model.name for model in models).items() if count > 1]
    if twice:
        raise DataError(
            f"two models are called {twice[0]!r}", "Name them apart with --frame NAME=FILE."
        )
    found = ReportInputs(
        processed, rows, tuple(models), tuple(run.name for run in every if run not in opened)
    )
    if not found.having(found.main):
        raise DataError(
            "all these predictions are of the test rows, whose labels are not known",
            "Give them with --truth FILE.",
        )
    return found


def _rows(
    processed: Dataset, kind: str, truth: Path | None
) -> tuple[dict[str, ReportRows], np.ndarray]:
    """The rows by split, and the labels of the rows that the class prior is taken from."""
    train = read_truth(processed.folder / "train.parquet")
    valid = train
    if kind == HOLDOUT:
        valid = restrict_truth(
            train, processed.train([ID]).take(processed.fold_rows(HOLDOUT)[1]).to_pandas()
        )
    trained_on = train if kind == OOF else train[~train[ID].isin(valid[ID])]
    test = processed.test([ID, GROUP]).to_pandas()
    if truth:
        known = read_truth(truth)
        test[LABEL] = known[LABEL].to_numpy()[
            row_positions(known[ID], test[ID], str(truth), "test.csv")
        ]
    rows = {"valid": _of(kind, valid), "test": _of("test", test)}
    return rows, trained_on[LABEL].to_numpy(np.int64)


def _of(name: str, table: pd.DataFrame) -> ReportRows:
    labels = table[LABEL].to_numpy(np.int64) if LABEL in table else None
    return ReportRows(name, table[ID].to_numpy(np.int64), table[GROUP].to_numpy(np.int64), labels)


def _references(
    processed: Dataset, labels: np.ndarray, rows: Mapping[str, ReportRows]
) -> list[ReportModel]:
    """Uniform, the class prior of the rows trained on, and the Bayes floor if the rows are a sample's."""
    constants = {UNIFORM: np.full(3, 1 / 3), PRIOR: class_prior(labels)}
    scored = {split: some for split, some in rows.items() if some.labels is not None}
    models = [
        ReportModel(
            name,
            {split: np.tile(row, (len(some.ids), 1)) for split, some in scored.items()},
            reference=True,
        )
        for name, row in constants.items()
    ]
    if floor := processed.floor():
        bayes = read_predictions(floor)
        known = {
            split: _aligned(bayes[bayes[ID].isin(some.ids)], some, str(floor))
            for split, some in scored.items()
        }
        models.append(ReportModel(FLOOR, known, reference=True))
    return models


def _there_as_run(reference: ReportModel, models: Sequence[ReportModel]) -> bool:
    """Whether a baseline run is the same model, and says as much."""
    same = BASELINES.get(reference.name)
    return same is not None and any(
        model.run is not None
        and model.run.baseline == same
        and reference.predictions.keys() <= model.predictions.keys()
        for model in models
    )


def _predictions(files: Sequence[Path], rows: Mapping[str, ReportRows]) -> dict[str, np.ndarray]:
    """Probabilities (N, 3) by split from prediction files; the ids of each say which rows it is of."""
    found: dict[str, np.ndarray] = {}
    for file in files:
        frame = read_predictions(file)
        ids = set(frame[ID])
        split = next((split for split, some in rows.items() if ids == set(some.ids.tolist())), None)
        if split is None:
            sizes = f"the {len(rows['valid'].ids)} validation rows nor the {len(rows['test'].ids)} test rows"
            raise DataError(
                f"{file}: its {len(ids)} ids are neither {sizes}",
                "Compare predictions of the same rows: `kit predict RUN --split valid` or `--split test`.",
            )
        if split in found:
            raise DataError(
                f"{file}: of the same rows as another file of this name", "Name the two apart."
            )
        found[split] = _aligned(frame, rows[split], str(file))
    return found


def _aligned(frame: pd.DataFrame, rows: ReportRows, name: str) -> np.ndarray:
    """Probabilities (N, 3) in the order of `rows`; those that are scored must be as graders take them."""
    if rows.labels is not None:
        return align_to_truth(frame, pd.DataFrame({ID: rows.ids, LABEL: rows.labels}), name)[0]
    ids, members = stack_predictions([frame], [name])
    return members[0][row_positions(ids, rows.ids, name, "the test rows")]
