"""When to ask Kaggle again: bounded, with growing pauses, and never blindly for calls that change something.

Kaggle's client repeats almost nothing: one 429 or dropped socket ends a download, a push or a nine-hour wait.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from kit.kaggle.errors import KaggleError, UncertainError, http_status

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long to wait, in seconds; `sleep` is replaced in tests.

    `longest_s` bounds our own pauses; `retry_after_s` bounds what a Retry-After header may ask for, since a server
    can name any time it likes.
    """

    attempts: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    retry_after_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None

    def pause(self, error: BaseException, attempt: int) -> float | None:
        """Seconds to wait after failed attempt number `attempt` (from 0), or None to give up."""
        if attempt + 1 >= self.attempts or not transient(error):
            return None
        asked = retry_after(error)
        if asked is not None:
            return asked if asked <= self.retry_after_s else None
        return min(self.longest_s, self.first_s * 2**attempt) * random.uniform(
            0.75, 1.25
        )  # callers spread out

    def wait(self, error: BaseException, seconds: float) -> None:
        """Says why and for how long, and sleeps."""
        status = http_status(error)
        what = (
            f"Kaggle answers {status}"
            if status
            else f"no answer from Kaggle ({type(error).__name__})"
        )
        self.say(f"{what}; trying again in {seconds:.0f} s")
        self.sleep(seconds)


def retry_after(error: BaseException) -> float | None:
    """Seconds that the answer asks to wait (Retry-After as a number or a date, RFC 9110 §10.2.3), or None."""
    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After") if response is not None else None
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def transient(error: BaseException) -> bool:
    """Whether the same call may work a moment later: 408, 429, 5xx, a lost connection, no answer in time."""
    import requests

    if isinstance(error, requests.exceptions.SSLError):
        return False  # a certificate does not get better
    status = http_status(error)
    if status:
        return status in (408, 429) or status >= 500
    return isinstance(
        error,
        requests.exceptions.ConnectionError
        | requests.exceptions.Timeout
        | requests.exceptions.ChunkedEncodingError
        | requests.exceptions.ContentDecodingError
        | ConnectionError
        | TimeoutError,
    )


def untouched(error: BaseException) -> bool:
    """Whether the failed call certainly changed nothing: refused for its rate, or never delivered."""
    import requests

    if http_status(error) == 429 or isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    return "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)


def retry_call(call: Callable[[], T], patience: RetryPolicy) -> T:
    """Runs a call that is safe to repeat until it works or patience ends; raises the last error."""
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            pause = patience.pause(error, attempt)
            if pause is None:
                raise
            patience.wait(error, pause)
        attempt += 1


def call_once(
    call: Callable[[], T], happened: Callable[[], T | None], patience: RetryPolicy, doing: str
) -> T:
    """Runs a call that must not take effect twice.

    After a failure that leaves open whether it took effect (a dropped socket, a timeout, a 5xx), `happened` looks:
    its answer, unless None, stands for the call's own. Only when nothing happened is the call repeated.

    Raises:
        UncertainError: `happened` could not tell.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            if not transient(error):
                raise
            pause = patience.pause(error, attempt)
            open_question = not untouched(error)
            if pause is not None or open_question:
                patience.wait(error, patience.first_s if pause is None else pause)
            found = poll_once(happened, doing) if open_question else None
            if found is not None:
                return found
            if pause is None:
                raise
        attempt += 1


def poll_once(happened: Callable[[], T | None], doing: str) -> T | None:
    """What `happened` finds of a change whose answer does not say whether it took effect; `doing` names the change.

    Raises:
        UncertainError: it could not tell.
    """
    import requests

    try:
        return happened()
    except (KaggleError, requests.exceptions.RequestException) as error:
        why = error.problem if isinstance(error, KaggleError) else type(error).__name__
        raise UncertainError(
            f"{doing}: it is not known whether that took effect: no usable answer, and looking failed ({why})",
            "Do not repeat it before you have looked whether it is there: `kit submissions`, `kit kernels status`, "
            "for a dataset your page at Kaggle.",
        ) from None
