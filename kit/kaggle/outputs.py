"""Download the output files of a kernel, all complete or none. Use `download_output`.

Kaggle's client saves an error page as submission.csv and reads only the first page of the list.
Here every page is read, and files are compared with the hashes that kit's notebooks write to
`OUTPUT_LIST`; for other notebooks only the announced lengths are compared.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.errors import KitError
from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, UnreachableError
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.logs import read_log
from kit.kaggle.runtime.session import OUTPUT_LIST
from kit.kaggle.transfer import fetch_file
from kit.storage import atomic
from kit.storage.atomic import read_text_file
from kit.storage.lock import hold_lock


@dataclass(frozen=True)
class KernelOutput:
    """A downloaded output: its files by name below `folder`, and whether hashes were compared."""

    ref: KernelRef
    folder: Path
    files: tuple[str, ...]
    compared: bool


def output_addresses(client: Client, ref: KernelRef) -> dict[str, str]:
    """Return the signed address of each output file by its name; the addresses expire."""
    addresses: dict[str, str] = {}
    token = ""
    seen: set[str] = set()

    # A token that repeats would page in a circle for ever.
    while token not in seen:
        seen.add(token)
        request = {**ref.request(), "pageSize": 100, "pageToken": token}
        answer = client.call(
            "kernels.list_kernel_session_output", request, f"listing the output of {ref}"
        )
        addresses.update({_safe_name(file.file_name): file.url for file in answer.files or []})
        token = answer.next_page_token or ""
        if not token:
            break
    return addresses


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
    """Download the output files and the log of a finished kernel into `out`.

    The folder appears once everything in it is complete. The next call continues an interrupted
    download.

    Args:
        only: returns by name whether to download a file.
        force: replace `out` where it is the output of an earlier run.

    Raises:
        KaggleError: there are no files, an address answers with an error, or a file differs from
            what the notebook wrote.
        KitError: `out` exists and `force` is false, `out` contains files that are not a kernel's
            output, or it has no name of its own, such as "..".
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
    addresses = output_addresses(client, ref)
    if not addresses:
        raise KaggleError(
            f"{ref} has no output files",
            f"Run `kit kernels status {ref}` to see whether it has finished.",
        )
    wanted = [name for name in addresses if only(name)]
    if not wanted:
        listed = ", ".join(sorted(addresses)[:12])
        raise KaggleError(
            f"none of the {len(addresses)} output files of {ref} was asked for (it has {listed})",
            "Name one of them, or a pattern such as '*.csv'.",
        )
    # The list of hashes, by which the others are compared.
    if OUTPUT_LIST in addresses and OUTPUT_LIST not in wanted:
        wanted.append(OUTPUT_LIST)
    _require_replaceable(out, set(addresses), ref)

    # The version is in the name, so that a later call never continues another version's files.
    staging = out.with_name(f".{out.name}.{ref.slug}-{ref.version or 'latest'}.partial")
    parts: dict[str, Path] = {}
    for number, name in enumerate(wanted, 1):
        say(f"{ref}: {number} of {len(wanted)}: {name}")
        address = _renewed_address(client, ref, name, addresses[name])
        parts[name] = fetch_file(
            client, address, staging / name, f"downloading {name}", say, progress
        )
    for name, part in parts.items():
        part.replace(staging / name)

    compared = _compare_hashes(staging, ref, set(wanted), set(addresses))
    # The notebook may have left a file of this name itself.
    log = staging / f"{ref.slug}.log"
    while log.name in {PurePosixPath(name).parts[0] for name in addresses}:
        log = log.with_name(f"kaggle-{log.name}")
    log.write_text(read_log(client, ref), encoding="utf-8")
    with atomic.atomic_folder(out) as temporary:
        for path in staging.iterdir():
            path.replace(temporary / path.name)
    shutil.rmtree(staging)
    return KernelOutput(ref, out, tuple(wanted), compared)


def _require_replaceable(out: Path, listed: set[str], ref: KernelRef) -> None:
    """Raise unless `out`, which is replaced as a whole, is free or holds a kernel's output only."""
    if not out.exists():
        return
    if not out.is_dir():
        raise KitError(
            f"{out} is a file, but the output needs a folder", "Choose another folder with --out."
        )

    # The log at the top of the folder is written by kit, and is not in the list of files.
    known = listed | _earlier_output(out) | {OUTPUT_LIST}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        is_folder = path.is_dir() and not path.is_symlink()
        is_log = "/" not in name and path.suffix == ".log"
        if not is_folder and not is_log and name not in known:
            raise KitError(
                f"{out} holds {name}, which is not part of the output of {ref} and would be lost",
                "Choose another folder with --out, or delete that file.",
            )


def _earlier_output(out: Path) -> set[str]:
    """Return the file names of the earlier output in `out`, which may be another version's."""
    try:
        return set(json.loads(read_text_file(out / OUTPUT_LIST))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _compare_hashes(folder: Path, ref: KernelRef, wanted: set[str], listed: set[str]) -> bool:
    """Compare the files with the list that kit's notebooks write; return whether there is one.

    A file of that name in another form is another notebook's.

    Raises:
        UnreachableError: a file is missing or differs; the partial download is then removed.
    """
    try:
        written = json.loads(read_text_file(folder / OUTPUT_LIST))["files"]
        hashes = {name: entry["sha256"] for name, entry in written.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False

    missing = sorted(set(hashes) - listed)
    changed = [
        name
        for name in sorted(wanted & set(hashes))
        if atomic.file_sha256(folder / name) != hashes[name]
    ]
    if missing or changed:
        shutil.rmtree(folder)
        fault = (
            f"lacks {', '.join(missing[:5])}"
            if missing
            else f"has other bytes in {', '.join(changed[:5])} than the notebook wrote"
        )
        raise UnreachableError(
            f"the downloaded output of {ref} {fault}; nothing was kept", "Run the command again."
        )
    return True


def _renewed_address(client: Client, ref: KernelRef, name: str, url: str) -> Callable[[], str]:
    """Return a function that gives `url` first, and a new address at each further call."""
    first = [url]

    def address() -> str:
        return first.pop() if first else output_addresses(client, ref)[name]

    return address


def _safe_name(name: str) -> str:
    """Return the relative path of an output file; raise for one outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise KitError(
            f"the output file name {name[:60]!r} leads out of the folder",
            "Download it in a browser.",
        )
    return str(path)
