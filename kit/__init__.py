"""Predict which of two LLM answers people prefer, from Kaggle's files to a submission.

    import kit

    dataset = kit.preprocess("data/raw", "data/processed")
    run = kit.train("deberta", data=dataset, fold="all")
    predictor = kit.load(run)
    predictor.predict_proba(frame)  # a DataFrame with prompt, response_a, response_b

The functions are those of `kit.api`, imported at first use: `import kit` alone loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where the public names are.
_EXPORTS = {
    "Dataset": "kit.data.dataset",
    "Ensemble": "kit.api",
    "Predictor": "kit.api",
    "Run": "kit.run",
    "calibrate": "kit.api",
    "ensemble": "kit.api",
    "load": "kit.api",
    "preprocess": "kit.api",
    "report": "kit.api",
    "score": "kit.api",
    "train": "kit.api",
}
__all__ = [
    "Dataset",
    "Ensemble",
    "Predictor",
    "Run",
    "calibrate",
    "ensemble",
    "load",
    "preprocess",
    "report",
    "score",
    "train",
]

if TYPE_CHECKING:
    from kit.api import (
        Ensemble,
        Predictor,
        calibrate,
        ensemble,
        load,
        preprocess,
        report,
        score,
        train,
    )
    from kit.data.dataset import Dataset
    from kit.run import Run


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
