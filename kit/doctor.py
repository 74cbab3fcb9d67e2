"""Examine this machine before a training or a submission fails on it. Use `examine_setup`.

Each `Finding` says what works or what is broken, and what to do next. A broken package is one of
the findings, so packages are imported inside the functions that need them.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kit.errors import DataError, KitError
from kit.kaggle import credentials
from kit.kaggle.client import Client
from kit.kaggle.errors import CredentialsError, KaggleError
from kit.kaggle.quota import read_limits, read_quota, read_rules
from kit.kaggle.retry import RetryPolicy
from kit.storage.memory import read_memory
from kit.task import COMPETITION, SAMPLE_FILE, TEST_FILE, TRAIN_FILE
from kit.wording import shorten

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "kit-llm-preference"
GB = 1e9
REINSTALL = "Run `rm -rf .venv && make setup`."

# What `kit sample` writes next to its data files, and no download contains.
SAMPLE_SUMMARY = "sample.json"

RAW = "raw data"
PROCESSED = "processed data"

PRECISION_REASONS = {
    "bf16": "native from capability 8.0",
    "fp16": "with loss scaling, since bf16 is native only from capability 8.0",
    "fp32": "half precision does not run well on it",
}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `state` is "ok", "note" (it works, with a restriction) or "broken"; `next` is the next step.
    `package` says that it is about one of the packages that kit needs.
    """

    part: str
    state: str
    found: str
    next: str = ""
    package: bool = False

    @property
    def broken(self) -> bool:
        """Whether something that is needed does not work."""
        return self.state == "broken"

    def as_dict(self) -> dict[str, str]:
        """Return the fields for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "package"}


def examine_setup(
    raw: str | Path,
    data: str | Path,
    online: bool = False,
    competition: str = COMPETITION,
) -> list[Finding]:
    """Check everything, in the order in which a newcomer needs it, and return what was found.

    Args:
        raw: folder of the competition's files.
        data: folder of the processed rows.
        online: ask Kaggle too, unless there is no credential to ask with.
        competition: whose rules and quota to ask Kaggle about.
    """
    findings = [
        *_guard("packages", check_packages),
        *_guard("device", check_device),
        *_guard("memory", lambda: [check_memory()]),
        *_guard("disk", lambda: [check_disk()]),
        *_guard(RAW, lambda: [check_raw_files(Path(raw))]),
        *_guard(PROCESSED, lambda: [check_processed_data(Path(data))]),
        *_guard("Kaggle credential", lambda: check_credential(online)),
    ]
    if online and not findings[-1].broken:
        findings += _guard("Kaggle", lambda: check_kaggle(competition))
    return findings


def main_findings(findings: Sequence[Finding]) -> list[Finding]:
    """Return what matters: no package that is as it should be, and one line about the data.

    That is the processed rows, or where those are not there yet, the files to make them of.
    """
    fitting = sum(finding.package and finding.state == "ok" for finding in findings)
    states = {finding.part: finding.state for finding in findings}
    has_rows = states.get(PROCESSED) == "ok"
    kept = []
    for finding in findings:
        is_other_step = finding.part == (RAW if has_rows else PROCESSED) and not finding.broken
        if (finding.package and finding.state == "ok") or is_other_step:
            continue
        if finding.part == "Python" and fitting:
            more = f"{finding.found}, {fitting} packages in their ranges"
            finding = replace(finding, found=more)
        kept.append(finding)
    return kept


def _guard(part: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield a check's findings; one that fails on an odd machine must not hide the others."""
    try:
        yield from check()
    except Exception as error:
        text = shorten(" ".join(str(error).split()))
        yield Finding(part, "broken", f"the check failed: {type(error).__name__}: {text}")


