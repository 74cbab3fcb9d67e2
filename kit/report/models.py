"""One model of a comparison, whatever its kind: a name, and predictions of the rows that it has some of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.ensemble.blend import Blend
from kit.run import Run
from kit.task import HOLDOUT


@dataclass(frozen=True)
class SavedModel:
    """A saved blend.

    Attributes:
        file: where it is from.
        blend: what it is.
        fitted: what its file tells of the fit.
        note: what its validation predictions are, or why there are none; empty where they are cross-fitted.
    """

    file: str
    blend: Blend
    fitted: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class ReportModel:
    """A model of the comparison.

    Attributes:
        name: no other model's.
        predictions: probabilities (N, 3) by split, "valid" and "test", in the order of the evidence's rows.
        reference: it needs no training and no model: uniform, the class prior, the Bayes floor.
        run: the run directory, of a run or baseline.
        saved: the blend, of a saved one.
    """

    name: str
    predictions: Mapping[str, np.ndarray]
    reference: bool = False
    run: Run | None = None
    saved: SavedModel | None = None

    def constant(self, split: str) -> bool:
        """Whether it says the same of every row of the split, which it has."""
        return bool(np.ptp(self.predictions[split], axis=0).max() < 1e-9)

    def parts(self, validation: str) -> dict[str, dict[str, Any]]:
        """The metrics of the run's parts that its validation predictions are from, by their folders' names."""
        found = self.run.parts() if self.run else {}
        return {
            name: part
            for name, part in found.items()
            if (name == HOLDOUT) == (validation == HOLDOUT)
        }
