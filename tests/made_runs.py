"""Runs as training leaves them, made without training: predictions that know the truth as well as they are told to."""

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
) -> Path:
    """A finished run of two epochs; the larger the skill, the lower its loss."""
    generator = np.random.default_rng(seed)
    run = Run.create(
        runs, load_recipe("tiny-electra", (f"train.seed={seed}",)), make_origin(processed)
    )
    rows = processed.train([ID, LABEL])
    for number, fold in enumerate(parts):
        places = processed.fold_rows(fold)[1]
        labels = rows[LABEL].to_numpy()[places]
        part = run.part(fold)
        write_predictions(
            make_predictions(rows[ID].to_numpy()[places], predictions(generator, labels, skill)),
            part / "valid.csv",
        )
        log = [{"loss": 1.1 - step / 50, "epoch": step / 10, "step": step} for step in range(1, 21)]
        log += [{"eval_log_loss": 1.05, "eval_accuracy": 0.4, "epoch": 1.0, "step": 10}]
        log += [
            {"eval_log_loss": 1.0 + number / 10, "eval_accuracy": 0.5, "epoch": 2.0, "step": 20}
        ]
        write_json(part / "trainer_state.json", {"log_history": log})
        figures = {
            "log_loss": 1.0 + number / 10,
            "accuracy": 0.5,
            "swap_gap": 0.01 * (number + 1),
            "best_epoch": 2.0,
        }
        sizes = {"parameters": 1234567, "minutes": 1.5, "valid_rows": len(places)}
        write_json(part / "metrics.json", figures | sizes)
    if test:
        ids = processed.test()[ID].to_numpy()
        write_predictions(
            make_predictions(ids, generator.dirichlet(np.ones(3), len(ids))), run.path / "test.csv"
        )
    run.summarise()
    return run.path


def predictions(generator: np.random.Generator, labels: np.ndarray, skill: float) -> np.ndarray:
    """Probabilities (N, 3) of noisy logits to which the true class adds `skill`."""
    logits = generator.normal(size=(len(labels), 3))
    logits[np.arange(len(labels)), labels] += skill
    each = np.exp(logits)
    return each / each.sum(axis=1, keepdims=True)
