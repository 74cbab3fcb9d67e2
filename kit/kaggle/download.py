"""The competition's files, from Kaggle to `data/raw`: resumed, measured, unpacked safely, all of them or none."""

import contextlib
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.errors import KitError
from kit.kaggle.client import Client
from kit.kaggle.errors import UnreachableError
from kit.kaggle.transfer import discard_partial, fetch_file
from kit.storage.atomic import atomic_file, file_sha256
from kit.storage.lock import hold_lock
from kit.task import COMPETITION, TRAIN_FILE

TRAIN_SHA256 = "0692154aaf20fc6649090c3f49b6b5dd1e693a765ecb5f0856ae0da5946f5be2"  # train.csv as of November 2026
_PIECE = 1 << 20


@dataclass(frozen=True)
class Downloaded:
    """What is in the folder now: sizes in bytes by file name, what was there before, and how train.csv compares."""

    folder: Path
    sizes: dict[str, int]
    already: bool
    train_sha256: str
    warnings: tuple[str, ...] = ()


def download_competition(
    client: Client,
    out: str | Path,
    *,
    competition: str = COMPETITION,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Downloaded:
    """Downloads and unpacks a competition's files into `out`.

    Each file is compared with the size that Kaggle lists, and with its checksum in the archive. Files that are
    there already with the right size are kept; with `force` every file is downloaded and overwritten. An interrupted
    download continues where it stopped.

    Raises:
        KaggleError: rules not accepted, no such competition, no answer, a damaged archive.
        KitError: a file would be overwritten, the disk is full.
        HeldError: another process is downloading to `out`.
    """
    with hold_lock(Path(out)):
        return _download(client, Path(out), competition, force, say, progress)


def _download(
    client: Client,
    out: Path,
    competition: str,
    force: bool,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> Downloaded:
    sizes = competition_files(client, competition)
    here = {name: (out / name).stat().st_size for name in sizes if (out / name).is_file()}
    target = out / f"{competition}.zip"
    if here == sizes and not force:
        discard_partial(target)  # a process that was killed had unpacked it
        say(f"{out}: all {len(sizes)} files are there already")
        return _report(out, sizes, competition, already=True)
    for name, size in here.items():
        if size != sizes[name] and not force:
            raise KitError(
                f"{out / name} is there already with {size:,} bytes; Kaggle's has {sizes[name]:,}",
                "Add --force to overwrite it, or choose another folder with --out.",
            )
    _check_space(out, sum(sizes.values()))
    doing = f"downloading {competition}"
    say(f"{doing}: {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB unpacked")
    archive = fetch_file(
        client, lambda: _address(client, competition), target, doing, say, progress
    )
    try:
        unpack_download(archive, out, sizes)
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise UnreachableError(
            f"{doing}: the archive is damaged ({error})", "Run it again."
        ) from error
    except OSError as error:
        raise KitError(
            f"{out}: cannot be written ({error.strerror or error})",
            "Free some space there, then run it again.",
        ) from error
    archive.unlink()
    return _report(out, sizes, competition, already=False)


def competition_files(client: Client, competition: str = COMPETITION) -> dict[str, int]:
    """The competition's files with their sizes in bytes, all pages of the list."""
    sizes: dict[str, int] = {}
    token, seen = "", set()
    while token not in seen:
        seen.add(token)
        body = {"competitionName": competition, "pageSize": 200, "pageToken": token}
        answer = client.call(
            "competitions.list_data_files", body, f"listing the files of {competition}"
        )
        sizes.update({file.name: file.total_bytes for file in answer.files})
        token = answer.next_page_token
        if not token:
            break
    if not sizes:
        raise UnreachableError(
            f"listing the files of {competition}: Kaggle lists none", "Try again later."
        )
    return sizes


def unpack_download(archive: Path, out: Path, sizes: dict[str, int]) -> None:
    """Unpacks exactly the listed files: all under temporary names first, then all renamed.

    Raises:
        zipfile.BadZipFile: not an archive, bytes that cannot be unpacked, a checksum that differs, a file missing or
            of another size, a name that leads out of the folder, a link.
    """
    with contextlib.ExitStack() as stack:
        with _reading():
            bundle = stack.enter_context(zipfile.ZipFile(archive))
        members = {_safe(info): info for info in bundle.infolist() if not info.is_dir()}
        for name, size in sizes.items():
            info = members.get(name)
            if info is None or info.file_size != size:
                have = "lacks it" if info is None else f"has {info.file_size:,} bytes"
                raise zipfile.BadZipFile(
                    f"Kaggle lists {name!r} with {size:,} bytes, the archive {have}"
                )
            temporary = stack.enter_context(atomic_file(out / name))
            with temporary.open("wb") as target:
                for piece in _pieces(bundle, info):
                    target.write(piece)


def _pieces(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """A file's bytes, whose checksum has been compared when they end."""
    with _reading(), bundle.open(info) as source:
        while piece := source.read(_PIECE):
            yield piece


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Makes one error of the many that wrong bytes raise in zipfile: of zlib, of ends, versions, places, names."""
    try:
        yield
    except zipfile.BadZipFile:
        raise
    except Exception as error:
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error


def _safe(info: zipfile.ZipInfo) -> str:
    path = PurePosixPath(info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
        raise zipfile.BadZipFile(f"the name {info.filename[:60]!r} leads out of the folder")
    if kind not in (0, stat.S_IFREG):
        raise zipfile.BadZipFile(f"{info.filename[:60]!r} is a link or a device")
    return str(path)


def _address(client: Client, competition: str) -> str:
    body = {"competitionName": competition}
    response = client.call("competitions.download_data_files", body, f"downloading {competition}")
    response.close()  # only where it leads to is wanted
    return response.url


def _check_space(out: Path, needed: int) -> None:
    there = next(p for p in (out, *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise KitError(
            f"{out}: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free",
            "Free some space, or choose a folder on another disk with --out.",
        )


def _report(out: Path, sizes: dict[str, int], competition: str, already: bool) -> Downloaded:
    sha256 = file_sha256(out / TRAIN_FILE) if TRAIN_FILE in sizes else ""
    warnings = []
    if competition == COMPETITION and sha256 != TRAIN_SHA256:
        warnings.append(
            f"{out / TRAIN_FILE} is not the file of November 2026 (sha256 {sha256[:16]}…, known {TRAIN_SHA256[:16]}…). "
            "Kaggle may have updated it; scores are then not comparable with earlier ones. --force downloads it again."
        )
    return Downloaded(out, sizes, already, sha256, tuple(warnings))
