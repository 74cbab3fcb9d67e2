"""Calibration: one temperature, perhaps with a shift for each class, so that 60% sure is right six times in ten.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017): temperature scaling, and vector scaling with
one slope. Averages of models come out under-confident and smoothed networks too; a temperature mends both.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from kit import frame as prediction
from kit.errors import KitError
from kit.schema import CLASSES, ID
from kit.scoring import saved
from kit.scoring.crossfit import cross_fit, folds
from kit.scoring.metrics import expected_calibration_error, log_loss, reliability
from kit.scoring.softmax import logarithms, loss, softmax
from kit.scoring.truth import GROUP, align

Method = Literal["temperature", "bias"]  # "bias" is a temperature and a shift for each class
HOTTEST = 20.0  # temperatures stay within 1/20 and 20; beyond, a prediction is a constant or a certainty
ROWS_PER_PARAMETER, FEWEST_GROUPS = 100, 20  # fewer say more about the noise than about the model
PARAMETERS = {"temperature": 1, "bias": len(CLASSES)}


@dataclass(frozen=True)
class Calibration:
    """p^(1/T) times exp(bias), normalised: `temperature` T above 1 softens, below 1 sharpens; biases sum to 0."""

    temperature: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self == Calibration()

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, (N, 3) from (N, 3)."""
        if self.identity:
            return probabilities
        return softmax(logarithms(probabilities) / self.temperature + np.array(self.bias)[:, None]).T


@dataclass(frozen=True)
class Reliability:
    """How good probabilities are, with the bins of a reliability diagram (rows, mean confidence, accuracy)."""

    log_loss: float
    calibration_error: float
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """One way to calibrate: its log loss on the rows it was fitted to, and cross-fitted."""

    method: str
    in_sample: float
    cross_fitted: float


@dataclass(frozen=True)
class Calibrated:
    """A fit and what it is worth.

    Attributes:
        calibration: fitted to all rows, for use on others.
        method: "temperature" or "bias", or "none" where nothing was gained; `note` then says why.
        rows: number of rows.
        before: the prediction as it came.
        after: cross-fitted, so it is what new rows may expect.
        tried: every method that was tried.
    """

    calibration: Calibration
    method: str
    note: str
    rows: int
    before: Reliability
    after: Reliability
    tried: tuple[Trial, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)


def calibrate(frame: pd.DataFrame, truth: pd.DataFrame, name: str, method: Method | None = None) -> Calibrated:
    """Fits a calibration to out-of-fold predictions, matched to the truth by id.

    Args:
        frame: a prediction frame of rows the model was not trained on.
        truth: what `scoring.truth.read_truth` gives; with prompt groups, these stay together in cross-fitting.
        name: the frame's file, for errors.
        method: what to fit; None tries all and takes the lowest cross-fitted log loss, the identity's included.

    Raises:
        DataError: as `scoring.truth.align`.
        KitError: an unknown method.
    """
    probabilities, labels = align(frame, truth, name)
    return fit(probabilities, labels, truth[GROUP if GROUP in truth else ID].to_numpy(), method)


@threadpool_limits.wrap(limits=1, user_api="blas")  # products this small only wait for a second thread
def fit(probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, method: Method | None = None) -> Calibrated:
    """The same of probabilities (N, 3), labels (N,) and prompt groups (N,) in one order.

    The identity is kept, and the note says so, where rows are too few for the parameters, or where no method tried
    has a lower cross-fitted log loss.
    """
    if method is not None and method not in get_args(Method):
        raise KitError(f"no calibration {method!r}", "Choose one of: " + ", ".join(get_args(Method)) + ".")
    before = measure(probabilities, labels)
    fold = folds(groups)
    best, chosen, after, note, tried = Calibration(), "none", probabilities, "", []
    for each in (method,) if method else get_args(Method):
        note = too_few(labels, groups, PARAMETERS[each])
        if note:
            break
        whole = fit_rows(probabilities, labels, each)
        crossed = cross_fit(
            fold,
            lambda train, rows, each=each: fit_rows(probabilities[train], labels[train], each).apply(
                probabilities[rows]
            ),
        )
        tried.append(Trial(each, log_loss(whole.apply(probabilities), labels), log_loss(crossed, labels)))
        if tried[-1].cross_fitted < log_loss(after, labels):
            best, chosen, after = whole, each, crossed
    if tried and chosen == "none":
        note = f"the cross-fitted log loss of {tried[0].cross_fitted:.5f} is not below {before.log_loss:.5f} as it is"
    note = f"left as it is: {note}" if chosen == "none" else ""
    return Calibrated(best, chosen, note, len(labels), before, measure(after, labels), tuple(tried))


