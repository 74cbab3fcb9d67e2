"""What works here and what does not, found out before a training or a submission does: each broken thing with the
next step. A package that is broken is one of the findings, so every package is imported where it is used."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import DataError, KitError
from kit.kaggle import credentials
from kit.kaggle.client import Client
from kit.kaggle.errors import CredentialsError, KaggleError
from kit.kaggle.quota import read_limits, read_quota, read_rules
from kit.kaggle.retry import RetryPolicy
from kit.memory import memory
from kit.task import COMPETITION, SAMPLE_FILE, TEST_FILE, TRAIN_FILE

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "kit-llm-preference"
GB = 1e9
MEND = "Run `rm -rf .venv && make setup`."
SAMPLE = "sample.json"  # beside the files that `kit sample` made
PRECISION = {
    "bf16": "native from capability 8.0",
    "fp16": "with loss scaling, since bf16 is native only from capability 8.0",
    "fp32": "nothing shorter runs well on it",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is "ok", "note" (it works, but know this) or "broken"; `next` says what to do."""

    part: str
    state: str
    found: str
    next: str = ""

    @property
    def broken(self) -> bool:
        """Whether something that is needed does not work."""
        return self.state == "broken"

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def examine(raw: str | Path, data: str | Path, online: bool = False) -> list[Finding]:
    """Everything, in the order a newcomer meets it. Never raises for what it finds; asks Kaggle only if `online`."""
    found = [
        *packages(),
        *device(),
        main_memory(),
        disk(),
        raw_files(Path(raw)),
        processed(Path(data)),
        *credential(online),
    ]
    return [*found, *kaggle()] if online and not found[-1].broken else found


def packages() -> Iterator[Finding]:
    """Python and the packages against the ranges in the metadata of the installed kit."""
    python = platform.python_version()
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        about = importlib.metadata.metadata(DISTRIBUTION)
        needed = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("Python", "ok", python)
        yield Finding(
            "kit", "broken", "not installed, so its packages are not either", "Run `make setup`."
        )
        return
    except ImportError as error:
        yield Finding("packages", "broken", f"cannot be compared: {error}", MEND)
        return
    asked = about["Requires-Python"] or ""
    fits = SpecifierSet(asked).contains(python, prereleases=True)
    again = (
        ""
        if fits
        else "Run `rm -rf .venv && make setup PYTHON=python3.12`, or with another one that fits."
    )
    yield Finding("Python", "ok" if fits else "broken", f"{python} (needs {asked})", again)
    for requirement in map(Requirement, needed):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: "Requirement") -> Finding:
    name, asked = requirement.name, str(requirement.specifier)
    checkout = Path("Makefile").is_file() and Path("constraints.txt").is_file()
    mend = MEND if checkout else f"Run `pip install '{name}{asked}'`."
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", f"not installed (needs {asked})", mend)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "broken", f"{version} (needs {asked})", mend)
    return Finding(name, "ok", f"{version} (needs {asked})")


def device() -> Iterator[Finding]:
    """The GPUs, whether torch has kernels for them, and the precision a training would choose."""
    try:
        from kit.model.device import AMX_WIDTH, choose_device, inspect_gpus

        seen = inspect_gpus()
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # a torch that is broken or for another machine
        text = " ".join(str(error).split())[:200]
        yield Finding("device", "broken", f"torch does not work: {text}", MEND)
        return
    kernels = ", ".join(seen["kernels"])
    for name, size, capability in zip(
        seen["names"], seen["memory_gb"], seen["capabilities"], strict=True
    ):
        yield Finding(
            "device",
            "ok",
            f"{name}, {size} GB, capability {capability}; torch has kernels for {kernels}",
        )
    if not seen["names"]:
        driver = shutil.which("nvidia-smi") is not None
        here = "a GPU driver is here, but this torch sees no GPU" if driver else "no CUDA GPU"
        mend = (
            "Install a torch build for its CUDA (https://pytorch.org), or train"
            if driver
            else "Train"
        )
        mend += " on Kaggle's GPUs: `kit kernels push train --backbone deberta`."
        yield Finding("device", "note", f"{here}; a real encoder takes days without one", mend)
    try:
        chosen = choose_device(width=AMX_WIDTH)  # of every real encoder
    except KitError as error:
        yield Finding("precision", "broken", error.problem, error.hint)
        return
    why = f" ({PRECISION[chosen.precision]})" if chosen.device.type == "cuda" else ""
    yield Finding("precision", "ok", chosen.reason + why)


