"""Write the sections that compare pairs of models, and models on other rows than those of most.

Use `significance_section` and `groups_section`.
"""

from typing import TYPE_CHECKING

from kit.reporting.comparison import ComparisonLine, rank_lines, valid_loss_title
from kit.reporting.significance import Significance
from kit.reporting.table import (
    TONES,
    WIDEST,
    Cell,
    Row,
    Section,
    Table,
    format_cells,
    format_difference,
    loss_cell,
    losses_axis,
    number_cell,
    number_names,
)

if TYPE_CHECKING:
    from kit.reporting.report import Report


def significance_section(report: "Report") -> Section | None:
    """Return each model against the best, and all pairs; None where there is only one model."""
    if not report.significance:
        return None
    tables = []
    for significance in report.significance:
        tables.append(_best_table(significance))
        # All pairs of two models are in the first table already.
        if len(significance.models) > 2:
            tables.append(_pairs_table(significance))
    text = (
        "The log loss of one model minus that of another on the same rows, with the 95% interval "
        "of a paired bootstrap: both models are scored on the same resamples of the "
        f"{report.inputs.resampled}. A model is “better” or “worse” if the whole interval lies on "
        "one side of 0. Otherwise the verdict is “can't tell”.",
        "Each pair is judged by itself: of pairs that are equally good, about one in twenty is "
        "called different by chance. Another seed alone changes the log loss by about 0.0075, so "
        "a gain below 0.01 from a single run is little evidence for a recipe.",
    )
    return Section("significance", "Significance", text, tables=tuple(tables))


def _best_table(significance: Significance) -> Table:
    best = significance.best
    body = []
    pairs = [significance.pair(name, best) for name in significance.models if name != best]
    for pair in pairs:
        low, high = format_difference(pair.low), format_difference(pair.high)
        cells = (
            Cell(pair.verdict, tone=TONES[pair.verdict]),
            Cell(
                format_difference(pair.mean),
                note=f"[{low}, {high}]",
                value=pair.mean,
                bar=(pair.low, pair.mean, pair.high),
            ),
        )
        body.append((Cell(pair.model), *cells))
    head = ("model", "verdict", f"log loss minus that of {best} [95%]")
    # The axis begins a little left of 0, which is the best model itself.
    low, high = min(0, *(pair.low for pair in pairs)), max(pair.high for pair in pairs)
    margin = 0.04 * (high - low)
    return Table(
        f"Against the best on {significance.title}, {best}",
        head,
        tuple(body),
        axis=(low - margin, high + margin),
        mark=0,
    )


def _pairs_table(significance: Significance) -> Table:
    models = significance.models
    is_wide = len(models) > WIDEST

    def cell(model: str, other: str) -> Cell:
        if model == other:
            return Cell("", tone="quiet")
        pair = significance.pair(model, other)
        # A wide table has no room for the verdict in words; the colour tells it.
        verdict = "" if is_wide else f"{pair.verdict} "
        text = f"{verdict}{format_difference(pair.mean)}"
        return Cell(text, tone=TONES[pair.verdict], value=pair.mean)

    caption = f"All pairs on {significance.title}: the model at the left against that at the top"
    head, names = number_names(models)
    body = tuple(
        (Cell(name), *(cell(model, other) for other in models))
        for name, model in zip(names, models, strict=True)
    )
    return Table(caption, ("", *head), body, folded="All pairs" if is_wide else "", sortable=False)


def groups_section(report: "Report") -> Section | None:
    """Return the runs that lack the report's validation rows, and what they can be compared on."""
    left_out = report.comparison.left_out
    foreign = report.inputs.foreign
    if not left_out and not foreign:
        return None
    tables = []
    if left_out:
        body = tuple(format_cells(each.name, each.compared_on, each.reason) for each in left_out)
        caption = f"Not compared on the {report.inputs.rows['valid'].title}"
        tables.append(Table(caption, ("model", "compared apart on", "why"), body, sortable=False))
    for number, group in enumerate(report.groups, 1):
        tables.append(_group_table(group, number))
    for data in dict.fromkeys(run.data for run in foreign):
        body = tuple(
            format_cells(
                run.name, ", ".join(f"{name} {loss:.4f}" for name, loss in run.losses.items())
            )
            for run in foreign
            if run.data == data
        )
        head = ("model", "log loss as its training noted it")
        tables.append(Table(f"Trained on other data, {data}", head, body, sortable=False))

    text = ["Every model is compared on all rows that it shares with others."]
    if report.groups:
        text.append(
            "Models without the validation rows of the first table are compared here on rows that "
            "they have, beside every model that has them too."
        )
    if foreign:
        text.append(
            "Runs of other data cannot be compared: their rows are not in the data folder. Name "
            "the folder that they were trained on with --data, or their test predictions with "
            "--frame."
        )
    return Section("others", "Other rows, and what was left out", tuple(text), tables=tuple(tables))


def _group_table(group: "Report", number: int) -> Table:
    comparison = group.comparison
    models, apart = rank_lines(comparison)
    significance = next(iter(group.significance), None)
    best = models[0].name

    def row(line: ComparisonLine) -> Row:
        verdict = Cell("")
        if significance and line.name != best and line.name in significance.models:
            pair = significance.pair(line.name, best)
            difference = format_difference(pair.mean)
            verdict = Cell(f"{pair.verdict} {difference}", tone=TONES[pair.verdict])
        accuracy = number_cell(line.valid.accuracy if line.valid else None, ".3f")
        return Cell(line.name), loss_cell(line.valid), accuracy, verdict

    return Table(
        f"Group {number}: compared apart on {comparison.rows}",
        ("model", valid_loss_title(comparison), "accuracy", f"against {best}"),
        tuple(map(row, models)),
        tuple(map(row, apart)),
        axis=losses_axis(models),
        mark=models[0].valid.log_loss if models[0].valid else None,
    )