def fit_rows(probabilities: np.ndarray, labels: np.ndarray, method: Method) -> Calibration:
    """The calibration with the lowest log loss on these very rows; the problem is convex in 1/T and the biases."""
    logits = logarithms(probabilities)
    shifts = 0 if method == "temperature" else len(CLASSES) - 1  # one bias is free: the last starts as 0

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        shifted = point[0] * logits
        shifted[:shifts] += point[1:, None]
        value, residual = loss(shifted, labels)
        return value, np.append(np.vdot(residual, logits), residual[:shifts].sum(axis=1))

    bounds = [(1 / HOTTEST, HOTTEST)] + [(-HOTTEST, HOTTEST)] * shifts
    start = np.array([1.0] + [0.0] * shifts)
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-13, "gtol": 1e-8}
    )
    bias = np.append(found.x[1:], np.zeros(len(CLASSES) - shifts))
    return Calibration(float(1 / found.x[0]), tuple((bias - bias.mean()).tolist()))


def too_few(labels: np.ndarray, groups: np.ndarray, parameters: int) -> str:
    """Why these rows cannot carry a fit of that many parameters, or nothing if they can."""
    needed, prompts = ROWS_PER_PARAMETER * parameters, len(np.unique(groups))
    if len(labels) < needed:
        return (
            f"{len(labels)} rows are too few to fit {parameters} parameter{'s' * (parameters > 1)}: it takes {needed}"
        )
    if prompts < FEWEST_GROUPS:
        return f"{prompts} distinct prompts are too few to fit anything: it takes {FEWEST_GROUPS}"
    if len(np.unique(labels)) < len(CLASSES):
        return "not every class is among the labels"
    return ""


def measure(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """Log loss, calibration error, and the reliability diagram of the most probable class."""
    bins = [values.tolist() for values in reliability(probabilities, labels)]
    error = expected_calibration_error(probabilities, labels)
    return Reliability(log_loss(probabilities, labels), error, *map(tuple, bins))


def apply(frame: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """The frame with calibrated probabilities; ids and their order stay."""
    return prediction.make(frame[ID].to_numpy(), calibration.apply(frame[list(CLASSES)].to_numpy(np.float64)))


def write(calibrated: Calibrated, path: str | Path) -> None:
    """Writes the calibration, and what it was fitted to, as JSON that `read` takes."""
    fitted = {
        "method": calibrated.method,
        "rows": calibrated.rows,
        "log_loss_before": calibrated.before.log_loss,
        "log_loss_cross_fitted": calibrated.after.log_loss,
    }
    saved.write(path, "calibration", asdict(calibrated.calibration) | {"fitted": fitted})


def read(path: str | Path) -> Calibration:
    """A saved calibration.

    Raises:
        DataError: the file is missing or is not one.
    """
    return parse(path, saved.read(path, "calibration"))


def parse(path: str | Path, content: dict[str, Any]) -> Calibration:
    """The calibration that a JSON object describes; `path` is for errors."""
    bias = content.get("bias")
    if not isinstance(bias, list) or len(bias) != len(CLASSES):
        bias = [None] * len(CLASSES)  # refused below, one by one
    temperature = saved.number(path, content.get("temperature"), "temperature", low=1e-6)
    return Calibration(temperature, tuple(saved.number(path, each, "bias") for each in bias))
