"""Provide the fake Kaggle and a client that does not wait, and check every test for secrets."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from captured import SECRETS, Heard
from fake_kaggle import FakeKaggle

from kit.kaggle.client import Client


@pytest.fixture
def fake() -> Iterator[FakeKaggle]:
    with FakeKaggle() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty home folder, the only one in which secrets may be saved."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def client(fake: FakeKaggle, home: Path, heard: Heard) -> Iterator[Client]:
    """The real client with a legacy key, against the fake Kaggle. Pauses are only recorded."""
    with fake.patched(home), Client(patience=heard.patience(), timeout_s=(2.0, 0.5)) as connected:
        yield connected


@pytest.fixture(autouse=True)
def no_secret_is_shown(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    heard: Heard,
) -> Iterator[None]:
    """After every test: no secret is in the output, the logs, the messages or a file."""
    yield
    shown = "".join(capfd.readouterr()) + caplog.text + heard.text
    contents = {
        path: path.read_bytes()
        for path in tmp_path.rglob("*")
        if path.is_file() and tmp_path / "home" not in path.parents
    }
    for secret in SECRETS:
        assert secret not in shown
        assert [path for path, content in contents.items() if secret.encode() in content] == []
