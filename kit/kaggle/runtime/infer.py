"""Predict on Kaggle: write submission.csv for the mounted test set, visible or hidden.

A model that fails is left out with a warning, and a fitted blend continues with the weights of the
others scaled up. In Kaggle's scoring run a row that cannot be read gets the class shares of the
training rows, and a valid submission is written even if all models fail, because an exception there
uses up one of the day's submissions and reports nothing. In the visible run the same failures are
errors.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit.data.csv_errors import iterate_rows
from kit.data.odd_rows import UsableRows, copy_usable_rows
from kit.ensembling.blend import Blend, apply_blend, parse_blend
from kit.ensembling.calibration import apply_calibration, parse_calibration
from kit.ensembling.pool import blend_predictions
from kit.errors import DataError, KitError
from kit.evaluation.validate import validate_submission
from kit.kaggle.runtime.session import NotebookSession, log_line, log_warning
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.task import ID, TEST_FILE, TRAIN_CLASS_COUNTS

SUBMISSION = "submission.csv"
LISTED = 20  # odd rows in the log
RESERVE_S = 120.0  # for blending, checking and writing


@dataclass(frozen=True)
class Member:
    """One run directory of the ensemble, its run's name, and its weight.

    The name is kept apart because the mounted folder of a dataset is not named after the run.
    """

    run: Path
    name: str
    weight: float


def run_inference(session: NotebookSession) -> None:
    """Predict with every mounted run and write submission.csv, blended again after each of them.

    Raises:
        RuntimeError: in the visible run: a source has no run, there is no GPU, no model works, or
            the submission is invalid.
    """
    test = session.competition_file(TEST_FILE)
    processes = _process_count(session)
    members = _find_members(session)
    done: list[tuple[Member, pd.DataFrame]] = []
    with tempfile.TemporaryDirectory(prefix="kit-infer-", ignore_cleanup_errors=True) as scratch:
        rows = _usable_rows(session, test, Path(scratch) / TEST_FILE)
        _link_bases(session, members, Path(scratch))
        for number, member in enumerate(members):
            file = Path(scratch) / f"{number}.csv"
            models_left = len(members) - number
            if not _predict(session, member, rows.file, file, processes, models_left):
                log_warning(f"{member.name} FAILED and is left out of the submission")
                continue

            # Written after every model, so that a session that is killed leaves a submission.
            done.append((member, read_predictions(file)))
            blended = _add_odd_rows(_blend(session, done), rows)
            write_predictions(blended, session.working_folder / SUBMISSION)
            log_line(f"{member.name}: {len(done)} of {len(members)} models are in {SUBMISSION}")

    if not done:
        _submit_class_prior(session, rows)
    elif "blend" in session.job:
        _log_weights(session, done)
    _check_submission(session, test)
    session.finish()


def _process_count(session: NotebookSession) -> int:
    """Return how many processes predict, one per GPU; 0 means one that must not use a GPU."""
    try:
        return max(1, session.gpu_count())
    except RuntimeError as error:
        if not session.is_scoring:
            raise
        log_warning(f"continuing without a GPU: {error}")
        return 0


def _usable_rows(session: NotebookSession, test: Path, copy: Path) -> UsableRows:
    """Return the rows to predict; odd ones are an error in the visible run and a warning later."""
    try:
        rows = copy_usable_rows(test, copy)
    except (DataError, OSError) as error:
        # `kit predict` gives the reason again, and all rows get the class prior.
        _report_missing(session, f"no row of {test} can be read: {error}")
        return UsableRows(test, tuple(_read_ids(test)))

    if rows.problems:
        listed = "\n".join(rows.problems[:LISTED])
        _report_missing(
            session,
            f"ODD ROWS: {len(rows.problems)}. What no other row of its id predicts gets the class"
            f" prior:\n{listed}",
        )
    return rows


def _read_ids(test: Path) -> list[str]:
    """Return the ids of a file in which no row can be read otherwise."""
    rows = iterate_rows(test)
    _, names = next(rows, (1, []))
    place = names.index(ID) if ID in names else 0
    ids = dict.fromkeys(cells[place] for _, cells in rows if len(cells) > place)
    return [text.encode(errors="surrogateescape").decode(errors="replace") for text in ids]


def _add_odd_rows(predictions: pd.DataFrame, rows: UsableRows) -> pd.DataFrame:
    """Return the predictions of all rows, in the order of the test file."""
    if not rows.problems:
        return predictions
    predicted = predictions.assign(**{ID: predictions[ID].astype(str)}).set_index(ID)
    prior = _class_prior(rows.ids).set_index(ID)
    prior.update(predicted)
    return prior.reset_index()


def _find_members(session: NotebookSession) -> list[Member]:
    """Return the runs to predict with; the runs of a source share its weight equally."""
    members: list[Member] = []
    for source in session.job["sources"]:
        folders = session.run_folders(source["ref"])
        if not folders:
            _report_missing(
                session,
                f"no run directory from {source['ref']} under {session.input_folder}. Kaggle"
                " sometimes mounts a new source only at the second run: push the notebook again.",
            )

        names = source.get("runs", [])
        if folders and names and source.get("kind") == "kernel":
            folders = _require_named_runs(session, source["ref"], folders, names)
            names = [folder.name for folder in folders]
        elif not len(names) == len(folders) == 1:
            # Only the folder of a dataset with one run has another name than the run.
            names = [folder.name for folder in folders]

        share = source["weight"] / len(folders) if folders else 0.0
        members += [
            Member(folder, name, share) for folder, name in zip(folders, names, strict=True)
        ]
    if "blend" not in session.job:
        return members

    used = _fitted_blend(session).used
    mounted = sorted({member.name for member in members})
    missing = [name for name in used if name not in mounted]
    if missing:
        _report_missing(
            session,
            f"the blend needs {', '.join(missing)}, but the sources have only"
            f" {', '.join(mounted) or 'no run'}",
        )
    for name in mounted:
        if name not in used:
            log_line(f"{name} has no weight in the blend and is not run")
    return [member for member in members if member.name in used]


def _require_named_runs(
    session: NotebookSession, ref: str, folders: list[Path], names: list[str]
) -> list[Path]:
    """Return the runs of a kernel that were named at the push; report missing ones."""
    mounted = [folder.name for folder in folders]
    missing = [name for name in names if name not in mounted]
    if missing:
        _report_missing(
            session,
            f"{ref} has {', '.join(mounted)}, but not {', '.join(missing)}: Kaggle mounted another"
            " version, or the run was renamed locally. Push again with --dataset.",
        )
    return [folder for folder in folders if folder.name in names] or folders


def _link_bases(session: NotebookSession, members: Sequence[Member], scratch: Path) -> None:
    """Let runs find the weights below them; report those whose weights are missing."""
    missing = session.link_bases([member.run for member in members], scratch)
    if missing:
        names = ", ".join(sorted({member.name for member in members if member.run in missing}))
        _report_missing(
            session,
            f"{names}: the weights below it are not mounted. Push again with a --model"
            " or dataset that has them in Hugging Face layout.",
        )


def _report_missing(session: NotebookSession, problem: str) -> None:
    """Raise in the visible run, where the author sees it; warn in Kaggle's scoring run."""
    if not session.is_scoring:
        raise RuntimeError(problem)
    log_warning(problem)


