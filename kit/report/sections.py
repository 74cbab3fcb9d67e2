"""The report in its order: what each section says, with its tables."""

from collections.abc import Sequence

from kit.report.diagnosis import Diagnosis
from kit.report.disagreement import DisagreementCase
from kit.report.report import Report
from kit.report.slices import Slice
from kit.report.standings import significance_sections, standing_section
from kit.report.table import MINUS, NAMES, Cell, Section, Table, format_cells


def report_sections(report: Report) -> tuple[Section, ...]:
    """All sections that have something to say."""
    found = [
        standing_section(report),
        significance_sections(report),
        _curves(report),
        _reliability(report),
    ]
    found += [
        _confusion(report),
        _slices(report),
        _correlation(report),
        _blends(report),
        _cases(report),
    ]
    return tuple(section for section in found if section)


def list_facts(report: Report) -> list[tuple[str, str]]:
    """What data it is, as names and values."""
    known = report.facts
    rows = [
        ("training rows", f"{known.train:,}"),
        (f"{report.evidence.validation} rows", f"{known.validation:,}"),
    ]
    rows += [("test rows with labels", f"{known.test:,}")] if known.test else []
    shares = ", ".join(
        f"{name} {share:.1%}" for name, share in zip(NAMES, known.classes, strict=True)
    )
    rows += [("prompt groups", f"{known.prompts:,}"), ("classes", shares)]
    warning = ", by models that may have seen validation labels" * known.predicted
    rows += [("soft labels", f"{known.soft:,} rows{warning}")] if known.soft else []
    rows += [("split", f"{known.split}, {known.folds} folds"), ("text", known.text)]
    return [*rows, ("data", known.data), ("kit", known.kit)]


def _curves(report: Report) -> Section | None:
    if not report.curves:
        return None
    body = [
        format_cells(
            c.model,
            c.part,
            str(len(c.validation)),
            f"{c.best_epoch:.2f}",
            f"{min(v for _, v in c.validation):.4f}",
        )
        for c in report.curves
        if c.validation
    ]
    head = ("model", "part", "evaluations", "best epoch", "log loss there")
    text = (
        "Validation log loss (strong) and training loss (thin; with label smoothing where the recipe has some) over "
        "the epochs. The dot is the checkpoint that was kept.",
    )
    numbers = (
        "How often each part was evaluated while it was trained, the epoch of the checkpoint that was kept, and its "
        "validation log loss there.",
    )
    tables = (Table("Trained parts", head, tuple(body), folded=True),)
    return Section("curves", "Learning curves", text, "curves", tables, unpictured=numbers)


def _reliability(report: Report) -> Section:
    body = [
        format_cells(each.model, f"{b.rows:,}", f"{b.confidence:.3f}", f"{b.accuracy:.3f}")
        for each in report.diagnosis
        for b in each.bins
    ]
    asked = f"How often the most probable class is right, by how probable it was said to be, on the {report.main} rows."
    text = (
        f"{asked} Dots below the diagonal are over-confident; a dot's area tells its share of the rows.",
    )
    numbers = (f"{asked} Where the accuracy is below the confidence, the model is over-confident.",)
    table = Table(
        "Bins of confidence", ("model", "rows", "confidence", "accuracy"), tuple(body), folded=True
    )
    return Section("reliability", "Reliability", text, "reliability", (table,), unpictured=numbers)


def _confusion(report: Report) -> Section:
    text = (
        f"True classes by row, the most probable class by column, with the share of the row; {report.main} rows.",
    )
    return Section("confusion", "Confusion", text, tables=tuple(map(_confused, report.diagnosis)))


def _confused(each: Diagnosis) -> Table:
    def row(name: str, counts: Sequence[int]) -> tuple[Cell, ...]:
        shares = [count / max(1, sum(counts)) for count in counts]
        numbers = (
            Cell(f"{count:,} ({share:.0%})", shade=share)
            for count, share in zip(counts, shares, strict=True)
        )
        return Cell(f"true {name}"), *numbers

    body = tuple(row(name, counts) for name, counts in zip(NAMES, each.confusion, strict=True))
    return Table(each.model, ("", *(f"said {name}" for name in NAMES)), body)


