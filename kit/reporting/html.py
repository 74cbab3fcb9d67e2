"""Render a report as one HTML file that loads nothing: styles, figures and texts are inside it.

Use `render_html` for a file, `render_frame` for a notebook cell.
"""

import base64
import hashlib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kit.reporting.escape import fold_text, one_line
from kit.reporting.figures import (
    plot_leaderboard,
    plot_learning,
    plot_overview,
    plot_reliability,
)
from kit.reporting.headline import list_facts, list_findings, list_origin, write_headline
from kit.reporting.quality_sections import ranked_diagnoses
from kit.reporting.sections import case_table, describe_case, report_sections
from kit.reporting.svg import Figure
from kit.reporting.table import TEXT_TITLES, Table

if TYPE_CHECKING:
    from kit.reporting.report import Report

FOLDER = Path(__file__).parent
FRAME_HEIGHT = 800  # CSS pixels
FIGURES_SHOWN = 6  # figures of one kind that are not folded


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
    # Everything is escaped but kit's own style, script and figures.
    template = environment.get_template("page.html.jinja")
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return template.render(
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_digest=_content_digest(script),
        headline=write_headline(report),
        findings=list_findings(report),
        origin=list_origin(report),
        facts=list_facts(report),
        sections=report_sections(report),
        figures={
            "curves": _curve_figures(report),
            "reliability": _reliability_figures(report),
            "leaderboard": _leaderboard_figures(report),
        },
        figures_shown=FIGURES_SHOWN,
        ranking=report.ranking,
        markup=Markup,
        group_tables=_group_tables,
        place_bar=_place_bar,
        format_tick=lambda value: f"{value:.2f}",
        case_table=case_table,
        describe_case=describe_case,
        text_titles=TEXT_TITLES,
    )


def render_frame(report: "Report") -> str:
    """Return the page inside an iframe, so that its style does not reach the document around it.

    Raises:
        RunError: the log of a run's part cannot be read.
    """
    # A frame takes its base address from the document around it. The links between sections would
    # load that document into the frame, were they not given the frame's own address as a base.
    page = render_html(report).replace("<head>", '<head>\n<base href="about:srcdoc">', 1)
    # The page's script may run in the frame, which is an origin of its own: it reaches nothing of
    # the notebook.
    return (
        f'<iframe title="Comparison of models" width="100%" height="{FRAME_HEIGHT}" '
        f'style="border: 0" sandbox="allow-scripts" srcdoc="{escape(page)}"></iframe>'
    )


def _content_digest(script: str) -> str:
    """Return the hash by which the page's policy allows this script and no other."""
    # The template writes the script between two line ends.
    digest = hashlib.sha256(f"\n{script}\n".encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _group_tables(tables: tuple[Table, ...]) -> list[tuple[str, list[Table]]]:
    """Return neighbouring tables that are folded together, with the words that unfold them."""
    return [(folded, list(group)) for folded, group in groupby(tables, key=lambda t: t.folded)]


def _place_bar(
    bar: tuple[float, float, float], axis: tuple[float, float], mark: float
) -> tuple[float, ...]:
    """Return the places of a bar's ends, its point and the mark, in percent of the axis."""
    low, high = axis
    width = max(high - low, 1e-9)
    return tuple(min(max((value - low) / width, 0), 1) * 100 for value in (*bar, mark))


def _curve_figures(report: "Report") -> list[Figure]:
    curves = [curve for curve in report.curves if curve.validation]
    if not curves:
        return []
    by_name = {
        name: parts
        for name in report.ranking
        if (parts := [curve for curve in curves if curve.model == name])
    }
    figures = [plot_overview(by_name)] if len(by_name) > 1 else []
    figures += [
        plot_learning(name, parts, curves, str(number))
        for number, (name, parts) in enumerate(by_name.items())
    ]
    return figures


def _reliability_figures(report: "Report") -> list[Figure]:
    diagnoses = ranked_diagnoses(report)
    return [plot_reliability(each, str(number)) for number, each in enumerate(diagnoses)]


def _leaderboard_figures(report: "Report") -> list[Figure]:
    scores = [score for score in report.submissions if score.local is not None]
    return [plot_leaderboard(scores)] if scores else []
