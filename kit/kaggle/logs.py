"""A kernel's log as text, at once or as it grows, without what could play tricks on a terminal."""

import json
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kit.kaggle.client import Client
from kit.kaggle.errors import UnreachableError

if TYPE_CHECKING:
    from kit.kaggle.kernels import KernelRef

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_END = "END_OF_LOG"
_RECONNECTS = 5
_SILENCE_S = (
    30.0  # a connection that lasted this long was ended by a quiet training, not by the network
)


def read_log(client: Client, ref: "KernelRef") -> str:
    """The whole log, once the run has ended."""
    return "".join(log_records(client, ref))


def log_records(client: Client, ref: "KernelRef") -> Iterator[str]:
    """The log of a finished run; of one that runs, what there is and what comes until it ends.

    Raises:
        KaggleError: it cannot be read.
    """
    body = {**ref.body(), "pageSize": 1}
    answer = client.call("kernels.list_kernel_session_output", body, f"reading the log of {ref}")
    if answer.log:
        yield plain_log(answer.log)
    else:
        yield from follow_log(client, ref)


def plain_log(log: str) -> str:
    """The text of Kaggle's log format, a JSON array of {stream_name, time, data}; other text as it is."""
    try:
        events = json.loads(log)
    except ValueError:
        return _CONTROL.sub("", log)
    return (
        "".join(_data(event) for event in events)
        if isinstance(events, list)
        else _CONTROL.sub("", log)
    )


def log_tail(text: str, lines: int = 25) -> str:
    """Its last lines."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def follow_log(client: Client, ref: "KernelRef") -> Iterator[str]:
    """The log in pieces until it ends, from the beginning; a lost connection is taken up where it broke.

    Raises:
        KaggleError: it cannot be read, or the connection breaks again and again.
    """
    import requests

    seen, failures = 0, 0
    doing = f"following the log of {ref}"
    label = f"?versionLabel=v{ref.version}" if ref.version else ""
    while True:
        opened = time.monotonic()
        with client.open_stream(
            f"kernels/logs/stream/{ref.owner}/{ref.slug}{label}", doing
        ) as response:
            try:
                for number, event in enumerate(_events(response)):
                    if event is None:
                        return
                    if number >= seen:  # after a break the log comes from its beginning
                        seen, failures = seen + 1, 0
                        yield _data(event)
                return
            except requests.exceptions.RequestException as error:
                failures += time.monotonic() - opened < _SILENCE_S
                if failures > _RECONNECTS:
                    raise UnreachableError(
                        f"{doing}: the connection breaks again and again ({type(error).__name__})",
                        "Try again later.",
                    ) from None
        client.patience.sleep(client.patience.first_s)


def _events(response: Any) -> Iterator[Any]:
    """Events of a live stream, ending with None where the run says it is over; or of a finished run's log."""
    if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
        try:
            events = json.loads(response.text)
        except ValueError:
            events = [{"data": response.text}]
        yield from events if isinstance(events, list) else [events]
        return
    for line in response.iter_lines(decode_unicode=True):
        payload = line.removeprefix("data:").lstrip() if line and line.startswith("data:") else None
        if payload == _END:
            yield None
        elif payload is not None:
            try:
                yield json.loads(payload)
            except ValueError:
                yield {"data": payload + "\n"}


def _data(event: Any) -> str:
    return _CONTROL.sub("", str(event.get("data", ""))) if isinstance(event, dict) else ""
