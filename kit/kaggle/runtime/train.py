"""Train on Kaggle: prepare the rows, then run `kit train` on every GPU within the time budget."""

import os
import shutil
import tempfile
from pathlib import Path

from kit.kaggle.runtime.session import NotebookSession, log_line, log_warning
from kit.task import TRAIN_FILE

RESERVE_S = 300.0  # for writing and hashing what was trained


def run_training(session: NotebookSession) -> None:
    """Preprocess and train, and leave the finished folds in the session's working folder.

    Raises:
        RuntimeError: not every fold was trained; the notebook then ends as failed.
    """
    processes = max(1, session.gpu_count())
    raw = session.competition_file(TRAIN_FILE).parent
    runs = session.working_folder / "runs"
    with tempfile.TemporaryDirectory(prefix="kit-train-", ignore_cleanup_errors=True) as scratch:
        code = _train_folds(session, raw, Path(scratch), runs, processes)

    # No later session can continue an unfinished fold, and its checkpoints would fill the output.
    finished = sorted(path.parent for path in runs.glob("*/*/metrics.json"))
    for checkpoints in runs.glob("*/*/checkpoints"):
        log_line(f"{checkpoints.parent} did not finish; deleting its checkpoints")
        shutil.rmtree(checkpoints.parent)

    if not finished:
        raise RuntimeError(
            f"kit train ended with exit code {code} and finished no fold; see its messages above"
        )
    if code:
        names = ", ".join(f"{fold.parent.name}/{fold.name}" for fold in finished)
        log_warning(f"kit train ended with exit code {code}; finished folds: {names}")
    session.finish()

    # Only now, so that the finished folds can be downloaded from the failed notebook.
    if code:
        raise RuntimeError("not every fold was trained; the finished ones are in the output")


def _train_folds(
    session: NotebookSession, raw: Path, scratch: Path, runs: Path, processes: int
) -> int:
    """Prepare the rows in `scratch` and train on them; return the exit code of `kit train`."""
    data = scratch / "data"
    recipe = scratch / "recipe.toml"
    recipe.write_text(session.job["recipe"], encoding="utf-8")

    options = [f"--{name}={value}" for name, value in session.job["preprocess"].items()]
    preprocess = ["preprocess", "--raw", raw, "--out", data, *options]
    if session.run_kit(preprocess, 1, session.seconds_left()):
        raise RuntimeError("kit preprocess failed; see its message above")

    # `kit train` keeps to --max-hours by itself. The signal comes later, only if it does not.
    budget = session.seconds_left() - RESERVE_S
    training = ["train", "--recipe", recipe, "--fold", session.job["fold"]]
    training += ["--max-hours", f"{budget / 3600:.3f}"]
    if session.job.get("restarts"):
        training.append(f"--restart={session.job['restarts']}")
    training += ["--data", data, "--runs", runs]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return session.run_kit(training, processes, budget + RESERVE_S / 2)


if __name__ == "__main__":
    run_training(NotebookSession.from_environment())
