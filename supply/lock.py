"""requirements.lock: the pinned set with the hash of every file, for `pip install --require-hashes`.

Reads the report of `pip install --dry-run --report`, which names the files that this Python on this platform would
install. A lock for one platform refuses every other, so each machine makes its own, and none is committed.
"""

import json
import platform
import sys
from pathlib import Path


def lock(report: dict) -> str:
    """The lock's text; a package without a SHA-256, as a local folder is, cannot be locked and is left out."""
    lines = [
        f"# Made by `make lock` for Python {platform.python_version()}, {platform.system()} {platform.machine()}."
    ]
    lines.append("# pip install --require-hashes -r requirements.lock")
    lines.append("# pip install --no-deps --no-build-isolation .")
    for item in sorted(report["install"], key=lambda item: item["metadata"]["name"].lower()):
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest:
            data = item["metadata"]
            lines.append(f"{data['name']}=={data['version']} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        lock(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8"
    )