def check_packages() -> Iterator[Finding]:
    """Compare Python and the installed packages with the ranges in kit's metadata."""
    python = platform.python_version()
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet

        metadata = importlib.metadata.metadata(DISTRIBUTION)
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("Python", "ok", python)
        yield Finding(
            "kit", "broken", "not installed, so its packages are not either", "Run `make setup`."
        )
        return
    except ImportError as error:
        yield Finding("packages", "broken", f"versions cannot be compared: {error}", REINSTALL)
        return

    needed = metadata["Requires-Python"] or ""
    if SpecifierSet(needed).contains(python, prereleases=True):
        yield Finding("Python", "ok", f"{python} (needs {needed})")
    else:
        yield Finding(
            "Python",
            "broken",
            f"{python} (needs {needed})",
            "Run `rm -rf .venv && make setup PYTHON=python3.12`, or another version in the range.",
        )

    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _check_package(requirement)


def _check_package(requirement: "Requirement") -> Finding:
    name = requirement.name
    needed = str(requirement.specifier)
    in_checkout = Path("Makefile").is_file() and Path("constraints.txt").is_file()
    install = REINSTALL if in_checkout else f"Run `pip install '{name}{needed}'`."

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "broken", f"not installed (needs {needed})", install, True)

    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "broken", f"{version} (needs {needed})", install, True)
    if name == "lightgbm":
        from kit.baselines.trees import import_lightgbm

        # It is the one package that needs a library of the system, which pip does not install.
        try:
            import_lightgbm()
        except KitError as error:
            return Finding(name, "broken", error.problem, error.hint, True)
    return Finding(name, "ok", f"{version} (needs {needed})", package=True)


def check_device() -> Iterator[Finding]:
    """Name the GPUs, whether torch has kernels for them, and the precision of a training."""
    try:
        from kit.model.device import BF16_WIDTH, choose_device, inspect_gpus

        gpus = inspect_gpus()
    # A torch that is broken, or built for another machine, fails in any of these ways.
    except (ImportError, OSError, RuntimeError) as error:
        text = shorten(" ".join(str(error).split()))
        yield Finding("device", "broken", f"torch does not work: {text}", REINSTALL)
        return

    kernels = ", ".join(gpus["kernels"])
    for name, size, capability in zip(
        gpus["names"], gpus["memory_gb"], gpus["capabilities"], strict=True
    ):
        found = f"{name}, {size} GB, capability {capability}; torch has kernels for {kernels}"
        yield Finding("device", "ok", found)
    if not gpus["names"]:
        yield _no_gpu()

    try:
        # All full-size encoders are at least this wide.
        compute = choose_device(width=BF16_WIDTH)
    except KitError as error:
        yield Finding("precision", "broken", error.problem, error.hint)
        return

    on_gpu = compute.device.type == "cuda"
    reason = f" ({PRECISION_REASONS[compute.precision]})" if on_gpu else ""
    yield Finding("precision", "ok", compute.reason + reason)


def _no_gpu() -> Finding:
    on_kaggle = "on Kaggle's GPUs: `kit kernels push train --backbone deberta`."
    if shutil.which("nvidia-smi"):
        found = "there is a GPU driver, but this torch sees no GPU"
        hint = f"Install a torch build for its CUDA (https://pytorch.org), or train {on_kaggle}"
    else:
        found = "no CUDA GPU"
        hint = f"Train {on_kaggle}"
    return Finding("device", "note", f"{found}; a full-size encoder takes days without one", hint)


def check_memory() -> Finding:
    """Check that there is enough main memory to preprocess and to train."""
    memory = read_memory()
    free = memory.total if memory.free is None else memory.free
    if memory.total is None or free is None:
        return Finding("memory", "note", "cannot be read on this system")

    found = f"{free / GB:.1f} of {memory.total / GB:.1f} GB free"
    if free < 1 * GB:
        return Finding("memory", "broken", found, "Close other programs: preprocessing takes 2 GB.")
    if free < 4 * GB:
        return Finding(
            "memory", "note", found, "Enough to preprocess; training takes 4 GB and more."
        )
    return Finding("memory", "ok", found)


