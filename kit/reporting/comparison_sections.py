"""Write the sections about all models: the table, the recipes behind it, the leaderboard.

Use `comparison_section`, `recipes_section` and `leaderboard_section`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kit.reporting.comparison import ComparisonLine, rank_lines, valid_loss_title
from kit.reporting.headline import describe_resampling, describe_rows
from kit.reporting.models import FLOOR, PRIOR, UNIFORM
from kit.reporting.published import PublishedScore
from kit.reporting.table import (
    Cell,
    Row,
    Section,
    Table,
    format_cells,
    format_difference,
    format_parameters,
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
        keys = format_keys(report.recipe_keys.get(line.name, {}))
        size = Cell("")
        if line.parameters is not None:
            size = Cell(format_parameters(line.parameters), value=line.parameters)
        return (
            Cell(line.name, note=keys),
            *score_cells(line, "valid"),
            *score_cells(line, "test"),
            number_cell(line.swap_gap, ".3f"),
            number_cell(line.best_epoch, ".2f"),
            size,
            number_cell(line.minutes, ".1f"),
        )

    def published_row(score: PublishedScore) -> Row:
        # The study has no test rows of its own, and no calibration error, swap gap or minutes.
        scores = f"{score.log_loss:.4f}", f"{score.accuracy:.3f}", "", "", "", ""
        texts = *scores, "", score.best_epoch, score.parameters, ""
        return Cell(score.name, note="published, other rows"), *format_cells(*texts)

    head = ["model", valid_loss_title(comparison), "accuracy", "calibration error"]
    head += ["test log loss [95%]", "test accuracy", "test calibration error"]
    head += ["swap gap", "best epoch", "parameters", "minutes"]
    table = Table(
        f"All models on {comparison.rows}",
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
        "-ln(probability given to the true class): lower is better. "
        f"{describe_resampling(report)}",
        *([describe_rows(report)] if "valid" in report.inputs.compared_splits else []),
    ]

    columns = [
        "Calibration error is the mean distance between accuracy and confidence, the probability "
        "of the class that a model finds most probable."
    ]
    # Files have neither keys nor a swap gap.
    if any(report.recipe_keys.values()):
        keys = "Below the name of a run are the recipe keys in which runs of the same name differ."
        columns.insert(0, keys)
    if any(line.swap_gap is not None for line in report.comparison.lines):
        columns.append(
            "Swap gap is the mean absolute change of the probabilities when the two answers trade "
            "places: 0 means that their order does not matter."
        )
    paragraphs.append(" ".join(columns))

    # What the class prior is without a data folder was said with the rows.
    known = [
        REFERENCES[name]
        for name in report.comparison.references
        if report.inputs.processed or name != PRIOR
    ]
    if known:
        paragraphs.append(" ".join(known))
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
    """Return the recipe keys in which the runs differ; None if there are none."""
    names = [name for name in report.ranking if report.recipe_keys.get(name)]
    if not names:
        return None
    keys = list(dict.fromkeys(key for name in names for key in report.recipe_keys[name]))
    body = []
    for name in names:
        # Runs of two recipes have different names, and need not have the same keys here.
        values = [report.recipe_keys[name].get(key) for key in keys]
        cells = [
            Cell(
                "" if value is None else format_value(value),
                value=value if isinstance(value, int | float) else None,
            )
            for value in values
        ]
        body.append((Cell(name), *cells))
    table = Table("Recipe keys that differ", ("model", *keys), tuple(body))
    text = "The keys that tell runs of one recipe from each other, the best run first."
    return Section("recipes", "Recipes", (text,), tables=(table,))


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
