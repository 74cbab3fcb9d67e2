"""Fit a calibration to out-of-fold predictions, with cross-fitted log loss and calibration error.

Use `fit_calibration` with a prediction frame, `choose_calibration` with arrays.

The methods are temperature scaling and vector scaling with one slope (a temperature and a bias for
each class), of Guo et al., "On Calibration of Modern Neural Networks" (2017). Averages of models
come out under-confident, smoothed or overtrained networks over-confident; a temperature corrects
both.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from kit.ensembling.calibration import (
    MAX_TEMPERATURE,
    Calibration,
    apply_calibration,
    log_probabilities,
    write_calibration,
)
from kit.errors import KitError
from kit.evaluation.bootstrap import loss_difference
from kit.evaluation.crossfit import FitTrial, cross_fit_predict, crossfit_folds, too_few_rows
from kit.evaluation.metrics import (
    expected_calibration_error,
    log_loss,
    reliability_bins,
    row_losses,
    softmax_cross_entropy,
)
from kit.evaluation.truth import align_to_truth
from kit.predictions import make_predictions
from kit.task import CLASSES, GROUP, ID

# "bias" is a temperature and a bias for each class. Simplest first: that is the order of trying.
CalibrationMethod = Literal["temperature", "bias"]
PARAMETERS: dict[CalibrationMethod, int] = {"temperature": 1, "bias": len(CLASSES)}
BOOTSTRAP_DRAWS = 200  # by which a method is compared with a simpler one


@dataclass(frozen=True)
class CalibrationFigures:
    """Log loss and expected calibration error, with the bins of the reliability diagram."""

    log_loss: float
    calibration_error: float
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationFit:
    """A fitted calibration and its measured gain.

    Attributes:
        calibration: fitted to all rows, for use on other rows.
        method: "temperature" or "bias", or "none" where nothing was gained.
        note: why nothing was gained, or why the simpler method was kept though the other's loss is
            lower.
        rows: number of rows.
        before: figures of the prediction as given.
        after: figures of the cross-fitted prediction, an estimate for new rows.
        tried: every method that was tried.
        cross_fitted_probabilities: (N, 3), in the truth's order.
        ids: of the rows, (N,); their numbers, where the fit was made from arrays.
        warnings: what to know about the rows that it was fitted to.
    """

    calibration: Calibration
    method: str
    note: str
    rows: int
    before: CalibrationFigures
    after: CalibrationFigures
    tried: tuple[FitTrial, ...]
    cross_fitted_probabilities: np.ndarray
    ids: np.ndarray
    warnings: tuple[str, ...] = ()

    def apply(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the prediction frame of other rows, calibrated."""
        return apply_calibration(self.calibration, frame)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, for `kit calibrate --apply` and `kit kernels push infer`."""
        write_calibration(self.calibration, path, self.fitted)

    @property
    def cross_fitted(self) -> pd.DataFrame:
        """The prediction frame of the fitted rows, each calibrated without its own prompt."""
        return make_predictions(self.ids, self.cross_fitted_probabilities)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, without the rows' values."""
        values = asdict(self)
        for name in ("cross_fitted_probabilities", "ids", "warnings"):
            del values[name]
        return values

    @property
    def fitted(self) -> dict[str, Any]:
        """The record of the fit that a saved calibration holds."""
        return {
            "method": self.method,
            "rows": self.rows,
            "log_loss_before": self.before.log_loss,
            "log_loss_cross_fitted": self.after.log_loss,
        }


def fit_calibration(
    frame: pd.DataFrame, truth: pd.DataFrame, name: str, method: CalibrationMethod | None = None
) -> CalibrationFit:
    """Fit a calibration to out-of-fold predictions, matched to the truth by id.

    Args:
        frame: a prediction frame of rows that the model was not trained on.
        truth: as `evaluation.truth.read_truth` returns it; its prompt groups are kept whole in
            cross-fitting.
        name: the frame's file, for errors.
        method: what to fit; None tries a temperature, then biases, which must be significantly
            better.

    Raises:
        DataError: as `evaluation.truth.align_to_truth`.
        KitError: an unknown method.
    """
    probabilities, labels = align_to_truth(frame, truth, name)
    groups = truth[GROUP if GROUP in truth else ID].to_numpy()
    fit = choose_calibration(probabilities, labels, groups, method)
    return replace(fit, ids=truth[ID].to_numpy())


