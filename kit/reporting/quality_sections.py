"""Write the sections that look behind the losses: reliability, confusion, slices, correlation.

Use `reliability_section`, `confusion_section`, `slices_section` and `correlation_section`.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kit.reporting.diagnosis import Diagnosis
from kit.reporting.slices import MIN_PROMPTS, Slice, SliceLoss
from kit.reporting.table import (
    CLASS_NAMES,
    WIDEST,
    Cell,
    Row,
    Section,
    Table,
    format_cells,
    number_cell,
    number_names,
)

if TYPE_CHECKING:
    from kit.reporting.report import Report

SHOWN = 3  # confusion tables that are not folded


def reliability_section(report: "Report") -> Section:
    """Return how often each class is true by its probability, and how confident models are."""
    curves = [
        (
            *format_cells(diagnosis.model, name),
            number_cell(each.rows, ",d"),
            number_cell(each.predicted, ".3f"),
            Cell(f"{each.observed:.3f}", f"[{each.low:.3f}, {each.high:.3f}]", value=each.observed),
        )
        for diagnosis in ranked_diagnoses(report)
        for name, bins in zip(CLASS_NAMES, diagnosis.reliability, strict=True)
        for each in bins
    ]
    bars = [
        (
            Cell(diagnosis.model),
            Cell(f"{bar.low:.3f} to {bar.high:.3f}", value=bar.low),
            number_cell(bar.rows, ",d"),
            number_cell(bar.correct, ",d"),
        )
        for diagnosis in ranked_diagnoses(report)
        for bar in diagnosis.confidence
        if bar.rows
    ]
    head = ("model", "class", "rows", "probability", "share that is true [95%]")
    tables = (
        Table("Reliability by class", head, tuple(curves), folded="The numbers"),
        Table(
            "Rows by confidence",
            ("model", "confidence", "rows", "correct"),
            tuple(bars),
            folded="The numbers",
        ),
    )
    text = (
        "How often a class is the true one, by the probability that the model gave it, on the "
        f"{report.main_rows} rows, in bins of equally many rows with 95% intervals."
    )
    histogram = (
        "Confidence is the probability of the most probable class; the histogram counts rows by "
        "it, and those of them where that class is the true one."
    )
    return Section(
        "reliability",
        "Reliability and confidence",
        (
            f"{text} A curve below the dotted diagonal is over-confident. {histogram} The dark "
            "part of a bar is right.",
        ),
        "reliability",
        tables,
        paragraphs_without_figures=(
            f"{text} Where fewer are true than was predicted, the model is over-confident. "
            f"{histogram}",
        ),
    )


def confusion_section(report: "Report") -> Section:
    """Return the confusion table of every model, the best first."""
    text = (
        "Each true class (left) by the class that the model finds most probable (top): the number "
        f"of {report.main_rows} rows, and their share of the true class."
    )
    diagnoses = ranked_diagnoses(report)
    more = f"{len(diagnoses) - SHOWN} more"
    tables = tuple(
        _confusion_table(diagnosis, more if place >= SHOWN else "")
        for place, diagnosis in enumerate(diagnoses)
    )
    return Section("confusion", "Confusion", (text,), tables=tables)


def ranked_diagnoses(report: "Report") -> list[Diagnosis]:
    """Return the diagnoses, that of the best model first."""
    return sorted(report.diagnosis, key=lambda each: report.ranking.index(each.model))


def _confusion_table(diagnosis: Diagnosis, folded: str) -> Table:
    def row(name: str, counts: Sequence[int]) -> Row:
        # A class without rows has shares of 0.
        shares = [count / max(1, sum(counts)) for count in counts]
        cells = [
            Cell(f"{count:,} ({share:.0%})", shade=share)
            for count, share in zip(counts, shares, strict=True)
        ]
        return Cell(f"true {name}"), *cells

    rows = zip(CLASS_NAMES, diagnosis.confusion, strict=True)
    head = ("", *(f"predicted {name}" for name in CLASS_NAMES))
    body = tuple(row(name, counts) for name, counts in rows)
    return Table(diagnosis.model, head, body, folded=folded, sortable=False)


def slices_section(report: "Report") -> Section | None:
    """Return the losses of the best models on parts of the rows; None without texts."""
    if not report.slices:
        return None
    models = [diagnosis.model for diagnosis in ranked_diagnoses(report)]
    shown = models[:WIDEST]

    def loss_cell(loss: SliceLoss, lowest: float) -> Cell:
        interval = "" if loss.low is None else f"[{loss.low:.3f}, {loss.high:.3f}]"
        # With one model alone every loss would be the lowest.
        strong = len(models) > 1 and loss.log_loss == lowest
        return Cell(f"{loss.log_loss:.3f}", interval, strong=strong, value=loss.log_loss)

    def row(part: Slice) -> Row:
        lowest = min(part.losses[model].log_loss for model in shown)
        losses = [loss_cell(part.losses[model], lowest) for model in shown]
        counts = number_cell(part.rows, ",d"), number_cell(part.prompts, ",d")
        return Cell(part.name), *counts, *losses

    tables = []
    for by, parts in groupby(report.slices, key=lambda part: part.by):
        head = (by, "rows", "prompts", *shown)
        tables.append(Table(f"Log loss by {by}", head, tuple(map(row, parts)), sortable=False))
    text = (
        f"Log loss on parts of the {report.main_rows} rows with 95% intervals; the lowest of each "
        f"part is bold. A part with fewer than {MIN_PROMPTS} prompts has no interval. Answer "
        "length is the mean of the two answers, in characters. Script is the writing system of "
        "most letters in prompt and answers, which hints at the language."
    )
    if len(models) > WIDEST:
        text += f" The {WIDEST} best of {len(models)} models are shown."
    return Section("slices", "By length, turns and language", (text,), tables=tuple(tables))


def correlation_section(report: "Report") -> Section | None:
    """Return how alike the models' predictions are; None for one model."""
    places = {name: place for place, name in enumerate(report.correlation.models)}
    names = tuple(name for name in report.ranking if name in places)
    if len(names) < 2:
        return None

    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell("constant", tone="quiet")
        # A wide table has room for two places.
        text = f"{value:z.2f}" if len(names) > WIDEST else f"{value:z.3f}"
        return Cell(text, shade=max(value, 0.0))

    head, titles = number_names(names)
    values = report.correlation.values
    body = tuple(
        (Cell(title), *(cell(values[places[name]][places[other]]) for other in names))
        for title, name in zip(titles, names, strict=True)
    )
    text = (
        "How alike the models are: Pearson's correlation of their probabilities, minus the mean of "
        "each class; 1 means the same. Good models that are not alike gain most from a blend."
    )
    table = Table(
        f"Correlation of predictions on the {report.main_rows} rows",
        ("", *head),
        body,
        sortable=False,
    )
    return Section("correlation", "Correlation between models", (text,), tables=(table,))
