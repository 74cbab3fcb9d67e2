"""Repeat failed calls to Kaggle with growing pauses, but never blindly one that changes something.

Use `RetryPolicy` with `retry_call` for calls that are safe to repeat, and with `call_once` for the
others. Kaggle's own client repeats almost nothing: one 429 or dropped connection ends a download, a
push or a nine-hour wait.

`urllib3.util.Retry` parses the Retry-After header here. It cannot replace the module, because it
sees no more than one HTTP request:
- every API call is a POST, so what is safe to repeat is known per call, not per HTTP method;
- a failure may be an HTTP 200 with the code in its body, and a body may break off in the middle;
- a change that must happen once needs a look at Kaggle's state between two attempts;
- it prints nothing while it waits, and waits for a long Retry-After where kit gives up.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kit.kaggle.errors import KaggleError, UncertainError, http_status

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try and how long to wait between attempts, in seconds.

    Args:
        attempts: calls in all, the first one included.
        first_s: the first pause; each later one is twice as long.
        longest_s: upper bound of our own pauses.
        retry_after_s: the longest Retry-After that is waited for. A server may ask for any time;
            if it asks for more, the call fails.
        sleep: replaced in tests.
        say: called with a message before each pause.
    """

    attempts: int = 6
    first_s: float = 1.0
    longest_s: float = 60.0
    retry_after_s: float = 300.0
    sleep: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda _: None

    def pause(self, error: BaseException, attempt: int) -> float | None:
        """Return the seconds to wait after failed attempt `attempt` (from 0), None to give up."""
        if attempt + 1 >= self.attempts or not _is_transient(error):
            return None

        requested = _requested_pause(error)
        if requested is not None:
            return requested if requested <= self.retry_after_s else None

        # Jitter keeps several processes that failed together from returning together.
        return min(self.longest_s, self.first_s * 2**attempt) * random.uniform(0.75, 1.25)

    def wait(self, error: BaseException, seconds: float) -> None:
        """Say what failed and how long the pause is, then sleep."""
        status = http_status(error)
        if status:
            problem = f"Kaggle answers {status}"
        else:
            problem = f"no answer from Kaggle ({type(error).__name__})"

        self.say(f"{problem}; trying again in {seconds:.0f} s")
        self.sleep(seconds)


def retry_call(call: Callable[[], T], policy: RetryPolicy) -> T:
    """Return the result of a call that is safe to repeat, or raise its last error."""
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            pause = policy.pause(error, attempt)
            if pause is None:
                raise
            policy.wait(error, pause)
        attempt += 1


def call_once(
    call: Callable[[], T], find_effect: Callable[[], T | None], policy: RetryPolicy, action: str
) -> T:
    """Return the result of a call that must not take effect twice.

    A dropped connection, a timeout or a 5xx leaves open whether the call took effect. `find_effect`
    then looks for the effect, and what it finds replaces the call's own result. The call is
    repeated only if it finds nothing (None).

    Raises:
        UncertainError: `find_effect` failed.
    """
    attempt = 0
    while True:
        try:
            return call()
        except Exception as error:
            if not _is_transient(error):
                raise
            pause = policy.pause(error, attempt)
            may_have_happened = not _was_not_processed(error)

            # Also wait after the last attempt: the effect may show only a moment later.
            if pause is not None or may_have_happened:
                policy.wait(error, policy.first_s if pause is None else pause)
            if may_have_happened:
                effect = require_known_effect(find_effect, action)
                if effect is not None:
                    return effect
            if pause is None:
                raise
        attempt += 1


def require_known_effect(find_effect: Callable[[], T | None], action: str) -> T | None:
    """Return what `find_effect` finds of a change whose own answer was lost or empty.

    Raises:
        UncertainError: `find_effect` failed, so it is unknown whether the change took effect.
    """
    import requests

    try:
        return find_effect()
    except (KaggleError, requests.exceptions.RequestException) as error:
        reason = error.problem if isinstance(error, KaggleError) else type(error).__name__
        raise UncertainError(
            f"{action}: it is not known whether that took effect: no usable answer, and the check "
            f"afterwards failed ({reason})",
            "Before you repeat it, check whether it is there: with `kit submissions`, with "
            "`kit kernels status`, or for a dataset on your page at Kaggle.",
        ) from None


def _requested_pause(error: BaseException) -> float | None:
    """Return the seconds that the Retry-After header asks for (RFC 9110 §10.2.3), or None."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util import Retry

    response = getattr(error, "response", None)
    value = response.headers.get("Retry-After") if response is not None else None
    if not value:
        return None
    try:
        return Retry().parse_retry_after(value)
    except (InvalidHeader, ValueError, OverflowError):
        return None


def _is_transient(error: BaseException) -> bool:
    """Whether the same call may work later: 408, 429, 5xx, a lost connection, a timeout."""
    import requests

    # An SSLError is a ConnectionError, but an invalid certificate stays invalid.
    if isinstance(error, requests.exceptions.SSLError):
        return False

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


def _was_not_processed(error: BaseException) -> bool:
    """Whether the failed call changed nothing for sure: refused for its rate or not delivered."""
    import requests

    if http_status(error) == 429 or isinstance(error, requests.exceptions.ConnectTimeout):
        return True

    # requests wraps urllib3's reason in a ConnectionError, and only its repr says which one.
    return "NewConnectionError" in repr(error) or "NameResolutionError" in repr(error)
