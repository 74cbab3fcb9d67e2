"""Run many training jobs on Kaggle and collect their runs. Use `fan_out`.

There is one kernel per recipe and fold, and as many run at once as Kaggle allows. It can be stopped
and started again: folds that are in the local runs are skipped, and kernels that are on Kaggle
already are followed instead of pushed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import KitError, RunError
from kit.kaggle import kernels, notebook
from kit.kaggle.client import Client
from kit.kaggle.collect import collect_folds
from kit.kaggle.errors import BusyError, CredentialsError, KaggleError, UnreachableError
from kit.kaggle.job import PREPROCESS_DEFAULTS, Job
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.push import push_kernel
from kit.run import Run

AT_ONCE = 2  # batch GPU sessions that Kaggle runs for one account

# An outage of half an hour must not end a day of training, so many failed requests in a row are
# tolerated.
MAX_FAILED_POLLS = 30


@dataclass(frozen=True)
class JobOutcome:
    """The end of one job: `status` is "done", "there already" or "failed", with the `problem`."""

    title: str
    status: str
    ref: KernelRef | None = None
    problem: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return plain values that JSON can hold."""
        return {
            "title": self.title,
            "status": self.status,
            "kernel": str(self.ref or ""),
            "problem": self.problem,
        }


def fan_out(
    client: Client,
    jobs: Sequence[Job],
    runs: str | Path,
    folder: str | Path,
    *,
    at_once: int = AT_ONCE,
    poll_s: float = 60.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[JobOutcome]:
    """Run training jobs on Kaggle, `at_once` at a time, and collect their folds into `runs`.

    A job that fails does not stop the others. The notebooks are written below `folder`.

    Returns:
        One outcome per job, in the order of `jobs`.

    Raises:
        UnreachableError: Kaggle has not answered for long; run it again to continue.
        CredentialsError: Kaggle does not accept the credential, which is no fault of the jobs.
    """
    runs = Path(runs)
    folder = Path(folder)
    waiting = list(jobs)
    running: dict[str, tuple[Job, KernelRef]] = {}
    outcomes: dict[str, JobOutcome] = {}
    failed_polls = 0
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting[0]
            try:
                started = _start_job(client, job, runs, folder, say)
            except BusyError as error:
                # Other sessions of this account are running: try again after the pause.
                say(f"{job.title}: {error.problem}")
                break
            waiting.pop(0)
            if isinstance(started, JobOutcome):
                outcomes[job.title] = started
            else:
                running[job.title] = (job, started)

        for title, (job, ref) in list(running.items()):
            try:
                outcome = _poll_job(client, job, ref, runs, say)
            except UnreachableError as error:
                failed_polls += 1
                if failed_polls > MAX_FAILED_POLLS:
                    raise
                say(f"{title}: {error.problem}; trying again")
                continue
            failed_polls = 0
            if outcome:
                outcomes[title] = outcome
                del running[title]

        if running or waiting:
            client.patience.sleep(poll_s)
    return [outcomes[job.title] for job in jobs]


def _start_job(
    client: Client, job: Job, runs: Path, folder: Path, say: Callable[[str], None]
) -> JobOutcome | KernelRef:
    """Push a job and return its kernel; return an outcome where there is nothing to wait for."""
    try:
        if _is_collected(job, runs):
            return JobOutcome(job.title, "there already")
    except RunError as error:
        # Found now, before hours of a GPU are spent on folds that `runs` could not take.
        return JobOutcome(job.title, "failed", problem=str(error))

    ref = KernelRef(client.owner(), job.slug)
    try:
        kernel = kernels.find_kernel(client, ref)
        fingerprint = notebook.job_fingerprint(job.kind, job.session_settings())
        if kernel and notebook.notebook_marks(kernel.source).get("job") == fingerprint:
            ref = KernelRef(ref.owner, ref.slug, kernel.latest)
            if kernels.kernel_status(client, ref).status in (*kernels.ACTIVE, "COMPLETE"):
                say(f"{job.title}: {ref} is on Kaggle already")
                return ref
        pushed = push_kernel(client, job, folder / job.slug, slot_wait_s=0.0, say=say)
    except (BusyError, CredentialsError):
        raise
    except KaggleError as error:
        return JobOutcome(job.title, "failed", ref, str(error))

    say(f"{job.title}: pushed {pushed.ref}")
    return pushed.ref


def _poll_job(
    client: Client, job: Job, ref: KernelRef, runs: Path, say: Callable[[str], None]
) -> JobOutcome | None:
    """Return the outcome of a running job once it has one, collecting its folds."""
    try:
        if kernels.kernel_status(client, ref).active:
            return None

        # The end that Kaggle reports may be an older version's; `wait_for_kernel` makes sure.
        kernels.wait_for_kernel(client, ref, poll_s=20.0, say=say)
        folds = collect_folds(client, ref, runs, say=say)
    except (UnreachableError, CredentialsError):
        raise
    except KitError as error:
        return JobOutcome(job.title, "failed", ref, str(error))

    say(f"{job.title}: {', '.join(map(str, folds)) or 'nothing new'}")
    return JobOutcome(job.title, "done", ref)


def _is_collected(job: Job, runs: Path) -> bool:
    """Return whether `runs` has every fold of the job, finished.

    Raises:
        RunError: the run there was trained on rows that were prepared differently.
    """
    run = Run(runs / str(job.settings["run_name"]))
    if not run.has_begun:
        return False

    _check_preprocessing(job.settings["preprocess"], run)
    fold = str(job.settings["fold"])
    folds = range(run.origin["folds"]) if fold == "all" else [fold]
    return all(run.fold(fold).is_finished for fold in folds)


def _check_preprocessing(options: Mapping[str, Any], run: Run) -> None:
    """Raise unless a run was trained on rows prepared with these options of `kit preprocess`.

    What the run's origin.json does not note is not compared.
    """
    origin = run.origin
    asked = {**PREPROCESS_DEFAULTS, **options}
    different = [name for name, value in asked.items() if origin.get(name, value) != value]
    if different:
        old = " ".join(f"--{name} {origin[name]}" for name in different)
        new = " ".join(f"--{name} {asked[name]}" for name in different)
        raise RunError(
            f"{run.path} was trained on rows prepared with {old}, but this training uses {new}",
            "Choose another folder for this training with --runs.",
        )
