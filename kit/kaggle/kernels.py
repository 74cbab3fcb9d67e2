"""Look up Kaggle kernels and wait for a version to finish. Use `wait_for_kernel`.

For a while after a push, Kaggle can report the state of an older version, and where it ignores
version labels it always reports the latest one. So a COMPLETE is accepted only when something shows
that it belongs to the version that was asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from kit.kaggle import notebook
from kit.kaggle.client import Client
from kit.kaggle.errors import (
    KaggleError,
    NotFoundError,
    RefusedError,
    RunFailedError,
    UnreachableError,
)
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.logs import LogWatcher, log_tail, read_log

# Seconds between two lines of a log that is followed while a kernel is waited for.
LOG_EVERY_S = 60.0

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
FAILURES = {
    "ERROR": "failed",
    "CANCEL_ACKNOWLEDGED": "was cancelled",
    "NEW_SCRIPT": "has never run",
}


@dataclass(frozen=True)
class KernelState:
    """The state of a version in Kaggle's words (QUEUED, RUNNING, COMPLETE, ERROR, …).

    `failure` is Kaggle's reason where it failed, else "".
    """

    ref: KernelRef
    status: str
    failure: str = ""

    @property
    def active(self) -> bool:
        """Whether the state may still change."""
        return self.status in ACTIVE


@dataclass(frozen=True)
class Kernel:
    """What Kaggle stores of a kernel: the latest version's number, source and settings."""

    ref: KernelRef
    latest: int
    source: str
    internet: bool
    gpu: bool
    competitions: tuple[str, ...]


def look_up_kernel(client: Client, ref: KernelRef) -> Kernel:
    """Return the kernel as Kaggle stores it.

    Raises:
        NotFoundError: Kaggle has no such kernel, or this account may not see it.
    """
    answer = client.call("kernels.get_kernel", ref.request(), f"looking up {ref}")
    metadata = answer.metadata
    return Kernel(
        ref=ref,
        latest=int(metadata.current_version_number or 0),
        source=answer.blob.source or "",
        internet=bool(metadata.enable_internet),
        gpu=bool(metadata.enable_gpu),
        competitions=tuple(metadata.competition_data_sources or ()),
    )


def find_kernel(client: Client, ref: KernelRef) -> Kernel | None:
    """Return the kernel, or None where Kaggle says that there is none."""
    try:
        return look_up_kernel(client, ref)
    except NotFoundError:
        return None


@dataclass(frozen=True)
class ListedKernel:
    """A kernel of this account, its title, when it last ran (UTC), and whether it has a GPU."""

    ref: KernelRef
    title: str
    last_run: str
    gpu: bool


def list_kernels(client: Client, limit: int = 10) -> list[ListedKernel]:
    """Return this account's kernels, those that ran last first."""
    owner = client.owner()
    request = {"user": owner, "group": "PROFILE", "sortBy": "DATE_RUN", "page": 1}
    answer = client.call(
        "kernels.list_kernels", {**request, "pageSize": limit}, "listing your kernels"
    )
    return [
        ListedKernel(
            KernelRef.parse(kernel.ref.removeprefix("/code/")),
            kernel.title or "",
            f"{kernel.last_run_time:%Y-%m-%d %H:%M}" if kernel.last_run_time else "",
            bool(kernel.enable_gpu),
        )
        for kernel in answer.kernels or []
    ]


def latest_version(client: Client, ref: KernelRef) -> KernelRef:
    """Return `ref` with the number of the latest version, unless it already names a version."""
    return ref if ref.version else replace(ref, version=look_up_kernel(client, ref).latest or None)


def kernel_status(client: Client, ref: KernelRef, missing_ok: bool = False) -> KernelState:
    """Return the state of the named version, or of the latest.

    With `missing_ok`, a kernel that does not exist has the status MISSING instead of raising.
    """
    doing = f"reading the status of {ref}"
    try:
        answer = client.call("kernels.get_kernel_session_status", ref.request(), doing)
    except NotFoundError:
        if missing_ok:
            return KernelState(ref, "MISSING", "Kaggle has no such kernel; was it pushed?")
        raise
    return KernelState(ref, answer.status.name, answer.failure_message or "")


