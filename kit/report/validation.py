"""On which validation rows runs can be compared: those that every one of them has predictions of."""

from collections.abc import Sequence
from pathlib import Path

from kit.data.dataset import Dataset
from kit.errors import RunError
from kit.predictions import read_predictions
from kit.run import Run
from kit.task import HOLDOUT, ID

OOF, OOF_FILE = "out-of-fold", "oof.csv"


def common_rows(runs: Sequence[Run], processed: Dataset, frames: Sequence[tuple[str, Path]]) -> str:
    """The rows that all runs have validation predictions of: out of fold, of which there are more, or the holdout.

    The holdout, where there are both or no runs at all, if one of the frames is of its rows.

    Raises:
        RunError: there are no such rows.
    """
    folds, holdouts = (
        [(run.path / OOF_FILE).is_file() for run in runs],
        [run.done(HOLDOUT) for run in runs],
    )
    if all(folds) and all(holdouts):
        held = set(processed.train([ID])[ID].to_numpy()[processed.fold_rows(HOLDOUT)[1]].tolist())
        return (
            HOLDOUT if any(set(read_predictions(file)[ID]) == held for _, file in frames) else OOF
        )
    if all(folds):
        return OOF
    if all(holdouts):
        return HOLDOUT
    by_fold = not any(holdouts) or sum(folds) > sum(holdouts)
    lacking = runs[(folds if by_fold else holdouts).index(False)]
    made = (
        f"baseline {lacking.baseline}"
        if lacking.baseline
        else f"train --recipe {lacking.path / 'recipe.toml'}"
    )
    again = f"Run `kit {made} --fold {'all' if by_fold else HOLDOUT}`"
    others = (
        (", or leave it out" if len(runs) > 1 else "") if by_fold else ", or every fold of each run"
    )
    raise RunError(
        f"{lacking.path}: the runs have no validation rows in common; "
        + (
            "not every fold of this one is finished"
            if by_fold
            else "this one has no finished holdout"
        ),
        f"{again}{others}.",
    )
