"""Stand in for api.kaggle.com on the loopback interface, for tests that run Kaggle's real client.

`FakeKaggle` binds a free port of 127.0.0.1, keeps its state in memory and records every request. It
can be made to fail, stall, or step a run through its states. The shapes of requests and answers are
those of kaggle 2.2.4 and 2.2.5.

    with FakeKaggle() as fake, fake.patched(home):
        Client().call(...)                       # the real client in this process
    subprocess.run([...], env=fake.env(home))    # or in another one

The client has no setting for its endpoint. In this process `kagglesdk.kaggle_env._env_to_endpoint`
is read by every new client, so `patched` swaps its PROD entry. In another process
KAGGLE_API_ENVIRONMENT=LOCALHOST makes the client call http://localhost (port 80), and HTTP_PROXY
sends that here.
"""

import contextlib
import dataclasses
import importlib
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fake_server import ApiError, Call, Fault, Handler, Redirect, Server
from fake_services import Competitions, Datasets, Kernels

OWNER = "kituser"
KEY = "planted5ecretkey" + "0" * 16
TOKEN = "KGAT_" + "planted5ecrettoken" + "f" * 14
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class FakeKaggle(Competitions, Kernels, Datasets):
    """The server and its state. The services are its base classes."""

    def __init__(self, owner: str = OWNER, key: str = KEY, token: str = TOKEN):
        self.owner = owner
        self.key = key
        self.token = token
        self.calls: list[Call] = []
        self.faults: dict[str, list[Fault]] = {}
        self.lock = threading.RLock()
        # How a bad access token is refused: 200 with `active: false`, or this status.
        self.introspect_status = 200
        self.uploads: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        # How many of the next downloads arrive with a wrong byte.
        self.damaged_downloads = 0
        self.blob_headers: dict[str, str] = {}
        self.mtime = time.time() - 86400
        self._last_id = 1000
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.start_competitions()
        self.start_kernels()
        self.start_datasets()

    # ---- start and stop ------------------------------------------------------------

    def __enter__(self) -> "FakeKaggle":
        class BoundHandler(Handler):
            fake = self

        self._server = Server(("127.0.0.1", 0), BoundHandler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
        self._server = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # ---- pointing the real client here -----------------------------------------

    def credentials(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """Return the variables of a user with a legacy key, or with this access token."""
        # KAGGLE_CONFIG_DIR does not move ~/.kaggle/access_token, so HOME has to move.
        places = {
            "HOME": str(home),
            "USERPROFILE": str(home),
            "KAGGLE_CONFIG_DIR": str(Path(home) / ".kaggle"),
        }
        if token is None:
            return {**places, "KAGGLE_USERNAME": self.owner, "KAGGLE_KEY": self.key}
        return {**places, "KAGGLE_API_TOKEN": token}

    def env(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """Return the environment of a subprocess that runs the real client."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith("KAGGLE_") and name.upper() not in PROXIES
        }
        proxy = {"HTTP_PROXY": self.url, "http_proxy": self.url, "NO_PROXY": "", "no_proxy": ""}
        return {
            **kept,
            **self.credentials(home, token),
            **proxy,
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        }

    @contextlib.contextmanager
    def patched(
        self, home: str | Path, variables: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Make every client that is built in the block talk to this server."""
        endpoints = importlib.import_module("kagglesdk.kaggle_env")
        prod = endpoints.KaggleEnv.PROD
        real_endpoint = endpoints._env_to_endpoint[prod]
        environ = dict(os.environ)

        for name in list(os.environ):
            if name.startswith("KAGGLE_") or name.upper() in PROXIES:
                del os.environ[name]
        os.environ.update(self.credentials(home) if variables is None else variables)
        endpoints._env_to_endpoint[prod] = self.url
        try:
            yield
        finally:
            endpoints._env_to_endpoint[prod] = real_endpoint
            os.environ.clear()
            os.environ.update(environ)

    # ---- faults and records --------------------------------------------------------

    def fail(self, method: str, status: int = 500, message: str = "fault", **options: Any) -> None:
        """Make the next call of `method` fail.

        Args:
            method: "SaveKernel" or another method; "_blob" and "_upload" for bytes.
            options: of `Fault`.
        """
        self.faults.setdefault(method, []).append(Fault(status, message, **options))

    def take_fault(self, method: str) -> Fault | None:
        """Return the next fault of `method` and count it down."""
        with self.lock:
            queue = self.faults.get(method) or []
            if not queue:
                return None
            fault = queue[0]
            fault.times -= 1
            if fault.times <= 0:
                queue.pop(0)
            return dataclasses.replace(fault)

    def seen(self, method: str) -> list[Call]:
        """Return the recorded calls of `method`."""
        return [call for call in self.calls if call.rpc and call.rpc.endswith("/" + method)]

    # ---- answers -------------------------------------------------------------------

    def answer(self, service: str, method: str, body: dict[str, Any], auth: str) -> Any:
        # SaveKernel is answered by `save_kernel`.
        handler = getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower(), None)
        if handler is None:
            raise ApiError(404, f"fake: no {service}/{method}")

        accepted = (f"basic:{self.owner}:{self.key}", f"bearer:{self.token}")
        needs_auth = method not in ("IntrospectToken", "GenerateAccessToken")
        if needs_auth and auth not in accepted:
            raise ApiError(401, "Unauthenticated")
        with self.lock:
            return handler(body)

    def introspect_token(self, body: dict[str, Any]) -> Any:
        active = body.get("token") == self.token
        if not active and self.introspect_status >= 400:
            raise ApiError(self.introspect_status, "Unauthenticated")
        return {
            "active": active,
            "username": self.owner if active else "",
            "scope": "resources.admin:*",
        }

    def generate_access_token(self, body: dict[str, Any]) -> Any:
        if body.get("refreshToken") != "refresh-" + self.token:
            raise ApiError(401, "Unauthenticated")
        return {"token": self.token, "expiresIn": 43200}

    def redirect(self, name: str, data: bytes) -> Redirect:
        return Redirect(self.store(name, data))

    def next_id(self) -> int:
        with self.lock:
            self._last_id += 1
            return self._last_id
