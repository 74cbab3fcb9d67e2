"""Calibration: one temperature, perhaps with a shift for each class, so that 60% sure is right six times in ten.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017): temperature scaling, and vector scaling with
one slope. Averages of models come out under-confident and smoothed networks too; a temperature mends both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from kit.ensemble.calibration import Calibration
from kit.errors import KitError
from kit.evaluation.bootstrap import loss_difference
from kit.evaluation.crossfit import cross_fit, crossfit_folds
from kit.evaluation.metrics import (
    expected_calibration_error,
    log_loss,
    reliability_bins,
    row_losses,
)
from kit.evaluation.softmax import log_probabilities, softmax_loss
from kit.evaluation.truth import align_to_truth
from kit.task import CLASSES, GROUP, ID

Method = Literal["temperature", "bias"]  # "bias" is a temperature and a shift for each class
HOTTEST = (
    20.0  # temperatures stay within 1/20 and 20; beyond, a prediction is a constant or a certainty
)
ROWS_PER_PARAMETER, FEWEST_GROUPS = 100, 20  # fewer say more about the noise than about the model
DRAWS = 200  # bootstrap draws by which the biases are judged
PARAMETERS = {"temperature": 1, "bias": len(CLASSES)}


@dataclass(frozen=True)
class CalibrationFigures:
    """How good probabilities are, with the bins of a reliability diagram (rows, mean confidence, accuracy)."""

    log_loss: float
    calibration_error: float
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationTrial:
    """One way to calibrate: its log loss on the rows it was fitted to, and cross-fitted."""

    method: str
    in_sample: float
    cross_fitted: float


@dataclass(frozen=True)
class CalibrationFit:
    """A fit and what it is worth.

    Attributes:
        calibration: fitted to all rows, for use on others.
        method: "temperature" or "bias", or "none" where nothing was gained.
        note: why nothing was gained, or why the simpler method was kept though the other's log loss is lower.
        rows: number of rows.
        before: the prediction as it came.
        after: cross-fitted, so it is what new rows may expect.
        tried: every method that was tried.
        crossed: the cross-fitted probabilities (N, 3), in the truth's order.
    """

    calibration: Calibration
    method: str
    note: str
    rows: int
    before: CalibrationFigures
    after: CalibrationFigures
    tried: tuple[CalibrationTrial, ...]
    crossed: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; without the rows' probabilities."""
        return {name: value for name, value in asdict(self).items() if name != "crossed"}

    @property
    def fitted(self) -> dict[str, Any]:
        """What a saved calibration tells of its fit."""
        losses = {
            "log_loss_before": self.before.log_loss,
            "log_loss_cross_fitted": self.after.log_loss,
        }
        return {"method": self.method, "rows": self.rows} | losses


def fit_calibration(
    frame: pd.DataFrame, truth: pd.DataFrame, name: str, method: Method | None = None
) -> CalibrationFit:
    """Fits a calibration to out-of-fold predictions, matched to the truth by id.

    Args:
        frame: a prediction frame of rows the model was not trained on.
        truth: what `evaluation.truth.read_truth` gives; with prompt groups, these stay together in cross-fitting.
        name: the frame's file, for errors.
        method: what to fit; None tries a temperature, and then biases too, which must be better beyond doubt.

    Raises:
        DataError: as `evaluation.truth.align`.
        KitError: an unknown method.
    """
    probabilities, labels = align_to_truth(frame, truth, name)
    return fit_temperature(
        probabilities, labels, truth[GROUP if GROUP in truth else ID].to_numpy(), method
    )


