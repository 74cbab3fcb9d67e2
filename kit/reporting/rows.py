"""Name the rows that models are compared on, and choose those that most models have predicted.

Use `ReportRows`, `choose_parts`, `name_parts` and `count_rows`. A part is the holdout or one fold;
a model that has predicted several folds can be compared on any of them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kit.task import HOLDOUT

OOF = "out-of-fold"
LABELLED = "labelled"

Parts = tuple[str, ...]
Resampled = Literal["prompts", "rows"]


@dataclass(frozen=True)
class ReportRows:
    """N rows that models are compared on.

    Attributes:
        name: "holdout", "out-of-fold", "fold 0", …, "test", or "labelled" where there is no data
            folder.
        ids: int64 (N,).
        groups: prompt groups, int64 (N,); each row is a group of its own where they are not known.
        labels: int64 (N,), None where they are not known.
        parts: the parts of a run that predict these rows, such as ("fold0", "fold1").
        resampled: what a bootstrap resamples, "prompts" or, where they are not known, "rows".
    """

    name: str
    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray | None
    parts: Parts = ()
    resampled: Resampled = "prompts"

    @property
    def title(self) -> str:
        """How many rows they are, and which, such as "599 out-of-fold rows"."""
        return count_rows(self.name, len(self.ids))

    @property
    def known_labels(self) -> np.ndarray:
        """The labels (N,) of rows that models are scored on."""
        if self.labels is None:
            raise ValueError(f"the labels of the {self.name} rows are not known")
        return self.labels


def list_folds(count: int) -> Parts:
    """Return the names of all folds: "fold0", "fold1", …"""
    return tuple(f"fold{number}" for number in range(count))


def name_parts(parts: Parts, folds: int) -> str:
    """Return what the rows of these parts are called."""
    if parts == (HOLDOUT,):
        return HOLDOUT
    if parts == list_folds(folds):
        return OOF
    numbers = [part.removeprefix("fold") for part in parts]
    if len(numbers) == 1:
        return f"fold {numbers[0]}"
    return f"folds {', '.join(numbers[:-1])} and {numbers[-1]}"


def count_rows(name: str, count: int) -> str:
    """Return how many rows these are and which, such as "599 out-of-fold rows"."""
    noun = "row" if count == 1 else "rows"
    if name == LABELLED:
        return f"{count:,} {noun} of the truth file"
    if name.startswith("fold"):
        return f"{count:,} {noun} of {name}"
    return f"{count:,} {name} {noun}"


def choose_parts(predicted: Sequence[Collection[str]], folds: int) -> Parts:
    """Choose the parts that models are compared on.

    All folds together or the holdout, whichever more models have predicted, and among equals the
    folds, since they are more rows. If fewer than half of the models have predicted either, the
    part or parts that most models have predicted, and among equals the most parts.

    Args:
        predicted: the parts of each model.
        folds: the number of folds.
    """

    def count(parts: Parts) -> int:
        return sum(set(parts) <= set(each) for each in predicted)

    every_fold = list_folds(folds)
    whole = max((every_fold, (HOLDOUT,)), key=count)
    if 2 * count(whole) >= len(predicted):
        return whole

    # Sorting makes the choice among equals the same every time: the first folds.
    in_order = {
        tuple(part for part in every_fold if part in each and (alone in ("", part)))
        for each in predicted
        for alone in ("", *every_fold)
    }
    candidates = [whole, *sorted(in_order - {()})]
    return max(candidates, key=lambda parts: (count(parts), len(parts)))
