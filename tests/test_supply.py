"""Check that the lock file has the hash of every file that would be installed."""

import runpy
from pathlib import Path

LOCK_SCRIPT = Path(__file__).parent.parent / "supply/lock.py"


def report_item(name: str, digest: str | None) -> dict:
    archive = {"archive_info": {"hashes": {"sha256": digest}}} if digest else {"dir_info": {}}
    return {"metadata": {"name": name, "version": "1.0+cpu"}, "download_info": archive}


def test_each_package_has_its_hash_and_the_local_folder_is_left_out():
    report = {
        "install": [
            report_item("torch", "ab" * 32),
            report_item("kit-llm-preference", None),
            report_item("Click", "cd" * 32),
        ]
    }

    lines = runpy.run_path(str(LOCK_SCRIPT))["lock_text"](report).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        f"Click==1.0+cpu --hash=sha256:{'cd' * 32}",
        f"torch==1.0+cpu --hash=sha256:{'ab' * 32}",
    ]
