"""Show what the session has made: losses and learning curves, or the mean of the submission."""

import builtins
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.kaggle.runtime.session import log_line
from kit.plotting import importing_matplotlib


def show_results(working: Path) -> None:
    """Show the results as the output of the notebook's last cell.

    It never raises: in a scoring run, an error here would spoil a submission that is complete.
    """
    try:
        parts = sorted(path.parent for path in working.glob("runs/*/*/metrics.json"))
        if parts:
            _show_training(parts)
        elif (working / "submission.csv").is_file():
            _show_submission(working / "submission.csv")
    except Exception as error:
        log_line(f"the results cannot be shown: {type(error).__name__}: {error}")


def _show_training(parts: list[Path]) -> None:
    import pandas as pd

    rows = []
    for part in parts:
        metrics = json.loads((part / "metrics.json").read_text(encoding="utf-8"))
        columns = ("log_loss", "accuracy", "best_epoch", "steps", "minutes")
        rows.append({"part": part.name} | {name: metrics.get(name) for name in columns})
    for run in sorted({part.parent for part in parts}):
        summary = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        if oof := summary.get("oof"):
            rows.append({"part": "out-of-fold"} | {k: oof[k] for k in ("log_loss", "accuracy")})
    _show(pd.DataFrame(rows).set_index("part").round(4))
    # A classical model has no learning curve.
    if curves := [part for part in parts if (part / "trainer_state.json").is_file()]:
        _show(_draw_curves(curves))


@dataclass(frozen=True)
class Picture:
    """A figure, which a notebook asks for its PNG."""

    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        return f"Picture of {len(self.png):,} bytes"


def _draw_curves(parts: list[Path]) -> Picture:
    """Draw the losses of every part by epoch."""
    with importing_matplotlib():
        from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for number, part in enumerate(parts):
        log = json.loads((part / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        colour = f"C{number % 10}"
        for name, style, label in (("loss", ":", None), ("eval_log_loss", "o-", part.name)):
            points = [(e["epoch"], e[name]) for e in log if e.get(name) is not None]
            epochs = [epoch for epoch, _ in points]
            losses = [loss for _, loss in points]
            axes.plot(epochs, losses, style, color=colour, label=label, markersize=4)
    axes.set_xlabel("epoch")
    axes.set_ylabel("log loss (dotted: training)")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Picture(buffer.getvalue())


def _show_submission(file: Path) -> None:
    import pandas as pd

    table = pd.read_csv(file)
    log_line(f"{file.name}: {len(table):,} rows, of which these are the first; mean below")
    _show(table.head())
    _show(table.drop(columns=table.columns[0]).mean().rename("mean").round(4).to_frame())


def _show(value: Any) -> None:
    """Show a table or a picture; outside of a notebook, a table as text."""
    # IPython adds `display` to the builtins.
    getattr(builtins, "display", print)(value)


if __name__ == "__main__":
    show_results(Path(os.environ.get("KIT_KAGGLE_ROOT", "/kaggle")) / "working")
