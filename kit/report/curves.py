"""How the trainings went: training loss and validation log loss over the epochs, as each part's log has them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from kit.errors import RunError
from kit.report.inputs import ReportInputs

MOST_POINTS = 120  # of the training loss; more are averaged, which also makes the trend visible


@dataclass(frozen=True)
class Curve:
    """One part of a run.

    Attributes:
        training: (epoch, loss), label smoothing included where the recipe has some.
        validation: (epoch, log loss).
        best_epoch: of the checkpoint that was kept.
    """

    model: str
    part: str
    training: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]
    best_epoch: float


def read_curves(evidence: ReportInputs) -> tuple[Curve, ...]:
    """Those of the parts that the validation predictions are from; baselines have none.

    Raises:
        RunError: a log that cannot be read.
    """
    found = []
    for model in evidence.models:
        for part, metrics in model.parts(evidence.validation).items():
            log = model.run.path / part / "trainer_state.json"
            if metrics["best_epoch"] is None or not log.is_file():
                continue
            try:
                history = json.loads(log.read_text(encoding="utf-8"))["log_history"]
                training, validation = _points(history, "loss"), _points(history, "eval_log_loss")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{log}: not a log of a training", "Copy the run directory again."
                ) from error
            found.append(
                Curve(
                    model.name, part, _thinned(training), tuple(validation), metrics["best_epoch"]
                )
            )
    return tuple(found)


def _points(history: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [
        (float(entry["epoch"]), float(entry[name]))
        for entry in history
        if entry.get(name) is not None
    ]


def _thinned(points: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    if len(points) <= MOST_POINTS:
        return tuple(points)
    blocks = np.array_split(np.array(points), MOST_POINTS)
    return tuple(
        (float(epoch), float(loss)) for epoch, loss in (block.mean(axis=0) for block in blocks)
    )
