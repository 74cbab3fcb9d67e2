"""Count a training's passes, steps and evaluations from its recipe. Use `training_steps`."""

import math
from dataclasses import dataclass

from kit.errors import RecipeError
from kit.recipe.spec import TrainSpec

# Rows that a validation during training reads at most: always the same ones, drawn at random. They
# choose the checkpoint; the whole fold is predicted once, at the end. Reading all of them each time
# would take a sixth of the time of a training on 57,477 rows.
EVALUATED_ROWS = 4096


@dataclass(frozen=True)
class TrainingSteps:
    """Optimizer steps of a training.

    Attributes:
        per_epoch: steps that see each row once.
        total: steps in all.
        between_evaluations: steps from one to the next.
    """

    per_epoch: int
    total: int
    between_evaluations: int

    @property
    def evaluations(self) -> int:
        """Evaluations in all; one follows the last step."""
        return math.ceil(self.total / self.between_evaluations)


def training_steps(spec: TrainSpec, rows: int) -> TrainingSteps:
    """Return the steps of a training on `rows` rows."""
    per_epoch = steps_per_epoch(spec, rows)
    total = spec.max_steps or math.ceil(per_epoch * spec.epochs)
    return TrainingSteps(per_epoch, total, max(1, per_epoch // spec.evals_per_epoch))


def evaluated_rows(evaluations: int, valid_rows: int) -> int:
    """Return the rows of all validations of a training, and of the prediction at its end."""
    return evaluations * min(valid_rows, EVALUATED_ROWS) + valid_rows


def steps_per_epoch(spec: TrainSpec, rows: int) -> int:
    """Return the optimizer steps that see each of `rows` training rows once."""
    return math.ceil(rows / spec.batch_size)


def rows_per_pass(spec: TrainSpec, processes: int) -> int:
    """Return the rows of one process's forward pass: `micro_batch_size`, or its share of the batch.

    Raises:
        RecipeError: `batch_size`, which counts all processes, is not a multiple of what they take
            together.
    """
    rows = spec.micro_batch_size or max(1, spec.batch_size // processes)
    if spec.batch_size % (rows * processes):
        raise RecipeError(
            f"train.batch_size = {spec.batch_size} is not a multiple of {rows} rows x {processes} "
            "processes",
            "Set train.batch_size or train.micro_batch_size so that it is.",
        )
    return rows
