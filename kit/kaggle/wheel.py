"""A wheel of an installed package, made from its files: what a notebook carries instead of an upload.

Kaggle's push takes one file, and code competitions run without internet; kit's wheel is small enough to be in it.
Source: the wheel format, https://packaging.python.org/specifications/binary-distribution-format/.
"""

import base64
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kit.errors import KitError

CARRIED = ("kit", "tomli_w")  # tomli_w is small, pure Python, and not in Kaggle's image


@dataclass(frozen=True)
class Wheel:
    """A wheel in memory."""

    name: str
    data: bytes


@functools.cache
def build_wheel(package: str) -> Wheel:
    """The wheel of a pure-Python package as it is installed, the same bytes each time.

    Raises:
        KitError: the package is not installed as a folder of files.
    """
    found = importlib.util.find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    if not folders or not Path(folders[0]).is_dir():
        raise KitError(
            f"the package {package} is not a folder here, so it cannot be packed",
            "Reinstall kit with pip.",
        )
    root = Path(folders[0])
    files = {
        f"{package}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and not any(p.startswith(".") or p == "__pycache__" for p in path.relative_to(root).parts)
    }
    distribution, version = _distribution(package)
    name = distribution.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n".encode()
    )
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: kit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    record = "".join(f"{path},sha256={_digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as bundle:
        for path, data in files.items():
            bundle.writestr(
                zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED, 9
            )  # a date of 1980: same bytes always
    return Wheel(f"{name}-{version}-py3-none-any.whl", buffer.getvalue())


def _distribution(package: str) -> tuple[str, str]:
    names = importlib.metadata.packages_distributions().get(package, [])
    if names:
        return names[0], importlib.metadata.version(names[0])
    import kit

    return package, kit.__version__  # a checkout that was never installed


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
