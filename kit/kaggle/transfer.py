"""Download and upload files over signed addresses, resumed after a drop.

Use `fetch_file` and `upload_file`. A file arrives whole or not at all; Kaggle's own downloader
writes under the final name, saves an error page as the file, and hangs on a stalled socket.
"""

import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import KitError
from kit.kaggle.client import Client
from kit.kaggle.errors import RefusedError, UnreachableError, http_status
from kit.kaggle.retry import retry_call

if TYPE_CHECKING:
    import requests

# At most this many bytes are lost when a connection drops.
_CHUNK_SIZE = 1 << 16

# Storage answers one of these once a signed address has expired.
_EXPIRED = (400, 403, 410)


def fetch_file(
    client: Client,
    address: Callable[[], str],
    target: Path,
    action: str,
    say: Callable[[str], None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Download to a hidden file beside `target`; return it, complete, for the caller to rename.

    The hidden name carries the identity of the remote file (its ETag). A later run therefore
    continues where this one stopped, and never appends to the bytes of another version.

    Args:
        address: returns a signed address. It is called for every attempt because these expire.
        target: where the file will be in the end.
        action: what this does, for errors.
        say: called with a message when a download continues.
        progress: called with the bytes that have arrived and the bytes in all.

    Raises:
        KaggleError: no answer, an error page instead of the file, a length that stays wrong.
        KitError: the disk is full or the file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with client.explain_errors(action):
            return _fetch_with_retries(client, address, target, action, say, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(target, 0, action) from error
        raise KitError(
            f"{action}: {target} cannot be written ({error.strerror})", "Choose another folder."
        ) from error


def discard_partial(target: Path) -> None:
    """Remove what an interrupted download of `target` left."""
    for part in _parts(target):
        part.unlink()


def upload_file(client: Client, url: str, path: Path, action: str) -> None:
    """Send a file to a signed address, and continue after a drop where the receiver stopped.

    Source: the resumable uploads of Google Cloud Storage (308 with a Range header).

    Raises:
        KaggleError: it cannot be sent.
    """
    size = path.stat().st_size
    # How many bytes have arrived; None if only the receiver knows.
    received: int | None = 0

    def send() -> None:
        nonlocal received
        if received is None:
            received = _received(client, url, size)
        if received == size and size:
            return

        # However this attempt ends, the next one has to ask how much arrived.
        start = received
        received = None
        headers = {"Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"

        # requests sends an empty file chunked, which storage does not take; an empty body it does.
        with path.open("rb") as file:
            file.seek(start)
            response = client.put(url, file if size else b"", headers)
        if response.status_code not in (200, 201):
            response.raise_for_status()
            raise RefusedError(
                f"{action}: the upload ended with status {response.status_code}", "Run it again."
            )

    with client.explain_errors(action):
        retry_call(send, client.patience)


def _fetch_with_retries(
    client: Client,
    address: Callable[[], str],
    target: Path,
    action: str,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Path:
    attempt = 0
    most_bytes = -1
    while True:
        try:
            return _attempt(client, address(), target, action, say, progress)
        except Exception as error:
            # An attempt that brought the download forward starts the retries afresh, so that a
            # large file can get through a connection that drops again and again.
            have = sum(part.stat().st_size for part in _parts(target))
            if have > most_bytes >= 0:
                attempt = 0
            most_bytes = max(have, most_bytes)

            pause = client.patience.pause(error, attempt)
            if pause is not None:
                client.patience.wait(error, pause)
            # An address that has expired is worth one attempt with a new one, without a pause.
            elif attempt or http_status(error) not in _EXPIRED:
                raise
        attempt += 1


def _attempt(
    client: Client,
    url: str,
    target: Path,
    action: str,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Path:
    """Download once, continuing the hidden file of this version if there is one."""
    import requests

    response = client.get(url)
    _refuse_page(response, target, action)
    length = _length(response)
    part = _part(target, response)
    for stale in _parts(target):
        if stale != part:
            stale.unlink()

    have = part.stat().st_size if part.exists() else 0
    if have and have == length:
        response.close()
        return part

    # Ask for the rest only where storage can send it and the hidden file is not too long.
    can_resume = response.headers.get("Accept-Ranges") == "bytes"
    if can_resume and length is not None and 0 < have < length:
        condition = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        response.close()
        response = client.get(url, {"Range": f"bytes={have}-", "If-Range": condition})
        _refuse_page(response, target, action)

        # Storage sends the whole file with status 200 if it has changed in between.
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 206 and content_range.startswith(f"bytes {have}-"):
            say(f"{target.name}: continuing at {have / 1e6:,.1f} of {length / 1e6:,.1f} MB")
        else:
            have = 0
    else:
        have = 0

    if length is not None and length - have > shutil.disk_usage(target.parent).free:
        raise _disk_full(target, length - have, action)

    with response, part.open("ab" if have else "wb") as file:
        try:
            for chunk in response.iter_content(_CHUNK_SIZE):
                file.write(chunk)
                have += len(chunk)
                progress(have, length or have)
        finally:
            # A later run continues at the file's length, so its bytes must be on the disk.
            file.flush()
            os.fsync(file.fileno())

    size = part.stat().st_size
    if length is not None and size != length:
        if size > length:
            part.unlink()
        raise requests.exceptions.ConnectionError(f"{size} bytes of {length} arrived")
    return part


def _received(client: Client, url: str, size: int) -> int:
    """Return how many bytes of an interrupted upload have arrived."""
    response = client.put(url, b"", {"Content-Range": f"bytes */{size}"})
    if response.status_code in (200, 201):
        return size
    if response.status_code == 308:
        match = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
        return int(match[1]) + 1 if match else 0
    response.raise_for_status()
    return 0


def _parts(target: Path) -> list[Path]:
    """Return the hidden files of `target`, of whichever versions."""
    return sorted(target.parent.glob(f".{glob.escape(target.name)}.*.part"))


def _part(target: Path, response: "requests.Response") -> Path:
    """Return the hidden file for the version of `target` that `response` offers."""
    headers = response.headers
    identity = headers.get("ETag") or headers.get("Last-Modified") or ""
    tag = hashlib.sha256(f"{identity} {headers.get('Content-Length')}".encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{tag}.part")

    # Without an identity nothing says that earlier bytes belong to this version.
    if not identity:
        part.unlink(missing_ok=True)
    return part


def _length(response: "requests.Response") -> int | None:
    """Return the announced length, None if there is none or it is that of compressed bytes."""
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdigit() and "Content-Encoding" not in response.headers else None


def _refuse_page(response: "requests.Response", target: Path, action: str) -> None:
    """Raise if a web page came instead of the file."""
    content_type = response.headers.get("Content-Type", "")
    if "text/html" in content_type and target.suffix not in (".html", ".htm"):
        response.close()
        raise UnreachableError(
            f"{action}: a web page came in place of {target.name}; nothing was saved",
            "Run it again later: it may be an error page of Kaggle's, or that of a proxy or a "
            "login in between.",
        )


def _disk_full(target: Path, needed: int, action: str) -> KitError:
    free = shutil.disk_usage(target.parent).free
    need = f", {needed / 1e6:,.0f} MB are needed" if needed else ""
    return KitError(
        f"{action}: the disk of {target.parent} is full ({free / 1e6:,.0f} MB free{need})",
        "Free some space or choose another folder, then run it again; what has arrived is kept.",
    )
