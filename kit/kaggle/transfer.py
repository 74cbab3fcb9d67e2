"""Download and upload files over signed addresses, resumed after a drop.

Use `fetch_file` and `upload_file`. A file arrives whole or not at all; Kaggle's own downloader
writes under the final name, saves an error page as the file, and hangs on a stalled socket.
"""

import base64
import errno
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

# Storage answers one of these once it has forgotten an upload session, which lives for a week.
_SESSION_EXPIRED = (404, 410)
_UPLOAD_SESSIONS = 3


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


def upload_file(client: Client, open_upload: Callable[[], Any], path: Path, action: str) -> str:
    """Send a file to Kaggle's storage and return the token that stands for it in a request.

    The upload continues after a drop where the receiver stopped, and starts again in a new upload
    session where Kaggle has forgotten the old one.

    Args:
        open_upload: ask Kaggle for an upload session, an answer with `create_url` and `token`.
        action: what this does, for errors.

    Raises:
        KaggleError: it cannot be sent.
    """
    with client.explain_errors(action):
        for _ in range(_UPLOAD_SESSIONS - 1):
            session = open_upload()
            try:
                _send_file(client, session.create_url, path, action)
                return session.token
            except OSError as error:
                if http_status(error) not in _SESSION_EXPIRED:
                    raise
        session = open_upload()
        _send_file(client, session.create_url, path, action)
        return session.token


def _send_file(client: Client, url: str, path: Path, action: str) -> None:
    """Send a file to a signed address.

    Source: the resumable uploads of Google Cloud Storage (308 with a Range header).
    """
    import requests

    size = path.stat().st_size
    # How many bytes have arrived; None if only the receiver knows.
    received: int | None = 0

    def send() -> None:
        nonlocal received
        if received is None:
            received = _received(client, url, size)
        while not size or received < size:
            # However this request ends, the next attempt has to ask how much arrived.
            start = received
            received = None
            headers = {"Content-Type": "application/octet-stream"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"

            # requests sends an empty file chunked, which storage does not take; an empty body it
            # does.
            with path.open("rb") as file:
                file.seek(start)
                response = client.put(url, file if size else b"", headers)
            if response.status_code in (200, 201):
                return
            if response.status_code != 308:
                response.raise_for_status()
                raise RefusedError(
                    f"{action}: the upload ended with status {response.status_code}",
                    "Run it again.",
                )

            # The receiver took a part and waits for the rest.
            received = _range_end(response)
            if received <= start:
                raise requests.exceptions.ConnectionError(f"{received} bytes of {size} arrived")

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
        _compare_md5(part, response)
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
    _compare_md5(part, response)
    return part


def _compare_md5(part: Path, response: "requests.Response") -> None:
    """Compare a complete download with the MD5 that Google Cloud Storage sends, if it does.

    Raises:
        requests.ConnectionError: they differ; the download is removed, and a retry starts afresh.
    """
    import requests

    # Of a file that is stored compressed the hash is that of the compressed bytes.
    encoding = response.headers.get("x-goog-stored-content-encoding", "identity")
    match = re.search(r"\bmd5=([A-Za-z0-9+/]{22}==)", response.headers.get("x-goog-hash", ""))
    if match is None or encoding != "identity":
        return

    with part.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    if base64.b64encode(digest).decode() != match[1]:
        part.unlink()
        raise requests.exceptions.ConnectionError("damaged bytes arrived: their MD5 is wrong")


def _received(client: Client, url: str, size: int) -> int:
    """Return how many bytes of an interrupted upload have arrived."""
    response = client.put(url, b"", {"Content-Range": f"bytes */{size}"})
    if response.status_code in (200, 201):
        return size
    if response.status_code == 308:
        return _range_end(response)
    response.raise_for_status()
    return 0


def _range_end(response: "requests.Response") -> int:
    """Return how many bytes have arrived, by the Range header of a 308."""
    match = re.fullmatch(r"bytes=0-(\d+)", response.headers.get("Range", ""))
    return int(match[1]) + 1 if match else 0


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