def check_disk() -> Finding:
    """Check the disk of the working folder, where data and runs go."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:,.1f} GB free in {folder}"

    if not os.access(folder, os.W_OK):
        return Finding(
            "disk", "broken", f"{folder} cannot be written to", "Go to a folder of your own."
        )
    if free < 2 * GB:
        return Finding(
            "disk", "broken", found, "Free some space: the rows take 1 GB, and a run several."
        )
    if free < 20 * GB:
        return Finding("disk", "note", found, "All folds of a large encoder take 20 GB.")
    return Finding("disk", "ok", found)


def check_raw_files(folder: Path) -> Finding:
    """Check that the competition's files are in the folder."""
    paths = [folder / name for name in (TRAIN_FILE, TEST_FILE, SAMPLE_FILE)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        hint = f"Run `kit download --out {folder}`, or `kit sample --out {folder}` to try the path."
        return Finding(RAW, "note", f"{folder} has no {', '.join(missing)}", hint)

    sizes = ", ".join(f"{path.name} {path.stat().st_size:,} bytes" for path in paths)
    origin = "kit's own sample: " if (folder / SAMPLE_SUMMARY).is_file() else ""
    return Finding(RAW, "ok", origin + sizes)


def check_processed_data(folder: Path) -> Finding:
    """Count the processed rows and compare them with their manifest."""
    try:
        from kit.data.dataset import open_dataset

        counts = open_dataset(folder).manifest["counts"]
    except ImportError as error:
        return Finding(PROCESSED, "broken", f"cannot be read: {error}", REINSTALL)
    except DataError as error:
        state = "broken" if folder.exists() else "note"
        return Finding(PROCESSED, state, error.problem, error.hint)

    found = f"{counts['train_rows']:,} training and {counts['test_rows']:,} test rows"
    return Finding(PROCESSED, "ok", found)


def check_credential(needed: bool = False) -> Iterator[Finding]:
    """Name the Kaggle credential that would be sent, and what is wrong with the others."""
    part = "Kaggle credential"
    search = credentials.find_credentials()
    for problem in search.problems:
        yield Finding(part, "note", problem)

    if os.environ.get("KAGGLE_API_ENVIRONMENT"):
        found = "KAGGLE_API_ENVIRONMENT makes Kaggle's client talk to another server"
        yield Finding(part, "note", found, "Unset it.")

    if not search.found:
        state = "broken" if needed else "note"
        yield Finding(part, state, "none found", credentials.HOW_TO)
        return

    first, *others = search.found
    for other in others:
        hint = f"If Kaggle refuses the {first}, remove that."
        yield Finding(part, "note", f"the {other} is not used, because another comes first", hint)
    yield Finding(part, "ok", f"would use the {first}")


def check_kaggle(competition: str = COMPETITION) -> Iterator[Finding]:
    """Ask Kaggle for the account, the competition's rules and the quotas, without changing any."""
    page = f"https://www.kaggle.com/competitions/{competition}"
    try:
        with Client(patience=RetryPolicy(attempts=2)) as client:
            rules = read_rules(client, competition)
            yield Finding("Kaggle account", "ok", client.owner())

            if rules.joined:
                yield Finding("submissions", "ok", str(read_limits(client, competition)))
            else:
                yield Finding(
                    "submissions", "broken", f"{competition} is not joined", f"Accept {page}/rules."
                )
            yield _check_quota(client)
    except KaggleError as error:
        part = "Kaggle credential" if isinstance(error, CredentialsError) else "Kaggle"
        yield Finding(part, "broken", error.problem, error.hint or f"See {page}.")


def _check_quota(client: Client) -> Finding:
    """Return the GPU hours left; without any, trainings on Kaggle still work, so never broken."""
    try:
        quota = read_quota(client)
    except KaggleError as error:
        return Finding("GPU quota", "note", error.problem, error.hint)

    if quota.left_hours <= 0:
        hint = "Run kernels without a GPU until then: `--gpu none`."
        return Finding("GPU quota", "note", str(quota), hint)
    return Finding("GPU quota", "ok", str(quota))
