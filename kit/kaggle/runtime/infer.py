"""The inference job of a Kaggle session: a submission for whatever test set is there, 3 rows or 25,000.

A model that fails is left out, loudly, and a fitted blend goes on with the weights of the others, scaled up. In
Kaggle's scoring run a valid submission comes out even if all of them fail, since an exception costs one of the day's
submissions and says nothing; in the visible run that is an error.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.ensemble import blend as blends
from kit.ensemble.calibration import apply_calibration, parse_calibration
from kit.ensemble.pool import blend_predictions
from kit.errors import KitError
from kit.evaluation.validate import validate_submission
from kit.kaggle.runtime.session import NotebookSession, print_line, run_loudly
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.task import ID, TEST_FILE

SUBMISSION = "submission.csv"
PRIOR = (20064, 19652, 17761)  # wins of A, of B, and ties among the training rows
RESERVE_S = 120.0  # for blending, checking and writing


@dataclass(frozen=True)
class Member:
    """One run directory of the ensemble, the run's name, which a dataset's folder does not have, and its weight."""

    run: Path
    name: str
    weight: float


def infer(session: NotebookSession) -> None:
    """Predicts with every attached run and writes submission.csv, blended again after each.

    Raises:
        RuntimeError: in the visible run: a source without runs, no GPU, no model that works, an invalid submission.
    """
    test = session.competition_file(TEST_FILE)
    processes = _processes(session)
    members, done = _members(session), []
    with tempfile.TemporaryDirectory(prefix="kit-infer-", ignore_cleanup_errors=True) as scratch:
        for number, member in enumerate(members):
            file = Path(scratch) / f"{number}.csv"
            if not _predict(session, member, test, file, processes, len(members) - number):
                run_loudly(f"{member.name} FAILED and is left out of the submission")
                continue
            done.append((member, read_predictions(file)))
            write_predictions(_blended(session, done), session.working / SUBMISSION)
            print_line(f"{member.name}: {len(done)} of {len(members)} models are in {SUBMISSION}")
    if not done:
        _without_models(session, test)
    elif "blend" in session.job:
        _tell_weights(session, done)
    _check(session, test)
    session.finish()


def _processes(session: NotebookSession) -> int:
    try:
        return max(1, session.devices())
    except RuntimeError as error:
        if not session.rerun:
            raise
        run_loudly(f"going on without a GPU: {error}")
        return 0


def _members(session: NotebookSession) -> list[Member]:
    """The runs of every source that count; a source's weight is shared by its runs."""
    members: list[Member] = []
    for source in session.job["sources"]:
        runs = session.runs(source["ref"])
        if not runs:
            _fault(
                session,
                f"no run directory from {source['ref']} under {session.inputs}; Kaggle sometimes mounts a new "
                "source only at the second run: push the notebook again",
            )
        names = source.get("runs", [])
        if runs and names and source.get("kind") == "kernel":  # whose folders have the runs' names
            runs, names = _meant(session, source["ref"], runs, names), []
        names = names if len(names) == len(runs) == 1 else [run.name for run in runs]
        members += [
            Member(run, name, source["weight"] / len(runs))
            for run, name in zip(runs, names, strict=True)
        ]
    if "blend" not in session.job:
        return members
    used, held = _saved(session).used, sorted({member.name for member in members})
    missing = [name for name in used if name not in held]
    if missing:
        _fault(
            session,
            f"the blend needs {', '.join(missing)}; the sources hold {', '.join(held) or 'no run'}",
        )
    for name in (name for name in held if name not in used):
        print_line(f"{name} has no weight in the blend and is not run")
    return [member for member in members if member.name in used]


def _meant(session: NotebookSession, ref: str, runs: list[Path], names: list[str]) -> list[Path]:
    """Those of a kernel's runs that were meant; another training's does not pass for them in silence."""
    held = [run.name for run in runs]
    missing = [name for name in names if name not in held]
    if missing:
        which = "another version is mounted than was meant, or the run was renamed at home; push again with --dataset"
        _fault(session, f"{ref} holds {', '.join(held)} and not {', '.join(missing)}: {which}")
    return [run for run in runs if run.name in names] or runs


