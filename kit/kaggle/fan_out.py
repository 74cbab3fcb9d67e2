"""Many trainings at once on Kaggle: one kernel per recipe and fold, as many as may run, their outputs brought home.

It can be stopped and started again: what is in the local runs is skipped, what is on Kaggle is taken up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kit.errors import KitError, RunError
from kit.kaggle import kernels, notebook, preparing
from kit.kaggle.client import Client
from kit.kaggle.collect import collect_folds
from kit.kaggle.errors import BusyError, CredentialsError, KaggleError, UnreachableError
from kit.kaggle.job import Job
from kit.kaggle.kernels import KernelRef
from kit.kaggle.push import push_kernel
from kit.run import Run

AT_ONCE = 2  # batch GPU sessions that Kaggle runs for one account
SILENT_POLLS = 30  # in a row; an outage of half an hour must not end a day of training


@dataclass(frozen=True)
class Outcome:
    """What became of one job: `status` is "done", "there already" or "failed", with the reason in `problem`."""

    title: str
    status: str
    ref: KernelRef | None = None
    problem: str = ""


def fan_out(
    client: Client,
    jobs: Sequence[Job],
    runs: str | Path,
    folder: str | Path,
    *,
    at_once: int = AT_ONCE,
    poll_s: float = 60.0,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Runs training jobs on Kaggle, `at_once` at a time, and collects their run directories into `runs`.

    A job that fails does not stop the others. The notebooks are written below `folder`.

    Returns:
        One outcome per job, in their order.

    Raises:
        UnreachableError: Kaggle has not answered for long; run it again to take up what is there.
        CredentialsError: Kaggle does not accept the credential (any more), which says nothing about the jobs.
    """
    runs, folder = Path(runs), Path(folder)
    waiting, running, outcomes, silent = list(jobs), {}, {}, 0
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting[0]
            try:
                outcome, ref = _begin(client, job, runs, folder, say)
            except BusyError as error:
                say(f"{job.title}: {error.problem}")
                break  # other sessions of this account; look again after the pause
            waiting.pop(0)
            if outcome:
                outcomes[job.title] = outcome
            else:
                running[job.title] = (job, ref)
        for title, (job, ref) in list(running.items()):
            try:
                outcome = _look(client, job, ref, runs, say)
            except UnreachableError as error:
                silent += 1
                if silent > SILENT_POLLS:
                    raise
                say(f"{title}: {error.problem}; looking again")
                continue
            silent = 0
            if outcome:
                outcomes[title] = outcome
                del running[title]
        if running or waiting:
            client.patience.sleep(poll_s)
    return [outcomes[job.title] for job in jobs]


def _begin(
    client: Client, job: Job, runs: Path, folder: Path, say: Callable[[str], None]
) -> tuple[Outcome | None, KernelRef | None]:
    """Pushes a job, unless its result is here or it is on Kaggle already."""
    try:
        if _is_here(job, runs):
            return Outcome(job.title, "there already"), None
    except (
        RunError
    ) as error:  # said before hours of a GPU are spent on what could not be brought home
        return Outcome(job.title, "failed", problem=str(error)), None
    ref = KernelRef(client.owner(), job.slug)
    try:
        kernel = kernels.kernel_exists(client, ref)
        if kernel and notebook.marks(kernel.source).get("job") == notebook.job_fingerprint(
            job.kind, job.session()
        ):
            ref = KernelRef(ref.owner, ref.slug, kernel.latest)
            if kernels.kernel_status(client, ref).status in (*kernels.ACTIVE, "COMPLETE"):
                say(f"{job.title}: {ref} is on Kaggle already")
                return None, ref
        pushed = push_kernel(client, job, folder / job.slug, slot_wait_s=0.0, say=say)
    except (BusyError, CredentialsError):
        raise
    except KaggleError as error:
        return Outcome(job.title, "failed", ref, str(error)), None
    say(f"{job.title}: pushed {pushed.ref}")
    return None, pushed.ref


def _look(
    client: Client, job: Job, ref: KernelRef, runs: Path, say: Callable[[str], None]
) -> Outcome | None:
    """The outcome of a running job once it has one."""
    try:
        state = kernels.kernel_status(client, ref)
        if state.active:
            return None
        kernels.wait_for_kernel(
            client, ref, poll_s=20.0, say=say
        )  # believes an end only when it is this version's
        parts = collect_folds(client, ref, runs, say=say)
    except (UnreachableError, CredentialsError):
        raise
    except KitError as error:
        return Outcome(job.title, "failed", ref, str(error))
    say(f"{job.title}: {', '.join(map(str, parts)) or 'nothing new'}")
    return Outcome(job.title, "done", ref)


def _is_here(job: Job, runs: Path) -> bool:
    """Whether the job's parts are all in `runs`, finished.

    Raises:
        RunError: the run there is of rows that were prepared otherwise.
    """
    run = Run(runs / str(job.settings["run_name"]))
    fold = str(job.settings["fold"])
    if not (run.path / "recipe.toml").exists():
        return False
    preparing.check_origin(job.settings["preprocess"], run)
    parts = range(run.origin["folds"]) if fold == "all" else [fold]
    return all(run.done(part) for part in parts)