def _predict(
    session: NotebookSession,
    member: Member,
    test: Path,
    file: Path,
    processes: int,
    models_left: int,
) -> bool:
    """Run `kit predict` on all GPUs, or if that fails on one; return whether `file` was written."""
    environment = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if processes == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""

    for count in dict.fromkeys((max(processes, 1), 1)):
        # Twice its equal share of the time: a slow model may take longer than the others, but one
        # that hangs leaves time for them.
        available = session.seconds_left() - RESERVE_S
        budget = min(available, 2 * available / models_left)
        if budget <= 0:
            log_warning("the time budget is used up")
            return False

        # `kit predict` does not overwrite what a failed attempt left.
        file.unlink(missing_ok=True)
        command = ["predict", member.run, "--input", test, "-o", file]

        # A model that reads both answers at once leaves out second orders rather than be late.
        command += ["--max-hours", f"{max(available / models_left, 1) / 3600:.4f}"]
        code = session.run_kit(command, count, budget, environment, file.parent)
        if code == 0 and file.exists():
            return True
    return False


def _blend(session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]) -> pd.DataFrame:
    """Blend the predictions there are so far, as the job asks for."""
    if "blend" in session.job:
        return _apply_fitted_blend(session, done)

    method = session.job["method"]
    frames = [frame for _, frame in done]
    names = [member.name for member, _ in done]
    weights = [member.weight for member, _ in done] if method == "weights" else None
    blended = blend_predictions(frames, names, method, weights)
    if "calibration" in session.job:
        return apply_calibration(parse_calibration("the job", session.job["calibration"]), blended)
    return blended


