"""The fake Kaggle, a client that does not wait, and the check that no test lets a secret out."""

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
    """An empty home folder; secrets may be planted in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def client(fake: FakeKaggle, home: Path, heard: Heard) -> Iterator[Client]:
    """The real client with a legacy key, against the fake, with pauses that only count."""
    with fake.patched(home), Client(patience=heard.patience(), timeout_s=(2.0, 0.5)) as connected:
        yield connected


@pytest.fixture(autouse=True)
def no_secret_gets_out(
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    heard: Heard,
) -> Iterator[None]:
    """After every test: neither its output nor what the user heard nor any file outside the home holds a secret."""
    yield
    shown = "".join(capfd.readouterr()) + caplog.text + heard.text
    files = [p for p in tmp_path.rglob("*") if p.is_file() and tmp_path / "home" not in p.parents]
    for secret in SECRETS:
        assert secret not in shown
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
