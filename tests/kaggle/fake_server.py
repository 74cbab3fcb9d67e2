"""The HTTP side of the fake Kaggle: JSON calls, signed downloads with ranges, resumable uploads, and faults."""

import base64
import contextlib
import dataclasses
import json
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from fake_kaggle import FakeKaggle


class ApiError(Exception):
    """Answered as HTTP `status` with Kaggle's {"code", "message"} body."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers or {}


@dataclasses.dataclass
class Redirect:
    url: str


@dataclasses.dataclass
class Call:
    """One recorded request; `rpc` is "kernels.KernelsApiService/SaveKernel", or None for bytes."""

    method: str
    path: str
    rpc: str | None
    body: Any
    auth: str  # "basic:<user>", "bearer", or "none": never the secret
    headers: dict[str, str]
    status: int = 0


@dataclasses.dataclass
class Fault:
    """How the next `times` calls fail. `after` lets the call take effect before it fails."""

    status: int = 500
    message: str = "fault"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    times: int = 1
    stall_s: float = 0.0
    drop: bool = (
        False  # close the socket without an answer; with status 206: after half of the body
    )
    raw: bytes | None = None  # these bytes as text/html in place of JSON
    after: bool = False


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away, as a timed-out one does, is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    fake: "FakeKaggle"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    timeout = 30

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_call()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def handle_call(self) -> None:
        split = urlsplit(self.path)  # in absolute form when used as a proxy
        parts = [p for p in split.path.split("/") if p]
        parts = parts[1:] if parts[:1] == ["api"] else parts
        raw, auth = self._read(), self._auth()
        shown = auth.rsplit(":", 1)[0] if auth.startswith("basic:") else auth.split(":")[0]
        headers = {k: v for k, v in self.headers.items() if k != "Authorization"}
        call = Call(self.command, split.path, None, None, shown, headers)
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
        call.rpc, call.body = f"{service}/{method}", json.loads(raw or b"{}")
        fault = self.fake.take_fault(method)
        if fault and fault.after:
            self.fake.answer(service, method, call.body, auth)
        if fault and self._fail(call, fault):
            return
        out = self.fake.answer(service, method, call.body, auth)
        if isinstance(out, Redirect):
            self._send(call, 302, b"", "text/html", {"Location": out.url})
        else:
            self._json(call, 200, out)

    def _blob(self, call: Call, parts: list[str]) -> None:
        fault = self.fake.take_fault("_blob")
        half = fault is not None and fault.drop and fault.status == 206
        if fault and not half and self._fail(call, fault):
            return None
        data, etag = self.fake.blobs[parts[1]], f'"{parts[1]}"'
        headers = {
            "Last-Modified": formatdate(self.fake.mtime, usegmt=True),
            "ETag": etag,
            "Accept-Ranges": "bytes",
        }
        kind = "application/zip" if parts[-1].endswith(".zip") else "application/octet-stream"
        start, status, want = 0, 200, self.headers.get("Range", "")
        if want.startswith("bytes=") and self.headers.get("If-Range", etag) == etag:
            start, status = int(want[6:].split("-")[0]), 206
            if start >= len(data):
                return self._send(call, 416, b"", kind, {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        if not half:
            return self._send(call, status, body, kind, headers)
        self._send(
            call,
            status,
            body[: len(body) // 2],
            kind,
            {**headers, "Content-Length": str(len(body))},
        )
        self.close_connection = True
        return None

    def _upload(self, call: Call, token: str, raw: bytes) -> None:
        call.body = {"bytes": len(raw)}
        upload, want = self.fake.uploads.get(token), self.headers.get("Content-Range", "")
        if upload is None:
            return self._send(call, 404, b"", "text/plain")
        fault = self.fake.take_fault("_upload")
        if fault and fault.after:  # half of the bytes arrive
            upload["parts"] = upload.get("parts", b"") + raw[: len(raw) // 2]
        if fault and self._fail(call, fault):
            return None
        have = upload.get("parts", b"")
        if want.startswith("bytes */"):
            if upload["data"] is not None:
                return self._send(call, 200, b"", "text/plain")
            return self._send(
                call, 308, b"", "text/plain", {"Range": f"bytes=0-{len(have) - 1}"} if have else {}
            )
        upload["data"] = (
            have[: int(want[6:].split("-")[0])] + raw if want.startswith("bytes ") else raw
        )
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
        if version["last"] in ("COMPLETE", "ERROR"):
            return self._send(
                call, 200, json.dumps(version["log"]).encode(), "application/octet-stream"
            )
        lines = (
            "".join(f"data: {json.dumps(event)}\n\n" for event in version["log"])
            + "data: END_OF_LOG\n\n"
        )
        return self._send(call, 200, lines.encode(), "text/event-stream")

    # ---- plumbing ----------------------------------------------------------------

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        out = b""
        while size := int(self.rfile.readline().split(b";")[0].strip() or b"0", 16):
            out += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return out

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
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _json(
        self, call: Call, status: int, value: Any, headers: dict[str, str] | None = None
    ) -> None:
        self._send(call, status, json.dumps(value).encode(), "application/json", headers)

    def _fail(self, call: Call, fault: Fault) -> bool:
        """Fails as told; False where the fault was only a delay."""
        time.sleep(fault.stall_s)
        if fault.drop:
            self.close_connection, call.status = True, -1
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
