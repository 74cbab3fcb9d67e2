"""Make the fork server and the workspaces once, set the length of the tests, print the tally."""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# The fake Kaggle.
sys.path.append(str(Path(__file__).parent.parent / "kaggle"))

from commands import Workspaces
from fake_kaggle import FakeKaggle
from fake_services import SLUG
from fault_client import ForkServer

MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
SEED = int(os.environ.get("SOAK_SEED", "0"))
TALLY: Counter[str] = Counter()


@pytest.fixture(scope="session")
def tally() -> Counter[str]:
    """Count what was tried, by kind."""
    return TALLY


@pytest.fixture(scope="session")
def seed() -> int:
    """Return the seed of every random choice, SOAK_SEED."""
    return SEED


@pytest.fixture
def soaking() -> bool:
    """Return whether this is the long run, `make soak`."""
    return MINUTES > 0


class Rounds:
    """Count `few` rounds, or in the long run as many as fit into a share of its minutes."""

    def __init__(self, few: int, share: float):
        self.few = few
        self.deadline = time.monotonic() + share * MINUTES * 60

    def __iter__(self) -> Iterator[int]:
        done = 0
        while done < self.few or time.monotonic() < self.deadline:
            yield done
            done += 1


@pytest.fixture(scope="session")
def rounds() -> type[Rounds]:
    """Return the class `Rounds`."""
    return Rounds


@pytest.fixture(scope="session")
def workspaces() -> Iterator[Workspaces]:
    """Run the pipeline once, against the fake Kaggle."""
    root = Path(tempfile.mkdtemp(prefix="kit-faults-"))
    try:
        (root / "home").mkdir()
        with FakeKaggle() as fake, ForkServer() as server:
            rows = b"".join(b'%d,"some text, %d"\n' % (n, n * n) for n in range(4000))
            fake.competitions[SLUG]["train.csv"] = b"id,prompt\n" + rows

            names = ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "HOME")
            env = {
                name: value
                for name, value in fake.env(root / "home").items()
                if name in names or name.startswith("KAGGLE_")
            }
            yield Workspaces(server, root, env)
    finally:
        shutil.rmtree(root)


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:
    """Print how often each kind of fault was tried."""
    if TALLY:
        terminalreporter.section("faults")
        for name, count in sorted(TALLY.items()):
            terminalreporter.write_line(f"{count:>8,}  {name}")
