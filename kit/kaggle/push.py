"""A notebook on its way to Kaggle: the folder, which `kaggle kernels push` would take too, and the push itself.

Kaggle's client reports a refused push, and sources that do not exist, as success. Here both are errors.
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
from kit.kaggle.kernels import KernelRef, kernel_exists
from kit.storage.atomic import atomic_folder

METADATA = "kernel-metadata.json"


@dataclass(frozen=True)
class Pushed:
    """A version that Kaggle accepted."""

    ref: KernelRef
    url: str
    folder: Path


def write_folder(job: Job, owner: str, folder: str | Path) -> Path:
    """Writes the notebook and its metadata to `folder`, which `kaggle kernels push -p` also takes; returns it.

    Raises:
        KitError: the folder holds anything else than a notebook of ours, or the notebook is too large.
    """
    folder = Path(folder)
    if folder.exists() and any(
        p.suffix != ".ipynb" and p.name != METADATA for p in folder.iterdir()
    ):
        raise KitError(f"{folder} holds other files", "Choose a new folder for the notebook.")
    metadata = job.metadata(owner)
    text = notebook.build_notebook(job.kind, {**job.session(), "push": secrets.token_hex(16)})
    with atomic_folder(folder) as temporary:
        (temporary / metadata["code_file"]).write_text(text, encoding="utf-8")
        (temporary / METADATA).write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    return folder


def written_kernel(folder: str | Path) -> list[KernelRef]:
    """The kernels whose folders are in `folder`, pushed or not, by name."""
    found = []
    for path in sorted(Path(folder).glob(f"*/{METADATA}")):
        try:
            found.append(KernelRef.parse(json.loads(path.read_text(encoding="utf-8"))["id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise KitError(
                f"{path} cannot be read: {error}", "Push that kernel again, or delete its folder."
            ) from error
    return found


def push_kernel(
    client: Client,
    job: Job,
    folder: str | Path,
    *,
    slot_wait_s: float = 300.0,
    say: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Writes the folder and pushes it; returns the version that Kaggle made.

    A lost answer is checked before the push is repeated, so there is never a second version by accident. Where all
    GPU sessions are taken it tries again for `slot_wait_s`, since stopped ones still count for a while.

    Raises:
        BusyError: all GPU sessions stay taken.
        RefusedError: Kaggle refuses the push, or drops one of its sources.
        KaggleError: anything else, see `faults`.
    """
    owner = client.owner()
    folder = write_folder(job, owner, folder)
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    text = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    ref, waited = KernelRef(owner, job.slug), 0.0
    if metadata["enable_gpu"]:
        quota.tell_quota(client, say)
    before = kernel_exists(client, ref)
    while True:
        answer = _save(
            client, push_request(metadata, text, job.max_hours), ref, before.latest if before else 0
        )
        if not answer.error:
            break
        if "session count" not in answer.error:
            raise RefusedError(
                f"Kaggle refuses to push {ref}: {answer.error}", f"See {ref.url}, and `kit doctor`."
            )
        if waited >= slot_wait_s:
            raise BusyError(
                f"Kaggle refuses to push {ref}: {answer.error}",
                "Wait until a session ends, or stop one at https://www.kaggle.com/code?sessions=active.",
            )
        say(f"{ref}: {answer.error} Trying again in 30 s")
        client.patience.sleep(30.0)
        waited += 30.0
    _require_sources(answer, ref)
    address = (answer.url or answer.ref.removeprefix("/code/") or str(ref)).split("?")[0]
    real = KernelRef.parse(address)
    if (real.owner, real.slug) != (ref.owner, ref.slug):
        say(f"Kaggle has named the kernel {real}")
    return Pushed(KernelRef(real.owner, real.slug, answer.version_number or None), real.url, folder)


def push_request(metadata: Mapping[str, Any], source: str, max_hours: float) -> dict[str, Any]:
    """The push as Kaggle's client would put it, with a session limit a little above the job's own."""
    names = {
        "slug": "id", "newTitle": "title", "language": "language", "kernelType": "kernel_type",
        "isPrivate": "is_private", "enableGpu": "enable_gpu", "enableTpu": "enable_tpu",
        "enableInternet": "enable_internet", "machineShape": "machine_shape",
        "dockerImagePinningType": "docker_image_pinning_type", "competitionDataSources": "competition_sources",
        "kernelDataSources": "kernel_sources", "datasetDataSources": "dataset_sources",
        "modelDataSources": "model_sources", "categoryIds": "keywords",
    }  # fmt: skip
    limit = min(max_hours + 0.25, SESSION_HOURS) * 3600
    body = {ours: metadata[theirs] for ours, theirs in names.items() if theirs in metadata}
    return {**body, "text": source, "sessionTimeoutSeconds": int(limit)}


@dataclass(frozen=True)
class _Found:
    """What a push would have answered, reconstructed from the version that is there."""

    version_number: int
    url: str
    ref: str = ""
    error: str = ""


def _save(client: Client, body: Mapping[str, Any], ref: KernelRef, before: int) -> Any:
    token = notebook.marks(body["text"])["push"]

    def happened() -> _Found | None:
        kernel = kernel_exists(client, ref)
        if kernel is None or kernel.latest <= before or token not in kernel.source:
            return None
        return _Found(kernel.latest, ref.url)

    return client.change("kernels.save_kernel", body, f"pushing {ref}", happened)


def _require_sources(answer: Any, ref: KernelRef) -> None:
    """Raises where Kaggle accepted the push and dropped some of what it needs."""
    kinds = ("dataset", "competition", "kernel", "model")
    bad = [
        f"{kind} {name}"
        for kind in kinds
        for name in getattr(answer, f"invalid_{kind}_sources", None) or []
    ]
    if bad:
        raise RefusedError(
            f"Kaggle pushed {ref} version {answer.version_number} without {', '.join(bad)}, so it will fail",
            f"Stop it at {ref.url}. Check these names, that they are yours or public, and that the rules are accepted.",
        )
