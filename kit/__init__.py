"""Predict which of two LLM answers people prefer, from Kaggle's files to a submission.

    import kit

    dataset = kit.preprocess("data/raw", "data/processed")
    run = kit.train("deberta", data=dataset, fold="all")
    predictor = kit.load(run)
    predictor.predict_proba(frame)  # a DataFrame with prompt, response_a, response_b

The functions are in `kit.api` and `kit.predictor`. They are imported at first use, so `import kit`
alone loads nothing heavy.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where bitsandbytes is installed, transformers imports it by way of peft, and on some CPUs it then
# advises another package, in every process and above every other message.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

# The module of each public name.
_EXPORTS = {
    "Dataset": "kit.data.dataset",
    "Ensemble": "kit.api",
    "Predictor": "kit.predictor",
    "Run": "kit.run",
    "calibrate": "kit.api",
    "ensemble": "kit.api",
    "load": "kit.predictor",
    "plan": "kit.api",
    "preprocess": "kit.api",
    "report": "kit.api",
    "runs": "kit.api",
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
    "plan",
    "preprocess",
    "report",
    "runs",
    "score",
    "train",
]

# Type checkers and editors do not see what `__getattr__` imports.
if TYPE_CHECKING:
    from kit.api import (
        Ensemble,
        calibrate,
        ensemble,
        plan,
        preprocess,
        report,
        runs,
        score,
        train,
    )
    from kit.data.dataset import Dataset
    from kit.predictor import Predictor, load
    from kit.run import Run


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'kit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
