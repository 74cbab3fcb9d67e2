"""Build the notebook of a job, and read the job back from one. Use `build_notebook`, `job_of`.

The code cells are the files of `kit.kaggle.runtime` as they are, so what runs on Kaggle is linted
and tested code. The two cells above them hold data only, an assignment of literals each: the job,
to be read, and the wheels of kit and tomli_w, compressed, as base64 text with their hashes, which
Kaggle's page hides. Kit has to travel in the notebook, because Kaggle's push takes one file and
code competitions run without internet.
"""

import ast
import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import lzma
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import kit
from kit.errors import KitError

# Kaggle's limit for the source of a kernel, in bytes.
MAX_BYTES = 1_000_000

# tomli_w is small and pure Python, and Kaggle's image does not have it.
CARRIED_PACKAGES = ("kit", "tomli_w")

# What the cell of the job begins with, and in notebooks of kit 0.1 that of job and wheels.
_JOB = "KIT_JOB = "
_OLD_PAYLOAD = "KIT_PAYLOAD = "

_MARK = re.compile(r"kit-(push|job):([0-9a-f]{16,64})")


def build_notebook(kind: str, job: Mapping[str, Any]) -> str:
    """Return the notebook of a job as JSON text.

    Args:
        kind: "train" or "infer".
        job: the settings that the session reads; `push` is the unique token of this push.

    Raises:
        KitError: the notebook is larger than Kaggle accepts.
    """
    wheels = [build_wheel(package) for package in CARRIED_PACKAGES]
    payload = {
        wheel.name: {"sha256": hashlib.sha256(wheel.data).hexdigest(), "lzma": _encode(wheel.data)}
        for wheel in wheels
    }
    cells = [
        _cell("about", "markdown", _describe(kind, job, wheels)),
        _cell("job", "code", f"{_JOB}{_literal(dict(job))}"),
        _cell("wheels", "code", f"KIT_WHEELS = {json.dumps(payload)}", hidden=True),
        _cell("start", "code", _runtime_source("start"), hidden=True),
        _cell(kind, "code", _runtime_source(kind)),
        _cell("show", "code", _runtime_source("show")),
    ]

    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    text = json.dumps(content, indent=1)
    size = len(text.encode())
    if size >= MAX_BYTES:
        raise KitError(
            f"the notebook has {size:,} bytes, but Kaggle accepts less than {MAX_BYTES:,}",
            "Look for a large file in the folder of the installed kit package.",
        )
    return text


