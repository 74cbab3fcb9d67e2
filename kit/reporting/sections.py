"""Write the report's sections in their order: the words and the tables of each.

Use `report_sections`, and `list_facts` and `case_table` for the page's head and its cases.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from kit.reporting.comparison import (
    ComparisonLine,
    ModelFigures,
    PublishedScore,
    Significance,
    Verdict,
    format_loss,
    format_number,
)
from kit.reporting.diagnosis import Diagnosis, DisagreementCase
from kit.reporting.inputs import OOF
from kit.reporting.models import FLOOR, PRIOR, UNIFORM
from kit.reporting.slices import MIN_PROMPTS, Slice, SliceLoss
from kit.reporting.table import (
    CLASS_NAMES,
    MINUS,
    Cell,
    Section,
    Table,
    Tone,
    format_cells,
    format_difference,
)

if TYPE_CHECKING:
    from kit.reporting.report import Report

TONES: dict[Verdict, Tone] = {"better": "good", "worse": "bad", "can't tell": "quiet"}
REFERENCES = {
    UNIFORM: "“Uniform” gives each class one third.",
    PRIOR: "The “class prior” gives each class its share of the rows trained on.",
    FLOOR: "The “Bayes floor” is the rule by which the sample's labels were drawn: no model can "
    "expect a lower log loss.",
}


def report_sections(report: "Report") -> tuple[Section, ...]:
    """Return all sections that have something to show."""
    sections = (
        _comparison_section(report),
        _significance_section(report),
        _curves_section(report),
        _reliability_section(report),
        _confusion_section(report),
        _slices_section(report),
        _correlation_section(report),
        _blends_section(report),
        _cases_section(report),
    )
    return tuple(section for section in sections if section)


def list_facts(report: "Report") -> list[tuple[str, str]]:
    """Return the facts about the data as names and values."""
    facts = report.facts
    shares = zip(CLASS_NAMES, facts.classes, strict=True)
    pairs = [
        ("training rows", f"{facts.train:,}"),
        (f"{report.inputs.validation} rows", f"{facts.validation:,}"),
    ]
    if facts.test:
        pairs.append(("test rows with labels", f"{facts.test:,}"))
    pairs += [
        ("prompt groups", f"{facts.prompts:,}"),
        ("classes", ", ".join(f"{name} {share:.1%}" for name, share in shares)),
    ]
    if facts.soft:
        warning = ", predicted by models that may have seen validation labels"
        pairs.append(("soft labels", f"{facts.soft:,} rows{warning if facts.predicted else ''}"))
    return [
        *pairs,
        ("split", f"{facts.split}, {facts.folds} folds"),
        ("text", facts.text),
        ("data fingerprint", facts.data),
        ("kit version", facts.kit),
    ]


def case_table(case: DisagreementCase) -> Table:
    """Return each model's probabilities of one row, its most probable class in bold."""
    body = []
    for model, probabilities in case.probabilities.items():
        predicted = probabilities.index(max(probabilities))
        cells = [Cell(f"{p:.3f}", strong=i == predicted) for i, p in enumerate(probabilities)]
        body.append((Cell(model), *cells))
    caption = f"Predictions of {case.rows} row {case.id}"
    return Table(caption, ("model", *CLASS_NAMES), tuple(body))


def _comparison_section(report: "Report") -> Section:
    """Return the table of all models, the reference study's published scores below it."""
    comparison = report.comparison
    has_test = "test" in report.inputs.scored_splits
    references = {model.name for model in report.inputs.models if model.reference}
    # The best of a column is bold. References do not compete: the floor always wins.
    trained = [line for line in comparison.lines if line.name not in references]
    best_valid = min((line.valid.log_loss for line in trained if line.valid), default=None)
    best_test = min((line.test.log_loss for line in trained if line.test), default=None)

    def score_cells(
        line: ComparisonLine, figures: ModelFigures | None, best: float | None
    ) -> tuple[Cell, ...]:
        if figures is None:
            return format_cells("", "", "")
        strong = line.name not in references and figures.log_loss == best
        others = format_cells(f"{figures.accuracy:.3f}", f"{figures.calibration_error:.3f}")
        return Cell(format_loss(figures), strong=strong), *others

    def row(line: ComparisonLine) -> tuple[Cell, ...]:
        return (
            Cell(line.name, tone="quiet" if line.name in references else ""),
            *score_cells(line, line.valid, best_valid),
            *(score_cells(line, line.test, best_test) if has_test else ()),
            *format_cells(
                format_number(line.swap_gap, ".3f"),
                format_number(line.best_epoch, ".2f"),
                format_number(line.parameters, ","),
                format_number(line.minutes, ".1f"),
            ),
        )

    def published_row(score: PublishedScore) -> tuple[Cell, ...]:
        name = f"{score.name} (published, other rows)"
        texts = [name, f"{score.log_loss:.4f}", f"{score.accuracy:.3f}", ""]
        # The study has no test rows of its own, and no calibration error, swap gap or minutes.
        texts += ["", "", ""] if has_test else []
        texts += ["", score.best_epoch, score.parameters, ""]
        return format_cells(*texts, tone="quiet")

    head = ["model", f"{comparison.validation} log loss [95%]", "accuracy", "calibration error"]
    head += ["test log loss [95%]", "test accuracy", "test calibration error"] if has_test else []
    head += ["swap gap", "best epoch", "parameters", "minutes"]
    body = (*map(row, comparison.lines), *map(published_row, report.published))
    tables = (Table("All models", tuple(head), body),)
    return Section("comparison", "Comparison", _comparison_text(report), "intervals", tables=tables)


