"""Say whether the Hugging Face hub can be asked, before a library waits for it.

Use `hub_is_reachable`, `skip_dead_hub` and `is_in_hub_cache`. Without a network transformers would
ask for each file six times, for over a minute in all, before it looks into the cache or fails.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

_TRIES = 2
_TIMEOUT_S = 2.0

# Looking up a name and following redirects have no limit of their own.
_LIMIT_S = 4.5

# An answer is kept for so long: a notebook may be connected to the network later.
_KEPT_S = 60.0


def hub_is_reachable(hub_id: str) -> bool:
    """Return whether the hub itself answers about a repository, within five seconds.

    A proxy or the sign-in page of a network may answer in its place.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = f"{constants.ENDPOINT}/{hub_id}/resolve/main/config.json"
    return _is_reachable(url, int(time.monotonic() / _KEPT_S))


@functools.lru_cache(maxsize=8)
def _is_reachable(url: str, _period: int) -> bool:
    from huggingface_hub import get_session

    found: list[bool] = []

    def ask() -> None:
        for _ in range(_TRIES):
            # The exceptions are those of the HTTP library, which changes with huggingface_hub.
            with contextlib.suppress(Exception):
                if _is_from_hub(get_session().head(url, timeout=_TIMEOUT_S)):
                    found.append(True)
                    return

    # At its end the program does not wait for a daemon thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_LIMIT_S)
    return bool(found)


def _is_from_hub(answer: Any) -> bool:
    """Return whether a response is the hub's: a file, an error in its own words, or a pause."""
    if answer.status_code == 429 or {"x-error-code", "retry-after"} & set(answer.headers):
        return True
    is_page = "text/html" in answer.headers.get("content-type", "")
    return answer.status_code < 400 and not is_page


@contextlib.contextmanager
def skip_dead_hub(source: Path | str) -> Generator[None]:
    """Load from the hub's cache alone in this block if the hub cannot be reached.

    transformers looks for some files even where `local_files_only` is asked for, so the hub's own
    switch is set.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (isinstance(source, Path) or hub_is_reachable(source))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_in_hub_cache(hub_id: str) -> bool:
    """Return whether an encoder was downloaded before to huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
