"""The forking process and the workspaces, made once; how long the soak lasts; the tally that it ends with."""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "kaggle"))  # the fake Kaggle

from commands import Workspaces
from fake_kaggle import FakeKaggle
from fake_services import SLUG
from fault_client import Zygote

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
TALLY: Counter[str] = Counter()


@pytest.fixture(scope="session")
def tally() -> Counter[str]:
    """What was tried, by kind."""
    return TALLY


@pytest.fixture(scope="session")
def seed() -> int:
    """Of every random choice; another one with SOAK_SEED."""
    return SEED


@pytest.fixture
def soaking() -> bool:
    """Whether this is the long run."""
    return MINUTES > 0


class Rounds:
    """How often a test goes round: a few times, or in the soak for its share of the minutes."""

    def __init__(self, few: int, share: float):
        self.few, self.until = few, time.monotonic() + share * MINUTES * 60

    def __iter__(self) -> Iterator[int]:
        done = 0
        while done < self.few or time.monotonic() < self.until:
            yield done
            done += 1


@pytest.fixture(scope="session")
def rounds() -> type[Rounds]:
    """Makes `Rounds`."""
    return Rounds


@pytest.fixture(scope="session")
def workspaces() -> Iterator[Workspaces]:
    """The pipeline walked once, against the fake Kaggle."""
    root = Path(tempfile.mkdtemp(prefix="kit-faults-"))
    try:
        (root / "home").mkdir()
        with FakeKaggle() as fake, Zygote() as zygote:
            rows = b"".join(b'%d,"some text, %d"\n' % (n, n * n) for n in range(4000))
            fake.competitions[SLUG]["train.csv"] = b"id,prompt\n" + rows
            names = ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "HOME")
            every = fake.env(root / "home")
            env = {k: v for k, v in every.items() if k in names or k.startswith("KAGGLE_")}
            yield Workspaces(zygote, root, env)
    finally:
        shutil.rmtree(root)


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """What was tried, in figures."""
    if TALLY:
        terminalreporter.section("faults")
        for name, count in sorted(TALLY.items()):
            terminalreporter.write_line(f"{count:>8,}  {name}")
