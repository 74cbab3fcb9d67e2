"""Inside a Kaggle session: where the inputs are, what the machine can do, how much time is left, what was written.

Kaggle mounts inputs either under /kaggle/input/<slug> or by kind (/kaggle/input/competitions/<slug>,
/kaggle/input/notebooks/<owner>/<slug>, /kaggle/input/datasets/<owner>/<slug>), so nothing here spells a path out.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kit
from kit.storage import atomic

OUTPUTS = "kit_outputs.json"
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
)
PUSH = "kit-push:"  # printed first, so that a log shows which push it belongs to


@dataclass(frozen=True)
class NotebookSession:
    """A notebook run: its job (from the notebook's payload), folders, and the moment it began."""

    job: Mapping[str, Any]
    root: Path = Path("/kaggle")
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls) -> "NotebookSession":
        """The session of this process, as the notebook's first cells have set it up; says what is here."""
        job = json.loads(Path(os.environ["KIT_JOB"]).read_text(encoding="utf-8"))
        session = cls(job, Path(os.environ.get("KIT_KAGGLE_ROOT", "/kaggle")))
        print_line(PUSH + job["push"])
        print_line(f"kit {kit.__version__} in {Path(kit.__file__).parent}")
        print_line(
            "python "
            + platform.python_version()
            + "".join(f", {n} {_version(n)}" for n in PACKAGES)
        )
        return session

    @property
    def inputs(self) -> Path:
        """The folder below which Kaggle mounts the sources."""
        return self.root / "input"

    @property
    def working(self) -> Path:
        """The folder whose files Kaggle keeps."""
        return self.root / "working"

    @property
    def rerun(self) -> bool:
        """Whether this is Kaggle's scoring on the hidden test set."""
        return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))

    def seconds_left(self) -> float:
        """Of the job's time budget."""
        return self.job["max_hours"] * 3600 - (time.monotonic() - self.began)

    def competition_file(self, name: str) -> Path:
        """A file of the competition, under either layout.

        Raises:
            RuntimeError: the competition is not mounted.
        """
        ours = [p for p in _named(name, self.inputs) if self.job["competition"] in p.parts]
        if not ours:
            raise RuntimeError(
                f"no {name} of {self.job['competition']} under {self.inputs}: {_listing(self.inputs)}. "
                "Kaggle sometimes mounts a new source only at the second run: push the notebook again."
            )
        return ours[0]

    def runs(self, source: str) -> list[Path]:
        """Run directories below the source "owner/slug", a notebook's output or a dataset, under either layout."""
        owner, slug = source.split("/")
        runs = []
        for recipe in _named("recipe.toml", self.inputs):
            parts = recipe.relative_to(self.inputs).parts
            named = slug in parts[1:-1] and parts[parts.index(slug) - 1] == owner
            if (named or parts[0] == slug) and (recipe.parent / "origin.json").is_file():
                runs.append(recipe.parent)
        return runs

    def devices(self) -> int:
        """How many GPUs this job can use; 0 without one.

        Torch is asked in a process of its own, so that the notebook itself takes no memory of a GPU.

        Raises:
            RuntimeError: the job asks for a GPU and there is none, or torch has no kernels for it.
        """
        asked = self.job["gpu"] != "none"
        out = subprocess.run(
            [sys.executable, "-m", "kit.model.device"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if out.returncode:
            raise RuntimeError(f"the check of the GPU failed: {out.stderr.strip()[-800:]}")
        seen = json.loads(out.stdout.splitlines()[-1])
        names = ", ".join(seen["names"]) or "none"
        print_line(
            f"GPUs: {names}; memory {seen['memory_gb']} GB; torch has kernels for {seen['kernels']}"
        )
        if seen["problem"]:
            raise RuntimeError(seen["problem"])
        if asked and not seen["names"]:
            raise RuntimeError(
                "a GPU was asked for and there is none: is the weekly quota used up?"
            )
        return len(seen["names"])

    def kit(
        self, arguments: Sequence[str | Path], processes: int, budget_s: float, **environment: str
    ) -> int:
        """Runs a kit command, on several GPUs through torchrun, printing what it prints; its exit code.

        A command that outlives `budget_s` is stopped, first asked, then made; its exit code is then negative.
        """
        launch = ["-m", "kit"]
        if processes > 1:
            launch = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={processes}",
                *launch,
            ]
        command = [sys.executable, *launch, *map(str, arguments)]
        print_line("$ " + " ".join(command[1:]))
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True, env={**os.environ, **environment},
        )  # fmt: skip
        timers = [
            threading.Timer(max(0.0, budget_s), _signal, (child, signal.SIGTERM)),
            threading.Timer(max(0.0, budget_s) + 60, _signal, (child, signal.SIGKILL)),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
            return child.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def finish(self) -> None:
        """Lists the outputs with their sizes and hashes, for the downloader to compare; the last thing a job does."""
        files = {
            str(path.relative_to(self.working)): {
                "bytes": path.stat().st_size,
                "sha256": atomic.file_sha256(path),
            }
            for path in sorted(self.working.rglob("*"))
            if path.is_file()
            and not any(p.startswith((".", "__")) for p in path.relative_to(self.working).parts)
        }
        atomic.write_json(self.working / OUTPUTS, {"push": self.job["push"], "files": files})
        print_line(f"done: {len(files)} files in {self.working}")


def print_line(text: str) -> None:
    """A line of ours in the log."""
    print("kit |", text, flush=True)


def run_loudly(text: str) -> None:
    """A line that nobody scrolls past."""
    print("\n" + "!" * 100 + f"\nkit | {text}\n" + "!" * 100 + "\n", flush=True)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _named(name: str, folder: Path, deepest: int = 8) -> list[Path]:
    """The files of that name below `folder`, those nearest to it first; mounts may be links, which rglob passes by."""
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        if len(Path(place).relative_to(folder).parts) >= deepest:
            folders.clear()  # a link may lead back up
        if name in files:
            found.append(Path(place) / name)
    return sorted(found, key=lambda p: (len(p.parts), str(p)))


def _listing(folder: Path) -> str:
    names = (
        sorted(str(p.relative_to(folder)) for p in folder.glob("*/*")) if folder.is_dir() else []
    )
    return "it holds " + ", ".join(names[:12]) if names else "it is empty"


def _signal(child: subprocess.Popen, number: int) -> None:
    if child.poll() is None:
        os.killpg(child.pid, number)
