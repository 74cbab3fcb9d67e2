"""HTTP sessions as we want them: every request with a timeout, no compression of files, no signature in a log."""

import logging
from typing import TYPE_CHECKING, Any

from kit.kaggle import credentials

if TYPE_CHECKING:
    import requests


def set_timeouts(session: "requests.Session", timeout_s: tuple[float, float]) -> None:
    """Gives every request of a session the timeout that Kaggle's client never sets."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> "requests.Response":  # type: ignore[override]
            options["timeout"] = options.get("timeout") or timeout_s
            return super().send(request, **options)

    for scheme in ("https://", "http://"):
        session.mount(scheme, Adapter())


class _Redacting(logging.Filter):
    """Takes signed queries out of the lines that urllib3 logs at DEBUG level, wherever these end up."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = credentials.redact(record.getMessage()), ()
        return True


_REDACTING = _Redacting()


def plain_session(timeout_s: tuple[float, float]) -> "requests.Session":
    """A session for signed addresses: no credential, and no compression, so that lengths are those on disk."""
    import requests

    logging.getLogger("urllib3.connectionpool").addFilter(
        _REDACTING
    )  # the same one again changes nothing
    session = requests.Session()
    session.headers["Accept-Encoding"] = "identity"
    set_timeouts(session, timeout_s)
    return session
