"""Write docs/licences.md: every package that kit needs, with the licence that it declares.

    python supply/licences.py [FILE]

The packages are those of constraints.txt; their licences come from the installed metadata.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent


def licence_of(package: Distribution) -> str:
    """Return the SPDX expression, else the classifiers, else the first line of the field."""
    metadata = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return expression

    classifiers = metadata.get_all("Classifier", [])
    licences = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    if licences:
        return ", ".join(licences)

    lines = (metadata.get("License") or "").strip().splitlines()
    return lines[0][:60] if lines else "not stated"


def licence_page(pins: list[str]) -> str:
    """Return the page with a table of the pinned packages."""
    rows = []
    for pin in pins:
        name, version = pin.split("==")
        try:
            package = distribution(name)
        except PackageNotFoundError:
            rows.append(f"| {name} | {version} | not installed here |")
            continue
        rows.append(f"| {package.metadata['Name']} | {package.version} | {licence_of(package)} |")

    head = (
        "# Licences of what kit needs\n\n"
        "Made by `python supply/licences.py` from the metadata of the installed packages, "
        "which are those of\n"
        "`constraints.txt`. kit itself is Apache-2.0; the models have licences of their own, "
        "see `kit backbones` and\n"
        "[judges.md](judges.md).\n\n"
        "| package | version | licence |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = re.findall(r"^[A-Za-z0-9_.-]+==\S+", constraints, re.MULTILINE)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/licences.md"
    target.write_text(licence_page(pins), encoding="utf-8")
