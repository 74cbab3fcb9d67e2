"""One table of references, runs and blends: log loss with its interval, on validation rows and on test rows."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kit.errors import RunError
from kit.evaluation.bootstrap import loss_intervals
from kit.evaluation.metrics import accuracy, expected_calibration_error, row_losses
from kit.report.inputs import ReportInputs, ReportRows
from kit.report.models import ReportModel


@dataclass(frozen=True)
class ModelFigures:
    """Log loss on some rows, its 95% bootstrap interval over prompts, accuracy and calibration error."""

    rows: int
    log_loss: float
    low: float
    high: float
    accuracy: float
    calibration_error: float


@dataclass(frozen=True)
class ComparisonLine:
    """One model of the comparison; figures are None where it has no predictions of those rows.

    Attributes:
        swap_gap: the mean absolute difference of its probabilities when the answers are swapped; of validation rows.
        best_epoch: the mean over parts.
        parameters: of one part's model.
        minutes: of all parts.
    """

    name: str
    valid: ModelFigures | None = None
    test: ModelFigures | None = None
    swap_gap: float | None = None
    best_epoch: float | None = None
    parameters: int | None = None
    minutes: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One line for each model.

    Attributes:
        validation: which rows "validation" means: "holdout" or "out-of-fold".
        unfinished: runs that were left out.
        note: what else there was to compare on, if anything.
    """

    lines: tuple[ComparisonLine, ...]
    validation: str
    unfinished: tuple[str, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


def tabulate_models(evidence: ReportInputs) -> Comparison:
    """A line for each model, the references first."""
    figures = {split: _figures(evidence, split) for split in evidence.scored}
    lines = [
        ComparisonLine(
            model.name,
            **{split: each[model.name] for split, each in figures.items() if model.name in each},
            **_training(model, evidence.validation),
        )
        for model in evidence.models
    ]
    note = "Compared out of fold; each run has a holdout too." if evidence.holdout_too else ""
    return Comparison(tuple(lines), evidence.validation, evidence.unfinished, note)


def comparison_columns(comparison: Comparison) -> list[str]:
    """Column titles of `rows`."""
    scores = [
        f"{comparison.validation} log loss [95%]",
        "accuracy",
        "test log loss [95%]",
        "accuracy",
    ]
    return ["model", *scores, "best epoch", "parameters", "minutes"]


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """The comparison's cells as text, as many as fit a terminal."""

    def of(figures: ModelFigures | None) -> list[str]:
        return [format_loss(figures), f"{figures.accuracy:.3f}"] if figures else ["", ""]

    return [
        [
            line.name,
            *of(line.valid),
            *of(line.test),
            format_number(line.best_epoch, ".2f"),
            format_number(line.parameters, ","),
            format_number(line.minutes, ".1f"),
        ]
        for line in comparison.lines
    ]


def format_loss(figures: ModelFigures | None) -> str:
    """Log loss with its interval, nothing where there is none."""
    return f"{figures.log_loss:.4f} [{figures.low:.4f}, {figures.high:.4f}]" if figures else ""


def format_number(value: float | None, form: str) -> str:
    """A number in its form, nothing for None."""
    return "" if value is None else format(value, form)


def _figures(evidence: ReportInputs, split: str) -> dict[str, ModelFigures]:
    """The figures of every model that has predictions of the split, by name."""
    some: ReportRows = evidence.rows[split]
    models = evidence.having(split, references=True)
    losses = np.stack([row_losses(model.predictions[split], some.labels) for model in models])
    return {
        model.name: ModelFigures(
            len(some.ids),
            float(loss.mean()),
            low,
            high,
            accuracy(model.predictions[split], some.labels),
            expected_calibration_error(model.predictions[split], some.labels),
        )
        for model, loss, (low, high) in zip(
            models, losses, loss_intervals(losses, some.groups), strict=True
        )
    }


def _training(model: ReportModel, validation: str) -> dict[str, Any]:
    """What the parts tell that the validation predictions are from; an older run may not know its swap gap."""
    parts = list(model.parts(validation).values())
    if not parts:
        return {}
    try:
        epochs = [
            part["best_epoch"] for part in parts if part["best_epoch"] is not None
        ]  # a baseline has no epochs
        gaps = [part.get("swap_gap") for part in parts]
        known = None not in gaps
        return {
            "swap_gap": float(np.average(gaps, weights=[part["valid_rows"] for part in parts]))
            if known
            else None,
            "best_epoch": float(np.mean(epochs)) if epochs else None,
            "parameters": parts[0]["parameters"],
            "minutes": float(sum(part["minutes"] for part in parts)),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(
            f"{model.name}: the metrics.json of a part lacks a figure, or holds none in its place: {error!r}",
            "Copy the run directory again, or train that part again.",
        ) from error
