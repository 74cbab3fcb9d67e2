"""Serve the fake Kaggle over HTTP: JSON calls, resumable downloads and uploads, and faults."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from fake_kaggle import FakeKaggle


class ApiError(Exception):
    """A failure, sent as HTTP `status` with Kaggle's {"code", "message"} body."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclasses.dataclass
class Redirect:
    """An answer that sends the client to another address."""

    url: str


@dataclasses.dataclass
class Call:
    """One recorded request.

    Args:
        rpc: as in "kernels.KernelsApiService/SaveKernel"; None for bytes.
        auth: "basic:<user>", "bearer" or "none", never with the secret.
    """

    method: str
    path: str
    rpc: str | None
    body: Any
    auth: str
    headers: dict[str, str]
    status: int = 0


@dataclasses.dataclass
class Fault:
    """How the next `times` calls fail.

    Args:
        status: of the answer; 0 for a call that is only delayed by `stall_s`.
        drop: close the socket without an answer; with status 206, after half of the body.
        raw: sent as text/html instead of JSON.
        after: let the call take effect before it fails.
    """

    status: int = 500
    message: str = "fault"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    times: int = 1
    stall_s: float = 0.0
    drop: bool = False
    raw: bytes | None = None
    after: bool = False


def _md5(data: bytes) -> str:
    """Return an MD5 as Google Cloud Storage writes it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class Server(ThreadingHTTPServer):
    """A server with a thread per connection."""

    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Print nothing. A client that goes away, as after a timeout, is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    """Answer the requests of one connection."""

    fake: "FakeKaggle"
    protocol_version = "HTTP/1.1"
    # Otherwise every answer waits 40 ms for an acknowledgement.
    disable_nagle_algorithm = True
    timeout = 30

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_call()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def handle_call(self) -> None:
        # The path is a whole address if this server is used as a proxy.
        split = urlsplit(self.path)
        parts = [part for part in split.path.split("/") if part]
        if parts[:1] == ["api"]:
            parts = parts[1:]

        raw = self._read()
        auth = self._auth()
        auth_shown = auth.rsplit(":", 1)[0] if auth.startswith("basic:") else auth.split(":")[0]
        headers = {name: value for name, value in self.headers.items() if name != "Authorization"}
        call = Call(self.command, split.path, None, None, auth_shown, headers)
        self.fake.calls.append(call)

        try:
            if parts[:1] == ["_blob"]:
                self._blob(call, parts)
            elif parts[:1] == ["_upload"]:
                self._upload(call, parts[1], raw)
            elif parts[:4] == ["v1", "kernels", "logs", "stream"] and len(parts) == 6:
                self._logs(call, parts[4], parts[5], parse_qs(split.query), auth)
            elif len(parts) == 3 and parts[0] == "v1" and self.command == "POST":
                self._rpc(call, parts[1], parts[2], raw, auth)
            else:
                raise ApiError(404, "NotFound")
        except ApiError as error:
            self._json(
                call, error.status, {"code": error.status, "message": error.message}, error.headers
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _rpc(self, call: Call, service: str, method: str, raw: bytes, auth: str) -> None:
        call.rpc = f"{service}/{method}"
        call.body = json.loads(raw or b"{}")

        fault = self.fake.take_fault(method)
        if fault and fault.after:
            self.fake.answer(service, method, call.body, auth)
        if fault and self._fail(call, fault):
            return

        answer = self.fake.answer(service, method, call.body, auth)
        if isinstance(answer, Redirect):
            self._send(call, 302, b"", "text/html", {"Location": answer.url})
        else:
            self._json(call, 200, answer)

    def _blob(self, call: Call, parts: list[str]) -> None:
        fault = self.fake.take_fault("_blob")
        half = fault is not None and fault.drop and fault.status == 206
        if fault and not half and self._fail(call, fault):
            return None

        data = self.fake.blobs[parts[1]]
        etag = f'"{parts[1]}"'
        headers = {
            "Last-Modified": formatdate(self.fake.mtime, usegmt=True),
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "x-goog-hash": f"crc32c=AAAAAA==, md5={_md5(data)}",
            **self.fake.blob_headers,
        }
        is_zip = parts[-1].endswith(".zip")
        kind = "application/zip" if is_zip else "application/octet-stream"

        # A resumed download, unless the file has changed since its first part was sent.
        start = 0
        status = 200
        requested = self.headers.get("Range", "")
        if requested.startswith("bytes=") and self.headers.get("If-Range", etag) == etag:
            start = int(requested[6:].split("-")[0])
            status = 206
            if start >= len(data):
                return self._send(call, 416, b"", kind, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"

        body = data[start:]
        if self.fake.damaged_downloads and self.command == "GET":
            self.fake.damaged_downloads -= 1
            body = body[:-1] + bytes([body[-1] ^ 1])
        if not half:
            return self._send(call, status, body, kind, headers)
        headers["Content-Length"] = str(len(body))
        self._send(call, status, body[: len(body) // 2], kind, headers)
        self.close_connection = True
        return None

    def _upload(self, call: Call, token: str, raw: bytes) -> None:
        call.body = {"bytes": len(raw)}
        upload = self.fake.uploads.get(token)
        content_range = self.headers.get("Content-Range", "")
        if upload is None:
            return self._send(call, 404, b"", "text/plain")

        # Of an upload that takes effect before it fails, half of the bytes arrive.
        fault = self.fake.take_fault("_upload")
        if fault and fault.after:
            upload["parts"] = upload.get("parts", b"") + raw[: len(raw) // 2]
        if fault and self._fail(call, fault):
            return None

        # "bytes */N" asks how much has arrived, "bytes START-END/N" sends the rest.
        received = upload.get("parts", b"")
        if content_range.startswith("bytes */"):
            if upload["data"] is not None:
                return self._send(call, 200, b"", "text/plain")
            headers = {"Range": f"bytes=0-{len(received) - 1}"} if received else {}
            return self._send(call, 308, b"", "text/plain", headers)
        if content_range.startswith("bytes "):
            start = int(content_range[6:].split("-")[0])
            upload["data"] = received[:start] + raw
        else:
            upload["data"] = raw
        return self._send(call, 200, b"", "text/plain")

    def _logs(
        self, call: Call, owner: str, slug: str, query: dict[str, list[str]], auth: str
    ) -> None:
        call.rpc = "logs/stream"
        if auth == "none":
            raise ApiError(401, "Unauthenticated")
        label = query.get("versionLabel", [""])[0]
        version = self.fake.version(
            {"userName": unquote(owner), "kernelSlug": unquote(slug), "versionLabel": label}
        )

        # A JSON array once the run has ended, server-sent events before.
        if version["last"] in ("COMPLETE", "ERROR"):
            log = json.dumps(version["log"]).encode()
            return self._send(call, 200, log, "application/octet-stream")
        events = [json.dumps(event) for event in version["log"]] + ["END_OF_LOG"]
        stream = "".join(f"data: {event}\n\n" for event in events)
        return self._send(call, 200, stream.encode(), "text/event-stream")

    # ---- plumbing ----------------------------------------------------------------

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        body = b""
        while size := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _auth(self) -> str:
        value = self.headers.get("Authorization", "")
        if value.startswith("Basic "):
            return "basic:" + base64.b64decode(value[6:]).decode()
        return "bearer:" + value[7:] if value.startswith("Bearer ") else "none"

    def _send(
        self,
        call: Call,
        status: int,
        data: bytes,
        kind: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        call.status = status
        self.send_response(status)
        all_headers = {"Content-Type": kind, "Content-Length": str(len(data))}
        for name, value in (all_headers | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(
        self, call: Call, status: int, value: Any, headers: dict[str, str] | None = None
    ) -> None:
        self._send(call, status, json.dumps(value).encode(), "application/json", headers)

    def _fail(self, call: Call, fault: Fault) -> bool:
        """Fail as the fault says; return False if it was only a delay."""
        time.sleep(fault.stall_s)
        if fault.drop:
            self.close_connection = True
            call.status = -1
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
        elif fault.status == 0:
            return False
        elif fault.raw is not None:
            self._send(call, fault.status, fault.raw, "text/html", fault.headers)
        else:
            self._json(
                call, fault.status, {"code": fault.status, "message": fault.message}, fault.headers
            )
        return True
