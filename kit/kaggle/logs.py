"""Read a kernel's log as plain text.

Use `log_records` to follow it, `read_log` for the whole, `LogWatcher` for the newest line.

Control characters are removed, because a terminal would obey the escape sequences in a log.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.kaggle.client import Client
from kit.kaggle.errors import UnreachableError
from kit.kaggle.kernel_ref import KernelRef

if TYPE_CHECKING:
    import requests

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_END = "END_OF_LOG"
_RECONNECTS = 5

# A connection that lasted this long was closed because the training printed nothing, not because
# the network is bad, so it does not count as a failure.
_QUIET_S = 30.0


def read_log(client: Client, ref: KernelRef) -> str:
    """Return the whole log, following a running kernel to its end."""
    return "".join(log_records(client, ref))


def log_records(client: Client, ref: KernelRef) -> Iterator[str]:
    """Yield the log of a finished kernel, or that of a running one as it grows.

    Raises:
        KaggleError: the log cannot be read.
    """
    request = {**ref.request(), "pageSize": 1}
    answer = client.call("kernels.list_kernel_session_output", request, f"reading the log of {ref}")
    if answer.log:
        yield plain_log(answer.log)
    else:
        yield from follow_log(client, ref)


class LogWatcher:
    """The newest line of a running kernel's log, followed by a thread with a connection of its own.

    A log that cannot be followed has no newest line; whoever waits for the kernel goes on waiting.
    """

    def __init__(self, client: Client, ref: KernelRef):
        self._line = ""
        self._thread = threading.Thread(target=self._follow, args=(client, ref), daemon=True)
        self._thread.start()

    def take(self) -> str:
        """Return the newest line if it has changed since the last call, else ""."""
        line, self._line = self._line, ""
        return line

    def _follow(self, client: Client, ref: KernelRef) -> None:
        with contextlib.suppress(Exception), Client(client.credential) as own:
            for text in follow_log(own, ref):
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                self._line = lines[-1] if lines else self._line


def plain_log(log: str) -> str:
    """Return the text of Kaggle's JSON array of {stream_name, time, data}; other text as it is."""
    try:
        events = json.loads(log)
    except ValueError:
        return _CONTROL.sub("", log)

    if not isinstance(events, list):
        return _CONTROL.sub("", log)
    return "".join(_event_text(event) for event in events)


def log_tail(text: str, lines: int = 25) -> str:
    """Return the last lines of a log."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def follow_log(client: Client, ref: KernelRef) -> Iterator[str]:
    """Yield the log in pieces from its beginning to its end, reconnecting where it breaks.

    Raises:
        KaggleError: the log cannot be read, or the connection keeps breaking.
    """
    import requests

    seen = 0
    failures = 0
    doing = f"following the log of {ref}"
    label = f"?versionLabel=v{ref.version}" if ref.version else ""
    path = f"kernels/logs/stream/{ref.name}{label}"
    while True:
        opened = time.monotonic()
        with client.open_stream(path, doing) as response:
            try:
                for number, event in enumerate(_events(response)):
                    if event is None:
                        return
                    # A new connection sends the log from its beginning again.
                    if number >= seen:
                        seen += 1
                        failures = 0
                        yield _event_text(event)
                return
            except requests.exceptions.RequestException as error:
                failures += time.monotonic() - opened < _QUIET_S
                if failures > _RECONNECTS:
                    raise UnreachableError(
                        f"{doing}: the connection keeps breaking ({type(error).__name__})",
                        "Try again later.",
                    ) from None
        client.patience.sleep(client.patience.first_s)


def _events(response: "requests.Response") -> Iterator[Any]:
    """Yield the events of a log, and None where a live stream says that the run has ended."""
    # A finished run answers with its whole log, not with a stream of events.
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        try:
            events = json.loads(response.text)
        except ValueError:
            events = [{"data": response.text}]
        yield from events if isinstance(events, list) else [events]
        return

    # An event stream is UTF-8 by its specification; requests would guess another encoding.
    for raw_line in response.iter_lines():
        line = raw_line.decode("utf-8", "replace")
        if not line.startswith("data:"):
            continue
        payload = line.removeprefix("data:").lstrip()
        if payload == _END:
            yield None
            continue
        try:
            yield json.loads(payload)
        except ValueError:
            yield {"data": payload + "\n"}


def _event_text(event: Any) -> str:
    return _CONTROL.sub("", str(event.get("data", ""))) if isinstance(event, dict) else ""
