"""Define Kaggle's errors, and turn a failed HTTP call into one. Use `explain_http_error`.

Kaggle's own client raises `HTTPError` for every failure, and Kaggle answers 403 both for "not
yours" and for "does not exist". Each class here stands for one thing that can be done next.
"""

from kit.errors import KitError

SETTINGS_URL = "https://www.kaggle.com/settings/api"


class KaggleError(KitError):
    """Kaggle refused, failed, or cannot be reached. Base class of the others."""


class CredentialsError(KaggleError):
    """No credential was found, or Kaggle does not accept the one that was sent."""


class RulesError(KaggleError):
    """This account has not accepted the competition's rules."""


class NotFoundError(KaggleError):
    """The thing does not exist, or this account may not see it."""


class BusyError(KaggleError):
    """Too many requests, or too many sessions at once. The same call can work later."""


class UnreachableError(KaggleError):
    """No usable answer: network, timeout, a failure at Kaggle. The same call can work later."""


class UncertainError(KaggleError):
    """It is unknown whether a change took effect, so it must not simply be repeated."""


class RefusedError(KaggleError):
    """Kaggle refused the request, and would refuse it again."""


class RunFailedError(KaggleError):
    """A kernel ended without success. `log_tail` is the end of its log."""

    def __init__(self, problem: str, hint: str = "", log_tail: str = ""):
        super().__init__(problem, hint)
        self.log_tail = log_tail


def http_status(error: BaseException) -> int:
    """Return the HTTP status of a failed call, or 0 if there was no answer."""
    # A response with a 4xx or 5xx status is falsy, so it has to be compared with None.
    response = getattr(error, "response", None)
    if response is None:
        return 0

    # Kaggle also sends failures as HTTP 200 with `{"code": 403}` in the body. The body's code wins.
    if "json" in response.headers.get("Content-Type", ""):
        try:
            code = response.json().get("code", 0)
        except (ValueError, AttributeError):
            code = 0
        if isinstance(code, int) and code >= 400:
            return code

    return int(response.status_code)


def explain_http_error(
    error: Exception, action: str, text: str, not_accepted: CredentialsError, page: str = ""
) -> KaggleError:
    """Return the `KaggleError` for a failed call.

    Args:
        error: what the HTTP client raised.
        action: what was being done, as a phrase: "listing the files of …".
        text: the error's own words, with every secret removed.
        not_accepted: the error to return for a 401, which means that the credential is no good.
        page: the address of the competition, if the call was about one.
    """
    status = http_status(error)
    name = type(error).__name__

    if status == 401:
        return not_accepted
    if status == 403 and "rules" in text.lower():
        return RulesError(
            f"{action}: this account has not accepted the competition's rules",
            f"Open {page or 'the competition'}/rules in a browser, accept them, then run it again.",
        )
    if status in (403, 404) and page:
        return NotFoundError(
            f"{action}: Kaggle answers {status}: {text}",
            f"Check the name of the competition: does {page} exist? "
            f"To use it, join it and accept {page}/rules.",
        )
    if status in (403, 404):
        return NotFoundError(
            f"{action}: Kaggle answers {status}: {text}",
            "Kaggle gives this answer for what does not exist and for what is not yours: check the "
            "spelling, and see with `kit doctor --online` which account is used.",
        )
    if status == 429:
        return BusyError(
            f"{action}: Kaggle answers 429 (too many requests)",
            "Wait a few minutes, then run it again.",
        )
    if status >= 500:
        return UnreachableError(
            f"{action}: Kaggle fails with {status}: {text}",
            "Run it again later; see https://status.kaggle.com.",
        )
    if status >= 400:
        return RefusedError(f"{action}: Kaggle refused the request ({status}): {text}")

    # From here on there was no answer at all.
    if "SSL" in name:
        return UnreachableError(
            f"{action}: the encrypted connection to Kaggle failed: {text}",
            "Check this machine's clock, and whether a proxy replaces certificates "
            "(set REQUESTS_CA_BUNDLE to the proxy's authority).",
        )
    if "Timeout" in name or "timed out" in text.lower():
        return UnreachableError(
            f"{action}: no answer from Kaggle in time", "Check the network, then run it again."
        )
    return UnreachableError(
        f"{action}: Kaggle cannot be reached ({name}: {text})",
        "Check the network and HTTPS_PROXY, then run it again.",
    )
