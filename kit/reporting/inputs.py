"""Hold what a report compares: rows, and the models with predictions of them. Use `ReportInputs`.

Rows are matched by id, so that row i of every array is the same row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from kit.data.dataset import Dataset
from kit.reporting.left_out import ForeignRun, LeftOut
from kit.reporting.models import ReportModel
from kit.reporting.rows import OOF, ReportRows, Resampled
from kit.task import HOLDOUT, ID, TEXTS

Split = Literal["valid", "test"]


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report is computed from.

    Attributes:
        processed: the processed folder that the runs were trained on; None where prediction files
            are compared by a truth file alone.
        rows: the rows of the splits "valid" and, with a processed folder, "test".
        models: references, runs, files and blends, in the order they were given.
        left_out: runs that are not compared on the validation rows, and why.
        foreign: runs that were trained on other data.
        groups: comparisons on other validation rows, of the runs that lack these.
    """

    processed: Dataset | None
    rows: Mapping[str, ReportRows]
    models: tuple[ReportModel, ...]
    left_out: tuple[LeftOut, ...] = ()
    foreign: tuple[ForeignRun, ...] = ()
    groups: tuple["ReportInputs", ...] = ()

    @property
    def validation(self) -> str:
        """What the validation rows are: "holdout", "out-of-fold", "fold 0", … or "labelled"."""
        return self.rows["valid"].name

    @property
    def resampled(self) -> Resampled:
        """What the bootstrap behind all intervals resamples: prompts, or rows of unknown ones."""
        return self.rows["valid"].resampled

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
        return tuple(
            split for split in splits if split in self.rows and self.rows[split].labels is not None
        )

    @property
    def compared_splits(self) -> tuple[Split, ...]:
        """The splits with known labels that some model other than a reference has predicted."""
        return tuple(split for split in self.scored_splits if self.models_with(split))

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

    def read_texts(self, split: str, positions: np.ndarray | None = None) -> pa.Table | None:
        """Return id, prompt and answers of a split's rows, or only of those at `positions`.

        Returns:
            None if there is no processed folder, and so no text.
        """
        dataset = self.processed
        if dataset is None:
            return None
        table = (dataset.train if split == "valid" else dataset.test)([ID, *TEXTS])
        ids = self.rows[split].ids if positions is None else self.rows[split].ids[positions]
        # The table has other rows too: training rows that are not validated on, and extra rows.
        return table.take(pd.Index(table[ID].to_numpy()).get_indexer(ids)).combine_chunks()
