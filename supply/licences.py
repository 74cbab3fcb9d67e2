"""docs/licences.md: every package that kit needs and its licence, as the installed packages themselves say it."""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent


def licence(package: Distribution) -> str:
    """The SPDX expression, else the classifiers, else the first line of the licence field."""
    data = package.metadata
    classified = [
        c.rpartition(" :: ")[2]
        for c in data.get_all("Classifier", [])
        if c.startswith("License :: ")
    ]
    stated = (data.get("License") or "").strip().splitlines()
    return (
        data.get("License-Expression")
        or ", ".join(classified)
        or (stated[0][:60] if stated else "not stated")
    )


def page(pins: list[str]) -> str:
    """The table of the packages in constraints.txt."""
    rows = []
    for pin in pins:
        name, version = pin.split("==")
        try:
            found = distribution(name)
        except PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed here |")
            continue
        rows.append(f"| {found.metadata['Name']} | {found.version} | {licence(found)} |")
    head = (
        "# Licences of what kit needs\n\n"
        "Made by `python supply/licences.py` from the metadata of the installed packages, which are those of\n"
        "`constraints.txt`. kit itself is Apache-2.0; the encoders have licences of their own, see `kit backbones`.\n\n"
        "| package | version | licence |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/licences.md"
    target.write_text(
        page(re.findall(r"^[A-Za-z0-9_.-]+==\S+", text, re.MULTILINE)), encoding="utf-8"
    )
