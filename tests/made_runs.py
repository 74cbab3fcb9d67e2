"""Make run directories as training leaves them, without training, with predictions of any skill."""

from pathlib import Path

import numpy as np

from kit.data.dataset import Dataset
from kit.predictions import make_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.run import Run, make_origin
from kit.storage.atomic import write_json
from kit.task import HOLDOUT, ID, LABEL


def make_run(
    runs: Path,
    processed: Dataset,
    seed: int = 0,
    parts: tuple[int | str, ...] = (HOLDOUT,),
    skill: float = 1.0,
    test: bool = True,
    recipe: str = "tiny-electra",
) -> Path:
    """Make a finished run of two epochs, and return its folder.

    Args:
        runs: the folder to put it in.
        processed: the rows.
        seed: of the predictions and of the recipe, so that each seed has its own run name.
        parts: the finished parts.
        skill: how much the predictions know; the more, the lower the loss.
        test: whether the run has test predictions, which are random.
        recipe: the name of the recipe.
    """
    generator = np.random.default_rng(seed)
    run = Run.create(runs, load_recipe(recipe, (f"train.seed={seed}",)), make_origin(processed))
    table = processed.train([ID, LABEL])
    for number, fold in enumerate(parts):
        positions = processed.fold_rows(fold)[1]
        ids = table[ID].to_numpy()[positions]
        labels = table[LABEL].to_numpy()[positions]
        part = run.fold(fold).path
        frame = make_predictions(ids, predictions(generator, labels, skill))
        write_predictions(frame, part / "valid.csv")

        # Two epochs of ten steps, the second of which has another loss in each part.
        log_loss = 1.0 + number / 10
        log = [{"loss": 1.1 - step / 50, "epoch": step / 10, "step": step} for step in range(1, 21)]
        log += [
            {"eval_log_loss": 1.05, "eval_accuracy": 0.4, "epoch": 1.0, "step": 10},
            {"eval_log_loss": log_loss, "eval_accuracy": 0.5, "epoch": 2.0, "step": 20},
        ]
        write_json(part / "trainer_state.json", {"log_history": log})
        metrics = {
            "log_loss": log_loss,
            "accuracy": 0.5,
            "swap_gap": 0.01 * (number + 1),
            "best_epoch": 2.0,
            "parameters": 1234567,
            "minutes": 1.5,
            "valid_rows": len(positions),
        }
        write_json(part / "metrics.json", metrics)

    if test:
        ids = processed.test()[ID].to_numpy()
        frame = make_predictions(ids, generator.dirichlet(np.ones(3), len(ids)))
        write_predictions(frame, run.path / "test.csv")
    run.summarise()
    return run.path


def predictions(generator: np.random.Generator, labels: np.ndarray, skill: float) -> np.ndarray:
    """Return probabilities (N, 3) of noisy logits to which the true class adds `skill`."""
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += skill
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True)
