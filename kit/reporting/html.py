"""Render a report as one HTML file that loads nothing: styles, figures and texts are inside it.

Use `render_html` for a file, `render_frame` for a notebook cell.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kit.reporting.escape import fold_text, one_line
from kit.reporting.figures import Figure, plot_intervals, plot_learning, plot_reliability
from kit.reporting.sections import case_table, list_facts, report_sections
from kit.reporting.table import CLASS_NAMES, TEXT_TITLES

if TYPE_CHECKING:
    from kit.reporting.report import Report

FOLDER = Path(__file__).parent
FRAME_HEIGHT = 800  # CSS pixels


def render_html(report: "Report") -> str:
    """Return the page. The same report gives the same bytes.

    Raises:
        RunError: the log of a run's part cannot be read.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"one_line": one_line, "fold_text": fold_text}
    # Everything is escaped but kit's own style and figures.
    template = environment.get_template("page.html.jinja")
    return template.render(
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        facts=list_facts(report),
        sections=report_sections(report),
        figures={
            "intervals": list(_interval_figures(report)),
            "curves": list(_curve_figures(report)),
            "reliability": list(_reliability_figures(report)),
        },
        markup=Markup,
        case_table=case_table,
        text_titles=TEXT_TITLES,
        class_names=CLASS_NAMES,
    )


def render_frame(report: "Report") -> str:
    """Return the page inside an iframe, so that its style does not reach the document around it.

    Raises:
        RunError: the log of a run's part cannot be read.
    """
    # A frame takes its base address from the document around it. The links between sections would
    # load that document into the frame, were they not given the frame's own address as a base.
    page = render_html(report).replace("<head>", '<head>\n<base href="about:srcdoc">', 1)
    return (
        f'<iframe title="Comparison of models" width="100%" height="{FRAME_HEIGHT}" '
        f'style="border: 0" sandbox srcdoc="{escape(page)}"></iframe>'
    )


def _interval_figures(report: "Report") -> Iterator[Figure]:
    for split in report.inputs.scored_splits:
        yield plot_intervals(report.comparison.lines, split, report.inputs.rows[split].name)


def _curve_figures(report: "Report") -> Iterator[Figure]:
    curves = [curve for curve in report.curves if curve.validation]
    # The curves of one model follow each other.
    for number, (name, parts) in enumerate(groupby(curves, key=lambda curve: curve.model)):
        yield plot_learning(name, list(parts), str(number))


def _reliability_figures(report: "Report") -> Iterator[Figure]:
    for number, diagnosis in enumerate(report.diagnosis):
        yield plot_reliability(diagnosis, str(number))
