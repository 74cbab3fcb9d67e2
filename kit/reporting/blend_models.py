"""Read saved blends as models of a report, and measure what each member is worth to its blend.

Use `read_blend_model` and `measure_gains`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kit.ensembling.blend import Blend, read_blend
from kit.ensembling.serialize import read_fitted
from kit.ensembling.weights import BlendRows, fit_weights
from kit.errors import DataError
from kit.evaluation.bootstrap import loss_difference
from kit.evaluation.crossfit import too_few_rows
from kit.evaluation.metrics import row_losses
from kit.reporting.models import ReportModel, SavedBlend
from kit.reporting.rows import ReportRows

# The methods of `kit ensemble` that fit weights to labels.
FITTED_METHODS = ("arithmetic", "geometric", "greedy")


@dataclass(frozen=True)
class MemberGain:
    """What a member is worth to its blend.

    Attributes:
        blend: the blend's name.
        member: the member's name.
        weight: its share in the saved blend.
        gain: the log loss of the blend without the member minus that with it: above 0 the member
            helps.
        low, high: the 95% interval of the gain, from a paired bootstrap.
    """

    blend: str
    member: str
    weight: float
    gain: float
    low: float
    high: float


def read_blend_model(path: Path, models: Sequence[ReportModel], valid: ReportRows) -> ReportModel:
    """Read a saved blend and predict with it.

    Test predictions are those of the blend as it was saved. Validation predictions are
    cross-fitted, as in the estimate of `kit ensemble`: weights and temperature of the same members
    are fitted anew, by the same method, to the other prompts. The saved weights would flatter the
    blend whichever rows they were fitted to, because the holdout's rows are also out-of-fold rows.
    A blend whose weights were not fitted is applied as it was saved, and one with too few
    validation rows for a fit gets no validation predictions.

    Args:
        path: a file that `kit ensemble --save` wrote.
        models: the other models of the report, among them the members.
        valid: the validation rows.

    Raises:
        DataError: the file is not a saved blend, or a member is missing or ambiguous.
    """
    blend = read_blend(path)
    fitted = read_fitted(path, "blend").get("fitted")
    fitted = fitted if isinstance(fitted, dict) else {}
    saved = SavedBlend(path.name.removesuffix(".json"), blend, fitted)
    members = _find_members(str(path), blend, models)

    predictions = {}
    if all("test" in member.predictions for member in members):
        predictions["test"] = _predict(saved, members, "test", None)

    if all("valid" in member.predictions for member in members):
        too_few = too_few_rows(valid.known_labels, valid.groups, len(blend.members))
        if not _is_fitted(saved):
            note = "is applied as it was saved, because its weights were not fitted to labels"
            saved = replace(saved, note=note)
            predictions["valid"] = _predict(saved, members, "valid", valid)
        elif too_few:
            note = (
                "has no validation scores: its weights may have been fitted to these labels, and "
                f"{too_few}"
            )
            saved = replace(saved, note=note)
        else:
            saved = replace(saved, cross_fitted=True)
            predictions["valid"] = _predict(saved, members, "valid", valid)
    return ReportModel(saved.name, predictions, saved=saved)


def has_members(path: Path, models: Sequence[ReportModel]) -> bool:
    """Return whether the models are all that the saved blend needs, with validation predictions.

    Raises:
        DataError: the file is not a saved blend.
    """
    by_name = _models_by_name(models)
    found = [by_name.get(name, []) for name in read_blend(path).used]
    return all(len(each) == 1 and "valid" in each[0].predictions for each in found)


def measure_gains(
    models: Sequence[ReportModel], rows: ReportRows, split: str
) -> tuple[MemberGain, ...]:
    """Score every blend again without each of its members, the largest gain of a blend first.

    On validation rows the other members' weights are cross-fitted anew if the blend's were fitted;
    elsewhere they keep their proportions. Blends of one member, or without predictions of the
    split, have no gains.
    """
    gains = []
    for model in models:
        if model.saved is None or split not in model.predictions:
            continue
        members = _find_members(model.name, model.saved.blend, models)
        if len(members) < 2:
            continue

        losses = row_losses(model.predictions[split], rows.known_labels)
        weights = dict(zip(model.saved.blend.members, model.saved.blend.weights, strict=True))
        found = []
        for number, name in enumerate(model.saved.blend.used):
            others = [*members[:number], *members[number + 1 :]]
            names = [other for other in model.saved.blend.used if other != name]
            smaller = replace(model.saved, blend=model.saved.blend.subset(names))
            without = row_losses(_predict(smaller, others, split, rows), rows.known_labels)
            mean, low, high, _ = loss_difference(without, losses, rows.groups)
            found.append(MemberGain(model.name, name, weights[name], mean, low, high))
        gains += sorted(found, key=lambda gain: -gain.gain)
    return tuple(gains)


def _find_members(where: str, blend: Blend, models: Sequence[ReportModel]) -> list[ReportModel]:
    """Return the models that have a weight in the blend, in the blend's order."""
    by_name = _models_by_name(models)
    wrong = [name for name in blend.used if len(by_name.get(name, [])) != 1]
    if wrong:
        raise DataError(
            f"{where}: the blend needs predictions of {', '.join(wrong)}, and the report has "
            f"{len(by_name.get(wrong[0], [])) or 'none'} called {wrong[0]}",
            "Name each member once: a run by its folder, any other file as --frame NAME=FILE.",
        )
    return [by_name[name][0] for name in blend.used]


def _models_by_name(models: Sequence[ReportModel]) -> dict[str, list[ReportModel]]:
    """Return the models that may be members, by the names that a saved blend knows them by."""
    by_name: dict[str, list[ReportModel]] = {}
    for model in models:
        if not model.reference:
            # A blend knows runs by the names of their folders. The report may show a longer name,
            # where two runs share one.
            by_name.setdefault(model.run.name if model.run else model.name, []).append(model)
    return by_name


def _is_fitted(saved: SavedBlend) -> bool:
    return saved.fitted.get("method", saved.blend.pool) in FITTED_METHODS


def _predict(
    saved: SavedBlend, members: Sequence[ReportModel], split: str, rows: ReportRows | None
) -> np.ndarray:
    """Blend the predictions of the members that have a weight: (N, 3).

    With validation rows and fitted weights, each row with weights fitted to other prompts.
    """
    stack = np.stack([member.predictions[split] for member in members])
    if split == "valid" and rows is not None and _is_fitted(saved):
        method = saved.fitted.get("method", saved.blend.pool)
        fit_rows = BlendRows.from_predictions(stack, rows.known_labels, rows.groups)
        return fit_weights(method, fit_rows).cross_fitted
    # Members that the fit dropped have weight 0, and need not be in the report.
    return saved.blend.subset(saved.blend.used).combine(stack)
