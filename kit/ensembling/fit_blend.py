"""Fit a blend to out-of-fold predictions, with cross-fitted loss and bootstrap intervals.

Use `fit_blend`. It chooses the pool by cross-fitted log loss, drops members that are not worth
their computing time, and falls back to the plain mean where a fit is no better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from kit.ensembling.blend import Blend
from kit.ensembling.calibration import MAX_TEMPERATURE
from kit.ensembling.pool import stack_predictions
from kit.ensembling.weights import (
    BlendMethod,
    BlendRows,
    WeightFit,
    bootstrap_coefficients,
    coefficients_to_blend,
    fit_weights,
    pool_of_method,
    predict_blend,
)
from kit.errors import DataError, KitError
from kit.evaluation.bootstrap import LossDifference, loss_difference
from kit.evaluation.crossfit import FitTrial, too_few_rows
from kit.evaluation.metrics import log_loss, row_losses
from kit.evaluation.truth import row_positions
from kit.task import GROUP, ID, LABEL

GREEDY_FROM = 8  # members; with fewer the greedy selection is tried only on request
MIN_GAIN = 1e-4  # of cross-fitted log loss that a member must bring to stay
LEVEL = 0.95


@dataclass(frozen=True)
class BlendMember:
    """A member's log loss alone, and its weight with the 95% bootstrap interval.

    The interval is None where no draw could have moved the weight: for a dropped member, for the
    only one that is left, and where nothing was fitted.
    """

    name: str
    log_loss: float
    weight: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BlendFit:
    """A fitted blend and its measured gain.

    Attributes:
        blend: fitted to all rows, for use on other rows; dropped members have weight 0.
        method: how it was fitted; "mean" where rows were too few, or where no fit was better.
        rows: number of rows.
        in_sample: log loss of the blend on the rows it was fitted to.
        cross_fitted: log loss of fits to other prompts. Method and members were chosen by this
            figure, which makes it slightly optimistic, by less than the candidates differ.
        members: every member in the order given, dropped ones included.
        temperature: its bootstrap interval, (low, high); None where nothing was fitted.
        tried: the best single member, the plain mean, then each method with all members.
        gain: the cross-fitted blend minus the best single member, paired, over resampled prompts.
        notes: which members were dropped, and why.
        cross_fitted_probabilities: (N, 3), in the truth's order.
    """

    blend: Blend
    method: str
    rows: int
    in_sample: float
    cross_fitted: float
    members: tuple[BlendMember, ...]
    temperature: tuple[float, float] | None
    tried: tuple[FitTrial, ...]
    gain: LossDifference
    notes: tuple[str, ...]
    cross_fitted_probabilities: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, without the rows' probabilities."""
        values = asdict(self) | {"gain": self.gain._asdict()}
        del values["cross_fitted_probabilities"]
        return values

    @property
    def fitted(self) -> dict[str, Any]:
        """The record of the fit that a saved blend holds."""
        return {
            "method": self.method,
            "rows": self.rows,
            "log_loss_in_sample": self.in_sample,
            "log_loss_cross_fitted": self.cross_fitted,
        }


@dataclass(frozen=True)
class _Selection:
    """The fit that was chosen: its method, the indices of the kept members, notes for the user."""

    method: str
    kept: list[int]
    fit: WeightFit
    notes: list[str]


