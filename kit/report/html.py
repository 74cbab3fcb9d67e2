"""The report as one HTML file that needs nothing else: styles, figures and texts are in it, and nothing is loaded."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kit.report.escape import one_line, visible_pieces
from kit.report.figures import Figure, plot_intervals, plot_learning, plot_reliability
from kit.report.report import Report
from kit.report.sections import list_facts, probability_sections, report_sections
from kit.report.table import NAMES, TITLES


def render_html(report: Report) -> str:
    """The page. The same report gives the same bytes.

    Raises:
        RunError: a part's log cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"line": one_line, "pieces": visible_pieces}
    page = environment.get_template("page.html.jinja")
    return page.render(
        css=Markup((Path(__file__).parent / "page.css").read_text(encoding="utf-8")),
        facts=list_facts(report),
        sections=report_sections(report),
        figures={kind: list(make(report)) for kind, make in FIGURES.items()},
        markup=Markup,
        probabilities=probability_sections,
        titles=TITLES,
        classes=NAMES,
    )


def _intervals(report: Report) -> Iterator[Figure]:
    for split in report.evidence.scored:
        yield plot_intervals(report.comparison.lines, split, report.evidence.rows[split].name)


def _curves(report: Report) -> Iterator[Figure]:
    drawn = [curve for curve in report.curves if curve.validation]
    for number, (name, parts) in enumerate(groupby(drawn, key=lambda curve: curve.model)):
        yield plot_learning(name, list(parts), str(number))


def _reliability(report: Report) -> Iterator[Figure]:
    for number, diagnosis in enumerate(report.diagnosis):
        yield plot_reliability(diagnosis, str(number))


FIGURES = {"intervals": _intervals, "curves": _curves, "reliability": _reliability}
