"""Commands run under faults: the client of `fork_server.py`, and what a test may do to a command."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, or the signal that killed it; what it printed; how long; its file events."""

    code: int | None
    signal: int | None
    stdout: str
    stderr: str
    seconds: float
    events: int


@dataclass(frozen=True)
class Fault:
    """What is done to a command.

    event: at its event number so many (opening for writing, renaming, removing, before a sync) ...
    after_s: ... or after so long ...
    signal: ... it gets this signal; 9 is SIGKILL, 2 is Ctrl-C.
    file_size: no file may grow beyond so many bytes, as on a full disk.
    plain_user: permissions hold for it, even where the tests are run by root.
    """

    event: int | None = None
    after_s: float | None = None
    signal: int = 9
    file_size: int | None = None
    plain_user: bool = False

    def as_request(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Zygote:
    """The forking process; `run` is a command in one of its children."""

    process: subprocess.Popen | None = field(default=None, init=False)

    def __enter__(self) -> "Zygote":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(10)

    def run(
        self,
        argv: list[str],
        cwd: Path,
        env: dict[str, str] | None = None,
        fault: Fault | None = None,
    ) -> Ended:
        """`kit ARGV` in the folder `cwd`."""
        request = {"argv": argv, "cwd": str(cwd), "env": env or {}}
        self.process.stdin.write(json.dumps(request | (fault or Fault()).as_request()) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not answer.pop("stuck"), f"kit {' '.join(argv)} hangs"
        return Ended(**answer)
