"""The training job of a Kaggle session: rows, then `kit train` on every GPU within the time budget."""

import os
import shutil
import tempfile
from pathlib import Path

from kit.kaggle.runtime.session import NotebookSession, print_line, run_loudly
from kit.task import TRAIN_FILE

RESERVE_S = 300.0  # for writing and hashing what was trained


def train(session: NotebookSession) -> None:
    """Preprocesses and trains; the run directories end up in the session's working folder.

    Raises:
        RuntimeError: nothing was trained; the notebook then ends as failed.
    """
    processes = max(1, session.devices())
    raw = session.competition_file(TRAIN_FILE).parent
    runs = session.working / "runs"
    with tempfile.TemporaryDirectory(prefix="kit-train-", ignore_cleanup_errors=True) as scratch:
        code = _run(session, raw, Path(scratch), runs, processes)
    finished = sorted(p.parent for p in runs.glob("*/*/metrics.json"))
    for checkpoints in runs.glob("*/*/checkpoints"):
        print_line(f"{checkpoints.parent} has not finished; its checkpoints are not kept")
        shutil.rmtree(checkpoints.parent)
    if not finished:
        raise RuntimeError(
            f"kit train ended with {code} and finished nothing; its messages stand above"
        )
    if code:
        run_loudly(
            f"kit train ended with {code}; finished: {', '.join(f'{p.parent.name}/{p.name}' for p in finished)}"
        )
    session.finish()
    if code:
        raise RuntimeError("not everything was trained; what was is in the output")


def _run(session: NotebookSession, raw: Path, scratch: Path, runs: Path, processes: int) -> int:
    """Prepares the rows in `scratch` and trains on them; the exit code of `kit train`."""
    (scratch / "recipe.toml").write_text(session.job["recipe"], encoding="utf-8")
    options = [f"--{name}={value}" for name, value in session.job["preprocess"].items()]
    if session.kit(
        ["preprocess", "--raw", raw, "--out", scratch / "data", *options], 1, session.seconds_left()
    ):
        raise RuntimeError("kit preprocess failed; its message stands above")
    budget = session.seconds_left() - RESERVE_S
    where = ["--data", scratch / "data", "--runs", runs]
    what = [
        "--recipe",
        scratch / "recipe.toml",
        "--fold",
        session.job["fold"],
        "--max-hours",
        f"{budget / 3600:.3f}",
    ]
    if session.job.get("restarts"):
        what.append(f"--restart={session.job['restarts']}")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return session.kit(["train", *what, *where], processes, budget + RESERVE_S / 2)


if __name__ == "__main__":
    train(NotebookSession.open())
