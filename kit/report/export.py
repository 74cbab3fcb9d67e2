"""The report as a file, its form told by the file's suffix."""

from collections.abc import Sequence
from pathlib import Path

from kit.errors import KitError
from kit.report.markdown import render_markdown
from kit.report.report import Report
from kit.storage.atomic import write_text

FORMS = (".html", ".md")


def check_export(paths: Sequence[Path]) -> None:
    """Raises `KitError` unless each has a suffix that says what to write."""
    for path in paths:
        if path.suffix.lower() not in FORMS:
            raise KitError(
                f"{path}: a report is a page or Markdown",
                f"Call it {path.stem}.html or {path.stem}.md.",
            )


def write_report(report: Report, path: Path) -> None:
    """Writes the page or the Markdown, whole or not at all."""
    check_export([path])
    if path.suffix.lower() == ".md":
        write_text(path, render_markdown(report))
    else:
        from kit.report.html import render_html  # with matplotlib, which the rest does without

        write_text(path, render_html(report))