def _slices(report: Report) -> Section:
    kinds: dict[str, list[Slice]] = {}
    for each in report.slices:
        kinds.setdefault(each.by, []).append(each)
    models = [each.model for each in report.diagnosis]

    def row(each: Slice) -> tuple[Cell, ...]:
        lowest = min(one.log_loss for one in each.losses.values())
        losses = []
        for one in map(each.losses.__getitem__, models):
            interval = "" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]"
            losses.append(
                Cell(
                    f"{one.log_loss:.3f}{interval}",
                    strong=len(models) > 1 and one.log_loss == lowest,
                )
            )
        return *format_cells(each.name, f"{each.rows:,}", f"{each.prompts:,}"), *losses

    tables = [
        Table(f"Log loss by {by}", (by, "rows", "prompts", *models), tuple(map(row, some)))
        for by, some in kinds.items()
    ]
    text = (
        f"Log loss on parts of the {report.main} rows, with 95% intervals; the lowest of each part is bold. A part of "
        "fewer than 6 prompts has no interval. The answer length is the mean of the two, in characters; the script is "
        "that of most letters in prompt and answers, and stands for the language.",
    )
    return Section("slices", "By length, turns and language", text, tables=tuple(tables))


def _correlation(report: Report) -> Section | None:
    names, values = report.correlation.models, report.correlation.values
    if len(names) < 2:
        return None

    def cell(value: float | None) -> Cell:
        if value is None:
            return Cell("constant", tone="quiet")
        return Cell(f"{value:.3f}".replace("-", MINUS), shade=max(value, 0.0))

    body = tuple((Cell(name), *map(cell, row)) for name, row in zip(names, values, strict=True))
    text = (
        "Pearson's correlation of all probabilities, each class less its mean. Models that are good and not alike "
        "gain most from blending.",
    )
    table = Table(f"Correlation of predictions on the {report.main} rows", ("", *names), body)
    return Section("correlation", "Correlation between models", text, tables=(table,))


def _blends(report: Report) -> Section | None:
    tables, text = [], []
    for model in report.blends:
        blend, fitted = model.saved.blend, model.saved.fitted
        known = {"log_loss_in_sample": "in sample", "log_loss_cross_fitted": "cross-fitted"}
        told = [
            f"{fitted[key]:.4f} {name}"
            for key, name in known.items()
            if isinstance(fitted.get(key), float)
        ]
        losses = f", log loss {' and '.join(told)} on the rows it was fitted to" if told else ""
        text.append(
            f"{model.name}: {blend.pool} pool, temperature {blend.calibration.temperature:.4f}{losses}."
        )
        pairs = sorted(zip(blend.members, blend.weights, strict=True), key=lambda pair: -pair[1])
        body = tuple(
            (Cell(name), Cell(f"{weight:.3f}", shade=weight / max(blend.weights)))
            for name, weight in pairs
        )
        tables.append(Table(f"Weights of {model.name}", ("member", "weight"), body))
    return Section("blends", "Blend weights", tuple(text), tables=tuple(tables)) if tables else None


def _cases(report: Report) -> Section | None:
    text = (
        "Rows with the largest Jensen-Shannon divergence between the models' predictions, one of each prompt. Blends "
        "and models that say the same of every row are listed, but do not count in it. Each model's most probable "
        "class is bold. Characters that cannot be seen are shown as ⟨U+…⟩.",
    )
    return (
        Section("disagreement", "Where models disagree most", text, cases=report.cases)
        if report.cases
        else None
    )


def probability_sections(case: DisagreementCase) -> Table:
    """What each model says of a row, its most probable class in bold."""
    body = []
    for model, row in case.probabilities.items():
        most = row.index(max(row))
        body.append(
            (Cell(model), *(Cell(f"{p:.3f}", strong=place == most) for place, p in enumerate(row)))
        )
    return Table(f"Predictions of {case.rows} row {case.id}", ("model", *NAMES), tuple(body))
