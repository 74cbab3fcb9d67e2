"""Write the sections that compare models, from the table of all to the leaderboard.

Use `comparison_section`, `recipes_section`, `significance_section`, `groups_section` and
`leaderboard_section`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.reporting.comparison import ComparisonLine, rank_lines
from kit.reporting.headline import describe_rows
from kit.reporting.models import FLOOR, PRIOR, UNIFORM
from kit.reporting.published import PublishedScore
from kit.reporting.significance import Significance
from kit.reporting.table import (
    MINUS,
    TONES,
    WIDEST,
    Cell,
    Row,
    Section,
    Table,
    format_cells,
    format_difference,
    format_size,
    loss_cell,
    losses_axis,
    number_cell,
)

if TYPE_CHECKING:
    from kit.reporting.report import Report

REFERENCES = {
    UNIFORM: "“Uniform” gives each class one third.",
    PRIOR: "The “class prior” gives each class its share of the rows trained on.",
    FLOOR: "The “Bayes floor” is the rule by which the sample's labels were drawn: no model can "
    "expect a lower log loss.",
}
KEYS_SHOWN = 3  # recipe keys beside a run's name


def comparison_section(report: "Report") -> Section:
    """Return the table of all models, the best first, references and published scores apart."""
    comparison = report.comparison
    inputs = report.inputs
    has_test = "test" in inputs.scored_splits
    models, apart = rank_lines(comparison)

    # The best of a column is bold. References do not compete: the floor always wins.
    lowest = {
        split: min((each.log_loss for line in models if (each := getattr(line, split))), default=0)
        for split in ("valid", "test")
    }

    def score_cells(line: ComparisonLine, split: str) -> Row:
        figures = getattr(line, split)
        is_reference = line.name in comparison.references
        strong = bool(figures) and not is_reference and figures.log_loss == lowest[split]
        return (
            loss_cell(figures, strong),
            number_cell(figures and figures.accuracy, ".3f"),
            number_cell(figures and figures.calibration_error, ".3f"),
        )

    def row(line: ComparisonLine) -> Row:
        keys = format_keys(report.hash_keys.get(line.name, {}))
        size = Cell("")
        if line.parameters is not None:
            size = Cell(format_size(line.parameters), value=line.parameters)
        return (
            Cell(line.name, note=keys),
            *score_cells(line, "valid"),
            *(score_cells(line, "test") if has_test else ()),
            number_cell(line.swap_gap, ".3f"),
            number_cell(line.best_epoch, ".2f"),
            size,
            number_cell(line.minutes, ".1f"),
        )

    def published_row(score: PublishedScore) -> Row:
        texts = [f"{score.log_loss:.4f}", f"{score.accuracy:.3f}", ""]
        # The study has no test rows of its own, and no calibration error, swap gap or minutes.
        texts += ["", "", ""] if has_test else []
        texts += ["", score.best_epoch, score.parameters, ""]
        return Cell(score.name, note="published, other rows"), *format_cells(*texts)

    head = ["model", f"{comparison.validation} log loss [95%]", "accuracy", "calibration error"]
    head += ["test log loss [95%]", "test accuracy", "test calibration error"] if has_test else []
    head += ["swap gap", "best epoch", "parameters", "minutes"]
    table = Table(
        "All models",
        tuple(head),
        tuple(map(row, models)),
        (*map(row, apart), *map(published_row, report.published)),
        axis=losses_axis(models),
        mark=report.answer.figures.log_loss,
    )
    return Section("comparison", "Comparison", _comparison_text(report), tables=(table,))


def format_keys(values: Mapping[str, Any]) -> str:
    """Return the first few of a run's values of recipe keys."""
    texts = [f"{key.rpartition('.')[2]} {format_value(value)}" for key, value in values.items()]
    if len(texts) > KEYS_SHOWN:
        texts = [*texts[:KEYS_SHOWN], f"{len(texts) - KEYS_SHOWN} more"]
    return ", ".join(texts)


