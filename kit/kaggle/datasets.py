"""Publish a run directory as a private Kaggle dataset. Use `publish_dataset`.

A dataset is the way into a notebook for a run that was trained here. Kaggle's client leaves out a
file whose upload failed, and always folders; here every file arrives or publishing fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, NotFoundError, RefusedError, UnreachableError
from kit.kaggle.kernel_ref import shorten_to_slug
from kit.kaggle.transfer import upload_file
from kit.run import Run
from kit.wording import counted

# Parts of a run directory that prediction does not need.
_LEFT_OUT = ("checkpoints", "tensorboard")

_FAILED = ("FAILED", "DELETED")


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset version that is ready to be mounted; `files` is how many files it has."""

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
    """Upload a run directory as a private dataset or a new version of it; wait until it is ready.

    Raises:
        KaggleError: a file cannot be uploaded, or Kaggle refuses or fails to process the dataset.
        RunError: `run` is not a run directory, no part of it is finished, or it is not whole.
    """
    run_dir = Run.open(run)
    run_dir.models()
    run_dir.check_files()
    slug = slug or dataset_slug(run_dir)
    owner = client.owner()
    ref = f"{owner}/{slug}"
    latest = _latest_version(client, ref)

    # Kaggle refuses a new version while it processes the one before.
    if latest:
        _wait_until_ready(client, ref, latest, poll_s, timeout_s, say)

    files, directories, count = _upload_folder(client, run_dir.path, say)
    contents = {"files": files, "directories": directories}
    say(f"{ref}: {counted(count, 'file')} uploaded; Kaggle processes them")
    if latest:
        method = "datasets.create_dataset_version"
        version = {"versionNotes": f"kit run {run_dir.name}", **contents}
        body: dict[str, Any] = {"ownerSlug": owner, "datasetSlug": slug, "body": version}
    else:
        method = "datasets.create_dataset"
        metadata = {"title": slug.replace("-", " "), "licenseName": "other", "isPrivate": True}
        body = {"ownerSlug": owner, "slug": slug, **metadata, **contents}

    def find_new_version() -> bool | None:
        return True if _latest_version(client, ref) > latest else None

    # A refusal is a normal answer with an error in it. True is not an answer but comes from
    # `find_new_version`, when the answer was lost.
    answer = client.change(method, body, f"publishing {ref}", find_new_version)
    if answer is not True and (answer.error or (answer.status or "ok").lower() == "error"):
        raise RefusedError(f"Kaggle refused the dataset {ref}: {answer.error or 'no reason given'}")

    _wait_until_ready(client, ref, latest + 1, poll_s, timeout_s, say)
    return PublishedDataset(ref, _page(ref), latest + 1, count)


def dataset_slug(run: Run) -> str:
    """Return the slug that a run is published under, at most 50 characters long.

    Each name has its own: with another run's slug, a run would become a version of its dataset.
    """
    prefix = "kit-run-"
    return prefix + shorten_to_slug(run.name, 50 - len(prefix)).lower()


def _latest_version(client: Client, ref: str) -> int:
    """Return the latest version, 0 if there is no such dataset (Kaggle answers 403 for that)."""
    try:
        answer = client.call("datasets.get_dataset", _slugs(ref), f"looking up the dataset {ref}")
    except NotFoundError:
        return 0
    return int(answer.current_version_number or 1)


def _wait_until_ready(
    client: Client,
    ref: str,
    version: int,
    poll_s: float,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Wait until `version` exists and is READY."""
    action = f"reading the status of {ref}"
    hint = f"See {_page(ref)}."
    waited_s = 0.0
    last_status = ""
    while True:
        status = client.call("datasets.get_dataset_status", _slugs(ref), action).status.name
        if status != last_status:
            say(f"{ref}: {status}")
            last_status = status

        # The status belongs to the version before until Kaggle has begun with the new one.
        if status == "READY" and _latest_version(client, ref) >= version:
            return
        if status in _FAILED:
            raise KaggleError(f"Kaggle could not process the dataset {ref}: {status}", hint)
        if waited_s >= timeout_s:
            raise UnreachableError(
                f"the dataset {ref} is {status} after {waited_s / 60:.0f} minutes", hint
            )

        client.patience.sleep(poll_s)
        waited_s += poll_s


def _upload_folder(
    client: Client, folder: Path, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Upload what is in `folder`.

    Returns:
        Its files and its subfolders, as a request lists them, and the number of files in all.
    """
    files: list[dict[str, Any]] = []
    directories: list[dict[str, Any]] = []
    count = 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in _LEFT_OUT:
            continue
        if path.is_dir():
            inner_files, inner_directories, inner_count = _upload_folder(client, path, say)
            directories.append(
                {"name": path.name, "files": inner_files, "directories": inner_directories}
            )
            count += inner_count
        else:
            say(f"uploading {folder.name}/{path.name} ({path.stat().st_size / 1e6:,.1f} MB)")
            files.append({"token": _upload_blob(client, path)})
            count += 1
    return files, directories, count


def _upload_blob(client: Client, path: Path) -> str:
    """Upload one file; return the token that stands for it in a request."""
    stat = path.stat()
    action = f"uploading {path.name}"
    body = {
        "type": "DATASET",
        "name": path.name,
        "contentLength": stat.st_size,
        "lastModifiedEpochSeconds": int(stat.st_mtime),
    }
    return upload_file(
        client, lambda: client.call("blobs.start_blob_upload", body, action), path, action
    )


def _slugs(ref: str) -> dict[str, str]:
    owner, slug = ref.split("/")
    return {"ownerSlug": owner, "datasetSlug": slug}


def _page(ref: str) -> str:
    return f"https://www.kaggle.com/datasets/{ref}"
