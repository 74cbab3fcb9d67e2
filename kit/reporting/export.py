"""Write a report to a file, as HTML or as Markdown by the file's suffix. Use `write_report`."""

from collections.abc import Sequence
from pathlib import Path

from kit.errors import KitError
from kit.plotting import importing_matplotlib
from kit.reporting.markdown import render_markdown
from kit.reporting.report import Report
from kit.storage.atomic import write_text

SUFFIXES = (".html", ".md")


def check_export(paths: Sequence[Path]) -> None:
    """Check, before anything is computed, that each path's suffix is one a report can have.

    Raises:
        KitError: a path has another suffix.
    """
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise KitError(
                f"{path}: a report is written as .html or .md",
                f"Call it {path.stem}.html or {path.stem}.md.",
            )


def write_report(report: Report, path: str | Path) -> None:
    """Write the page or the Markdown, whole or not at all.

    Raises:
        KitError: the path has another suffix than .html or .md.
    """
    path = Path(path)
    check_export([path])
    if path.suffix.lower() == ".md":
        write_text(path, render_markdown(report))
    else:
        # Imported here because it imports matplotlib, which Markdown does not need.
        with importing_matplotlib():
            from kit.reporting.html import render_html

        write_text(path, render_html(report))
