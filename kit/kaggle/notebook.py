"""Our notebooks: constant code cells below one cell of data, so that what runs on Kaggle is code that was linted.

The data cell is a single assignment of literals: the job as JSON text and the wheels as base64 text.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import kit
from kit.errors import KitError
from kit.kaggle import wheel

LIMIT = 1_000_000  # bytes of a kernel's source that Kaggle takes
_MARK = re.compile(r"kit-(push|job):([0-9a-f]{16,64})")


def build_notebook(kind: str, job: Mapping[str, Any]) -> str:
    """The notebook of a job as JSON text.

    Args:
        kind: "train" or "infer".
        job: what the session reads; `push` is its unique token.

    Raises:
        KitError: it is larger than Kaggle takes.
    """
    wheels = {
        w.name: base64.b64encode(w.data).decode() for w in map(wheel.build_wheel, wheel.CARRIED)
    }
    payload = {"job": json.dumps(job, sort_keys=True), "wheels": wheels}
    about = (
        f"Made by kit {kit.__version__} (`kit kernels push {kind}`). The first code cell is data: the job, and kit "
        f"itself as a wheel. Change the job with the command's options, not here.\n\n"
        f"kit-push:{job['push']} kit-job:{job_fingerprint(kind, job)}"
    )
    cells = [
        _cell("about", "markdown", about),
        _cell("payload", "code", f"KIT_PAYLOAD = {json.dumps(payload)}"),
        _cell("start", "code", _source("start")),
        _cell(kind, "code", _source(kind)),
    ]
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    text = json.dumps(
        {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1
    )
    if len(text.encode()) >= LIMIT:
        raise KitError(
            f"the notebook has {len(text.encode()):,} bytes; Kaggle takes less than {LIMIT:,}",
            "Is something large in the folder of the installed kit package?",
        )
    return text


def job_fingerprint(kind: str, job: Mapping[str, Any]) -> str:
    """What tells equal jobs from others: everything but the push token, and the version of kit."""
    rest = {key: value for key, value in job.items() if key != "push"}
    return hashlib.sha256(
        json.dumps([kind, kit.__version__, rest], sort_keys=True).encode()
    ).hexdigest()[:32]


def marks(source: str) -> dict[str, str]:
    """The `push` and `job` marks of one of our notebooks; empty for anybody else's."""
    return dict(_MARK.findall(source))


def job_of(source: str) -> dict[str, Any]:
    """The job inside the text of one of our notebooks; empty for anybody else's."""
    try:
        cells = json.loads(source)["cells"]
        texts = ["".join(cell["source"]) for cell in cells]
        payload = next(t for t in texts if t.startswith("KIT_PAYLOAD = "))
        return json.loads(json.loads(payload.removeprefix("KIT_PAYLOAD = "))["job"])
    except (ValueError, KeyError, TypeError, StopIteration):
        return {}


def kind_of(source: str) -> str:
    """Whether a notebook of ours is for "train" or "infer"; '' for anybody else's."""
    job = job_of(source)
    return "train" if "recipe" in job else "infer" if "sources" in job else ""


def _cell(name: str, kind: str, source: str) -> dict[str, Any]:
    cell = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


def _source(name: str) -> str:
    return (
        (resources.files("kit.kaggle") / "runtime" / f"{name}.py")
        .read_text(encoding="utf-8")
        .rstrip("\n")
    )
