"""Find inputs, count GPUs, run kit and list outputs inside a Kaggle session. Use `NotebookSession`.

Kaggle mounts inputs either as /kaggle/input/<slug>, or by kind: /kaggle/input/competitions/<slug>,
/kaggle/input/notebooks/<owner>/<slug> and /kaggle/input/datasets/<owner>/<slug>. So inputs are
searched for, and no path is spelled out here.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kit
from kit.model.backbones import WEIGHTS, has_backbone
from kit.model.base import BaseReference, holds_base, run_bases
from kit.model.registry import find_record
from kit.run import ORIGIN_FILE
from kit.storage import atomic

OUTPUT_LIST = "kit_outputs.json"
DISTRIBUTION = "kit-llm-preference"

# The packages of the image that a job imports. `kaggle` and others of kit's requirements are not
# used here, and Kaggle's images violate the range of some.
USED_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "protobuf",
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "threadpoolctl",
    "packaging",
    "click",
    "rich",
)
# Logged with them: peft is needed by recipes with adapters only, and an old torchao breaks peft;
# bitsandbytes is needed by quantised bases only, lightgbm by boosted trees only.
OPTIONAL_PACKAGES = ("peft", "bitsandbytes", "torchao", "lightgbm", "kaggle", "kagglesdk")

# The extras of kit that bring them.
EXTRAS = {"peft": "lora", "bitsandbytes": "quant"}

# The classical model that needs LightGBM.
BOOSTED = "boosted"

# PyTorch's allocator then grows blocks where they are, which leaves less memory unusable between
# batches of different lengths. Older versions of torch know only the second name.
ALLOCATOR = {
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
KILL_AFTER_S = 60.0


@dataclass(frozen=True)
class NotebookSession:
    """One run of a notebook: its job, the folder /kaggle, and the time at which it started."""

    job: Mapping[str, Any]
    root: Path = Path("/kaggle")
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def from_environment(cls) -> "NotebookSession":
        """Return the session that the notebook's first cells prepared; log and check versions.

        Raises:
            RuntimeError: in the visible run: the image has a package in a version that kit does not
                support.
        """
        job = json.loads(Path(os.environ["KIT_JOB"]).read_text(encoding="utf-8"))
        session = cls(job, Path(os.environ.get("KIT_KAGGLE_ROOT", "/kaggle")))

        # The token comes first, so that a log shows which push it belongs to.
        log_line(f"kit-push:{job['push']}")
        log_line(f"kit {kit.__version__} in {Path(kit.__file__).parent}")
        names = (*USED_PACKAGES, *OPTIONAL_PACKAGES)
        versions = [f"{name} {_installed_version(name) or 'missing'}" for name in names]
        log_line(", ".join([f"python {platform.python_version()}", *versions]))
        log_line(f"image {os.environ.get('KAGGLE_DOCKER_IMAGE', 'unknown')}{_image_build()}")
        session._check_versions()
        return session

    def _check_versions(self) -> None:
        """Compare the packages that the job imports with the ranges of kit's own metadata."""
        problems = find_unsupported_versions(self._needed_packages())
        if not problems:
            return

        text = (
            f"this image does not fit kit {kit.__version__}: {'; '.join(problems)}. Push again with"
            " --docker-image and an image that fits, such as the one in the log of an earlier run."
        )
        # A scoring run goes on: it may still succeed, and it has to leave a submission.
        if not self.is_scoring:
            raise RuntimeError(text)
        log_warning(text)

    def _needed_packages(self) -> set[str]:
        """Return which of `OPTIONAL_PACKAGES` this job needs.

        An encoder's adapters are merged after its training, and predict without peft.
        """
        recipes = [self.job.get("recipe", "")]
        for source in self.job.get("sources", []):
            for run in self.run_folders(source["ref"]):
                if run_bases(run):
                    # A damaged run is named by the prediction.
                    with contextlib.suppress(OSError, UnicodeDecodeError):
                        recipes.append((run / "recipe.toml").read_text(encoding="utf-8"))

        needed = set()
        for text in recipes:
            with contextlib.suppress(tomllib.TOMLDecodeError):
                recipe = tomllib.loads(text)
                if recipe.get("train", {}).get("lora_rank"):
                    needed.add("peft")
                if recipe.get("model", {}).get("quantize", "none") != "none":
                    needed.add("bitsandbytes")
        if BOOSTED in (self.job.get("baseline"), *self._mounted_baselines()):
            needed.add("lightgbm")
        return needed

    def _mounted_baselines(self) -> set[str]:
        """Return the names of the classical models among the mounted runs."""
        names = set()
        for origin in _find_files(ORIGIN_FILE, self.input_folder):
            # A damaged run is reported where it is used.
            with contextlib.suppress(ValueError, AttributeError, OSError):
                names.add(json.loads(origin.read_text(encoding="utf-8")).get("baseline"))
        return names

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
        for origin in _find_files(ORIGIN_FILE, self.input_folder):
            parts = origin.relative_to(self.input_folder).parts
            below_owner = slug in parts[1:-1] and parts[parts.index(slug) - 1] == owner
            if below_owner or parts[0] == slug:
                folders.append(origin.parent)

        # A folder that is reached by a link, too, holds one run and not two.
        return list({folder.resolve(): folder for folder in reversed(folders)}.values())[::-1]

    def backbone_folder(self, name: str) -> Path | None:
        """Return the folder of a mounted model or dataset with a backbone's weights.

        None means that the hub has to be asked for them.

        Raises:
            RuntimeError: the job names sources of weights, and none of them has this backbone's.
        """
        folders = [path.parent for path in _find_files("config.json", self.input_folder)]
        sources = self.job.get("weights")
        record = find_record(name)
        for folder in folders:
            # An encoder that is not in the registry is what the user has named for it.
            if (record or sources) and has_backbone(folder, record):
                return folder

        if sources:
            found = ", ".join(str(folder) for folder in folders) or "none"
            raise RuntimeError(
                f"no weights of {name} in {', '.join(sources)}; folders with a config.json under"
                f" {self.input_folder}: {found}. Push again with a --model that has"
                f" {record.hub_id if record else name} in Hugging Face layout."
            )
        return None

    def link_bases(self, runs: Sequence[Path], folder: Path) -> list[Path]:
        """Let `kit predict`, run in `folder`, find the mounted weights below these runs.

        Returns:
            The runs whose weights are not mounted, which cannot predict.
        """
        missing = []
        for run in runs:
            for reference in run_bases(run):
                # Folders of one name, such as the version of a Kaggle Model, may be many.
                link = folder / "models" / reference.digest
                base = self._base_folder(reference)
                if base is None:
                    missing.append(run)
                elif not link.exists():
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(base.absolute(), target_is_directory=True)
                    log_line(f"the weights below {run.name} are those in {base}")
        return missing

    def _base_folder(self, reference: BaseReference) -> Path | None:
        """Return the mounted folder with exactly the weights of the reference."""
        for config in _find_files("config.json", self.input_folder):
            folder = config.parent
            if any((folder / name).is_file() for name in WEIGHTS) and holds_base(folder, reference):
                return folder
        return None

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
        self,
        arguments: Sequence[str | Path],
        processes: int,
        budget_s: float,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> int:
        """Run a kit command, print its output as it comes, and return its exit code.

        Args:
            processes: more than one starts it with torchrun on several GPUs.
            budget_s: after this time the command gets SIGTERM, and a minute later SIGKILL; its
                exit code is then negative.
            environment: variables to set for the command.
            folder: the folder to run it in, by default this process's.
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
            cwd=folder,
            env={**ALLOCATOR, **os.environ, **(environment or {})},
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


def find_unsupported_versions(optional: Collection[str] = ()) -> list[str]:
    """Return what is wrong with Python and `USED_PACKAGES`, by the ranges of kit's metadata.

    Args:
        optional: which of `OPTIONAL_PACKAGES` are used, too.
    """
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return ["packaging is missing"]

    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        # The notebook was made by a checkout that was never installed, which knows no ranges.
        return []

    problems = []
    python_range = metadata["Requires-Python"] or ""
    if not SpecifierSet(python_range).contains(platform.python_version(), prereleases=True):
        problems.append(f"Python {platform.python_version()} (needs {python_range})")

    used = {name.replace("_", "-") for name in (*USED_PACKAGES, *optional)}
    extras = {"", *(EXTRAS[name] for name in optional if name in EXTRAS)}
    for requirement in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or []):
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)
        if not applies or requirement.name.replace("_", "-").lower() not in used:
            continue
        version = _installed_version(requirement.name)
        if not version:
            problems.append(f"{requirement.name} is missing (needs {requirement.specifier})")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    return problems


def _installed_version(name: str) -> str:
    """Return the version of an installed package, "" without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _image_build() -> str:
    """Return what Kaggle's image notes about its build: a commit of docker-python and a date."""
    notes = []
    for path in (Path("/etc/git_commit"), Path("/etc/build_date")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            notes.append(path.read_text(encoding="utf-8").strip()[:60])
    return f", built from {' '.join(notes)}" if notes else ""


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