# Products this small only wait for a second BLAS thread.
@threadpool_limits.wrap(limits=1, user_api="blas")
def choose_calibration(
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    method: CalibrationMethod | None = None,
) -> CalibrationFit:
    """Fit the methods in turn and keep the best by cross-fitted log loss.

    The identity is kept, with a note, where rows are too few for the parameters or the cross-fitted
    loss is no lower.

    Args:
        probabilities: (N, 3).
        labels: (N,).
        groups: prompt groups (N,).
        method: the only one to try; None for all.
    """
    if method is not None and method not in PARAMETERS:
        raise KitError(
            f"no calibration {method!r}", "Choose one of: " + ", ".join(PARAMETERS) + "."
        )

    before = measure_calibration(probabilities, labels)
    folds = crossfit_folds(groups)
    best = Calibration()
    chosen = "none"
    best_probabilities = probabilities
    too_few = ""
    trials: list[FitTrial] = []
    for candidate in (method,) if method else get_args(CalibrationMethod):
        too_few = too_few_rows(labels, groups, PARAMETERS[candidate])
        if too_few:
            break

        def fit_predict(
            train: np.ndarray, test: np.ndarray, candidate: CalibrationMethod = candidate
        ) -> np.ndarray:
            fitted = fit_scaling(probabilities[train], labels[train], candidate)
            return fitted.transform(probabilities[test])

        calibration = fit_scaling(probabilities, labels, candidate)
        cross_fitted = cross_fit_predict(folds, fit_predict)
        gain = loss_difference(
            row_losses(cross_fitted, labels),
            row_losses(best_probabilities, labels),
            groups,
            draws=BOOTSTRAP_DRAWS,
        )

        # One temperature can hardly overfit, so any gain will do. A method of more parameters must
        # be significantly better than the simpler one.
        if gain.verdict == "better" or (gain.mean < 0 and not trials):
            best = calibration
            chosen = candidate
            best_probabilities = cross_fitted
        in_sample = log_loss(calibration.transform(probabilities), labels)
        trials.append(FitTrial(candidate, in_sample, log_loss(cross_fitted, labels)))

    return CalibrationFit(
        calibration=best,
        method=chosen,
        note=_explain_choice(chosen, trials, too_few, before.log_loss),
        rows=len(labels),
        before=before,
        after=measure_calibration(best_probabilities, labels),
        tried=tuple(trials),
        cross_fitted_probabilities=best_probabilities,
        ids=np.arange(len(labels)),
    )


def _explain_choice(
    chosen: str, trials: Sequence[FitTrial], too_few: str, loss_before: float
) -> str:
    """Return why nothing was fitted, or why a method of lower loss was not chosen, else ""."""
    if chosen == "none":
        if not trials:
            return f"not calibrated: {too_few}"
        return (
            f"not calibrated: the cross-fitted log loss would be {trials[0].cross_fitted:.5f} "
            f"instead of {loss_before:.5f}"
        )

    losses = {trial.method: trial.cross_fitted for trial in trials}
    gain = losses[chosen] - losses.get("bias", losses[chosen])
    # Losses are shown to four places, where a smaller gain would read as 0.
    if gain < 5e-5:
        return ""
    return f"bias is lower by {gain:.4f}, which is not significant: {chosen} is kept"


def fit_scaling(
    probabilities: np.ndarray, labels: np.ndarray, method: CalibrationMethod
) -> Calibration:
    """Return the calibration with the lowest log loss on these very rows.

    The problem is convex in 1/T and the biases. A constant added to all biases changes nothing, so
    the last one is fixed at 0 during the search; the result is centred.
    """
    logits = log_probabilities(probabilities)
    free_biases = 0 if method == "temperature" else len(CLASSES) - 1

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        scaled = point[0] * logits
        scaled[:free_biases] += point[1:, None]
        loss, residual = softmax_cross_entropy(scaled, labels)
        slope_gradient = np.vdot(residual, logits)
        return loss, np.append(slope_gradient, residual[:free_biases].sum(axis=1))

    slope_bounds = (1 / MAX_TEMPERATURE, MAX_TEMPERATURE)
    bias_bounds = (-MAX_TEMPERATURE, MAX_TEMPERATURE)
    found = minimize(
        objective,
        np.array([1.0] + [0.0] * free_biases),
        jac=True,
        method="L-BFGS-B",
        bounds=[slope_bounds] + [bias_bounds] * free_biases,
        options={"ftol": 1e-13, "gtol": 1e-8},
    )
    bias = np.append(found.x[1:], np.zeros(len(CLASSES) - free_biases))
    a, b, tie = (bias - bias.mean()).tolist()
    return Calibration(float(1 / found.x[0]), (a, b, tie))


def measure_calibration(probabilities: np.ndarray, labels: np.ndarray) -> CalibrationFigures:
    """Return the log loss, the calibration error and the reliability diagram of a prediction."""
    count, confidence, accuracy = reliability_bins(probabilities, labels)
    return CalibrationFigures(
        log_loss=log_loss(probabilities, labels),
        calibration_error=expected_calibration_error(probabilities, labels),
        count=tuple(count.tolist()),
        confidence=tuple(confidence.tolist()),
        accuracy=tuple(accuracy.tolist()),
    )
