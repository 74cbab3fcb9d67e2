"""Say whether the Hugging Face hub can be asked, before a library waits for it.

Use `hub_is_reachable`, `skip_dead_hub` and `is_in_hub_cache`. Without a network transformers would
ask for each file six times, for over a minute in all, before it looks into the cache or fails.
"""

import contextlib
import functools
import time
from collections.abc import Generator
from pathlib import Path

_TRIES = 2
_TIMEOUT_S = 2.0

# An answer is kept for so long: a notebook may be connected to the network later.
_KEPT_S = 60.0


def hub_is_reachable() -> bool:
    """Return whether the hub answers, within four seconds."""
    return _is_reachable(int(time.monotonic() / _KEPT_S))


@functools.lru_cache(maxsize=1)
def _is_reachable(_period: int) -> bool:
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    for _ in range(_TRIES):
        try:
            get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
        # The exceptions are those of the HTTP library, which changes with huggingface_hub.
        except Exception:
            continue
        return True
    return False


@contextlib.contextmanager
def skip_dead_hub(source: Path | str) -> Generator[None]:
    """Load from the hub's cache alone in this block if the hub cannot be reached.

    transformers looks for some files even where `local_files_only` is asked for, so the hub's own
    switch is set.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not (isinstance(source, Path) or hub_is_reachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_in_hub_cache(hub_id: str) -> bool:
    """Return whether an encoder was downloaded before to huggingface_hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(hub_id, "config.json"), str)
