"""Stand in for a training of a sweep: evaluations and a finished run within milliseconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from quick_recipe import QUICK

from kit.data.dataset import open_dataset
from kit.recipe.spec import Recipe
from kit.run import Run, make_origin
from kit.storage.atomic import write_json
from kit.sweeps.sweep import Sweep
from kit.task import HOLDOUT
from kit.training.callbacks import TrainingProgress
from kit.training.checkpoints import CHECKPOINTS

# One epoch of 12 steps on the sample's 192 training rows, with three evaluations.
RECIPE = (*QUICK, "train.epochs=1", "train.evals_per_epoch=3")
BETWEEN = 4
EVALUATIONS = 3

MakeSweep = Callable[..., Sweep]


class FakeTraining:
    """Take the place of `train_recipe`, and note what is trained.

    Args:
        loss: the final loss of a recipe; evaluations come down to it from 0.1 above. It may raise
            what a training would.
    """

    def __init__(self, loss: Callable[[Recipe], float]):
        self.loss = loss
        self.trained: list[Recipe] = []
        self.evaluations = 0

    def __call__(
        self,
        recipe: Recipe,
        data: Path,
        runs: Path,
        fold: str,
        *,
        resume: bool,
        listen: Callable[[TrainingProgress], None],
        say: Callable[[str], None],
    ) -> None:
        """Train the holdout of a recipe, unless it is finished."""
        assert fold == HOLDOUT
        assert resume
        run = Run.create(runs, recipe, make_origin(open_dataset(data)))
        folder = run.fold(fold)
        if folder.is_finished:
            return say(f"{folder.path} is already finished")

        self.trained.append(recipe)
        (folder.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        loss = self.loss(recipe)
        log: list[dict[str, Any]] = []
        for number in range(1, EVALUATIONS + 1):
            self.evaluations += 1
            now = loss + 0.1 * (1 - number / EVALUATIONS)
            step = BETWEEN * number
            steps = BETWEEN * EVALUATIONS
            listen(TrainingProgress(step, steps, step / 12, 1.0, log_loss=now))
            log.append({"step": step, "eval_log_loss": now})
        (folder.path / CHECKPOINTS).rmdir()
        write_json(folder.history_path, {"log_history": log})
        metrics = {"log_loss": loss, "accuracy": 0.5, "valid_rows": 48, "minutes": 0.1}
        return write_json(folder.metrics_path, metrics)


Fake = Callable[[Callable[[Recipe], float]], FakeTraining]
