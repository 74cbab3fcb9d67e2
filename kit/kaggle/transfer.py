"""Files over a signed address, whole or not at all: resumed after a drop, measured against the announced length.

Kaggle's own downloader writes under the final name, saves an error page as the file, and hangs on a stalled socket.
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

Say = Callable[[str], None]
Progress = Callable[[int, int], None]
_PIECE = 1 << 16  # what a dropped connection loses at most
_EXPIRED = (400, 403, 410)  # what storage answers for an address whose time is over


def _quiet(done: int, total: int) -> None:
    """Shows nothing."""


def fetch_file(
    client: Client,
    address: Callable[[], str],
    target: Path,
    doing: str,
    say: Say,
    progress: Progress = _quiet,
) -> Path:
    """Downloads to a hidden file beside `target` and returns that file, complete; the caller gives it its name.

    The hidden name carries the identity of the remote file (its ETag), so a later run continues where this one
    stopped, and never appends to another version's bytes.

    Args:
        address: gives a signed address; asked again for each attempt, because they expire.
        target: where the file will be in the end.
        doing: what this is, for errors.
        progress: called with the bytes that are there and those in all.

    Raises:
        KaggleError: no answer, an error page in place of the file, a length that stays wrong.
        KitError: the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    attempt, most = 0, -1

    def run() -> Path:
        nonlocal attempt, most
        while True:
            try:
                return _attempt(client, address(), target, doing, say, progress)
            except Exception as error:
                have = sum(p.stat().st_size for p in _parts(target))
                attempt, most = (
                    (0 if have > most >= 0 else attempt),
                    max(have, most),
                )  # progress earns new patience
                pause = client.patience.pause(error, attempt)
                if pause is not None:
                    client.patience.wait(error, pause)
                elif attempt or http_status(error) not in _EXPIRED:
                    raise
            attempt += 1

    try:
        return client.explained(run, doing)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(target, 0, doing) from error
        raise KitError(
            f"{doing}: {target} cannot be written ({error.strerror})", "Choose another folder."
        ) from error


def _attempt(
    client: Client, url: str, target: Path, doing: str, say: Say, progress: Progress
) -> Path:
    import requests

    response = client.get(url)
    _refuse_page(response, target, doing)
    length, part = _length(response), _part(target, response)
    for stale in _parts(target):
        if stale != part:
            stale.unlink()
    have = part.stat().st_size if part.exists() else 0
    if length is not None and have > length:
        have = 0
    if have and have == length:
        response.close()
        return part
    if have and response.headers.get("Accept-Ranges") == "bytes" and length is not None:
        condition = response.headers.get("ETag") or response.headers.get("Last-Modified", "")
        response.close()
        response = client.get(url, {"Range": f"bytes={have}-", "If-Range": condition})
        _refuse_page(response, target, doing)
        if response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        ):
            say(f"{target.name}: continuing at {have / 1e6:,.1f} of {length / 1e6:,.1f} MB")
        else:
            have = 0
    else:
        have = 0
    if length is not None and length - have > shutil.disk_usage(target.parent).free:
        raise _full(target, length - have, doing)
    with response, part.open("ab" if have else "wb") as file:
        try:
            for piece in response.iter_content(_PIECE):
                file.write(piece)
                have += len(piece)
                progress(have, length or have)
        finally:  # a later run goes on from its length, so its bytes have to be there, too
            file.flush()
            os.fsync(file.fileno())
    size = part.stat().st_size
    if length is not None and size != length:
        if size > length:
            part.unlink()
        raise requests.exceptions.ConnectionError(f"{size} bytes of {length} arrived")
    return part


def discard_partial(target: Path) -> None:
    """Removes what an interrupted download of `target` left, once it is of no more use."""
    for part in _parts(target):
        part.unlink()


def upload_file(client: Client, url: str, path: Path, doing: str) -> None:
    """Sends a file to a signed address, continuing after a drop where the receiver says it stopped.

    Source: the resumable-upload protocol of Google Cloud Storage (308 with a Range header).
    """
    size = path.stat().st_size
    start = 0

    def send() -> None:
        nonlocal start
        if start < 0:
            start = _received(client, url, size)
        if start == size and size:
            return
        sending, start = start, -1  # whatever happens now, ask next time
        headers = {"Content-Type": "application/octet-stream"}
        if sending:
            headers["Content-Range"] = f"bytes {sending}-{size - 1}/{size}"
        with path.open("rb") as file:
            file.seek(sending)
            response = client.put(url, file if size else b"", headers)
        if response.status_code not in (200, 201):
            response.raise_for_status()
            raise RefusedError(
                f"{doing}: the upload ends with {response.status_code}", "Run it again."
            )

    client.explained(lambda: retry_call(send, client.patience), doing)


def _received(client: Client, url: str, size: int) -> int:
    """How many bytes of an interrupted upload have arrived; all of them once it is complete."""
    response = client.put(url, b"", {"Content-Range": f"bytes */{size}"})
    if response.status_code in (200, 201):
        return size
    if response.status_code == 308:
        match = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
        return int(match[1]) + 1 if match else 0
    response.raise_for_status()
    return 0


def _parts(target: Path) -> list[Path]:
    return sorted(p for p in target.parent.glob(f".{glob.escape(target.name)}.*.part"))


def _part(target: Path, response: "requests.Response") -> Path:
    headers = response.headers
    identity = headers.get("ETag") or headers.get("Last-Modified") or ""
    tag = hashlib.sha256(f"{identity} {headers.get('Content-Length')}".encode()).hexdigest()[:16]
    part = target.with_name(f".{target.name}.{tag}.part")
    if not identity:
        part.unlink(missing_ok=True)  # nothing says that its bytes belong to this file
    return part


def _length(response: "requests.Response") -> int | None:
    value = response.headers.get("Content-Length", "")
    return int(value) if value.isdigit() and "Content-Encoding" not in response.headers else None


def _refuse_page(response: "requests.Response", target: Path, doing: str) -> None:
    kind = response.headers.get("Content-Type", "")
    if "text/html" in kind and target.suffix not in (".html", ".htm"):
        response.close()
        raise UnreachableError(
            f"{doing}: a web page came in place of {target.name}; nothing was saved",
            "A proxy or a login page may stand in between, or Kaggle shows an error page: run it again later.",
        )


def _full(target: Path, needed: int, doing: str) -> KitError:
    free = shutil.disk_usage(target.parent).free
    need = f", {needed / 1e6:,.0f} MB are needed" if needed else ""
    return KitError(
        f"{doing}: the disk of {target.parent} is full ({free / 1e6:,.0f} MB free{need})",
        "Free some space or choose another folder, then run it again; what has arrived is kept.",
    )
