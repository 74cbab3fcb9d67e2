"""A Kaggle kernel by name and version: its state, and waiting for the version that was meant.

Kaggle can answer with the state of an older version for a while, or always where it does not know version labels;
a COMPLETE is believed only when something shows whose it is.
"""

import re
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
from kit.kaggle.logs import log_tail, read_log

ACTIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")
FAILURES = {
    "ERROR": "failed",
    "CANCEL_ACKNOWLEDGED": "was cancelled",
    "NEW_SCRIPT": "has never run",
}


@dataclass(frozen=True)
class KernelRef:
    """owner/slug, and a version where one is meant."""

    owner: str
    slug: str
    version: int | None = None

    @classmethod
    def parse(cls, text: str, owner: str = "") -> "KernelRef":
        """Reads owner/slug, owner/slug/version, an address, or with `owner` a bare slug.

        Raises:
            KaggleError: none of these, or an address that tells the version by a number that no call takes.
        """
        if not text.strip():
            raise KaggleError(
                "'' does not name a kernel, it is empty",
                "Did the push before this fail? `kit kernels status` lists what is there.",
            )
        name = (
            re.sub(r"^https?://(www\.)?kaggle\.com/(code/)?", "", text.strip())
            .split("?")[0]
            .strip("/")
        )
        match = re.fullmatch(r"(?:([\w-]+)/)?([\w-]{5,})(?:/v?(\d+))?", name)
        if not match or not (match[1] or owner) or match[3] == "0":
            raise KaggleError(
                f"{text[:60]!r} does not name a kernel",
                "Write OWNER/SLUG or OWNER/SLUG/VERSION, as in its address.",
            )
        if "scriptVersionId=" in text and not match[3]:
            raise KaggleError(
                f"{text.strip()[:100]!r} names a version by scriptVersionId, which cannot be looked up",
                f"Write {match[1] or owner}/{match[2]}/VERSION, with the version's number on the kernel's page.",
            )
        return cls(match[1] or owner, match[2], int(match[3]) if match[3] else None)

    def __str__(self) -> str:
        return f"{self.owner}/{self.slug}" + (f"/{self.version}" if self.version else "")

    @property
    def url(self) -> str:
        """Its page."""
        return f"https://www.kaggle.com/code/{self.owner}/{self.slug}"

    def body(self) -> dict[str, str]:
        """The fields that name it in a request."""
        label = {"versionLabel": f"v{self.version}"} if self.version else {}
        return {"userName": self.owner, "kernelSlug": self.slug, **label}


@dataclass(frozen=True)
class KernelState:
    """A version's state as Kaggle names it (QUEUED, RUNNING, COMPLETE, ERROR, …) and why it failed."""

    ref: KernelRef
    status: str
    failure: str = ""

    @property
    def active(self) -> bool:
        """Whether it may still change."""
        return self.status in ACTIVE


@dataclass(frozen=True)
class Kernel:
    """What Kaggle stores of a kernel: its latest version's number, source and settings."""

    ref: KernelRef
    latest: int
    source: str
    internet: bool
    gpu: bool
    competitions: tuple[str, ...]


def look_up_kernel(client: Client, ref: KernelRef) -> Kernel:
    """The kernel as it is stored.

    Raises:
        NotFoundError: there is none, or this account may not see it.
    """
    answer = client.call("kernels.get_kernel", ref.body(), f"looking up {ref}")
    meta = answer.metadata
    return Kernel(
        ref,
        int(meta.current_version_number or 0),
        answer.blob.source or "",
        bool(meta.enable_internet),
        bool(meta.enable_gpu),
        tuple(meta.competition_data_sources or ()),
    )


def kernel_exists(client: Client, ref: KernelRef) -> Kernel | None:
    """The kernel, or None where Kaggle says that there is none."""
    try:
        return look_up_kernel(client, ref)
    except NotFoundError:
        return None


def kernel_status(client: Client, ref: KernelRef, missing_ok: bool = False) -> KernelState:
    """The state of the version named, or of the latest; with `missing_ok` one that is not there is MISSING."""
    try:
        answer = client.call(
            "kernels.get_kernel_session_status", ref.body(), f"reading the status of {ref}"
        )
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
    say: Callable[[str], None] = lambda _: None,
) -> KernelState:
    """Follows one version until it is COMPLETE; without a version in `ref`, the latest at this moment.

    Args:
        settle_s: how long an end that may be an older version's is looked at again.
        timeout_s: give up after this long; None waits for ever.

    Raises:
        RunFailedError: it failed or was cancelled; the message ends with the log's last lines.
        KaggleError: it cannot be seen, or the time is over.
    """
    ref = ref if ref.version else replace(ref, version=look_up_kernel(client, ref).latest or None)
    waited, last, moved = 0.0, "", False
    while True:
        state = kernel_status(client, ref)
        if state.status != last:
            say(f"{ref}: {state.status}")
            last = state.status
        moved = moved or state.active
        if not state.active:
            if moved or ref.version in (None, 1) or _is_its_own(client, ref):
                break
            if waited >= settle_s:
                raise UnreachableError(
                    f"{ref}: Kaggle still reports {state.status}, which may be an earlier version's",
                    f"See {ref.url}, and wait again.",
                )
        if timeout_s is not None and waited >= timeout_s:
            raise UnreachableError(
                f"{ref} is {state.status} after {waited / 60:.0f} minutes",
                f"`kit kernels wait {ref}` goes on waiting.",
            )
        client.patience.sleep(poll_s)
        waited += poll_s
    if state.status != "COMPLETE":
        raise kernel_failure(client, state)
    return state


def kernel_failure(client: Client, state: KernelState) -> RunFailedError:
    """The error for a version that did not complete, with the end of its log if that can be had."""
    try:
        end = log_tail(read_log(client, state.ref))
    except KaggleError as error:
        end = f"(its log cannot be read: {error.problem})"
    why = f": {state.failure}" if state.failure else ""
    return RunFailedError(
        f"{state.ref} {FAILURES.get(state.status, state.status)}{why}",
        f"The log ends:\n{end}\n  All of it: `kit kernels logs {state.ref}`, or {state.ref.url}",
        end,
    )


def _is_its_own(client: Client, ref: KernelRef) -> bool:
    """Whether an end seen at once belongs to this version: labels are honoured, or the log shows this push's token."""
    impossible = replace(ref, version=ref.version + 1_000_000)
    try:
        client.call(
            "kernels.get_kernel_session_status",
            impossible.body(),
            "checking that versions are told apart",
        )
    except (NotFoundError, RefusedError):
        return True  # it knows that there is no such version
    kernel = look_up_kernel(client, ref)
    if kernel.latest != ref.version:
        raise KaggleError(
            f"{ref}: Kaggle reports only the latest version here, {kernel.latest}",
            f"Name {ref.owner}/{ref.slug}/{kernel.latest}, or see {ref.url}.",
        )
    token = notebook.marks(kernel.source).get("push")
    return bool(token) and token in read_log(client, ref)
