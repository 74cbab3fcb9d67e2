"""Unpacks kit, which travels in the cell above, and puts it on the path of this notebook and of its children."""

import atexit
import base64
import io
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path


def unpack(payload: dict) -> Path:
    """Writes the wheels and the job's configuration to a new folder and makes both known to everything that runs."""
    folder = Path(tempfile.mkdtemp(prefix="kit-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for wheel in payload["wheels"].values():
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(wheel))) as bundle:
            bundle.extractall(folder / "lib")
    (folder / "job.json").write_text(payload["job"], encoding="utf-8")
    library = str(folder / "lib")
    sys.path.insert(0, library)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        p for p in (library, os.environ.get("PYTHONPATH")) if p
    )
    os.environ["KIT_JOB"] = str(folder / "job.json")
    return folder


if __name__ == "__main__":
    print("kit | unpacked to", unpack(globals()["KIT_PAYLOAD"]))
