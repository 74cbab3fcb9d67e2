"""Download the competition's files from Kaggle and unpack them safely. Use `download_competition`.

Either all files arrive or none that is new: sizes and checksums are compared before any file gets
its name.
"""

import contextlib
import shutil
import stat
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.errors import KitError
from kit.kaggle.client import Client
from kit.kaggle.errors import UnreachableError
from kit.kaggle.transfer import discard_partial, fetch_file
from kit.storage.atomic import atomic_file, file_sha256
from kit.storage.lock import hold_lock
from kit.task import COMPETITION, TRAIN_FILE
from kit.wording import counted

# train.csv as of November 2026.
TRAIN_SHA256 = "0692154aaf20fc6649090c3f49b6b5dd1e693a765ecb5f0856ae0da5946f5be2"

_CHUNK_SIZE = 1 << 20


@dataclass(frozen=True)
class DownloadResult:
    """What is in the folder now.

    Args:
        folder: where the files are.
        sizes: bytes by file name.
        already: whether everything was there before.
        train_sha256: of train.csv, "" if the competition has none.
        warnings: for the user.
    """

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
) -> DownloadResult:
    """Download and unpack a competition's files into `out`.

    Each file is compared with the size that Kaggle lists and with its checksum in the archive. An
    interrupted download continues where it stopped.

    Args:
        force: download and overwrite every file. Otherwise files of the right size are kept.
        say: called with messages.
        progress: called with the bytes that have arrived and the bytes in all.

    Raises:
        KaggleError: rules not accepted, no such competition, no answer, a damaged archive.
        KitError: a file would be overwritten, or the disk is full.
        HeldError: another process is downloading to `out`.
    """
    out = Path(out)
    with hold_lock(out):
        sizes = competition_files(client, competition)
        archive_path = out / f"{competition}.zip"

        if not force and _has_all_files(out, sizes):
            # A process may have been killed after it had unpacked everything.
            discard_partial(archive_path)
            say(f"{out}: all files are there already ({len(sizes)})")
            return _report(out, sizes, competition, already=True)

        _require_space(out, sum(sizes.values()))
        action = f"downloading {competition}"
        say(
            f"{action}: {counted(len(sizes), 'file')}, {sum(sizes.values()) / 1e6:,.1f} MB unpacked"
        )
        archive = fetch_file(
            client, lambda: _address(client, competition), archive_path, action, say, progress
        )

        try:
            warnings = unpack_download(archive, out, sizes)
        except zipfile.BadZipFile as error:
            # The next attempt must not resume from these bytes.
            archive.unlink()
            raise UnreachableError(
                f"{action}: the archive is damaged ({error})", "Run it again."
            ) from error
        except OSError as error:
            raise KitError(
                f"{out}: cannot be written ({error.strerror or error})",
                "Free some space there, then run it again.",
            ) from error
        archive.unlink()
        return _report(out, sizes, competition, already=False, warnings=warnings)


def competition_files(client: Client, competition: str = COMPETITION) -> dict[str, int]:
    """Return the competition's files with their sizes in bytes, from all pages of the list."""
    action = f"listing the files of {competition}"
    sizes: dict[str, int] = {}
    token = ""
    seen_tokens = set()

    # A token that comes again would never end.
    while token not in seen_tokens:
        seen_tokens.add(token)
        body = {"competitionName": competition, "pageSize": 200, "pageToken": token}
        answer = client.call("competitions.list_data_files", body, action)
        sizes.update({file.name: file.total_bytes for file in answer.files})
        token = answer.next_page_token
        if not token:
            break

    if not sizes:
        raise UnreachableError(f"{action}: Kaggle lists none", "Try again later.")
    return sizes


def unpack_download(archive: Path, out: Path, sizes: dict[str, int]) -> list[str]:
    """Unpack exactly the listed files: all under temporary names first, then all renamed.

    Returns:
        Warnings about sizes that are not the listed ones although the checksums are right.

    Raises:
        zipfile.BadZipFile: not an archive, bytes that cannot be unpacked, a wrong checksum, a file
            that is missing or has another size, a name that leads out of the folder, a link.
    """
    # The stack renames the files when it closes, after all of them were read without an error.
    with contextlib.ExitStack() as stack:
        with _bad_zip_errors():
            bundle = stack.enter_context(zipfile.ZipFile(archive))
        members = {_safe_name(info): info for info in bundle.infolist() if not info.is_dir()}
        warnings = _compare_sizes(members, sizes)

        for name in sizes:
            temporary = stack.enter_context(atomic_file(out / name))
            with temporary.open("wb") as target:
                for chunk in _chunks(bundle, members[name]):
                    target.write(chunk)
    return warnings


