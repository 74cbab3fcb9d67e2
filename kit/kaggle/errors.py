"""What Kaggle refused or did not answer, as one message with the next step.

Its own client raises `HTTPError` for everything, and answers 403 both for "not yours" and "does not exist".
"""

from kit.errors import KitError

SETTINGS = "https://www.kaggle.com/settings/api"


class KaggleError(KitError):
    """Kaggle refused, failed, or cannot be reached; the message says which."""


class CredentialsError(KaggleError):
    """No credential was found, or Kaggle does not accept the one that was."""


class RulesError(KaggleError):
    """The competition's rules have not been accepted by this account."""


class NotFoundError(KaggleError):
    """Kaggle knows no such thing, or does not show it to this account."""


class BusyError(KaggleError):
    """Too many requests, or too many sessions at once: the same thing can work later."""


class UnreachableError(KaggleError):
    """No usable answer: network, timeout, Kaggle's own failure. The same thing can work later."""


class UncertainError(KaggleError):
    """It is not known whether a change took effect, so that it must not simply be made again."""


class RefusedError(KaggleError):
    """Kaggle understood and said no."""


class RunFailedError(KaggleError):
    """A kernel ran and ended without success; carries the end of its log."""

    def __init__(self, problem: str, hint: str = "", log_tail: str = ""):
        super().__init__(problem, hint)
        self.log_tail = log_tail


def http_status(error: BaseException) -> int:
    """The HTTP status of a failed call, or 0 where there was no answer.

    Kaggle also answers failures as HTTP 200 with `{"code": 403}` in the body; the body's code wins. A response
    object is falsy for 4xx, hence `is None`.
    """
    response = getattr(error, "response", None)
    if response is None:
        return 0
    if "json" in response.headers.get("Content-Type", ""):
        try:
            code = response.json().get("code", 0)
        except (ValueError, AttributeError):
            code = 0
        if isinstance(code, int) and code >= 400:
            return code
    return int(response.status_code)


def explain_http_error(
    error: Exception, doing: str, text: str, refused: CredentialsError, page: str = ""
) -> KaggleError:
    """The `KaggleError` for a failed call.

    Args:
        error: what the client raised.
        doing: what was being done, as a phrase: "listing the files of …".
        text: the error's own words, with every secret taken out.
        refused: what to raise for a 401.
        page: the address of the competition, if the call was about one.
    """
    status = http_status(error)
    name = type(error).__name__
    if status == 401:
        return refused
    if status == 403 and "rules" in text.lower():
        return RulesError(
            f"{doing}: this account has not accepted the competition's rules",
            f"Open {page or 'the competition'}/rules in a browser, accept them, then run it again.",
        )
    if status in (403, 404) and page:
        return NotFoundError(
            f"{doing}: Kaggle answers {status}: {text}",
            f"Check the name of the competition: does {page} exist? To use it, join it and accept {page}/rules.",
        )
    if status in (403, 404):
        return NotFoundError(
            f"{doing}: Kaggle answers {status}: {text}",
            "Kaggle says this for what does not exist as well as for what is not yours: check the spelling, "
            "and with `kit doctor --online` which account is used.",
        )
    if status == 429:
        return BusyError(
            f"{doing}: Kaggle answers 429 (too many requests)",
            "Wait a few minutes, then run it again.",
        )
    if status >= 500:
        return UnreachableError(
            f"{doing}: Kaggle fails with {status}: {text}",
            "Run it again later; see https://status.kaggle.com.",
        )
    if status >= 400:
        return RefusedError(f"{doing}: Kaggle refuses ({status}): {text}")
    if "SSL" in name:
        return UnreachableError(
            f"{doing}: the encrypted connection to Kaggle failed: {text}",
            "Check the clock, and whether a proxy replaces certificates (REQUESTS_CA_BUNDLE names its authority).",
        )
    if "Timeout" in name or "timed out" in text.lower():
        return UnreachableError(
            f"{doing}: no answer from Kaggle in time", "Check the network, then run it again."
        )
    return UnreachableError(
        f"{doing}: Kaggle cannot be reached ({name}: {text})",
        "Check the network and HTTPS_PROXY, then run it again.",
    )
