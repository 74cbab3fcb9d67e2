"""The inference job of a Kaggle session: a submission for whatever test set is there, 3 rows or 25,000.

A model that fails is left out, loudly. In Kaggle's scoring run a valid submission comes out even if all of them
fail, since an exception costs one of the day's submissions and says nothing; in the visible run that is an error.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit import frame
from kit.errors import KitError
from kit.remote.session import Session, loud, say
from kit.schema import ID, TEST_FILE
from kit.scoring.ensemble import blend
from kit.scoring.validate import validate

SUBMISSION = "submission.csv"
PRIOR = (20064, 19652, 17761)  # wins of A, of B, and ties among the training rows
RESERVE_S = 120.0  # for blending, checking and writing


@dataclass(frozen=True)
class Member:
    """One run directory of the ensemble and its weight."""

    run: Path
    weight: float


def infer(session: Session) -> None:
    """Predicts with every attached run and writes submission.csv, blended again after each.

    Raises:
        RuntimeError: in the visible run: a source without runs, no GPU, no model that works, an invalid submission.
    """
    test = session.competition_file(TEST_FILE)
    processes = _processes(session)
    scratch = Path(tempfile.mkdtemp(prefix="kit-infer-"))
    members, done = _members(session), []
    for number, member in enumerate(members):
        file = scratch / f"{number}.csv"
        if not _predict(session, member, test, file, processes, len(members) - number):
            loud(f"{member.run.name} FAILED and is left out of the submission")
            continue
        done.append((member, frame.read(file)))
        frame.write(_blended(session, done), session.working / SUBMISSION)
        say(f"{member.run.name}: {len(done)} of {len(members)} models are in {SUBMISSION}")
    if not done:
        _without_models(session, test)
    _check(session, test)
    session.finish()


def _processes(session: Session) -> int:
    try:
        return max(1, session.devices())
    except RuntimeError as error:
        if not session.rerun:
            raise
        loud(f"going on without a GPU: {error}")
        return 0


def _members(session: Session) -> list[Member]:
    """The runs of every source; a source's weight is shared by its runs."""
    members = []
    for source in session.job["sources"]:
        runs = session.runs(source["ref"])
        if not runs:
            problem = (
                f"no run directory from {source['ref']} under {session.inputs}; Kaggle sometimes mounts a new "
                "source only at the second run: push the notebook again"
            )
            if not session.rerun:
                raise RuntimeError(problem)
            loud(problem)
        members += [Member(run, source["weight"] / len(runs)) for run in runs]
    return members


def _predict(session: Session, member: Member, test: Path, file: Path, processes: int, left: int) -> bool:
    """Runs `kit predict` on all GPUs, then once more on one if that fails; whether `file` is there."""
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if processes == 0 else {}
    for count in dict.fromkeys((max(processes, 1), 1)):
        spare = session.seconds_left() - RESERVE_S
        budget = min(spare, 2 * spare / left)  # a model that hangs leaves time for the others
        if budget <= 0:
            loud("the time budget is used up")
            return False
        command = ["predict", member.run, "--input", test, "-o", file]
        if session.kit(command, count, budget, **offline, **hidden) == 0 and file.exists():
            return True
    return False


def _blended(session: Session, done: list[tuple[Member, pd.DataFrame]]) -> pd.DataFrame:
    names = [member.run.name for member, _ in done]
    method = session.job["method"]
    weights = [member.weight for member, _ in done] if method == "weights" else None
    return blend([each for _, each in done], names, method, weights)


def _without_models(session: Session, test: Path) -> None:
    if not session.rerun:
        raise RuntimeError("no model gave predictions; the messages stand above")
    loud(f"NO MODEL WORKED: {SUBMISSION} holds the class prior")
    ids = pd.read_csv(test, usecols=[ID])[ID].to_numpy()
    frame.write(frame.make(ids, np.tile(np.array(PRIOR, float), (len(ids), 1))), session.working / SUBMISSION)


def _check(session: Session, test: Path) -> None:
    """Judges the submission as Kaggle's grader does, against the ids of the test set that is there."""
    try:
        report = validate(session.working / SUBMISSION, test)
    except KitError as error:
        loud(f"{SUBMISSION} could not be checked: {error}")
        return
    for problem in report.problems:
        loud(f"{SUBMISSION}: {problem}")
    if report.problems and not session.rerun:
        raise RuntimeError(f"{SUBMISSION} is not valid; the problems stand above")
    say(f"{SUBMISSION}: {report.rows:,} rows, {'valid' if report.ok else 'NOT VALID'}")


if __name__ == "__main__":
    infer(Session.open())