def _comparison_text(report: "Report") -> tuple[str, ...]:
    """Explain the table's columns, references, blends and omissions, each where there are some."""
    paragraphs = [
        "All scores of a column are computed on the same rows. Log loss is the mean of "
        f"{MINUS}ln(probability given to the true class): lower is better. The brackets hold a 95% "
        "bootstrap interval: the log loss is computed again on 1,000 random resamples of the "
        "prompts, and 95% of the results lie inside."
    ]
    if report.inputs.validation == OOF:
        paragraphs.append(
            "Out-of-fold rows are all training rows, each predicted by a model that was not "
            "trained on it: the rows are split into folds, and for each fold a model is trained "
            "on the others."
        )
    else:
        paragraphs.append(
            "Holdout rows are training rows set aside: the models here were not trained on them."
        )
    paragraphs.append(
        "Calibration error is the mean distance between accuracy and confidence, the probability "
        "of the class that a model finds most probable. Swap gap is the mean absolute change of "
        "the probabilities when the two answers trade places: 0 means that their order does not "
        "matter."
    )

    references = [model.name for model in report.inputs.models if model.reference]
    if references:
        paragraphs.append(" ".join(REFERENCES[name] for name in references))
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
    comparison = report.comparison
    if comparison.note:
        paragraphs.append(comparison.note)
    if comparison.unfinished:
        names = ", ".join(comparison.unfinished)
        paragraphs.append(f"Left out, because no part of it has finished training: {names}.")
    return tuple(paragraphs)


def _significance_section(report: "Report") -> Section | None:
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
    for name in significance.models:
        if name == best:
            continue
        pair = significance.pair(name, best)
        low, high = format_difference(pair.low), format_difference(pair.high)
        cells = (
            Cell(pair.verdict, tone=TONES[pair.verdict]),
            Cell(f"{format_difference(pair.mean)} [{low}, {high}]"),
        )
        body.append((Cell(name), *cells))
    head = ("model", "verdict", f"log loss minus that of {best} [95%]")
    return Table(f"Against the best on {significance.rows} rows, {best}", head, tuple(body))


def _pairs_table(significance: Significance) -> Table:
    def cell(model: str, other: str) -> Cell:
        if model == other:
            return Cell("", tone="quiet")
        pair = significance.pair(model, other)
        return Cell(f"{pair.verdict} {format_difference(pair.mean)}", tone=TONES[pair.verdict])

    models = significance.models
    body = tuple((Cell(model), *(cell(model, other) for other in models)) for model in models)
    caption = (
        f"All pairs on {significance.rows} rows: the model at the left against that at the top"
    )
    return Table(caption, ("", *models), body)


def _curves_section(report: "Report") -> Section | None:
    if not report.curves:
        return None
    body = [
        format_cells(
            curve.model,
            curve.part,
            str(len(curve.validation)),
            f"{curve.best_epoch:.2f}",
            f"{curve.best_point[1]:.4f}",
        )
        for curve in report.curves
        if curve.validation
    ]
    head = ("model", "part", "evaluations", "best epoch", "log loss there")
    return Section(
        "curves",
        "Learning curves",
        (
            "Validation log loss (strong line) and training loss (thin line, with label smoothing "
            "where the recipe has some) by epoch. The dot is the checkpoint that was kept.",
        ),
        "curves",
        (Table("Trained parts", head, tuple(body), folded=True),),
        paragraphs_without_figures=(
            "How often each part, a fold or the holdout, was evaluated during training, the epoch "
            "of the checkpoint that was kept, and its validation log loss.",
        ),
    )


def _reliability_section(report: "Report") -> Section:
    body = [
        format_cells(
            diagnosis.model,
            f"{bucket.rows:,}",
            f"{bucket.confidence:.3f}",
            f"{bucket.accuracy:.3f}",
        )
        for diagnosis in report.diagnosis
        for bucket in diagnosis.bins
    ]
    head = ("model", "rows", "confidence", "accuracy")
    text = (
        "How often the most probable class is the true one (accuracy), by the probability that the "
        f"model gave it (confidence), on the {report.main_rows} rows."
    )
    return Section(
        "reliability",
        "Reliability",
        (
            f"{text} Dots below the diagonal are over-confident. The area of a dot is its share of "
            "the rows.",
        ),
        "reliability",
        (Table("Accuracy by confidence", head, tuple(body), folded=True),),
        paragraphs_without_figures=(
            f"{text} Where the accuracy is below the confidence, the model is over-confident.",
        ),
    )


