"""Make kit importable: unpack it from the cells above, for this notebook and its commands."""

import atexit
import base64
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path


def unpack_wheels(wheels: dict, job: dict) -> Path:
    """Unpack the wheels and the job's settings to a new temporary folder, and return the folder.

    The path of this process, and PYTHONPATH and KIT_JOB for its children, then lead there.

    Raises:
        RuntimeError: a wheel is not the one that was packed.
    """
    folder = Path(tempfile.mkdtemp(prefix="kit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    # A pure-Python wheel is a zip archive that can be imported once it is extracted, so nothing has
    # to be installed.
    library = folder / "lib"
    for name, wheel in wheels.items():
        archive = lzma.decompress(base64.b64decode(wheel["lzma"]))
        if hashlib.sha256(archive).hexdigest() != wheel["sha256"]:
            raise RuntimeError(f"{name} has changed: its SHA-256 is not {wheel['sha256']}")
        with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
            bundle.extractall(library)
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")

    sys.path.insert(0, str(library))
    paths = [str(library), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ["KIT_JOB"] = str(folder / "job.json")
    return folder


if __name__ == "__main__":
    print("kit | unpacked to", unpack_wheels(globals()["KIT_WHEELS"], globals()["KIT_JOB"]))