def main_memory() -> Finding:
    """What there is for this process, a container's limit included."""
    here = memory()
    left = here.total if here.free is None else here.free
    if here.total is None or left is None:
        return Finding("memory", "note", "cannot be read on this system")
    text = f"{left / GB:.1f} of {here.total / GB:.1f} GB free"
    if left < 1 * GB:
        return Finding("memory", "broken", text, "Preprocessing takes 2 GB: close other programs.")
    if left < 4 * GB:
        return Finding(
            "memory", "note", text, "Enough to preprocess; training takes 4 GB and more."
        )
    return Finding("memory", "ok", text)


def disk() -> Finding:
    """The disk of the working folder, where data and runs go."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    text = f"{free / GB:,.1f} GB free in {here}"
    if not os.access(here, os.W_OK):
        return Finding(
            "disk", "broken", f"{here} cannot be written to", "Go to a folder of your own."
        )
    if free < 2 * GB:
        return Finding(
            "disk", "broken", text, "The rows take 1 GB and a run several: free some space."
        )
    if free < 20 * GB:
        return Finding("disk", "note", text, "All folds of a large encoder take 20 GB.")
    return Finding("disk", "ok", text)


def raw_files(folder: Path) -> Finding:
    """The competition's files."""
    names = (TRAIN_FILE, TEST_FILE, SAMPLE_FILE)
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).is_file()}
    missing = [name for name in names if name not in sizes]
    get = f"Run `kit download --out {folder}`, or `kit sample --out {folder}` to try the path."
    if missing:
        return Finding("raw data", "note", f"{folder} has no {', '.join(missing)}", get)
    what = "kit's own sample: " if (folder / SAMPLE).is_file() else ""
    return Finding(
        "raw data", "ok", what + ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items())
    )


def processed(folder: Path) -> Finding:
    """The processed rows, compared with their manifest."""
    try:
        from kit.data.dataset import open_dataset

        counts = open_dataset(folder).manifest["counts"]
    except ImportError as error:
        return Finding("processed data", "broken", f"cannot be read: {error}", MEND)
    except DataError as error:
        return Finding(
            "processed data", "broken" if folder.exists() else "note", error.problem, error.hint
        )
    return Finding(
        "processed data",
        "ok",
        f"{counts['train_rows']:,} training and {counts['test_rows']:,} test rows",
    )


def credential(needed: bool = False) -> Iterator[Finding]:
    """Which Kaggle credential would be sent, and what is wrong with those that are there."""
    search = credentials.find_credentials()
    for problem in search.problems:
        yield Finding("Kaggle credential", "note", problem)
    elsewhere = os.environ.get("KAGGLE_API_ENVIRONMENT", "")
    if elsewhere:
        yield Finding(
            "Kaggle credential", "note", "KAGGLE_API_ENVIRONMENT sends it elsewhere", "Unset it."
        )
    for other in search.found[1:]:
        how = f"If Kaggle refuses it, take away {search.found[0].source}."
        yield Finding(
            "Kaggle credential",
            "note",
            f"the {other} is not used while the first one is there",
            how,
        )
    if not search.found:
        yield Finding(
            "Kaggle credential", "broken" if needed else "note", "none found", credentials.HOW_TO
        )
    else:
        yield Finding("Kaggle credential", "ok", f"would use the {search.found[0]}")


def kaggle() -> Iterator[Finding]:
    """What Kaggle says: whose the credential is, whether the rules are accepted, what is left. Reads only."""
    page = f"https://www.kaggle.com/competitions/{COMPETITION}"
    try:
        with Client(patience=RetryPolicy(attempts=2)) as client:
            rules = read_rules(client)
            yield Finding("Kaggle account", "ok", client.owner())
            if rules.joined:
                yield Finding("submissions", "ok", str(read_limits(client)))
            else:
                yield Finding(
                    "submissions", "broken", f"{COMPETITION} is not joined", f"Accept {page}/rules."
                )
            yield _quota(client)
    except KaggleError as error:
        part = "Kaggle credential" if isinstance(error, CredentialsError) else "Kaggle"
        yield Finding(part, "broken", error.problem, error.hint or f"See {page}.")


def _quota(client: Client) -> Finding:
    try:
        quota = read_quota(client)
    except KaggleError as error:
        return Finding("GPU quota", "note", error.problem, error.hint)
    if quota.left_hours <= 0:
        return Finding(
            "GPU quota", "note", str(quota), "Kernels run without a GPU until then: `--gpu none`."
        )
    return Finding("GPU quota", "ok", str(quota))
