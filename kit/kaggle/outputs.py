"""A kernel's output files, all pages of them, in a local folder: every one whole, or no folder.

Kaggle's client keeps an error page as submission.csv and reads the first page only. Our notebooks list what they
wrote with sizes and hashes; for others the announced lengths have to do.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.errors import KitError
from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, UnreachableError
from kit.kaggle.kernels import KernelRef
from kit.kaggle.logs import read_log
from kit.kaggle.runtime.session import OUTPUTS
from kit.kaggle.transfer import fetch_file
from kit.storage import atomic
from kit.storage.lock import hold_lock


@dataclass(frozen=True)
class KernelOutput:
    """A downloaded output: its files by name below `folder`, and whether their hashes were compared."""

    ref: KernelRef
    folder: Path
    files: tuple[str, ...]
    compared: bool


def output_addresses(client: Client, ref: KernelRef) -> dict[str, str]:
    """The signed address of each output file, by its name; they expire."""
    found: dict[str, str] = {}
    token, seen = "", set()
    while token not in seen:
        seen.add(token)
        body = {**ref.body(), "pageSize": 100, "pageToken": token}
        answer = client.call(
            "kernels.list_kernel_session_output", body, f"listing the output of {ref}"
        )
        found.update({_safe(file.file_name): file.url for file in answer.files or []})
        token = answer.next_page_token or ""
        if not token:
            break
    return found


def download_output(
    client: Client,
    ref: KernelRef,
    out: str | Path,
    *,
    only: Callable[[str], bool] = lambda _: True,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> KernelOutput:
    """Downloads the output files and the log of a finished run into `out`.

    The folder appears when everything in it is complete. An interrupted download goes on where it stopped.

    Args:
        only: which files to take, by name.
        force: replace `out`, where it is the output of an earlier run.

    Raises:
        KaggleError: there are none, an address answers with an error, a file differs from what the notebook wrote.
        KitError: `out` exists and `force` was not given, or it holds what no run left; it is no folder of its own.
        HeldError: another process is downloading there.
    """
    out = Path(out)
    if out.name in ("", ".."):
        raise KitError(
            f"{out} is not a folder that a download can replace", "Name a new folder with --out."
        )
    atomic.refuse_overwrite(out, force)
    with hold_lock(out.parent, out.name):
        return _download(client, ref, out, only, say, progress)


def _download(
    client: Client,
    ref: KernelRef,
    out: Path,
    only: Callable[[str], bool],
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> KernelOutput:
    listed = output_addresses(client, ref)
    wanted = [name for name in listed if only(name) or name == OUTPUTS]
    if not wanted:
        raise KaggleError(
            f"{ref} has no output files", f"Is it finished? `kit kernels status {ref}` says."
        )
    _require_output(out, set(listed), ref)
    staging = out.with_name(f".{out.name}.{ref.slug}-{ref.version or 'latest'}.partial")
    parts = {}
    for number, name in enumerate(wanted, 1):
        say(f"{ref}: {number} of {len(wanted)}: {name}")
        address = _fresh(client, ref, name, listed[name])
        parts[name] = fetch_file(
            client, address, staging / name, f"downloading {name}", say, progress
        )
    for name, part in parts.items():
        part.replace(staging / name)
    compared = _compare(staging, ref, set(wanted), set(listed))
    (staging / f"{ref.slug}.log").write_text(read_log(client, ref), encoding="utf-8")
    with atomic.atomic_folder(out) as temporary:
        for path in staging.iterdir():
            path.replace(temporary / path.name)
    shutil.rmtree(staging)
    return KernelOutput(ref, out, tuple(wanted), compared)


def _require_output(out: Path, listed: set[str], ref: KernelRef) -> None:
    """Raises unless `out`, which is replaced as a whole, is free or holds only what a run of a kernel left."""
    if not out.exists():
        return
    if not out.is_dir():
        raise KitError(
            f"{out} is a file; a folder is to be written there", "Choose another folder with --out."
        )
    known = listed | _written(out) | {OUTPUTS}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        folder = path.is_dir() and not path.is_symlink()
        if not folder and name not in known and not ("/" not in name and path.suffix == ".log"):
            raise KitError(
                f"{out} holds {name}, which is not known for an output of {ref} and would be lost",
                "Choose another folder with --out, or delete it.",
            )


def _written(out: Path) -> set[str]:
    """The names that the earlier output in `out` says it has, which may be another version's."""
    try:
        return set(json.loads((out / OUTPUTS).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _compare(folder: Path, ref: KernelRef, wanted: set[str], listed: set[str]) -> bool:
    """Compares the files with the list that our notebooks write; whether there is one.

    Raises:
        UnreachableError: one is missing, or has other bytes; the partial download is then removed.
    """
    if not (folder / OUTPUTS).is_file():
        return False
    written = json.loads((folder / OUTPUTS).read_text(encoding="utf-8"))["files"]
    missing = sorted(set(written) - listed)
    changed = [
        n
        for n in sorted(wanted & set(written))
        if atomic.file_sha256(folder / n) != written[n]["sha256"]
    ]
    if missing or changed:
        shutil.rmtree(folder)
        what = (
            f"lacks {', '.join(missing[:5])}"
            if missing
            else f"holds other bytes in {', '.join(changed[:5])}"
        )
        raise UnreachableError(
            f"the output of {ref} as downloaded {what}; nothing was kept", "Run it again."
        )
    return True


def _fresh(client: Client, ref: KernelRef, name: str, url: str) -> Callable[[], str]:
    """Gives the listed address first, and asks for a new one each time after that."""
    first = [url]

    def address() -> str:
        return first.pop() if first else output_addresses(client, ref)[name]

    return address


def _safe(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise KitError(
            f"the output file name {name[:60]!r} leads out of the folder",
            "Download it in a browser.",
        )
    return str(path)
