"""The report's first two sections: how the models stand, and which differences are more than luck."""

from kit.report.comparison import ComparisonLine, ModelFigures, format_loss, format_number
from kit.report.published import STUDY, PublishedScore
from kit.report.report import Report
from kit.report.significance import Significance
from kit.report.table import MINUS, Cell, Section, Table, format_cells

TONES = {"better": "good", "worse": "bad", "can't tell": "quiet"}


def standing_section(report: Report) -> Section:
    """The table of all models, the reference study's below it."""
    comparison, tested = report.comparison, "test" in report.evidence.scored
    head = [f"{comparison.validation} log loss [95%]", "accuracy", "calibration error"]
    head += ["test log loss [95%]", "test accuracy", "test calibration error"] if tested else []
    references = {model.name for model in report.evidence.models if model.reference}
    ours = [line for line in comparison.lines if line.name not in references]
    best = {
        split: min(
            (figures.log_loss for line in ours if (figures := getattr(line, split))), default=None
        )
        for split in ("valid", "test")
    }

    def row(line: ComparisonLine) -> tuple[Cell, ...]:
        def of(figures: ModelFigures | None, lowest: float | None) -> list[Cell]:
            if figures is None:
                return [Cell("")] * 3
            first = line.name not in references and figures.log_loss == lowest
            more = format_cells(f"{figures.accuracy:.3f}", f"{figures.calibration_error:.3f}")
            return [Cell(format_loss(figures), strong=first), *more]

        scores = of(line.valid, best["valid"]) + (of(line.test, best["test"]) if tested else [])
        numbers = [
            format_number(line.swap_gap, ".3f"),
            format_number(line.best_epoch, ".2f"),
            format_number(line.parameters, ","),
        ]
        tone = "quiet" if line.name in references else ""
        return (
            Cell(line.name, tone=tone),
            *scores,
            *format_cells(*numbers, format_number(line.minutes, ".1f")),
        )

    def published(model: PublishedScore) -> tuple[Cell, ...]:
        texts = [
            f"{model.name}, on other rows",
            f"{model.log_loss:.4f}",
            f"{model.accuracy:.3f}",
            "",
        ]
        texts += ["", "", ""] * tested + ["", model.best_epoch, model.parameters, ""]
        return tuple(Cell(text, tone="quiet") for text in texts)

    text = [
        "Multi-class log loss in nats, less is better; the brackets hold 95% of 1,000 bootstrap draws over prompts. "
        "Every figure of a column is of the same rows, except those marked “on other rows”: these are the reference "
        "study's, as published for its own validation rows, and say nothing about which model is better.",
        "Calibration error is the mean distance between confidence and accuracy. The swap gap is the mean absolute "
        "difference of a model's probabilities when the two answers change places: 0 means that it does not mind.",
    ]
    text += _of_blends(report)
    text += [comparison.note] if comparison.note else []
    if comparison.unfinished:
        text.append(
            f"Left out, since no part of it is finished: {', '.join(comparison.unfinished)}."
        )
    head = ("model", *head, "swap gap", "best epoch", "parameters", "minutes")
    body = tuple(map(row, comparison.lines)) + tuple(map(published, STUDY))
    return Section(
        "comparison", "Comparison", tuple(text), "intervals", (Table("All models", head, body),)
    )


def _of_blends(report: Report) -> list[str]:
    """Which validation figures of blends are cross-fitted, and why others are not."""
    crossed = [m.name for m in report.blends if "valid" in m.predictions and not m.saved.note]
    text = [f"{model.name} {model.saved.note}." for model in report.blends if model.saved.note]
    if crossed:
        text.append(
            f"The validation figures of {', '.join(crossed)} are cross-fitted: the weights were fitted to other "
            "prompts than they are judged on."
        )
    return text


def significance_sections(report: Report) -> Section | None:
    """Each model against the best, and all pairs; nothing where there is only one."""
    if not report.significance:
        return None
    tables: list[Table] = []
    for each in report.significance:
        tables.append(_against_best(each))
        if len(each.models) > 2:
            tables.append(_matrix(each))
    text = (
        "The difference of two models' log losses on the same rows, with the interval of a paired bootstrap over "
        "prompt groups. A model is “better” or “worse” where the whole interval is on one side of 0; else one "
        "can't tell. Each pair is judged by itself, at 95%: of pairs that are equal in truth, one in twenty is "
        "called different. Seeds differ as well, by about 0.0075: a gain of one run below 0.01 is little evidence "
        "for a recipe.",
    )
    return Section("significance", "Significance", text, tables=tuple(tables))


def _against_best(each: Significance) -> Table:
    body = []
    for name in each.models:
        if name != each.best:
            pair = each.pair(name, each.best)
            interval = f"{_signed(pair.mean)} [{_signed(pair.low)}, {_signed(pair.high)}]"
            body.append((Cell(name), Cell(pair.verdict, tone=TONES[pair.verdict]), Cell(interval)))
    head = ("model", "verdict", f"log loss less that of {each.best} [95%]")
    return Table(f"Against the best on {each.rows} rows, {each.best}", head, tuple(body))


def _matrix(each: Significance) -> Table:
    def cell(row: str, column: str) -> Cell:
        if row == column:
            return Cell("", tone="quiet")
        pair = each.pair(row, column)
        return Cell(f"{pair.verdict} {_signed(pair.mean)}", tone=TONES[pair.verdict])

    body = tuple((Cell(row), *(cell(row, column) for column in each.models)) for row in each.models)
    return Table(
        f"All pairs on {each.rows} rows: what the row is against the column",
        ("", *each.models),
        body,
    )


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", MINUS)
