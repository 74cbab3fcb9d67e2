"""Score every model on the same rows: log loss with a bootstrap interval, accuracy, calibration.

Use `tabulate_models`, and `rank_lines` for its lines from the best to the worst.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kit.errors import RunError
from kit.evaluation.bootstrap import loss_intervals
from kit.evaluation.metrics import accuracy, expected_calibration_error, row_losses
from kit.reporting.inputs import ReportInputs
from kit.reporting.left_out import LeftOut
from kit.reporting.models import ReportModel
from kit.reporting.rows import LABELLED, Parts, Resampled


@dataclass(frozen=True)
class ModelFigures:
    """A model's log loss with its 95% bootstrap interval, accuracy and calibration error."""

    rows: int
    log_loss: float
    low: float
    high: float
    accuracy: float
    calibration_error: float


@dataclass(frozen=True)
class ComparisonLine:
    """One model's line in the table.

    Attributes:
        valid, test: figures on these rows, None where the model did not predict them.
        swap_gap: mean absolute change of the validation probabilities when the answers are swapped.
        best_epoch: mean over the run's parts.
        parameters: of the model of one part.
        minutes: of training, summed over the run's parts.
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
    """The table of all models.

    Attributes:
        lines: one for each model, the references first.
        rows: the rows of the table in words, such as "599 out-of-fold rows and 150 test rows".
        validation: what the validation rows are (see `rows.name_parts`).
        resampled: what the intervals come from, resamples of "prompts" or of "rows".
        split: the split that models are ranked by, "valid" or "test".
        references: the names of those lines that need no training.
        left_out: runs that are not compared on the validation rows, and why.
        note: a remark on the choice of validation rows, or nothing.
    """

    lines: tuple[ComparisonLine, ...]
    rows: str
    validation: str
    resampled: Resampled
    split: str
    references: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


def tabulate_models(inputs: ReportInputs) -> Comparison:
    """Score every model on every split with labels.

    Raises:
        RunError: the metrics of a run's part cannot be used.
    """
    figures = {split: _score_split(inputs, split) for split in inputs.scored_splits}
    lines = []
    for model in inputs.models:
        scores = {
            split: by_name[model.name]
            for split, by_name in figures.items()
            if model.name in by_name
        }
        training = _training_figures(model, inputs.rows["valid"].parts)
        lines.append(ComparisonLine(model.name, **scores, **training))

    note = ""
    if inputs.holdout_unused:
        note = "Compared on out-of-fold rows; every run has a holdout too."
    return Comparison(
        lines=tuple(lines),
        rows=" and ".join(inputs.rows[split].title for split in inputs.compared_splits),
        validation=inputs.validation,
        resampled=inputs.resampled,
        split=inputs.main_split,
        references=tuple(model.name for model in inputs.models if model.reference),
        left_out=inputs.left_out,
        note=note,
    )


def rank_lines(
    comparison: Comparison,
) -> tuple[list[ComparisonLine], list[ComparisonLine]]:
    """Return the lines of the models, the lowest log loss first, and those of the references.

    Models that did not predict the split that counts come last, ordered by the other one.
    """
    split = comparison.split
    other = "test" if split == "valid" else "valid"

    def key(line: ComparisonLine) -> tuple[float, float]:
        losses = [
            figures.log_loss if figures else float("inf")
            for figures in (getattr(line, split), getattr(line, other))
        ]
        return losses[0], losses[1]

    competing = [line for line in comparison.lines if line.name not in comparison.references]
    apart = [line for line in comparison.lines if line.name in comparison.references]
    return sorted(competing, key=key), sorted(apart, key=key)


def comparison_columns(comparison: Comparison) -> list[str]:
    """Return the column titles of `comparison_rows`."""
    return [
        "model",
        valid_loss_title(comparison),
        "accuracy",
        "test log loss [95%]",
        "accuracy",
        "best epoch",
        "parameters",
        "minutes",
    ]


def valid_loss_title(comparison: Comparison) -> str:
    """Return the column title of the log loss on validation rows."""
    # Rows of a truth file are all there are, and need no name.
    name = "" if comparison.validation == LABELLED else f"{comparison.validation} "
    return f"{name}log loss [95%]"


def comparison_rows(comparison: Comparison) -> tuple[list[list[str]], list[list[str]]]:
    """Return the table's cells as text, with as many columns as fit a terminal.

    Returns:
        The rows of the models, the best first, and those of the references.
    """

    def row(line: ComparisonLine) -> list[str]:
        return [
            line.name,
            *_score_texts(line.valid),
            *_score_texts(line.test),
            format_number(line.best_epoch, ".2f"),
            format_number(line.parameters, ","),
            format_number(line.minutes, ".1f"),
        ]

    ranked, references = rank_lines(comparison)
    return [row(line) for line in ranked], [row(line) for line in references]


def _score_texts(figures: ModelFigures | None) -> list[str]:
    return [format_loss(figures), f"{figures.accuracy:.3f}"] if figures else ["", ""]


def format_loss(figures: ModelFigures | None) -> str:
    """Return a log loss with its interval, or nothing for None."""
    return f"{figures.log_loss:.4f} [{figures.low:.4f}, {figures.high:.4f}]" if figures else ""


def format_number(value: float | None, form: str) -> str:
    """Return a number in the given format, or nothing for None."""
    return "" if value is None else format(value, form)


def _score_split(inputs: ReportInputs, split: str) -> dict[str, ModelFigures]:
    """Return, by name, the figures of every model with predictions of the split."""
    rows = inputs.rows[split]
    labels = rows.known_labels
    models = inputs.models_with(split, references=True)
    losses = np.stack([row_losses(model.predictions[split], labels) for model in models])
    # All intervals come from the same resamples.
    intervals = loss_intervals(losses, rows.groups)

    figures = {}
    for model, model_losses, (low, high) in zip(models, losses, intervals, strict=True):
        probabilities = model.predictions[split]
        figures[model.name] = ModelFigures(
            rows=len(rows.ids),
            log_loss=float(model_losses.mean()),
            low=low,
            high=high,
            accuracy=accuracy(probabilities, labels),
            calibration_error=expected_calibration_error(probabilities, labels),
        )
    return figures


def _training_figures(model: ReportModel, parts: Parts) -> dict[str, Any]:
    """Summarise the parts that predicted the validation rows, as fields of `ComparisonLine`."""
    metrics = list(model.part_metrics(parts).values())
    if not metrics:
        return {}
    try:
        return {
            "swap_gap": _mean_swap_gap(metrics),
            "best_epoch": _mean_best_epoch(metrics),
            "parameters": metrics[0]["parameters"],
            "minutes": float(sum(part["minutes"] for part in metrics)),
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        # A run directory is a user's file: it may have been edited, or copied in part.
        raise RunError(
            f"{model.name}: a part's metrics.json lacks a number, or has something else in its "
            f"place: {error!r}",
            "Copy the run directory again, or train that part again.",
        ) from error


def _mean_swap_gap(parts: list[dict[str, Any]]) -> float | None:
    """Return the mean over validation rows, None if a part predicted one order of answers only."""
    gaps = [part["swap_gap"] for part in parts]
    if None in gaps:
        return None
    return float(np.average(np.array(gaps), weights=[part["valid_rows"] for part in parts]))


def _mean_best_epoch(parts: list[dict[str, Any]]) -> float | None:
    """Return the mean over parts, None for a baseline, which has no epochs."""
    epochs = [part["best_epoch"] for part in parts if part["best_epoch"] is not None]
    return float(np.mean(epochs)) if epochs else None
