"""The lock has the hash of every file that would be installed, and one that pip accepts."""

import runpy
from pathlib import Path

LOCK = Path(__file__).parent.parent / "supply/lock.py"


def item(name: str, digest: str | None) -> dict:
    archive = {"archive_info": {"hashes": {"sha256": digest}}} if digest else {"dir_info": {}}
    return {"metadata": {"name": name, "version": "1.0+cpu"}, "download_info": archive}


def test_a_lock_names_each_file_by_its_hash_and_leaves_out_the_folder_itself():
    report = {
        "install": [
            item("torch", "ab" * 32),
            item("kit-llm-preference", None),
            item("Click", "cd" * 32),
        ]
    }
    lines = runpy.run_path(str(LOCK))["lock"](report).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        f"Click==1.0+cpu --hash=sha256:{'cd' * 32}",
        f"torch==1.0+cpu --hash=sha256:{'ab' * 32}",
    ]
