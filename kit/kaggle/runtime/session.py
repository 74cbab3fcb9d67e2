"""Find inputs, count GPUs, run kit and list outputs inside a Kaggle session. Use `NotebookSession`.

Kaggle mounts inputs either as /kaggle/input/<slug>, or by kind: /kaggle/input/competitions/<slug>,
/kaggle/input/notebooks/<owner>/<slug> and /kaggle/input/datasets/<owner>/<slug>. So inputs are
searched for, and no path is spelled out here.
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

OUTPUT_LIST = "kit_outputs.json"
LOGGED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
)
KILL_AFTER_S = 60.0


@dataclass(frozen=True)
class NotebookSession:
    """One run of a notebook: its job, the folder /kaggle, and the time at which it started."""

    job: Mapping[str, Any]
    root: Path = Path("/kaggle")
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def from_environment(cls) -> "NotebookSession":
        """Return the session that the notebook's first cells prepared; log the versions in use."""
        job = json.loads(Path(os.environ["KIT_JOB"]).read_text(encoding="utf-8"))
        session = cls(job, Path(os.environ.get("KIT_KAGGLE_ROOT", "/kaggle")))

        # The token comes first, so that a log shows which push it belongs to.
        log_line(f"kit-push:{job['push']}")
        log_line(f"kit {kit.__version__} in {Path(kit.__file__).parent}")
        versions = [f"{name} {_installed_version(name)}" for name in LOGGED_PACKAGES]
        log_line(", ".join([f"python {platform.python_version()}", *versions]))
        return session

    @property
    def input_folder(self) -> Path:
        """The folder below which Kaggle mounts the sources."""
        return self.root / "input"

    @property
    def working_folder(self) -> Path:
        """The folder whose files Kaggle keeps as the notebook's output."""
        return self.root / "working"

    @property
    def is_scoring(self) -> bool:
        """Whether this is Kaggle's scoring run on the hidden test set."""
        return bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))

    def seconds_left(self) -> float:
        """Return what is left of the job's time budget, in seconds."""
        used = time.monotonic() - self.started
        return self.job["max_hours"] * 3600 - used

    def competition_file(self, name: str) -> Path:
        """Return the path of a file of the competition.

        Raises:
            RuntimeError: it is not mounted.
        """
        competition = self.job["competition"]
        paths = [p for p in _find_files(name, self.input_folder) if competition in p.parts]
        if not paths:
            raise RuntimeError(
                f"no {name} of {competition} under {self.input_folder}, which"
                f" {_describe_content(self.input_folder)}. Kaggle sometimes mounts a new source"
                " only at the second run: push the notebook again."
            )
        return paths[0]

    def run_folders(self, source: str) -> list[Path]:
        """Return the run directories in a source "owner/slug": a notebook's output or a dataset."""
        owner, slug = source.split("/")
        folders = []

        # The slug follows the owner in the layout by kind, and comes first in the other one. That
        # one does not tell owners apart, but Kaggle mounts only what the job names.
        for recipe in _find_files("recipe.toml", self.input_folder):
            parts = recipe.relative_to(self.input_folder).parts
            below_owner = slug in parts[1:-1] and parts[parts.index(slug) - 1] == owner
            is_run = (recipe.parent / "origin.json").is_file()
            if is_run and (below_owner or parts[0] == slug):
                folders.append(recipe.parent)

        # A folder that is reached by a link, too, holds one run and not two.
        return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]

    def gpu_count(self) -> int:
        """Return how many GPUs the job can use, 0 without one, and log their names.

        Raises:
            RuntimeError: the job needs a GPU and there is none, or torch has no kernels for it.
        """
        # In a process of its own, because torch would take GPU memory for this one until its end.
        check = subprocess.run(
            [sys.executable, "-m", "kit.model.device"],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if check.returncode:
            raise RuntimeError(f"the GPU check failed: {check.stderr.strip()[-800:]}")

        # Libraries may print warnings above the result.
        device = json.loads(check.stdout.splitlines()[-1])
        names = ", ".join(device["names"]) or "none"
        log_line(
            f"GPUs: {names}; memory {device['memory_gb']} GB; torch has kernels for"
            f" {device['kernels']}"
        )
        if device["problem"]:
            raise RuntimeError(device["problem"])
        if self.job["gpu"] != "none" and not device["names"]:
            raise RuntimeError(
                "this job needs a GPU and there is none. Check whether the weekly GPU quota is used"
                " up."
            )
        return len(device["names"])

    def run_kit(
        self, arguments: Sequence[str | Path], processes: int, budget_s: float, **environment: str
    ) -> int:
        """Run a kit command, print its output as it comes, and return its exit code.

        Args:
            processes: more than one starts it with torchrun on several GPUs.
            budget_s: after this time the command gets SIGTERM, and a minute later SIGKILL; its
                exit code is then negative.
            environment: variables to set for the command.
        """
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launch = [*torchrun, "-m", "kit"] if processes > 1 else ["-m", "kit"]
        command = [sys.executable, *launch, *map(str, arguments)]
        log_line("$ " + " ".join(command[1:]))

        # In a session of its own, so that a signal reaches torchrun's workers, too.
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, **environment},
        )
        budget_s = max(0.0, budget_s)
        timers = [
            threading.Timer(budget_s, _signal_group, (child, signal.SIGTERM)),
            threading.Timer(budget_s + KILL_AFTER_S, _signal_group, (child, signal.SIGKILL)),
        ]
        for timer in timers:
            timer.daemon = True
            timer.start()

        try:
            for line in child.stdout or ():
                print(line, end="", flush=True)
            return child.wait()
        finally:
            for timer in timers:
                timer.cancel()

    def finish(self) -> None:
        """List the output files with sizes and hashes for the download to compare. Call it last."""
        files = {}

        # Skip hidden files, and those of Kaggle itself, such as __notebook__.ipynb.
        for path in sorted(self.working_folder.rglob("*")):
            relative = path.relative_to(self.working_folder)
            hidden = any(part.startswith((".", "__")) for part in relative.parts)
            if path.is_file() and not hidden:
                size = path.stat().st_size
                files[str(relative)] = {"bytes": size, "sha256": atomic.file_sha256(path)}

        content = {"push": self.job["push"], "files": files}
        atomic.write_json(self.working_folder / OUTPUT_LIST, content)
        log_line(f"done: {len(files)} files in {self.working_folder}")


def log_line(text: str) -> None:
    """Print a line to the notebook's log, marked as kit's own."""
    print("kit |", text, flush=True)


def log_warning(text: str) -> None:
    """Print a line to the notebook's log, framed so that it is not overlooked."""
    frame = "!" * 100
    print(f"\n{frame}\nkit | {text}\n{frame}\n", flush=True)


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _find_files(name: str, folder: Path, max_depth: int = 8) -> list[Path]:
    """Return the files of that name below `folder`, those nearest to it first."""
    found = []

    # Mounts may be symbolic links, which Path.rglob does not follow. The depth is limited because
    # a link may lead back up.
    for place, folders, files in os.walk(folder, followlinks=True):
        if len(Path(place).relative_to(folder).parts) >= max_depth:
            folders.clear()
        if name in files:
            found.append(Path(place) / name)
    return sorted(found, key=lambda path: (len(path.parts), str(path)))


def _describe_content(folder: Path) -> str:
    paths = folder.glob("*/*") if folder.is_dir() else ()
    names = sorted(str(path.relative_to(folder)) for path in paths)
    return "contains " + ", ".join(names[:12]) if names else "is empty"


def _signal_group(child: subprocess.Popen, number: int) -> None:
    if child.poll() is None:
        os.killpg(child.pid, number)
