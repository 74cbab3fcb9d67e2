"""Check that a hub that cannot be reached is noticed at once, and that nothing waits for it."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

import kit
from kit.errors import BackboneError
from kit.model import hub
from kit.model.backbones import resolve_backbone
from kit.model.encoder import load_encoder, load_tokenizer


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on a port of this machine that nothing listens on, an empty cache, and no waiting."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_hub_at(address, tmp_path, monkeypatch)
    yield
    hub._is_reachable.cache_clear()


def use_hub_at(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a server for the hub, with an empty cache, and fail where anything waits."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def wait(seconds: float) -> None:
        pytest.fail(f"waits for {seconds} s")

    monkeypatch.setattr(time, "sleep", wait)
    hub._is_reachable.cache_clear()


class Answers(BaseHTTPRequestHandler):
    """Answer every request alike, and count them."""

    status = 404
    fields: dict[str, str] = {}  # noqa: RUF012
    delay = threading.Event()
    seconds = 0.0
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.asked.append(self.path)
        self.delay.wait(self.seconds)
        self.send_response(self.status)
        for name, value in {"Content-Length": "0", **self.fields}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    """A server in the hub's place, which answers as a test says."""

    class Handler(Answers):
        delay = threading.Event()
        asked: list[str] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    use_hub_at(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield Handler
    Handler.delay.set()
    server.shutdown()
    thread.join()
    server.server_close()
    hub._is_reachable.cache_clear()


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["deberta", "microsoft/deberta-v3-small"])
def test_without_a_network_nothing_is_asked_again(name: str):
    backbone = resolve_backbone(name)
    for load in (load_encoder, load_tokenizer):
        with pytest.raises(BackboneError, match="no connection to the Hugging Face hub"):
            load(backbone)


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_is_not_there_is_said_to_be_none_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError) as caught:
        resolve_backbone("models/mine").require_files()
    assert caught.value.problem.startswith("no folder models/mine here, and no connection")
    assert caught.value.hint.startswith("For a folder, check the path.")

    monkeypatch.setattr("kit.model.backbones.hub_is_reachable", lambda _: True)
    refused = resolve_backbone("models/mine").loading_error(OSError("404 Client Error"))
    where = "no folder models/mine here, and from the Hugging Face hub"
    assert refused.problem == f"{where}: 404 Client Error"


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", ["deberta-xsmall", "microsoft/deberta-v3-small"])
def test_without_a_network_no_empty_run_is_left(name: str, data: Path, tmp_path: Path):
    with pytest.raises(BackboneError) as caught:
        kit.train(name, data=data, runs=tmp_path / "runs")
    assert "hf download microsoft/deberta-v3-" in caught.value.hint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {}),
        (403, {"Content-Type": "text/html"}),
        (502, {}),
        (200, {"Content-Type": "text/html; charset=utf-8"}),
    ],
)
def test_what_a_proxy_answers_is_not_taken_for_the_hub(
    answers: type[Answers], status: int, fields: dict[str, str], data: Path, tmp_path: Path
):
    answers.status = status
    answers.fields = fields
    with pytest.raises(BackboneError, match="no connection to the Hugging Face hub"):
        kit.train("microsoft/deberta-v3-small", data=data, runs=tmp_path / "runs")
    assert len(answers.asked) == 2


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}),
        (401, {"X-Error-Code": "GatedRepo"}),
        (429, {}),
        (503, {"Retry-After": "60"}),
        (200, {"Content-Type": "text/plain"}),
    ],
)
def test_what_the_hub_answers_is_asked_for_once(
    answers: type[Answers], status: int, fields: dict[str, str]
):
    answers.status = status
    answers.fields = fields
    assert all(hub.hub_is_reachable("some/model") for _ in range(3))
    assert len(answers.asked) == 1


def test_a_server_that_does_not_answer_is_given_up_in_time(
    answers: type[Answers], monkeypatch: pytest.MonkeyPatch
):
    answers.seconds = 60
    monkeypatch.setattr(hub, "_TIMEOUT_S", 60.0)
    monkeypatch.setattr(hub, "_LIMIT_S", 0.3)
    began = time.monotonic()
    assert not hub.hub_is_reachable("some/model")
    assert time.monotonic() - began < 5
