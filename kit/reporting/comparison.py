"""Score every model on the same rows, and test which differences are more than chance.

Use `tabulate_models` for log loss with intervals, `compare_pairs` for paired differences. Both
resample whole prompts, see `kit.evaluation.bootstrap`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from kit.errors import RunError
from kit.evaluation.bootstrap import loss_differences, loss_intervals
from kit.evaluation.metrics import accuracy, expected_calibration_error, row_losses
from kit.reporting.inputs import ReportInputs
from kit.reporting.models import FLOOR, UNIFORM, ReportModel

Verdict = Literal["better", "worse", "can't tell"]

# These two are not compared in pairs: the class prior is at least as good a constant as uniform,
# and no model can beat the floor.
NOT_COMPARED = (UNIFORM, FLOOR)


@dataclass(frozen=True)
class PublishedScore:
    """A model of the reference study, scored on the study's own rows.

    Best epoch and parameters are in the study's words.
    """

    name: str
    log_loss: float
    accuracy: float
    best_epoch: str
    parameters: str


# The study's table of three Siamese encoders, on its own validation rows: a random 10% of the
# competition's.
STUDY = (
    PublishedScore("DeBERTa-v3-xsmall", 1.0597, 0.454, "8", "≈ 70 million"),
    PublishedScore("RoBERTa-base", 1.0492, 0.464, "2", "≈ 125 million"),
    PublishedScore("ELECTRA-large", 1.0974, 0.349, "never converged", "≈ 335 million"),
)


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
        validation: what the validation rows are: "holdout" or "out-of-fold".
        unfinished: names of the runs that were left out.
        note: a remark on the choice of validation rows, or nothing.
    """

    lines: tuple[ComparisonLine, ...]
    validation: str
    unfinished: tuple[str, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """The log loss of `model` minus that of `other`, with its 95% bootstrap interval.

    The verdict says what `model` is against `other`.
    """

    model: str
    other: str
    mean: float
    low: float
    high: float
    verdict: Verdict


@dataclass(frozen=True)
class Significance:
    """All ordered pairs of models on the rows of one split.

    Attributes:
        rows: "holdout", "out-of-fold" or "test".
        models: names by rising log loss; the class prior is among them, as reference or as run.
        best: the name of the model with the lowest log loss that is not a reference.
        pairs: one for each ordered pair of two different models.
    """

    rows: str
    models: tuple[str, ...]
    best: str
    pairs: tuple[PairedDifference, ...]

    def pair(self, model: str, other: str) -> PairedDifference:
        """Return the comparison of two different models."""
        return next(pair for pair in self.pairs if (pair.model, pair.other) == (model, other))


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
        training = _training_figures(model, inputs.validation)
        lines.append(ComparisonLine(model.name, **scores, **training))

    note = ""
    if inputs.holdout_unused:
        note = "Compared on out-of-fold rows; every run has a holdout too."
    return Comparison(tuple(lines), inputs.validation, inputs.unfinished, note)


def compare_pairs(inputs: ReportInputs, split: str) -> Significance | None:
    """Compare every two models with predictions of the split by a paired bootstrap.

    Returns:
        None where the split was predicted by references only, or by one model in all.
    """
    models = [
        model
        for model in inputs.models_with(split, references=True)
        if model.name not in NOT_COMPARED
    ]
    # References alone need no test: what they are worth is known.
    if len(models) < 2 or not inputs.models_with(split):
        return None

    rows = inputs.rows[split]
    losses = np.stack([row_losses(model.predictions[split], rows.known_labels) for model in models])
    # A stable sort leaves models with equal losses in the order of the table.
    order = np.argsort(losses.mean(axis=1), kind="stable")
    losses = losses[order]
    models = [models[position] for position in order]

    differences = loss_differences(losses, rows.groups)
    pairs = tuple(
        PairedDifference(model.name, other.name, *differences[i][j])
        for i, model in enumerate(models)
        for j, other in enumerate(models)
        if i != j
    )
    best = next(model.name for model in models if not model.reference)
    return Significance(rows.name, tuple(model.name for model in models), best, pairs)


def comparison_columns(comparison: Comparison) -> list[str]:
    """Return the column titles of `comparison_rows`."""
    return [
        "model",
        f"{comparison.validation} log loss [95%]",
        "accuracy",
        "test log loss [95%]",
        "accuracy",
        "best epoch",
        "parameters",
        "minutes",
    ]


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Return the table's cells as text, with as many columns as fit a terminal."""
    return [
        [
            line.name,
            *_score_texts(line.valid),
            *_score_texts(line.test),
            format_number(line.best_epoch, ".2f"),
            format_number(line.parameters, ","),
            format_number(line.minutes, ".1f"),
        ]
        for line in comparison.lines
    ]


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


def _training_figures(model: ReportModel, validation: str) -> dict[str, Any]:
    """Summarise the parts that predicted the validation rows, as fields of `ComparisonLine`."""
    parts = list(model.part_metrics(validation).values())
    if not parts:
        return {}
    try:
        return {
            "swap_gap": _mean_swap_gap(parts),
            "best_epoch": _mean_best_epoch(parts),
            "parameters": parts[0]["parameters"],
            "minutes": float(sum(part["minutes"] for part in parts)),
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
