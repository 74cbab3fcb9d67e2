"""Represent a calibration of class probabilities, apply it to predictions, and save it as JSON.

Use `apply_calibration`, `read_calibration` and `write_calibration`; `fit_calibration` finds one.

The map is temperature scaling, and with biases vector scaling with one slope for all classes: Guo
et al., "On Calibration of Modern Neural Networks" (2017).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from kit.ensembling.serialize import check_number, read_fitted, write_fitted
from kit.evaluation.metrics import EPS
from kit.predictions import make_predictions
from kit.task import CLASSES, ID

KIND = "calibration"

# Fitted temperatures stay within 1/20 and 20; beyond, a prediction is a constant or a certainty.
MAX_TEMPERATURE = 20.0


@dataclass(frozen=True)
class Calibration:
    """softmax(log(p) / temperature + bias): T > 1 softens, T < 1 sharpens; biases sum to 0."""

    temperature: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def identity(self) -> bool:
        """Whether it leaves probabilities as they are."""
        return self == Calibration()

    def transform(self, probabilities: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities (N, 3) of probabilities (N, 3)."""
        if self.identity:
            return probabilities
        logits = log_probabilities(probabilities) / self.temperature
        return softmax(logits + np.array(self.bias)[:, None], axis=0).T


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """Return class-major logits (3, N) of probabilities (N, 3), clipped as the log loss clips."""
    return np.log(np.maximum(probabilities.T, EPS, order="C"))


def apply_calibration(calibration: Calibration, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the prediction frame with calibrated probabilities; ids and their order stay."""
    probabilities = frame[list(CLASSES)].to_numpy(np.float64)
    return make_predictions(frame[ID].to_numpy(), calibration.transform(probabilities))


def calibration_content(calibration: Calibration) -> dict[str, Any]:
    """Return the calibration as plain values that JSON can hold and `parse_calibration` takes."""
    return {"temperature": calibration.temperature, "bias": list(calibration.bias)}


def write_calibration(calibration: Calibration, path: str | Path, fitted: dict[str, Any]) -> None:
    """Write the calibration as JSON, with a record of what it was `fitted` to."""
    write_fitted(path, KIND, calibration_content(calibration) | {"fitted": fitted})


def read_calibration(path: str | Path) -> Calibration:
    """Return a saved calibration.

    Raises:
        DataError: the file is missing or is not one.
    """
    return parse_calibration(path, read_fitted(path, KIND))


def parse_calibration(path: str | Path, content: dict[str, Any]) -> Calibration:
    """Return the calibration that a JSON object describes.

    Raises:
        DataError: a value is missing or out of range; `path` names the file in the message.
    """
    temperature = check_number(path, content.get("temperature"), "temperature", low=1e-6)
    bias = content.get("bias")
    if not isinstance(bias, list) or len(bias) != len(CLASSES):
        # None is refused below as the number that it is not.
        bias = [None] * len(CLASSES)
    a, b, tie = (check_number(path, value, "bias") for value in bias)
    return Calibration(temperature, (a, b, tie))