# Products this small only wait for a second BLAS thread.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_blend(
    frames: Sequence[pd.DataFrame],
    names: Sequence[str],
    truth: pd.DataFrame,
    method: BlendMethod | None = None,
    draws: int = 200,
    seed: int = 0,
    files: Sequence[object] | None = None,
) -> BlendFit:
    """Fit weights and temperature to out-of-fold predictions, matched to the truth by id.

    Args:
        frames: prediction frames of the very same rows, none of which its model was trained on.
        names: the members' names, as `members.read_members` returns them.
        truth: as `evaluation.truth.read_truth` returns it; its prompt groups are kept whole.
        method: how to fit; None tries both pools, and from 8 members the greedy selection too, and
            takes the lowest cross-fitted log loss, or the plain mean if that is as low.
        draws: bootstrap draws for the intervals of the weights.
        seed: of the folds and of the draws.
        files: where the frames come from, for error hints.

    Raises:
        DataError: fewer than two frames, ids that differ, rows that are not probabilities.
        KitError: an unknown method.
    """
    if len(frames) < 2:
        raise DataError(
            "fitting weights takes two prediction files or more",
            "Name the out-of-fold files of more runs.",
        )
    if method is not None and method not in get_args(BlendMethod):
        raise KitError(
            f"no fitting method {method!r}",
            "Choose one of: " + ", ".join(get_args(BlendMethod)) + ".",
        )

    ids, members = stack_predictions(frames, names, files)
    order = row_positions(ids, truth[ID].to_numpy(), names[0], "the truth", suggest_subset=True)
    members = members[:, order]
    labels = truth[LABEL].to_numpy(np.int64)
    groups = truth[GROUP if GROUP in truth else ID].to_numpy()
    rows = BlendRows.from_predictions(members, labels, groups, seed)

    # References that need no fit, so that in-sample and cross-fitted losses are the same.
    losses = [log_loss(member, labels) for member in members]
    best_member = int(np.argmin(losses))
    mean = members.mean(axis=0)
    plain = WeightFit(np.full(len(names), 1 / len(names)), mean, log_loss(mean, labels))
    trials = [
        FitTrial(f"best member, {names[best_member]}", losses[best_member], losses[best_member]),
        FitTrial("mean", plain.log_loss, plain.log_loss),
    ]

    too_few = too_few_rows(labels, groups, len(names))
    if too_few:
        selection = _select_mean(plain, too_few)
    else:
        fits = {}
        for candidate in _methods_to_try(method, len(names)):
            fit = fit_weights(candidate, rows)
            fits[candidate] = fit
            in_sample = log_loss(predict_blend(candidate, fit.coefficients, rows.members), labels)
            trials.append(FitTrial(candidate, in_sample, fit.log_loss))
        lowest = min(fits, key=lambda candidate: fits[candidate].log_loss)
        selection = _prune_members(lowest, fits[lowest], rows, names)

        # A method asked for by name is kept even where the mean is as good.
        if method is None and selection.fit.log_loss >= plain.log_loss:
            reason = (
                f"the best fit has a cross-fitted log loss of {selection.fit.log_loss:.5f}, "
                f"the mean {plain.log_loss:.5f}"
            )
            selection = _select_mean(plain, reason)

    coefficients = np.zeros(len(names))
    coefficients[selection.kept] = selection.fit.coefficients
    temperature, intervals = _bootstrap_intervals(selection, rows, names, draws, seed)
    blend = replace(coefficients_to_blend(selection.method, coefficients, names), spread=intervals)
    return BlendFit(
        blend=blend,
        method=selection.method,
        rows=len(truth),
        in_sample=log_loss(blend.combine(members), labels),
        cross_fitted=selection.fit.log_loss,
        members=tuple(
            BlendMember(name, loss, weight, *intervals.get(name, (None, None)))
            for name, loss, weight in zip(names, losses, blend.weights, strict=True)
        ),
        temperature=temperature,
        tried=tuple(trials),
        gain=loss_difference(
            row_losses(selection.fit.cross_fitted, labels),
            row_losses(members[best_member], labels),
            groups,
        ),
        notes=tuple(selection.notes),
        cross_fitted_probabilities=selection.fit.cross_fitted,
    )


def _methods_to_try(method: BlendMethod | None, member_count: int) -> list[BlendMethod]:
    if method:
        return [method]
    methods = list(get_args(BlendMethod))
    if member_count < GREEDY_FROM:
        methods.remove("greedy")
    return methods


def _select_mean(plain: WeightFit, reason: str) -> _Selection:
    """Select the plain mean of all members, fitted to nothing."""
    note = f"no weights are fitted, the plain mean is used: {reason}"
    return _Selection("mean", list(range(len(plain.coefficients))), plain, [note])


def _prune_members(
    method: str, fit: WeightFit, rows: BlendRows, names: Sequence[str]
) -> _Selection:
    """Drop the lightest members while the cross-fitted loss stays within MIN_GAIN of the best."""
    kept = [i for i, coefficient in enumerate(fit.coefficients) if coefficient > 0] or [0]
    notes = [
        f"{name} is dropped: it has no weight" for i, name in enumerate(names) if i not in kept
    ]
    if len(kept) < len(names):
        fit = fit_weights(method, rows.pick(kept))

    best = fit.log_loss
    while len(kept) > 1:
        lightest = int(fit.coefficients.argmin())
        fewer = kept[:lightest] + kept[lightest + 1 :]
        start = np.delete(fit.coefficients, lightest)
        without = fit_weights(method, rows.pick(fewer), start)
        if without.log_loss > best + MIN_GAIN:
            break
        change = without.log_loss - fit.log_loss
        notes.append(
            f"{names[kept[lightest]]} is dropped: "
            f"without it the cross-fitted log loss changes by {change:+.5f}"
        )
        kept = fewer
        fit = without
        best = min(best, without.log_loss)
    return _Selection(method, kept, fit, notes)


def _bootstrap_intervals(
    selection: _Selection, rows: BlendRows, names: Sequence[str], draws: int, seed: int
) -> tuple[tuple[float, float] | None, Mapping[str, tuple[float, float]]]:
    """Return the interval of the temperature, and those of the weights by member name."""
    if selection.method == "mean":
        return None, {}

    resampled = bootstrap_coefficients(
        pool_of_method(selection.method),
        selection.fit.coefficients,
        rows.members[selection.kept],
        rows.labels,
        rows.groups,
        draws,
        seed,
    )
    ends = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    totals = np.maximum(resampled.sum(axis=1), 1 / MAX_TEMPERATURE)
    low, high = np.quantile(1 / totals, ends).tolist()

    # The weight of a single member is always 1.
    if len(selection.kept) == 1:
        return (low, high), {}
    limits = np.quantile(resampled / totals[:, None], ends, axis=0).T.tolist()
    intervals = {
        names[index]: (lower, upper)
        for index, (lower, upper) in zip(selection.kept, limits, strict=True)
    }
    return (low, high), intervals
