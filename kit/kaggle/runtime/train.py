"""Train on Kaggle: prepare the rows, then run `kit train` on every GPU within the time budget.

A classical model is fitted by `kit baseline` instead.
"""

import shutil
import tempfile
import tomllib
from pathlib import Path

from kit.kaggle.runtime.session import NotebookSession, log_line, log_warning
from kit.model.registry import find_record
from kit.task import TRAIN_FILE

RESERVE_S = 300.0  # for writing and hashing what was trained


def run_training(session: NotebookSession) -> None:
    """Preprocess and train, and leave the finished folds in the session's working folder.

    Raises:
        RuntimeError: not every fold was trained; the notebook then ends as failed.
    """
    # A classical model is fitted by one process, on the CPU.
    processes = 1 if "baseline" in session.job else max(1, session.gpu_count())
    raw = session.competition_file(TRAIN_FILE).parent
    runs = session.working_folder / "runs"
    with tempfile.TemporaryDirectory(prefix="kit-train-", ignore_cleanup_errors=True) as scratch:
        code = _train_folds(session, raw, Path(scratch), runs, processes)

        # No later session can continue an unfinished fold: its checkpoints end with this one.
        for checkpoints in runs.glob("*/*/checkpoints"):
            log_line(f"{checkpoints.parent} did not finish and is deleted")
            shutil.rmtree(checkpoints.parent)

    finished = sorted(path.parent for path in runs.glob("*/*/metrics.json"))
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
    baseline = session.job.get("baseline")

    # Before the rows are prepared, since a missing model is known at once.
    environment = {} if baseline else _use_mounted_weights(session, scratch)

    options = [f"--{name}={value}" for name, value in session.job["preprocess"].items()]
    preprocess = ["preprocess", "--raw", raw, "--out", data, *options]
    if session.run_kit(preprocess, 1, session.seconds_left()):
        raise RuntimeError("kit preprocess failed; see its message above")

    # `kit train` keeps to --max-hours by itself. The signal comes later, only if it does not.
    budget = session.seconds_left() - RESERVE_S
    if baseline:
        fitting = ["baseline", baseline, "--fold", session.job["fold"]]
        return session.run_kit([*fitting, "--data", data, "--runs", runs], processes, budget)

    recipe = scratch / "recipe.toml"
    recipe.write_text(session.job["recipe"], encoding="utf-8")
    training = ["train", "--recipe", recipe, "--fold", session.job["fold"]]
    training += ["--max-hours", f"{budget / 3600:.3f}"]
    if session.job.get("restarts"):
        training.append(f"--restart={session.job['restarts']}")

    # Kaggle keeps 20 GB of the output. The checkpoints of a large encoder need more than a third of
    # that, so they are on the larger disk that is not kept.
    training += ["--data", data, "--runs", runs, "--scratch", scratch / "checkpoints"]
    return session.run_kit(training, processes, budget + RESERVE_S / 2, environment, scratch)


def _use_mounted_weights(session: NotebookSession, scratch: Path) -> dict[str, str]:
    """Let `kit train`, run in `scratch`, find the weights of a mounted model or dataset.

    Returns:
        Variables for `kit train`: with mounted weights it must not ask the hub for anything.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    name = tomllib.loads(session.job["recipe"]).get("backbone", "")
    folder = session.backbone_folder(name)
    if folder is None:
        return environment

    # What is in models/NAME is used from there, of the registry by its short name.
    record = find_record(name)
    link = scratch / "models" / (record.name if record else name)
    link.parent.mkdir(parents=True)
    link.symlink_to(folder.absolute(), target_is_directory=True)
    log_line(f"the weights of {name} are those in {folder}")
    return environment | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


if __name__ == "__main__":
    run_training(NotebookSession.from_environment())