def _compare_sizes(members: dict[str, zipfile.ZipInfo], sizes: dict[str, int]) -> list[str]:
    """Compare an archive with the listed sizes, and return a warning for each that is wrong.

    Kaggle does not document whether it lists sizes before or after compression. So where no size
    agrees, the list is taken to be wrong; where some do, a file that differs is another one.
    """
    for name, size in sizes.items():
        if name not in members:
            raise zipfile.BadZipFile(
                f"Kaggle lists {name!r} with {size:,} bytes, the archive lacks it"
            )
    different = [name for name, size in sizes.items() if members[name].file_size != size]
    if different and len(different) < len(sizes):
        name = different[0]
        raise zipfile.BadZipFile(
            f"Kaggle lists {name!r} with {sizes[name]:,} bytes, the archive has"
            f" {members[name].file_size:,} bytes"
        )
    return [
        f"{name} has {members[name].file_size:,} bytes, Kaggle lists {sizes[name]:,}; its checksum"
        " is right"
        for name in different
    ]


def _has_all_files(out: Path, sizes: dict[str, int]) -> bool:
    """Whether every file is there.

    Raises:
        KitError: one of them has another size than Kaggle's.
    """
    present = {name: (out / name).stat().st_size for name in sizes if (out / name).is_file()}
    for name, size in present.items():
        if size != sizes[name]:
            raise KitError(
                f"{out / name} is there already with {size:,} bytes; Kaggle's has {sizes[name]:,}",
                "Add --force to overwrite it, or choose another folder with --out.",
            )
    return present == sizes


def _chunks(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield a file's bytes; zipfile compares the checksum at their end."""
    with _bad_zip_errors(), bundle.open(info) as source:
        while chunk := source.read(_CHUNK_SIZE):
            yield chunk


@contextlib.contextmanager
def _bad_zip_errors() -> Generator[None]:
    """Turn every error that zipfile raises for wrong bytes into `BadZipFile`."""
    # zipfile lets errors of zlib, struct, EOF, unknown versions, offsets and names through.
    try:
        yield
    except zipfile.BadZipFile:
        raise
    except Exception as error:
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error


def _safe_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a regular file inside the folder; raise for anything else."""
    path = PurePosixPath(info.filename)
    file_type = stat.S_IFMT(info.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
        raise zipfile.BadZipFile(f"the name {info.filename[:60]!r} leads out of the folder")
    if file_type not in (0, stat.S_IFREG):
        raise zipfile.BadZipFile(f"{info.filename[:60]!r} is a link or a device")
    return str(path)


def _address(client: Client, competition: str) -> str:
    """Return a signed address of the competition's archive."""
    body = {"competitionName": competition}
    response = client.call("competitions.download_data_files", body, f"downloading {competition}")
    # The SDK has followed the redirect; `fetch_file` opens the address again by itself.
    response.close()
    return response.url


def _require_space(out: Path, needed: int) -> None:
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise KitError(
            f"{out}: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free",
            "Free some space, or choose a folder on another disk with --out.",
        )


def _report(
    out: Path,
    sizes: dict[str, int],
    competition: str,
    already: bool,
    warnings: Sequence[str] = (),
) -> DownloadResult:
    sizes = {name: (out / name).stat().st_size for name in sizes}
    sha256 = file_sha256(out / TRAIN_FILE) if TRAIN_FILE in sizes else ""
    warnings = list(warnings)
    if competition == COMPETITION and sha256 != TRAIN_SHA256:
        warnings.append(
            f"{out / TRAIN_FILE} is not the version of November 2026 (sha256 {sha256[:16]}…, "
            f"expected {TRAIN_SHA256[:16]}…). Kaggle may have updated it; scores are then not "
            "comparable with earlier ones. --force downloads it again."
        )
    return DownloadResult(out, sizes, already, sha256, tuple(warnings))
