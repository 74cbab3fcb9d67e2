"""A loopback stand-in for api.kaggle.com, for tests that run Kaggle's real client.

It binds 127.0.0.1 on a free port, keeps its state in memory, records every request, and can be told to fail, stall,
or step a run through its states. Request and answer shapes are those of kaggle 2.2.4 and 2.2.5.

    with FakeKaggle() as fake, fake.patched(home):     # in this process: real client, loopback endpoint
        Client().call(...)
    subprocess.run([...], env=fake.env(home))          # in another: LOCALHOST endpoint through this server as a proxy

The client has no endpoint setting. In this process `kagglesdk.kaggle_env._env_to_endpoint` is read on every
construction, so `patched` swaps its PROD entry. In another, KAGGLE_API_ENVIRONMENT=LOCALHOST makes the client call
http://localhost (port 80), and HTTP_PROXY sends that here in absolute form.
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
    """The server and its state; the services are its base classes."""

    def __init__(self, owner: str = OWNER, key: str = KEY, token: str = TOKEN):
        self.owner, self.key, self.token = owner, key, token
        self.calls: list[Call] = []
        self.faults: dict[str, list[Fault]] = {}
        self.lock = threading.RLock()
        self.introspect_status = 200  # or 401, 403, 404: how a bad access token is refused
        self.uploads: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.mtime = time.time() - 86400
        self._last_id = 1000
        self._server: Server | None = None
        self._thread: threading.Thread | None = None
        self.start_competitions()
        self.start_kernels()
        self.start_datasets()

    # ---- life ----------------------------------------------------------------

    def __enter__(self) -> "FakeKaggle":
        app = self

        class BoundHandler(Handler):
            fake = app

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
        """The variables of a user who has a legacy key, or this access token.

        HOME moves as well: ~/.kaggle/access_token is read whatever KAGGLE_CONFIG_DIR says.
        """
        places = {
            "HOME": str(home),
            "USERPROFILE": str(home),
            "KAGGLE_CONFIG_DIR": str(Path(home) / ".kaggle"),
        }
        if token is None:
            return {**places, "KAGGLE_USERNAME": self.owner, "KAGGLE_KEY": self.key}
        return {**places, "KAGGLE_API_TOKEN": token}

    def env(self, home: str | Path, token: str | None = None) -> dict[str, str]:
        """The environment of a subprocess that runs the real client."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.upper().startswith("KAGGLE_") and k.upper() not in PROXIES
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
        """Within the block every client built in this process talks to this server."""
        endpoints = importlib.import_module("kagglesdk.kaggle_env")
        prod, before = endpoints.KaggleEnv.PROD, dict(os.environ)
        real = endpoints._env_to_endpoint[prod]
        for name in list(os.environ):
            if name.startswith("KAGGLE_") or name.upper() in PROXIES:
                del os.environ[name]
        os.environ.update(self.credentials(home) if variables is None else variables)
        endpoints._env_to_endpoint[prod] = self.url
        try:
            yield
        finally:
            endpoints._env_to_endpoint[prod] = real
            os.environ.clear()
            os.environ.update(before)

    # ---- telling it what to do ---------------------------------------------------

    def fail(self, method: str, status: int = 500, message: str = "fault", **more: Any) -> None:
        """Makes the next call of `method` ("SaveKernel"; "_blob", "_upload" for bytes) fail; `more`: see `Fault`."""
        self.faults.setdefault(method, []).append(Fault(status, message, **more))

    def take_fault(self, method: str) -> Fault | None:
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
        return [c for c in self.calls if c.rpc and c.rpc.endswith("/" + method)]

    # ---- answering ---------------------------------------------------------------

    def answer(self, service: str, method: str, body: dict[str, Any], auth: str) -> Any:
        handler = getattr(self, re.sub(r"(?<!^)(?=[A-Z])", "_", method).lower(), None)
        if handler is None:
            raise ApiError(404, f"fake: no {service}/{method}")
        good = (f"basic:{self.owner}:{self.key}", f"bearer:{self.token}")
        if method not in ("IntrospectToken", "GenerateAccessToken") and auth not in good:
            raise ApiError(401, "Unauthenticated")
        with self.lock:
            return handler(body)

    def introspect_token(self, body: dict[str, Any]) -> Any:
        good = body.get("token") == self.token
        if not good and self.introspect_status >= 400:
            raise ApiError(self.introspect_status, "Unauthenticated")
        return {
            "active": good,
            "username": self.owner if good else "",
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