def _confusion_section(report: "Report") -> Section:
    text = (
        "Each true class (left) by the class that the model finds most probable (top): the number "
        f"of {report.main_rows} rows, and their share of the true class."
    )
    tables = tuple(_confusion_table(diagnosis) for diagnosis in report.diagnosis)
    return Section("confusion", "Confusion", (text,), tables=tables)


def _confusion_table(diagnosis: Diagnosis) -> Table:
    def row(name: str, counts: Sequence[int]) -> tuple[Cell, ...]:
        # A class without rows has shares of 0.
        shares = [count / max(1, sum(counts)) for count in counts]
        cells = [
            Cell(f"{count:,} ({share:.0%})", shade=share)
            for count, share in zip(counts, shares, strict=True)
        ]
        return Cell(f"true {name}"), *cells

    rows = zip(CLASS_NAMES, diagnosis.confusion, strict=True)
    head = ("", *(f"predicted {name}" for name in CLASS_NAMES))
    return Table(diagnosis.model, head, tuple(row(name, counts) for name, counts in rows))


def _slices_section(report: "Report") -> Section:
    models = [diagnosis.model for diagnosis in report.diagnosis]

    def loss_cell(loss: SliceLoss, lowest: float) -> Cell:
        interval = "" if loss.low is None else f" [{loss.low:.3f}, {loss.high:.3f}]"
        # With one model alone every loss would be the lowest.
        strong = len(models) > 1 and loss.log_loss == lowest
        return Cell(f"{loss.log_loss:.3f}{interval}", strong=strong)

    def row(part: Slice) -> tuple[Cell, ...]:
        lowest = min(loss.log_loss for loss in part.losses.values())
        losses = [loss_cell(part.losses[model], lowest) for model in models]
        return *format_cells(part.name, f"{part.rows:,}", f"{part.prompts:,}"), *losses

    tables = []
    for by, parts in groupby(report.slices, key=lambda part: part.by):
        head = (by, "rows", "prompts", *models)
        tables.append(Table(f"Log loss by {by}", head, tuple(map(row, parts))))
    text = (
        f"Log loss on parts of the {report.main_rows} rows with 95% intervals; the lowest of each "
        f"part is bold. A part with fewer than {MIN_PROMPTS} prompts has no interval. Answer "
        "length is the mean of the two answers, in characters. Script is the writing system of "
        "most letters in prompt and answers, which hints at the language."
    )
    return Section("slices", "By length, turns and language", (text,), tables=tuple(tables))


def _correlation_section(report: "Report") -> Section | None:
    names = report.correlation.models
    if len(names) < 2:
        return None

    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell("constant", tone="quiet")
        return Cell(f"{value:.3f}".replace("-", MINUS), shade=max(value, 0.0))

    rows = zip(names, report.correlation.values, strict=True)
    body = tuple((Cell(name), *map(cell, values)) for name, values in rows)
    text = (
        "How alike the models are: Pearson's correlation of their probabilities, minus the mean of "
        "each class; 1 means the same. Good models that are not alike gain most from a blend."
    )
    table = Table(f"Correlation of predictions on the {report.main_rows} rows", ("", *names), body)
    return Section("correlation", "Correlation between models", (text,), tables=(table,))


def _blends_section(report: "Report") -> Section | None:
    if not report.blends:
        return None
    paragraphs = [
        "A blend is the weighted mean of its members' probabilities, arithmetic or geometric. A "
        "temperature above 1 then softens the result, one below 1 sharpens it. The log loss “in "
        "sample” is that of rows which the weights were fitted to, so it flatters the blend. New "
        "rows can expect the cross-fitted one, with weights that were fitted to other prompts."
    ]
    tables = []
    for saved in report.blends:
        blend = saved.blend
        names = {"log_loss_in_sample": "in sample", "log_loss_cross_fitted": "cross-fitted"}
        losses = [
            f"{saved.fitted[key]:.4f} {name}"
            for key, name in names.items()
            if isinstance(saved.fitted.get(key), float)
        ]
        text = f"“{saved.name}”: {blend.pool} mean, temperature {blend.calibration.temperature:.4f}"
        if losses:
            text += f", log loss {' and '.join(losses)} on the rows it was fitted to"
        paragraphs.append(f"{text}.")

        members = zip(blend.members, blend.weights, strict=True)
        heaviest = max(blend.weights)
        body = tuple(
            (Cell(name), Cell(f"{weight:.3f}", shade=weight / heaviest))
            for name, weight in sorted(members, key=lambda member: -member[1])
        )
        tables.append(Table(f"Weights of {saved.name}", ("member", "weight"), body))
    return Section("blends", "Blend weights", tuple(paragraphs), tables=tuple(tables))


def _cases_section(report: "Report") -> Section | None:
    if not report.cases:
        return None
    text = (
        "Rows on which the models' predictions differ most, at most one of each prompt. Divergence "
        "is that of Jensen and Shannon, 0 where all models agree; blends and models that predict "
        "the same for every row are shown, but do not count in it. Each model's most probable "
        "class is bold. Invisible characters are shown as ⟨U+…⟩."
    )
    return Section("disagreement", "Where models disagree most", (text,), cases=report.cases)
