"""A saved blend among the models: what it gives on other rows, and honestly on the rows its weights were fitted to."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kit.errors import DataError
from kit.report.model import Model, Saved
from kit.scoring import saved as files
from kit.scoring.blend import read
from kit.scoring.calibrate import too_few
from kit.scoring.candidate import Rows, candidate
from kit.scoring.crossfit import folds
from kit.scoring.metrics import EPS

CROSS_FITTED = ("arithmetic", "geometric", "greedy")


def blended(path: Path, models: Sequence[Model], ids: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Model:
    """The blend as a model, called by its file's name.

    On the rows it was fitted to, by their ids, its validation predictions are cross-fitted: weights and temperature
    of the same members, fitted in the same way to other prompts, as `kit ensemble` does for its estimate, since the
    saved weights have seen these rows' labels. Elsewhere the blend is applied as it was saved. A blend saved by an
    older kit knows its rows by their number alone.

    Args:
        path: what `kit ensemble --save` wrote.
        models: the others; members are found among them by name.
        ids: of the validation rows, (N,).
        labels: of the validation rows, (N,).
        groups: of the validation rows, (N,).

    Raises:
        DataError: not a saved blend, or a member is not among the models, or two models are called as it is.
    """
    blend, content = read(path), files.read(path, "blend")
    named = [(model.run.name if model.run else model.name, model) for model in models if not model.reference]
    found = Counter(name for name, _ in named)
    wrong = [name for name in blend.used if found[name] != 1]
    if wrong:
        raise DataError(
            f"{path}: blends {', '.join(wrong)}, of which the report has {found[wrong[0]] or 'no'} predictions",
            "Name each of its members once: runs by their folders, other files as --frame NAME=FILE.",
        )
    used = [dict(named)[name] for name in blend.used]
    shares = tuple(weight for weight in blend.weights if weight > 0)
    small, predictions, as_saved = replace(blend, members=blend.used, weights=shares), {}, ""
    fitted = content.get("fitted") if isinstance(content.get("fitted"), dict) else {}
    if all("test" in model.predictions for model in used):
        predictions["test"] = small.of(np.stack([model.predictions["test"] for model in used]))
    if all("valid" in model.predictions for model in used):
        members = np.stack([model.predictions["valid"] for model in used])
        method = fitted.get("method", blend.pool)
        as_saved = _as_saved(method, fitted, ids) or too_few(labels, groups, len(blend.members))
        predictions["valid"] = small.of(members) if as_saved else _crossed(method, members, labels, groups)
    return Model(path.name.removesuffix(".json"), predictions, saved=Saved(path.name, blend, fitted, as_saved))


def _as_saved(method: Any, fitted: Mapping[str, Any], ids: np.ndarray) -> str:
    """Why the saved weights stay on these rows, or nothing where they were fitted to them."""
    if method not in CROSS_FITTED:
        return "its weights were not fitted"
    here, there = files.of_rows(ids), fitted.get("rows")
    if type(there) is int and there != here["rows"]:
        return f"it was fitted to {there:,} rows, which are not these {here['rows']:,}"
    if fitted.get("ids", here["ids"]) != here["ids"]:
        return f"it was fitted to {here['rows']:,} rows with other ids than these"
    return ""


def _crossed(method: str, members: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Predictions (N, 3) of members (M, N, 3) by fits to other prompts."""
    rows = Rows(np.maximum(members.transpose(0, 2, 1), EPS, order="C"), labels, groups, folds(groups))
    return candidate(method, rows).crossed