@threadpool_limits.wrap(
    limits=1, user_api="blas"
)  # products this small only wait for a second thread
def fit_temperature(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, method: Method | None = None
) -> CalibrationFit:
    """The same of probabilities (N, 3), labels (N,) and prompt groups (N,) in one order.

    The identity is kept, and the note says so, where rows are too few for the parameters, or where the cross-fitted
    log loss is no lower.
    """
    if method is not None and method not in get_args(Method):
        raise KitError(
            f"no calibration {method!r}", "Choose one of: " + ", ".join(get_args(Method)) + "."
        )
    before = measure_calibration(probabilities, labels)
    fold = crossfit_folds(groups)
    best, chosen, after, reason, tried = Calibration(), "none", probabilities, "", []
    for each in (method,) if method else get_args(Method):
        reason = too_few_rows(labels, groups, PARAMETERS[each])
        if reason:
            break

        def other(train: np.ndarray, rows: np.ndarray, each: Method = each) -> np.ndarray:
            return fit_temperature_rows(probabilities[train], labels[train], each).of(
                probabilities[rows]
            )

        whole, crossed = fit_temperature_rows(probabilities, labels, each), cross_fit(fold, other)
        gain = loss_difference(
            row_losses(crossed, labels), row_losses(after, labels), groups, draws=DRAWS
        )
        if gain.verdict == "better" or (
            gain.mean < 0 and not tried
        ):  # the more parameters, the more they have to show
            best, chosen, after = whole, each, crossed
        tried.append(
            CalibrationTrial(
                each, log_loss(whole.of(probabilities), labels), log_loss(crossed, labels)
            )
        )
    if chosen == "none":
        worse = (
            f"{tried[0].cross_fitted:.5f} cross-fitted instead of {before.log_loss:.5f}"
            if tried
            else ""
        )
        reason = f"left as it is: {f'the log loss would be {worse}' if worse else reason}"
    note = reason if chosen == "none" else _luck(chosen, tried)
    return CalibrationFit(
        best,
        chosen,
        note,
        len(labels),
        before,
        measure_calibration(after, labels),
        tuple(tried),
        after,
    )


def _luck(chosen: str, tried: Sequence[CalibrationTrial]) -> str:
    """That a method of more parameters has a lower log loss than the chosen one, if it has: not beyond doubt."""
    losses = {trial.method: trial.cross_fitted for trial in tried}
    lower = losses[chosen] - losses.get("bias", losses[chosen])
    if lower < 5e-5:  # nothing to four places, as losses are shown
        return ""
    return f"bias is lower by {lower:.4f}, which may be luck: the simpler one is kept"


def fit_temperature_rows(
    probabilities: np.ndarray, labels: np.ndarray, method: Method
) -> Calibration:
    """The calibration with the lowest log loss on these very rows; the problem is convex in 1/T and the biases."""
    logits = log_probabilities(probabilities)
    shifts = (
        0 if method == "temperature" else len(CLASSES) - 1
    )  # one bias is free: the last starts as 0

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        shifted = point[0] * logits
        shifted[:shifts] += point[1:, None]
        value, residual = softmax_loss(shifted, labels)
        return value, np.append(np.vdot(residual, logits), residual[:shifts].sum(axis=1))

    bounds = [(1 / HOTTEST, HOTTEST)] + [(-HOTTEST, HOTTEST)] * shifts
    start = np.array([1.0] + [0.0] * shifts)
    found = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"ftol": 1e-13, "gtol": 1e-8},
    )
    bias = np.append(found.x[1:], np.zeros(len(CLASSES) - shifts))
    return Calibration(float(1 / found.x[0]), tuple((bias - bias.mean()).tolist()))


def too_few_rows(labels: np.ndarray, groups: np.ndarray, parameters: int) -> str:
    """Why these rows cannot carry a fit of that many parameters, or nothing if they can."""
    needed, prompts = ROWS_PER_PARAMETER * parameters, len(np.unique(groups))
    if len(labels) < needed:
        return f"{len(labels)} rows are too few to fit {parameters} parameter{'s' * (parameters > 1)}: it takes {needed}"
    if prompts < FEWEST_GROUPS:
        return f"{prompts} distinct prompts are too few to fit anything: it takes {FEWEST_GROUPS}"
    if len(np.unique(labels)) < len(CLASSES):
        return "not every class is among the labels"
    return ""


def measure_calibration(probabilities: np.ndarray, labels: np.ndarray) -> CalibrationFigures:
    """Log loss, calibration error, and the reliability diagram of the most probable class."""
    bins = [values.tolist() for values in reliability_bins(probabilities, labels)]
    error = expected_calibration_error(probabilities, labels)
    return CalibrationFigures(log_loss(probabilities, labels), error, *map(tuple, bins))