def _fault(session: NotebookSession, problem: str) -> None:
    """Something is missing: an error where the author sees it, a loud line in Kaggle's scoring run."""
    if not session.rerun:
        raise RuntimeError(problem)
    run_loudly(problem)


def _predict(
    session: NotebookSession, member: Member, test: Path, file: Path, processes: int, left: int
) -> bool:
    """Runs `kit predict` on all GPUs, then once more on one if that fails; whether `file` is there."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if processes == 0 else {}
    for count in dict.fromkeys((max(processes, 1), 1)):
        spare = session.seconds_left() - RESERVE_S
        budget = min(spare, 2 * spare / left)  # a model that hangs leaves time for the others
        if budget <= 0:
            run_loudly("the time budget is used up")
            return False
        file.unlink(
            missing_ok=True
        )  # kit predict would not overwrite what a failed attempt has left
        command = ["predict", member.run, "--input", test, "-o", file]
        if session.kit(command, count, budget, **offline, **hidden) == 0 and file.exists():
            return True
    return False


def _blended(session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]) -> pd.DataFrame:
    if "blend" in session.job:
        return _blended_as_saved(session, done)
    method = session.job["method"]
    weights = [member.weight for member, _ in done] if method == "weights" else None
    blended = blend_predictions(
        [each for _, each in done], [member.name for member, _ in done], method, weights
    )
    if "calibration" in session.job:
        return apply_calibration(parse_calibration("the job", session.job["calibration"]), blended)
    return blended


def _blended_as_saved(
    session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]
) -> pd.DataFrame:
    """The saved blend of the runs there are; a run from several sources is the mean of its folds, as at home."""
    names = list(dict.fromkeys(member.name for member, _ in done))
    runs = []
    for name in names:
        folders = [(str(member.run), each) for member, each in done if member.name == name]
        runs.append(
            blend_predictions([each for _, each in folders], [folder for folder, _ in folders])
        )
    return blends.apply_blend(_saved(session).subset(names), runs, names)


def _saved(session: NotebookSession) -> blends.Blend:
    return blends.parse_blend("the job", session.job["blend"])


def _tell_weights(session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]) -> None:
    """The weights in use, loudly where they are not those that were fitted."""
    fitted, names = _saved(session), {member.name for member, _ in done}
    left = fitted.subset(names)
    shares = ", ".join(
        f"{name} {weight:.3f}" for name, weight in zip(left.members, left.weights, strict=True)
    )
    gone = [name for name in fitted.used if name not in names]
    if gone:
        run_loudly(
            f"the blend goes on without {', '.join(gone)}; the weights of the others were scaled up: {shares}"
        )
    else:
        print_line(
            f"{fitted.pool} blend: {shares}; temperature {fitted.calibration.temperature:.4f}"
        )


def _without_models(session: NotebookSession, test: Path) -> None:
    if not session.rerun:
        raise RuntimeError("no model gave predictions; the messages stand above")
    run_loudly(f"NO MODEL WORKED: {SUBMISSION} holds the class prior")
    ids = pd.read_csv(test, usecols=[ID])[ID].to_numpy()
    write_predictions(
        make_predictions(ids, np.tile(np.array(PRIOR, float), (len(ids), 1))),
        session.working / SUBMISSION,
    )


def _check(session: NotebookSession, test: Path) -> None:
    """Judges the submission as Kaggle's grader does, against the ids of the test set that is there."""
    try:
        report = validate_submission(session.working / SUBMISSION, test)
    except KitError as error:
        run_loudly(f"{SUBMISSION} could not be checked: {error}")
        return
    for problem in report.problems:
        run_loudly(f"{SUBMISSION}: {problem}")
    if report.problems and not session.rerun:
        raise RuntimeError(f"{SUBMISSION} is not valid; the problems stand above")
    print_line(f"{SUBMISSION}: {report.rows:,} rows, {'valid' if report.ok else 'NOT VALID'}")


if __name__ == "__main__":
    infer(NotebookSession.open())