def wait_for_kernel(
    client: Client,
    ref: KernelRef,
    *,
    poll_s: float = 20.0,
    settle_s: float = 180.0,
    timeout_s: float | None = None,
    follow_log: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> KernelState:
    """Wait until a version is COMPLETE; without a version in `ref`, the latest at this moment.

    Args:
        poll_s: seconds between two requests.
        settle_s: how long to ask again where the end may be that of an older version.
        timeout_s: give up after this long; None waits without a limit.
        follow_log: also say the newest line of its log, at most once a minute.

    Raises:
        RunFailedError: the version failed or was cancelled; the message ends with the log's end.
        KaggleError: its state cannot be read, or the time is over.
    """
    ref = latest_version(client, ref)
    waited = 0.0
    last_status = ""
    seen_active = False
    watcher = None
    last_line = 0.0
    while True:
        state = kernel_status(client, ref)
        if state.status != last_status:
            say(f"{ref}: {state.status}")
            last_status = state.status

        if follow_log and state.status == "RUNNING":
            watcher = watcher or LogWatcher(client, ref)
            if waited >= last_line + LOG_EVERY_S and (line := watcher.take()):
                say(line)
                last_line = waited

        seen_active = seen_active or state.active
        if not state.active:
            # An end that was not seen coming may be an older version's, unless there is none.
            if seen_active or ref.version in (None, 1) or _is_own_end(client, ref):
                break
            if waited >= settle_s:
                raise UnreachableError(
                    f"{ref}: Kaggle still reports {state.status}, which may belong to an earlier"
                    " version",
                    f"See {ref.url}, then run `kit kernels wait {ref}` again.",
                )

        if timeout_s is not None and waited >= timeout_s:
            raise UnreachableError(
                f"{ref} is {state.status} after {waited / 60:.0f} minutes",
                f"Run `kit kernels wait {ref}` to keep waiting.",
            )
        client.patience.sleep(poll_s)
        waited += poll_s

    if state.status != "COMPLETE":
        raise _failure_error(client, state)
    return state


def _failure_error(client: Client, state: KernelState) -> RunFailedError:
    """Return the error for a version that did not complete, with the end of its log."""
    try:
        tail = log_tail(read_log(client, state.ref))
    except KaggleError as error:
        tail = f"(its log cannot be read: {error.problem})"

    reason = f": {state.failure}" if state.failure else ""
    return RunFailedError(
        f"{state.ref} {FAILURES.get(state.status, state.status)}{reason}",
        f"The log ends:\n{tail}\n"
        f"  For the whole log run `kit kernels logs {state.ref}`, or see {state.ref.url}.",
        tail,
    )


def _is_own_end(client: Client, ref: KernelRef) -> bool:
    """Return whether an end that Kaggle reports at once belongs to the version in `ref`.

    Raises:
        KaggleError: Kaggle reports only the latest version, and that is another one.
    """
    # Ask for a version that cannot exist. A refusal shows that Kaggle honours version labels, so
    # the state that it reported is that of the version asked for.
    impossible = replace(ref, version=(ref.version or 0) + 1_000_000)
    doing = "checking that Kaggle distinguishes versions"
    try:
        client.call("kernels.get_kernel_session_status", impossible.request(), doing)
    except (NotFoundError, RefusedError):
        return True

    kernel = look_up_kernel(client, ref)
    if kernel.latest != ref.version:
        raise KaggleError(
            f"{ref}: Kaggle reports only the latest version of this kernel, {kernel.latest}",
            f"Name {ref.name}/{kernel.latest}, or see {ref.url}.",
        )

    # The notebook prints the token of its push first, so the log shows whose end this is.
    token = notebook.notebook_marks(kernel.source).get("push")
    return bool(token) and token in read_log(client, ref)
