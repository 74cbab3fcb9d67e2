"""Run commands under faults. `ForkServer` is the client of fork_server.py, `Fault` what to do."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    code: exit code, or None if a signal killed it.
    signal: that signal.
    events: how many file events there were.
    """

    code: int | None
    signal: int | None
    stdout: str
    stderr: str
    seconds: float
    events: int


@dataclass(frozen=True)
class Fault:
    """What is done to a command.

    event: send the signal at this file event (opening for writing, renaming, removing, syncing).
    after_s: send the signal after so many seconds.
    signal: 9 is SIGKILL, 2 is Ctrl-C.
    file_size: no file may grow beyond so many bytes, as on a full disk.
    plain_user: permissions hold, even where the tests are run by root.
    """

    event: int | None = None
    after_s: float | None = None
    signal: int = 9
    file_size: int | None = None
    plain_user: bool = False

    def as_request(self) -> dict[str, Any]:
        """Return the fields that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}


class ForkServer:
    """The forking process; `run` runs a command in one of its children."""

    def __enter__(self) -> "ForkServer":
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
    ) -> Outcome:
        """Run `kit ARGV` in the folder `cwd`."""
        request = {"argv": argv, "cwd": str(cwd), "env": env or {}}
        request |= (fault or Fault()).as_request()
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

        answer = json.loads(self.process.stdout.readline())
        assert not answer.pop("stuck"), f"kit {' '.join(argv)} does not end"
        return Outcome(**answer)