def job_fingerprint(kind: str, job: Mapping[str, Any]) -> str:
    """Return a hash of the job and kit's version that is the same for every push of that job."""
    settings = {key: value for key, value in job.items() if key != "push"}
    content = json.dumps([kind, kit.__version__, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def notebook_marks(source: str) -> dict[str, str]:
    """Return the `push` and `job` marks of a notebook that kit made; of any other, nothing."""
    return dict(_MARK.findall(source))


def job_of(source: str) -> dict[str, Any]:
    """Return the job in the text of a notebook that kit made; of any other, an empty dict."""
    try:
        texts = ["".join(cell["source"]) for cell in json.loads(source)["cells"]]
        for text in texts:
            if text.startswith(_JOB):
                return dict(ast.literal_eval(text.removeprefix(_JOB)))
            # Kit 0.1 kept the job as JSON, beside the wheels.
            if text.startswith(_OLD_PAYLOAD):
                return json.loads(json.loads(text.removeprefix(_OLD_PAYLOAD))["job"])
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    return {}


def kind_of(source: str) -> str:
    """Return "train" or "infer" for a notebook that kit made; for any other, ""."""
    job = job_of(source)
    if "recipe" in job or "baseline" in job:
        return "train"
    return "infer" if "sources" in job else ""


def _describe(kind: str, job: Mapping[str, Any], wheels: Sequence["Wheel"]) -> str:
    """Return the text at the top: what the notebook does, for how long, and where it comes from."""
    hours = f"within {job.get('max_hours', 0):g} hours"
    gpu = {"t4": "on two T4 GPUs", "none": "without a GPU"}.get(str(job.get("gpu")), "")
    if kind == "train":
        fold = str(job.get("fold"))
        part = {"all": "all folds", "holdout": "the holdout"}.get(fold, f"fold {fold}")
        what = (
            f"Trains {part} of `{job.get('run_name')}` {gpu}, {hours}, and leaves the run in the"
            " output. The last cell shows its losses and learning curves."
        )
    else:
        sources = ", ".join(f"`{source['ref']}`" for source in job.get("sources", []))
        what = (
            f"Predicts the test rows with the runs of {sources} {gpu}, {hours}, and leaves"
            " `submission.csv`. Submitted, Kaggle runs it again on the hidden test rows."
        )
    carried = "\n".join(
        f"- `{wheel.name}`, SHA-256 `{hashlib.sha256(wheel.data).hexdigest()}`" for wheel in wheels
    )
    url = _source_url()
    source = f"[kit {kit.__version__}]({url})" if url else f"kit {kit.__version__}"
    return (
        f"{what}\n\n"
        f"Made by {source} with `kit kernels push {kind}`. The next cell is the job; to change it,"
        " use the options of that command and push again, which overwrites what is edited here."
        " A hidden cell holds the program, since this notebook may run without internet:\n\n"
        f"{carried}\n\nkit-push:{job['push']} kit-job:{job_fingerprint(kind, job)}"
    )


def _source_url() -> str:
    """Return the address of kit's source as its metadata has it, "" without."""
    try:
        urls = importlib.metadata.metadata(_distribution("kit")[0]).get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    by_name = dict(url.split(", ", 1) for url in urls)
    return by_name.get("Source") or by_name.get("Repository", "")


def _literal(value: Any, indent: str = "") -> str:
    """Return plain values as Python reads them, texts of several lines as such."""
    if isinstance(value, dict) and value:
        # The longest last, so that the settings are seen at once.
        inner = indent + "    "
        items = {key: _literal(value[key], inner) for key in value}
        order = sorted(items, key=lambda key: (items[key].count("\n"), key))
        lines = "".join(f"{inner}{key!r}: {items[key]},\n" for key in order)
        return f"{{\n{lines}{indent}}}"
    if isinstance(value, list) and value:
        inner = indent + "    "
        lines = "".join(f"{inner}{_literal(item, inner)},\n" for item in value)
        return f"[\n{lines}{indent}]"
    if isinstance(value, str) and "\n" in value:
        return f"'''\\\n{''.join(map(_escape, value))}'''"
    return repr(value)


def _escape(character: str) -> str:
    """Return a character as it stands in a text of several lines."""
    if character == "\n" or (character.isprintable() and character not in "\\'"):
        return character
    return f"\\{character}" if character in "\\'" else f"\\U{ord(character):08x}"


def _cell(name: str, kind: str, source: str, hidden: bool = False) -> dict[str, Any]:
    # The first is Kaggle's mark, the second that of Jupyter.
    metadata = {"_kg_hide-input": True, "jupyter": {"source_hidden": True}} if hidden else {}
    cell = {"cell_type": kind, "id": name, "metadata": metadata, "source": source}
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


def _runtime_source(name: str) -> str:
    file = resources.files("kit.kaggle") / "runtime" / f"{name}.py"
    return file.read_text(encoding="utf-8").rstrip("\n")


@dataclass(frozen=True)
class Wheel:
    """A wheel in memory: its file name and its bytes."""

    name: str
    data: bytes


@functools.cache
def build_wheel(package: str) -> Wheel:
    """Pack an installed pure-Python package as a wheel, with the same bytes each time.

    Format: https://packaging.python.org/specifications/binary-distribution-format/.

    Raises:
        KitError: the package is not installed as a folder of files.
    """
    spec = importlib.util.find_spec(package)
    locations = list(spec.submodule_search_locations or []) if spec else []
    if not locations or not Path(locations[0]).is_dir():
        raise KitError(
            f"cannot pack the package {package}: it is not installed as a folder of files",
            "Reinstall kit with pip.",
        )

    root = Path(locations[0])
    files: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not hidden:
            files[f"{package}/{relative.as_posix()}"] = path.read_bytes()

    distribution, version = _distribution(package)
    name = distribution.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    metadata += _requirement_lines(distribution)
    tags = "Wheel-Version: 1.0\nGenerator: kit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = tags.encode()
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for path, data in files.items():
            # A ZipInfo of its own is dated 1980, so that equal files give equal bytes.
            bundle.writestr(zipfile.ZipInfo(path), data)
    return Wheel(f"{name}-{version}-py3-none-any.whl", buffer.getvalue())


def _encode(wheel: bytes) -> str:
    """Compress a whole wheel, which makes it smaller than compressing each file in it."""
    return base64.b64encode(lzma.compress(wheel, preset=9 | lzma.PRESET_EXTREME)).decode()


def _distribution(package: str) -> tuple[str, str]:
    """Return the name and version of the distribution that a package belongs to."""
    names = importlib.metadata.packages_distributions().get(package, [])
    if names:
        return names[0], importlib.metadata.version(names[0])

    # A checkout that was never installed has no metadata.
    return package, kit.__version__


def _requirement_lines(distribution: str) -> str:
    """Return the lines of METADATA with a distribution's ranges of Python and of packages.

    The session compares the packages of Kaggle's image with them.
    """
    try:
        source = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
    fields = ("Requires-Python", "Provides-Extra", "Requires-Dist")
    return "".join(
        f"{field}: {value}\n" for field in fields for value in source.get_all(field) or []
    )


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
