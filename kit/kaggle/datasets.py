"""A run directory as a private Kaggle dataset: another way to get weights into a notebook than a kernel's output.

Kaggle's client leaves out a file whose upload failed, and folders always; here every file is there or it fails.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, NotFoundError, RefusedError, UnreachableError
from kit.kaggle.transfer import upload_file
from kit.run import Run

LEFT_OUT = ("checkpoints", "tensorboard")
_FAILED = ("FAILED", "DELETED")


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset that is ready to be mounted."""

    ref: str
    url: str
    version: int
    files: int


def publish_dataset(
    client: Client,
    run: str | Path,
    *,
    slug: str = "",
    poll_s: float = 10.0,
    timeout_s: float = 3600.0,
    say: Callable[[str], None] = lambda _: None,
) -> PublishedDataset:
    """Uploads a run directory as a private dataset, or as a new version of it, and waits until Kaggle has it ready.

    Raises:
        KaggleError: a file cannot be uploaded, Kaggle refuses or fails to process the dataset.
        RunError: `run` is no run directory, or no part of it is finished.
    """
    run_dir = Run.open(run)
    run_dir.require_parts()
    slug = slug or dataset_slug(run_dir)
    ref = f"{client.owner()}/{slug}"
    before = _version(client, ref)
    if before:
        _wait(
            client, ref, before, poll_s, timeout_s, say
        )  # a second version is refused while one is processed
    files, directories, count = _upload(client, run_dir.path, say)
    owner, _ = ref.split("/")
    contents = {"files": files, "directories": directories}
    say(f"{ref}: {count} files uploaded; Kaggle processes them")
    if before:
        method = "datasets.create_dataset_version"
        notes = {"versionNotes": f"kit run {run_dir.name}", **contents}
        body: dict[str, Any] = {"ownerSlug": owner, "datasetSlug": slug, "body": notes}
    else:
        method = "datasets.create_dataset"
        title = {"title": slug.replace("-", " "), "licenseName": "other", "isPrivate": True}
        body = {"ownerSlug": owner, "slug": slug, **title, **contents}

    def happened() -> Any:
        return True if _version(client, ref) > before else None

    answer = client.change(method, body, f"publishing {ref}", happened)
    if answer is not True and (answer.error or (answer.status or "ok").lower() == "error"):
        raise RefusedError(
            f"Kaggle refuses the dataset {ref}: {answer.error or 'no reason given'}", ""
        )
    _wait(client, ref, before + 1, poll_s, timeout_s, say)
    return PublishedDataset(ref, f"https://www.kaggle.com/datasets/{ref}", before + 1, count)


def dataset_slug(run: Run) -> str:
    """The slug that a run is published under."""
    return re.sub(r"[^a-z0-9]+", "-", f"kit-run-{run.name}".lower()).strip("-")[:50].strip("-")


def _version(client: Client, ref: str) -> int:
    """Its latest version; 0 where there is none (Kaggle answers 403 for that)."""
    try:
        answer = client.call("datasets.get_dataset", _name(ref), f"looking up the dataset {ref}")
    except NotFoundError:
        return 0
    return int(answer.current_version_number or 1)


def _wait(
    client: Client,
    ref: str,
    version: int,
    poll_s: float,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Waits until `version` is there and READY."""
    waited, last = 0.0, ""
    while True:
        status = client.call(
            "datasets.get_dataset_status", _name(ref), f"reading the status of {ref}"
        ).status.name
        if status != last:
            say(f"{ref}: {status}")
            last = status
        if status == "READY" and _version(client, ref) >= version:
            return
        page = f"See https://www.kaggle.com/datasets/{ref}."
        if status in _FAILED:
            raise KaggleError(f"Kaggle could not process the dataset {ref}: {status}", page)
        if waited >= timeout_s:
            raise UnreachableError(
                f"the dataset {ref} is {status} after {waited / 60:.0f} minutes", page
            )
        client.patience.sleep(poll_s)
        waited += poll_s


def _upload(
    client: Client, folder: Path, say: Callable[[str], None]
) -> tuple[list[Any], list[Any], int]:
    """Uploads what is in `folder`: its files, its folders with theirs, and how many files in all."""
    files, directories, count = [], [], 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in LEFT_OUT:
            continue
        if path.is_dir():
            inner, deeper, number = _upload(client, path, say)
            directories.append({"name": path.name, "files": inner, "directories": deeper})
            count += number
        else:
            say(f"uploading {folder.name}/{path.name} ({path.stat().st_size / 1e6:,.1f} MB)")
            files.append({"token": _blob(client, path)})
            count += 1
    return files, directories, count


def _blob(client: Client, path: Path) -> str:
    stat, doing = path.stat(), f"uploading {path.name}"
    body = {"type": "DATASET", "name": path.name, "contentLength": stat.st_size}
    answer = client.call(
        "blobs.start_blob_upload", body | {"lastModifiedEpochSeconds": int(stat.st_mtime)}, doing
    )
    upload_file(client, answer.create_url, path, doing)
    return answer.token


def _name(ref: str) -> dict[str, str]:
    owner, slug = ref.split("/")
    return {"ownerSlug": owner, "datasetSlug": slug}
