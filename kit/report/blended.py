"""A saved blend among the models: as it is on test rows, and honestly on rows whose labels its weights have seen."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from kit.ensemble.blend import read_blend
from kit.ensemble.serialize import read_fitted
from kit.ensemble.weights import BlendRows, fit_weights
from kit.errors import DataError
from kit.evaluation.crossfit import too_few_rows
from kit.report.models import ReportModel, SavedModel

CROSS_FITTED = ("arithmetic", "geometric", "greedy")


def blended_models(
    path: Path, models: Sequence[ReportModel], labels: np.ndarray, groups: np.ndarray
) -> ReportModel:
    """The blend as a model, called by its file's name.

    Its validation predictions are cross-fitted: weights and temperature of the same members, fitted in the same way to
    other prompts, as `kit ensemble` does for its estimate. Whichever validation rows it was fitted to, the saved
    weights have seen labels of these: the holdout's rows are among those out of fold. Where they are too few to be
    fitted to, it has none. To test rows, and where its weights were not fitted, it is applied as it was saved.

    Args:
        path: what `kit ensemble --save` wrote.
        models: the others; members are found among them by name.
        labels: of the validation rows, (N,).
        groups: of the validation rows, (N,).

    Raises:
        DataError: not a saved blend, or a member is not among the models, or two models are called as it is.
    """
    blend, content = read_blend(path), read_fitted(path, "blend")
    named = [
        (model.run.name if model.run else model.name, model)
        for model in models
        if not model.reference
    ]
    found = Counter(name for name, _ in named)
    wrong = [name for name in blend.used if found[name] != 1]
    if wrong:
        raise DataError(
            f"{path}: blends {', '.join(wrong)}, of which the report has {found[wrong[0]] or 'no'} predictions",
            "Name each of its members once: runs by their folders, other files as --frame NAME=FILE.",
        )
    used = [dict(named)[name] for name in blend.used]
    shares = tuple(weight for weight in blend.weights if weight > 0)
    small, predictions, note = replace(blend, members=blend.used, weights=shares), {}, ""
    fitted = content.get("fitted") if isinstance(content.get("fitted"), dict) else {}
    if all("test" in model.predictions for model in used):
        predictions["test"] = small.combine(np.stack([model.predictions["test"] for model in used]))
    if all("valid" in model.predictions for model in used):
        members = np.stack([model.predictions["valid"] for model in used])
        method = fitted.get("method", blend.pool)
        if method not in CROSS_FITTED:
            predictions["valid"], note = (
                small.combine(members),
                "is applied as it was saved: its weights were not fitted",
            )
        elif few := too_few_rows(labels, groups, len(blend.members)):
            note = f"has no validation figures: its weights may have seen these labels, and {few}"
        else:
            predictions["valid"] = _crossed(method, members, labels, groups)
    return ReportModel(
        path.name.removesuffix(".json"),
        predictions,
        saved=SavedModel(path.name, blend, fitted, note),
    )


def _crossed(
    method: str, members: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Predictions (N, 3) of members (M, N, 3) by fits to other prompts."""
    rows = BlendRows.from_predictions(members, labels, groups)
    return fit_weights(method, rows).cross_fitted
