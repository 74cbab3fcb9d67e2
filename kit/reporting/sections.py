"""Put the report's sections in their order, and write those of single rows.

Use `report_sections`, and `case_table` and `describe_case` for a row.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from kit.reporting.cases import RowCase
from kit.reporting.comparison_sections import (
    comparison_section,
    leaderboard_section,
    recipes_section,
)
from kit.reporting.quality_sections import (
    confusion_section,
    correlation_section,
    reliability_section,
    slices_section,
)
from kit.reporting.significance_sections import groups_section, significance_section
from kit.reporting.table import CLASS_NAMES, WIDEST, Cell, Section, Table, drop_empty_columns
from kit.reporting.training_sections import blends_section, curves_section, folds_section

if TYPE_CHECKING:
    from kit.reporting.report import Report


def report_sections(report: "Report") -> tuple[Section, ...]:
    """Return all sections that have something to show, their tables without empty columns."""
    sections = (
        comparison_section(report),
        groups_section(report),
        significance_section(report),
        recipes_section(report),
        folds_section(report),
        curves_section(report),
        reliability_section(report),
        confusion_section(report),
        slices_section(report),
        correlation_section(report),
        blends_section(report),
        leaderboard_section(report),
        _worst_section(report),
        _disagreement_section(report),
    )
    return tuple(
        replace(section, tables=tuple(map(drop_empty_columns, section.tables)))
        for section in sections
        if section
    )


def case_table(case: RowCase, ranking: tuple[str, ...]) -> Table:
    """Return the best models' probabilities of one row, the most probable class in bold."""
    names = [name for name in ranking if name in case.probabilities]
    # Models that did not predict the rows that others are ranked by come after them.
    names += [name for name in case.probabilities if name not in names]
    body = []
    for name in names[:WIDEST]:
        probabilities = case.probabilities[name]
        predicted = probabilities.index(max(probabilities))
        cells = [
            Cell(f"{p:.3f}", strong=place == predicted) for place, p in enumerate(probabilities)
        ]
        body.append((Cell(name), *cells))
    why = "" if case.loss is None else ", one of the worst"
    caption = f"Predictions of {case.rows} row {case.id}{why}"
    return Table(caption, ("model", *CLASS_NAMES), tuple(body), sortable=False)


def describe_case(case: RowCase) -> str:
    """Return why the row is shown, and its true class where that is known."""
    label = "" if case.label is None else f"True class: {CLASS_NAMES[case.label]}. "
    if case.loss is not None:
        return f"{label}Loss {case.loss:.3f}."
    return f"{label}Divergence {case.divergence:.3f}."


def _worst_section(report: "Report") -> Section | None:
    if not any(case.texts for case in report.worst):
        return None
    text = (
        f"The {report.main_rows} rows that {report.answer.best}, the best model, is most surprised "
        "by, at most one of each prompt. Some are labels that few people would give; look for a "
        "kind of prompt or answer that comes back."
    )
    return Section("worst", "Worst rows of the best model", (text,), cases=report.worst)


def _disagreement_section(report: "Report") -> Section | None:
    if not any(case.texts for case in report.disagreements):
        return None
    text = (
        "Rows on which the models' predictions differ most, at most one of each prompt. Divergence "
        "is that of Jensen and Shannon, 0 where all models agree; blends and models that predict "
        "the same for every row are shown, but do not count in it. Each model's most probable "
        "class is bold. Invisible characters are shown as ⟨U+…⟩."
    )
    if len(report.ranking) > WIDEST:
        text += f" The {WIDEST} best models are shown."
    return Section(
        "disagreement", "Where models disagree most", (text,), cases=report.disagreements
    )