def format_value(value: object) -> str:
    """Return a recipe's value as a recipe would show it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comparison_text(report: "Report") -> tuple[str, ...]:
    """Explain the table's columns, references and blends, each where there are some."""
    paragraphs = [
        "All scores of a column are computed on the same rows. Log loss is the mean of "
        f"{MINUS}ln(probability given to the true class): lower is better. The brackets hold a 95% "
        "bootstrap interval: the log loss is computed again on 1,000 random resamples of the "
        "prompts, and 95% of the results lie inside.",
        describe_rows(report),
        "Below the name of a run are the recipe keys in which runs of the same name differ. "
        "Calibration error is the mean distance between accuracy and confidence, the probability "
        "of the class that a model finds most probable. Swap gap is the mean absolute change of "
        "the probabilities when the two answers trade places: 0 means that their order does not "
        "matter.",
    ]
    if report.comparison.references:
        paragraphs.append(" ".join(REFERENCES[name] for name in report.comparison.references))
    if report.published:
        paragraphs.append(
            "Lines marked “published, other rows” are the scores that the reference study gives "
            "for its own validation rows. They cannot be compared with the other lines."
        )

    paragraphs += [f"“{saved.name}” {saved.note}." for saved in report.blends if saved.note]
    cross_fitted = [saved.name for saved in report.blends if saved.cross_fitted]
    if cross_fitted:
        paragraphs.append(
            f"The {report.inputs.validation} scores of {', '.join(cross_fitted)} are cross-fitted: "
            "each row is predicted with weights that were fitted to other prompts."
        )
    if report.comparison.note:
        paragraphs.append(report.comparison.note)
    return tuple(paragraphs)


def recipes_section(report: "Report") -> Section | None:
    """Return the recipe keys in which the runs differ; None if they do not."""
    names = [name for name in report.ranking if report.recipe_keys.get(name)]
    if not names:
        return None
    keys = list(report.recipe_keys[names[0]])
    body = []
    for name in names:
        values = report.recipe_keys[name]
        cells = [
            Cell(
                format_value(values[key]),
                value=values[key] if isinstance(values[key], int | float) else None,
            )
            for key in keys
        ]
        body.append((Cell(name), *cells))
    table = Table("Recipe keys that differ", ("model", *keys), tuple(body))
    text = "The recipe keys that do not have the same value in all runs, the best run first."
    return Section("recipes", "Recipes", (text,), tables=(table,))


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
        "of a paired bootstrap: both models are scored on the same resamples of the prompts. A "
        "model is “better” or “worse” if the whole interval lies on one side of 0. Otherwise the "
        "verdict is “can't tell”.",
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
        f"Against the best on {significance.rows} rows, {best}",
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

    caption = (
        f"All pairs on {significance.rows} rows: the model at the left against that at the top"
    )
    head, names = number_names(models)
    body = tuple(
        (Cell(name), *(cell(model, other) for other in models))
        for name, model in zip(names, models, strict=True)
    )
    return Table(caption, ("", *head), body, folded="All pairs" if is_wide else "", sortable=False)


def number_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the heads of a square table's columns and of its rows: numbers where it is wide."""
    if len(names) <= WIDEST:
        return names, names
    numbers = tuple(str(number) for number in range(1, len(names) + 1))
    return numbers, tuple(f"{number}. {name}" for number, name in zip(numbers, names, strict=True))


def groups_section(report: "Report") -> Section | None:
    """Return the runs that lack the report's validation rows, and what they can be compared on."""
    left_out = report.comparison.left_out
    foreign = report.inputs.foreign
    if not left_out and not foreign:
        return None
    tables = []
    if left_out:
        body = tuple(format_cells(each.name, each.reason) for each in left_out)
        caption = f"Not compared on the {report.inputs.validation} rows"
        tables.append(Table(caption, ("model", "why"), body, sortable=False))
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

    rows = len(group.inputs.rows["valid"].ids)
    return Table(
        f"Group {number}: {rows:,} rows, {comparison.validation}",
        ("model", f"{comparison.validation} log loss [95%]", "accuracy", f"against {best}"),
        tuple(map(row, models)),
        tuple(map(row, apart)),
        axis=losses_axis(models),
        mark=models[0].valid.log_loss if models[0].valid else None,
    )


def leaderboard_section(report: "Report") -> Section | None:
    """Return the ledger's scored submissions; None if there are none."""
    if not report.submissions:
        return None
    body = []
    for score in report.submissions:
        difference = score.difference
        cells = (
            Cell(score.message),
            Cell(score.source),
            number_cell(score.local, ".4f"),
            number_cell(score.public, ".4f"),
            Cell("" if difference is None else format_difference(difference), value=difference),
            number_cell(score.private, ".4f"),
        )
        body.append((Cell(score.time), *cells))
    head = ("submitted", "message", "from", "local", "public", "public minus local", "private")
    text = (
        "The submissions of the ledger that Kaggle has scored. Where the public score is steadily "
        "above the local one, the local estimate is too good; a difference inside the interval of "
        "the local score may be chance."
    )
    dotted = "On the dotted line, the leaderboard confirms the local estimate."
    has_local = any(score.local is not None for score in report.submissions)
    return Section(
        "leaderboard",
        "Local score against the leaderboard",
        (f"{text} {dotted}",) if has_local else (text,),
        "leaderboard" if has_local else "",
        (Table("Submissions", head, tuple(body)),),
        paragraphs_without_figures=(text,),
    )
