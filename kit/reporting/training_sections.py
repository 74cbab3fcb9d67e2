"""Write the sections about training and blending: curves, folds, and what blends are made of.

Use `curves_section`, `folds_section` and `blends_section`.
"""

from typing import TYPE_CHECKING

import numpy as np

from kit.reporting.table import Cell, Section, Table, format_cells, format_difference, number_cell

if TYPE_CHECKING:
    from kit.reporting.report import Report


def curves_section(report: "Report") -> Section | None:
    """Return the learning curves; None if no model was trained in epochs."""
    curves = [curve for curve in report.curves if curve.validation]
    if not curves:
        return None
    body = [
        (
            *format_cells(curve.model, curve.part, str(len(curve.validation))),
            number_cell(curve.best_epoch, ".2f"),
            number_cell(curve.best_point[1], ".4f"),
        )
        for curve in curves
    ]
    head = ("model", "part", "evaluations", "best epoch", "log loss there")
    return Section(
        "curves",
        "Learning curves",
        (
            "Validation log loss by epoch of all runs on one axis, each the mean of its parts; the "
            "best runs have colours. Below, each run by itself on the same scale: the validation "
            "log loss of each part, named at its end, and the training loss (thin line), a moving "
            "mean, with label smoothing where the recipe has some. The dot is the checkpoint that "
            "was kept. The highest twentieth of the losses is not shown.",
        ),
        "curves",
        (Table("Trained parts", head, tuple(body), folded="The numbers"),),
        paragraphs_without_figures=(
            "How often each part, a fold or the holdout, was evaluated during training, the epoch "
            "of the checkpoint that was kept, and its validation log loss.",
        ),
    )


def folds_section(report: "Report") -> Section | None:
    """Return each model's loss on each fold; None unless the rows are those of several folds."""
    if not report.folds:
        return None
    spreads = {spread.model: spread for spread in report.folds}
    losses = np.array([list(spread.losses.values()) for spread in report.folds])
    low, width = losses.min(), max(float(np.ptp(losses)), 1e-9)
    parts = list(report.folds[0].losses)
    body = []
    for name in report.ranking:
        if name not in spreads:
            continue
        spread = spreads[name]
        cells = [
            Cell(f"{loss:.4f}", shade=float((loss - low) / width), value=loss)
            for loss in spread.losses.values()
        ]
        body.append((Cell(name), *cells, number_cell(spread.deviation, ".4f")))
    head = ("model", *(part.replace("fold", "fold ") for part in parts), "deviation")
    text = (
        "Log loss on the rows of each fold, and the standard deviation over the folds: how much of "
        "a difference between two single folds may be chance. A darker cell is a higher loss; a "
        "fold that is dark for every model has harder rows."
    )
    table = Table("Log loss by fold", head, tuple(body))
    return Section("folds", "Spread over the folds", (text,), tables=(table,))


def blends_section(report: "Report") -> Section | None:
    """Return weights and gains of the members of saved blends; None if there are no blends."""
    if not report.blends:
        return None
    paragraphs = [
        "A blend is the weighted mean of its members' probabilities, arithmetic or geometric. A "
        "temperature above 1 then softens the result, one below 1 sharpens it. The log loss “in "
        "sample” is that of rows which the weights were fitted to, so it flatters the blend. New "
        "rows can expect the cross-fitted one, with weights that were fitted to other prompts.",
        "The gain of a member is the log loss of the blend without it minus that with it: above 0 "
        "the member helps. The weights of the others are fitted again on validation rows, and keep "
        "their proportions on test rows.",
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

        gains = {gain.member: gain for gain in report.gains if gain.blend == saved.name}
        members = zip(blend.members, blend.weights, strict=True)
        heaviest = max(blend.weights)
        body = []
        for name, weight in sorted(members, key=lambda member: -member[1]):
            gain = Cell("")
            if name in gains:
                found = gains[name]
                low, high = format_difference(found.low), format_difference(found.high)
                tone = "good" if found.low > 0 else "bad" if found.high < 0 else "quiet"
                gain = Cell(
                    format_difference(found.gain), f"[{low}, {high}]", tone=tone, value=found.gain
                )
            body.append((Cell(name), Cell(f"{weight:.3f}", shade=weight / heaviest), gain))
        head = ("member", "weight", f"gain on {report.main_rows} rows [95%]")
        tables.append(Table(f"Members of {saved.name}", head, tuple(body)))
    return Section("blends", "Blends", tuple(paragraphs), tables=tuple(tables))
