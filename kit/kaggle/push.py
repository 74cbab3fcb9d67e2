"""Write a notebook's folder and push it to Kaggle. Use `push_kernel`, or `write_kernel_folder`.

`kaggle kernels push -p` takes the same folder. Kaggle's client reports a refused push, and sources
that do not exist, as success. Here both are errors.
"""

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.kaggle import notebook, quota
from kit.kaggle.client import Client
from kit.kaggle.errors import BusyError, RefusedError
from kit.kaggle.job import SESSION_HOURS, Job
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.kernels import find_kernel
from kit.storage.atomic import atomic_folder, read_text_file

METADATA = "kernel-metadata.json"

_SLOT_POLL_S = 30.0

# Kaggle's names of the fields of a push, and the keys of kernel-metadata.json that they come from.
_REQUEST_FIELDS = {
    "slug": "id",
    "newTitle": "title",
    "language": "language",
    "kernelType": "kernel_type",
    "isPrivate": "is_private",
    "enableGpu": "enable_gpu",
    "enableTpu": "enable_tpu",
    "enableInternet": "enable_internet",
    "machineShape": "machine_shape",
    "dockerImage": "docker_image",
    "dockerImagePinningType": "docker_image_pinning_type",
    "competitionDataSources": "competition_sources",
    "kernelDataSources": "kernel_sources",
    "datasetDataSources": "dataset_sources",
    "modelDataSources": "model_sources",
    "categoryIds": "keywords",
}


@dataclass(frozen=True)
class PushedKernel:
    """A version that Kaggle accepted, its page, and the folder that was pushed."""

    ref: KernelRef
    url: str
    folder: Path


def write_kernel_folder(job: Job, owner: str, folder: str | Path) -> Path:
    """Write the notebook of a job and its metadata to `folder`, and return the folder.

    Raises:
        KitError: the folder contains anything but a notebook, or the notebook is too large.
    """
    folder = Path(folder)
    if folder.exists():
        others = [p for p in folder.iterdir() if p.suffix != ".ipynb" and p.name != METADATA]
        if others:
            raise KitError(f"{folder} holds other files", "Choose a new folder for the notebook.")

    # The token makes every push recognisable: in the stored source, to see whether a push whose
    # answer was lost has arrived, and in the log, to see which version wrote it.
    settings = {**job.session_settings(), "push": secrets.token_hex(16)}
    text = notebook.build_notebook(job.kind, settings)
    metadata = job.metadata(owner)
    with atomic_folder(folder) as temporary:
        (temporary / metadata["code_file"]).write_text(text, encoding="utf-8")
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    return folder


def written_kernels(folder: str | Path) -> list[KernelRef]:
    """Return the kernels whose folders are in `folder`, pushed or not, sorted by folder name.

    Raises:
        KitError: the metadata of one of them cannot be read.
    """
    refs = []
    for path in sorted(Path(folder).glob(f"*/{METADATA}")):
        try:
            refs.append(KernelRef.parse(json.loads(read_text_file(path))["id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KitError(
                f"{path} cannot be read: {error}", "Push that kernel again, or delete its folder."
            ) from error
    return refs


def push_kernel(
    client: Client,
    job: Job,
    folder: str | Path,
    *,
    slot_wait_s: float = 300.0,
    say: Callable[[str], None] = lambda _: None,
) -> PushedKernel:
    """Write the folder of a job, push it, and return the version that Kaggle made.

    Where the answer is lost, Kaggle is asked whether the push arrived before it is repeated, so a
    push never makes two versions.

    Args:
        slot_wait_s: how long to try again where all GPU sessions are in use. Sessions that were
            stopped still count for a while.

    Raises:
        BusyError: all GPU sessions stay in use.
        RefusedError: Kaggle refuses the push, or drops one of its sources.
        KaggleError: anything else, see `kit.kaggle.errors`.
    """
    owner = client.owner()
    folder = write_kernel_folder(job, owner, folder)
    metadata = json.loads(read_text_file(folder / METADATA))
    text = read_text_file(folder / metadata["code_file"])
    ref = KernelRef(owner, job.slug)
    if metadata["enable_gpu"]:
        quota.tell_quota(client, say)

    # Noted before the push, to recognise the new version where the answer is lost.
    before = find_kernel(client, ref)
    latest = before.latest if before else 0
    request = _push_request(metadata, text, job.max_hours)
    waited = 0.0
    while True:
        answer = _save_kernel(client, request, ref, latest)
        if not answer.error:
            break
        if "session count" not in answer.error:
            raise RefusedError(
                f"Kaggle refused to push {ref}: {answer.error}",
                f"See {ref.url}, and run `kit doctor`.",
            )
        if waited >= slot_wait_s:
            raise BusyError(
                f"Kaggle refused to push {ref}: {answer.error}",
                "Wait until a session ends, or stop one at"
                " https://www.kaggle.com/code?sessions=active.",
            )
        say(f"{ref}: {answer.error} Trying again in {_SLOT_POLL_S:.0f} s")
        client.patience.sleep(_SLOT_POLL_S)
        waited += _SLOT_POLL_S

    # Kaggle may give the kernel another slug than the one asked for; its answer counts.
    _require_sources(answer, ref)
    address = (answer.url or answer.ref.removeprefix("/code/") or str(ref)).split("?")[0]
    actual = KernelRef.parse(address)
    if actual.name != ref.name:
        say(f"Kaggle named the kernel {actual}")
    version = KernelRef(actual.owner, actual.slug, answer.version_number or None)
    return PushedKernel(version, actual.url, folder)


def _push_request(metadata: Mapping[str, Any], source: str, max_hours: float) -> dict[str, Any]:
    """Return the request that Kaggle's client would make for this folder.

    The session's limit is a little above the job's own, so that the job ends by itself.
    """
    limit = min(max_hours + 0.25, SESSION_HOURS) * 3600
    fields = {field: metadata[key] for field, key in _REQUEST_FIELDS.items() if key in metadata}
    return {**fields, "text": source, "sessionTimeoutSeconds": int(limit)}


@dataclass(frozen=True)
class _RecoveredAnswer:
    """What a push would have answered, as far as the stored version shows it."""

    version_number: int
    url: str
    ref: str = ""
    error: str = ""


def _save_kernel(client: Client, request: Mapping[str, Any], ref: KernelRef, latest: int) -> Any:
    """Push once; `latest` is the number of the latest version before."""
    token = notebook.notebook_marks(request["text"])["push"]

    def recover_answer() -> _RecoveredAnswer | None:
        kernel = find_kernel(client, ref)
        if kernel is None or kernel.latest <= latest or token not in kernel.source:
            return None
        return _RecoveredAnswer(kernel.latest, ref.url)

    return client.change("kernels.save_kernel", request, f"pushing {ref}", recover_answer)


def _require_sources(answer: Any, ref: KernelRef) -> None:
    """Raise where Kaggle accepted the push, but dropped some of its sources."""
    dropped = [
        f"{kind} {name}"
        for kind in ("dataset", "competition", "kernel", "model")
        for name in getattr(answer, f"invalid_{kind}_sources", None) or []
    ]
    if dropped:
        raise RefusedError(
            f"Kaggle pushed {ref} version {answer.version_number} without {', '.join(dropped)},"
            " so it will fail",
            f"Stop it at {ref.url}. Check that these names are right, that they are yours or"
            " public, and that you have accepted the competition's rules.",
        )
