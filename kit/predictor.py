"""Load trained models once and predict any number of DataFrames. Use `load` as `kit.load`.

`kit predict` works on files instead, and is in `kit.predict`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from kit.data.from_frame import frame_to_table
from kit.ensembling.blend import Blend, apply_blend, read_blend
from kit.ensembling.members import refuse_repeated_paths
from kit.ensembling.pool import blend_predictions
from kit.errors import KitError, RunError
from kit.predict import RunPredictor
from kit.predictions import make_predictions
from kit.run import ORIGIN_FILE, Run
from kit.task import ID

PathLike = str | Path


class Predictor:
    """Trained models that stay loaded. `load` makes one.

    Several runs are averaged, or blended as a saved blend says.
    """

    def __init__(self, members: Sequence[RunPredictor], blend: Blend | None = None):
        self.members = list(members)
        self.blend = blend

    def __repr__(self) -> str:
        return f"Predictor({', '.join(member.run.name for member in self.members)})"

    def predict_proba(
        self,
        frame: pd.DataFrame,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> pd.DataFrame:
        """Return the probabilities of each row in submission form, in the frame's order and index.

        Args:
            frame: columns prompt, response_a, response_b. A cell is a text or a list of turns; or
                all cells are Kaggle's JSON. `id` is optional; without it rows are numbered from 0.
            on_progress: called with the rows done and all rows, over all models.

        Returns:
            Columns id, winner_model_a, winner_model_b, winner_tie; each row sums to 1.

        Raises:
            DataError: a column is missing, an id is not unique, or a cell is not a text.

        Example:
            frame = pd.DataFrame({"prompt": ["2+2?"], "response_a": ["4"], "response_b": ["5"]})
            predictor.predict_proba(frame)
        """
        # Runs may have been trained on different forms of the texts. Each form is made once.
        forms = [member.run.option("text", str) for member in self.members]
        tables = {form: frame_to_table(frame, form) for form in dict.fromkeys(forms)}

        # Progress counts a row once for every model that predicts it.
        total = len(frame) * sum(len(member.folds) for member in self.members)
        before = 0
        frames = []
        for member, form in zip(self.members, forms, strict=True):

            def report_progress(done: int, _: int, before: int = before) -> None:
                on_progress(before + done, total)

            probabilities = member.predict_table(tables[form], report_progress)
            frames.append(make_predictions(tables[form][ID].to_numpy(), probabilities))
            before += len(frame) * len(member.folds)

        predictions = self._combine(frames)
        predictions.index = frame.index
        return predictions

    def _combine(self, frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
        """Return one prediction frame of those of the members."""
        names = [member.run.name for member in self.members]
        if self.blend:
            return apply_blend(self.blend, frames, names)
        # A mean of one frame would round its last digits, so that it would not equal the file that
        # `kit predict` writes.
        if len(frames) == 1:
            return frames[0]
        return blend_predictions(frames, names)


def load(
    source: Run | PathLike | Sequence[Run | PathLike],
    *,
    blend: PathLike | Blend | None = None,
    runs: PathLike = "runs",
    swap: bool | None = None,
) -> Predictor:
    """Load trained models on the best device of this machine.

    Args:
        source: a run or its folder; a list of them; a folder with runs in it, such as a training
            kernel's output on Kaggle; or a saved blend (blend.json), whose members are looked up in
            `runs`.
        blend: a saved blend of the runs, or `Ensemble.blend`; by default they are averaged.
        runs: where the members of a saved blend are.
        swap: average over both orders of the answers; by default as each recipe says.

    Raises:
        RunError: there is no such run, it is not finished, or it keeps no model; or the blend
            needs a run that is not there.
        DataError: the blend cannot be read.

    Example:
        predictor = kit.load("runs/deberta-1a2b3c4d")
        predictor = kit.load(["runs/deberta-1a2b3c4d", "runs/roberta-5e6f7a8b"], blend="blend.json")
    """
    sources = [source] if isinstance(source, Run | str | Path) else list(source)
    first = sources[0] if len(sources) == 1 else None
    if isinstance(first, str | Path) and Path(first).suffix == ".json":
        if blend is not None:
            raise KitError(
                f"{first} is a blend, and blend= names another", "Leave out one of them."
            )
        blend = read_blend(first)
        sources = [Path(runs) / name for name in blend.used]

    opened = [run for item in sources for run in _open_runs(item)]
    if not opened:
        raise RunError("no runs to load", "Name a run directory; `kit train` makes one.")
    refuse_repeated_paths([run.path for run in opened])

    if isinstance(blend, str | Path):
        blend = read_blend(blend)
    if blend:
        opened = _select_members(blend, opened)
    return Predictor([RunPredictor(run, swap=swap).load() for run in opened], blend)


def _open_runs(source: Run | PathLike) -> list[Run]:
    """Open a run, or all runs in a folder."""
    if isinstance(source, Run):
        return [source]

    folder = Path(source)
    inside = sorted(path.parent for path in folder.glob(f"**/{ORIGIN_FILE}"))
    if (folder / ORIGIN_FILE).is_file() or not inside:
        return [Run.open(folder)]
    return [Run.open(path) for path in inside]


def _select_members(blend: Blend, runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have a weight in the blend; the others need not be loaded."""
    by_name = {run.name: run for run in runs}
    missing = [name for name in blend.used if name not in by_name]
    if missing:
        raise RunError(
            f"the blend needs the run {missing[0]}, which is not among those to load",
            "Name the folders of all its members.",
        )
    return [by_name[name] for name in blend.used]
