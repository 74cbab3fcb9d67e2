"""A calibration as it is kept: one temperature and perhaps a shift for each class, applied to any prediction."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kit.ensemble.serialize import check_number, read_fitted, write_fitted
from kit.evaluation.softmax import log_probabilities, softmax
from kit.predictions import make_predictions
from kit.task import CLASSES, ID

KIND = "calibration"


@dataclass(frozen=True)
class Calibration:
    """p^(1/T) times exp(bias), normalised: a `temperature` T above 1 softens, below 1 sharpens; biases sum to 0."""

    temperature: float = 1.0
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self == Calibration()

    def of(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probabilities, (N, 3) from (N, 3); a zero is taken for the EPS that the log loss takes it for."""
        if self.identity:
            return probabilities
        return softmax(
            log_probabilities(probabilities) / self.temperature + np.array(self.bias)[:, None]
        ).T


def apply_calibration(calibration: Calibration, frame: pd.DataFrame) -> pd.DataFrame:
    """The prediction frame with calibrated probabilities; ids and their order stay."""
    return make_predictions(
        frame[ID].to_numpy(), calibration.of(frame[list(CLASSES)].to_numpy(np.float64))
    )


def calibration_content(calibration: Calibration) -> dict[str, Any]:
    """The calibration as plain values that JSON can hold and `parse` takes."""
    return {"temperature": calibration.temperature, "bias": list(calibration.bias)}


def write_calibration(calibration: Calibration, path: str | Path, fitted: dict[str, Any]) -> None:
    """Writes the calibration, and what it was `fitted` to, as JSON that `read` takes."""
    write_fitted(path, KIND, calibration_content(calibration) | {"fitted": fitted})


def read_calibration(path: str | Path) -> Calibration:
    """A saved calibration.

    Raises:
        DataError: the file is missing or is not one.
    """
    return parse_calibration(path, read_fitted(path, KIND))


def parse_calibration(path: str | Path, content: dict[str, Any]) -> Calibration:
    """The calibration that a JSON object describes; `path` is for errors."""
    temperature = check_number(path, content.get("temperature"), "temperature", low=1e-6)
    bias = content.get("bias")
    if not isinstance(bias, list) or len(bias) != len(CLASSES):
        bias = [None] * len(CLASSES)  # refused as the numbers that they are not
    return Calibration(temperature, tuple(check_number(path, each, "bias") for each in bias))
