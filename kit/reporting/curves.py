"""Read the learning curves of trained runs from the logs of their parts.

Use `read_curves`; `smooth_points` and `mean_curve` make them easier to compare.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import RunError
from kit.reporting.inputs import ReportInputs
from kit.storage.atomic import read_text_file

# More points of the training loss are averaged, which also makes the trend visible.
MAX_POINTS = 120

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """One part of a run.

    Attributes:
        training: (epoch, loss), with label smoothing where the recipe has some.
        validation: (epoch, log loss).
        best_epoch: the epoch of the checkpoint that was kept.
    """

    model: str
    part: str
    training: Points
    validation: Points
    best_epoch: float

    @property
    def best_point(self) -> tuple[float, float]:
        """The evaluation of the checkpoint that was kept: (epoch, log loss)."""
        # The best epoch is computed from steps, so it equals the logged one up to rounding only.
        return min(self.validation, key=lambda point: (abs(point[0] - self.best_epoch), point[1]))


def read_curves(inputs: ReportInputs) -> tuple[Curve, ...]:
    """Read the curves of the parts that predicted the validation rows; baselines have none.

    Raises:
        RunError: a log cannot be read.
    """
    curves = []
    for model in inputs.models:
        if model.run is None:
            continue
        for part, metrics in model.part_metrics(inputs.rows["valid"].parts).items():
            # Baselines have no epochs, and a run may have been copied without its logs.
            log = model.run.fold(part).history_path
            if metrics["best_epoch"] is None or not log.is_file():
                continue
            try:
                history = json.loads(read_text_file(log))["log_history"]
                training = _read_points(history, "loss")
                validation = _read_points(history, "eval_log_loss")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{log}: not the log of a training", "Copy the run directory again."
                ) from error
            best_epoch = metrics["best_epoch"]
            curves.append(Curve(model.name, part, _thin(training), validation, best_epoch))
    return tuple(curves)


def smooth_points(points: Points) -> Points:
    """Return the moving mean over a tenth of the points, of fewer where the window is cut off."""
    if len(points) < 3:
        return points
    reach = max(1, len(points) // 20)
    epochs, losses = np.array(points).T
    smooth = [
        float(losses[max(0, place - reach) : place + reach + 1].mean())
        for place in range(len(losses))
    ]
    return tuple(zip(epochs.tolist(), smooth, strict=True))


def mean_curve(curves: Sequence[Curve]) -> Points:
    """Return the mean validation log loss of a run's parts, on the epochs that all of them reached.

    Between two evaluations a part's curve is a straight line.
    """
    validations = [np.array(curve.validation).T for curve in curves]
    start = max(epochs[0] for epochs, _ in validations)
    end = min(epochs[-1] for epochs, _ in validations)
    inside = np.concatenate([epochs for epochs, _ in validations])
    # Epochs that differ by rounding are one evaluation.
    epochs = np.unique(inside[(inside >= start) & (inside <= end)].round(4))
    losses = np.mean([np.interp(epochs, *validation) for validation in validations], axis=0)
    return tuple(zip(epochs.tolist(), losses.tolist(), strict=True))


def _read_points(history: list[dict[str, Any]], name: str) -> Points:
    return tuple(
        (float(entry["epoch"]), float(entry[name]))
        for entry in history
        if entry.get(name) is not None
    )


def _thin(points: Points) -> Points:
    """Average neighbouring points until there are at most `MAX_POINTS`."""
    if len(points) <= MAX_POINTS:
        return points
    blocks = np.array_split(np.array(points), MAX_POINTS)
    means = [block.mean(axis=0) for block in blocks]
    return tuple((float(epoch), float(loss)) for epoch, loss in means)
