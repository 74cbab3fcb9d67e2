"""Write requirements.lock: the pinned packages with the hash of every file, for `make lock`.

    python supply/lock.py REPORT FILE

REPORT is the output of `pip install --dry-run --report`, which names the files that this Python
would install on this platform. A lock for one platform refuses every other, so each machine makes
its own, and none is committed.
"""

import json
import platform
import sys
from pathlib import Path


def lock_text(report: dict) -> str:
    """Return the lock file; packages without a SHA-256, such as a local folder, are left out."""
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    lines = [
        f"# Made by `make lock` for {system}.",
        "# pip install --require-hashes -r requirements.lock",
        "# pip install --no-deps --no-build-isolation .",
    ]

    for item in sorted(report["install"], key=lambda item: item["metadata"]["name"].lower()):
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest:
            package = item["metadata"]
            lines.append(f"{package['name']}=={package['version']} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(lock_text(report), encoding="utf-8")