def _apply_fitted_blend(
    session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]
) -> pd.DataFrame:
    """Apply the fitted blend to the runs there are so far, with their weights scaled up to 1."""
    names = list(dict.fromkeys(member.name for member, _ in done))

    # A run whose folds come from several kernels is the mean of these, as it is locally.
    frames = []
    for name in names:
        copies = [(str(member.run), frame) for member, frame in done if member.name == name]
        frames.append(blend_predictions([frame for _, frame in copies], [run for run, _ in copies]))
    return apply_blend(_fitted_blend(session).subset(names), frames, names)


def _fitted_blend(session: NotebookSession) -> Blend:
    return parse_blend("the job", session.job["blend"])


def _log_weights(session: NotebookSession, done: list[tuple[Member, pd.DataFrame]]) -> None:
    """Log the weights in use, as a warning where they are not the fitted ones."""
    fitted = _fitted_blend(session)
    names = {member.name for member, _ in done}
    used = fitted.subset(names)
    pairs = zip(used.members, used.weights, strict=True)
    shares = ", ".join(f"{name} {weight:.3f}" for name, weight in pairs)
    missing = [name for name in fitted.used if name not in names]
    if missing:
        log_warning(
            f"the blend continues without {', '.join(missing)}; the weights of the others were"
            f" scaled up: {shares}"
        )
    else:
        log_line(f"{fitted.pool} blend: {shares}; temperature {fitted.calibration.temperature:.4f}")


def _submit_class_prior(session: NotebookSession, rows: UsableRows) -> None:
    """Write the class shares of the training rows for every row; raise in the visible run."""
    if not session.is_scoring:
        raise RuntimeError("no model gave predictions; see the messages above")

    log_warning(f"NO MODEL WORKED: {SUBMISSION} holds the class prior")
    write_predictions(_class_prior(rows.ids), session.working_folder / SUBMISSION)


def _class_prior(ids: Sequence[str]) -> pd.DataFrame:
    """Return a prediction frame with the class shares of the training rows for every id."""
    shares = np.tile(np.array(TRAIN_CLASS_COUNTS, float), (len(ids), 1))
    return make_predictions(np.array(ids, object), shares)


def _check_submission(session: NotebookSession, test: Path) -> None:
    """Validate the submission as Kaggle's grader does, against the ids of the mounted test set."""
    try:
        report = validate_submission(session.working_folder / SUBMISSION, test)
    except KitError as error:
        log_warning(f"{SUBMISSION} could not be checked: {error}")
        return

    for problem in report.problems:
        log_warning(f"{SUBMISSION}: {problem}")
    if report.problems and not session.is_scoring:
        raise RuntimeError(f"{SUBMISSION} is not valid; see the problems above")
    log_line(f"{SUBMISSION}: {report.rows:,} rows, {'valid' if report.ok else 'NOT VALID'}")


if __name__ == "__main__":
    run_inference(NotebookSession.from_environment())
