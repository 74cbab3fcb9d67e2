"""A blend fitted to out-of-fold predictions, with what keeps a person from fooling themselves beside it.

Cross-fitted losses, the spread of the weights, and the members that are not worth their computing time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from kit.ensemble.blend import Blend
from kit.ensemble.calibrate import HOTTEST, CalibrationTrial, too_few_rows
from kit.ensemble.candidate import (
    BlendRows,
    Candidate,
    Method,
    as_blend,
    fit_candidate,
    pool_of,
    predict_blend,
    prune_members,
)
from kit.ensemble.pool import stack_predictions
from kit.ensemble.weights import weight_spread
from kit.errors import DataError, KitError
from kit.evaluation.bootstrap import LossDifference, loss_difference
from kit.evaluation.crossfit import crossfit_folds
from kit.evaluation.metrics import EPS, log_loss, row_losses
from kit.evaluation.truth import row_positions
from kit.task import GROUP, ID, LABEL

MANY = 8  # members from which the greedy choice is tried without being asked for
LEVEL = 0.95


@dataclass(frozen=True)
class BlendMember:
    """A member by itself and in the blend; the interval of its weight holds 95% of the bootstrap draws.

    There is none, but None, where no draw could have moved the weight: of a dropped member, of the only one that is
    left, and where nothing was fitted.
    """

    name: str
    log_loss: float
    weight: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class BlendFit:
    """A fitted blend and what it is worth.

    Attributes:
        blend: fitted to all rows, for use on others; dropped members have weight 0.
        method: how it was fitted; "mean" where rows were too few to fit anything, or where nothing that was tried is
            better.
        rows: number of rows.
        in_sample: log loss of the blend on the rows it was fitted to.
        cross_fitted: log loss of a fit to other prompts. Method and members were chosen by such figures, which
            flatters a little: less than the figures differ among each other.
        members: every member in the order given, the dropped ones with weight 0.
        temperature: its interval, (low, high), over the bootstrap draws; None where nothing was fitted.
        tried: the methods, with all members; before them the best member and the plain mean.
        gain: the cross-fitted blend less the best member by itself, paired, resampling prompts.
        notes: what was dropped, and why.
        crossed: the cross-fitted probabilities (N, 3), in the truth's order.
    """

    blend: Blend
    method: str
    rows: int
    in_sample: float
    cross_fitted: float
    members: tuple[BlendMember, ...]
    temperature: tuple[float, float] | None
    tried: tuple[CalibrationTrial, ...]
    gain: LossDifference
    notes: tuple[str, ...]
    crossed: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; without the rows' probabilities."""
        plain = {name: value for name, value in asdict(self).items() if name != "crossed"}
        return plain | {"gain": self.gain._asdict()}

    @property
    def fitted(self) -> dict[str, Any]:
        """What a saved blend tells of its fit."""
        losses = {"log_loss_in_sample": self.in_sample, "log_loss_cross_fitted": self.cross_fitted}
        return {"method": self.method, "rows": self.rows} | losses


@threadpool_limits.wrap(
    limits=1, user_api="blas"
)  # products this small only wait for a second thread
def fit_blend(
    frames: Sequence[pd.DataFrame],
    names: Sequence[str],
    truth: pd.DataFrame,
    method: Method | None = None,
    draws: int = 200,
    seed: int = 0,
    files: Sequence[object] | None = None,
) -> BlendFit:
    """Fits weights and temperature to out-of-fold predictions, matched by id to each other and to the truth.

    A member stays if the cross-fitted log loss is worse by `candidate.WORTH` without it.

    Args:
        frames: prediction frames of the very same rows, none of which its model was trained on.
        names: the members' names, as `members.read_members` gives them.
        truth: what `evaluation.truth.read_truth` gives; with prompt groups, these stay together.
        method: how to fit; None tries both pools, and from 8 members the greedy choice too, and takes the lowest
            cross-fitted log loss, or the plain mean if that is as low.
        draws: bootstrap draws for the spread of the weights.
        seed: of the folds and of the draws.
        files: where the frames come from, for errors.

    Raises:
        DataError: fewer than two frames, ids that differ, rows that are not probabilities.
        KitError: an unknown method.
    """
    if len(frames) < 2:
        raise DataError(
            "weights take two prediction files or more to fit",
            "Name the out-of-fold files of more runs.",
        )
    if method is not None and method not in get_args(Method):
        raise KitError(
            f"no way to fit {method!r}", "Choose one of: " + ", ".join(get_args(Method)) + "."
        )
    ids, members = stack_predictions(frames, names, files)
    members = members[
        :, row_positions(ids, truth[ID].to_numpy(), names[0], "the truth", partial=True)
    ]
    labels = truth[LABEL].to_numpy(np.int64)
    groups = truth[GROUP if GROUP in truth else ID].to_numpy()
    rows = BlendRows(
        np.maximum(members.transpose(0, 2, 1), EPS, order="C"),
        labels,
        groups,
        crossfit_folds(groups, seed=seed),
    )
    alone = [log_loss(each, labels) for each in members]
    mean, best = members.mean(axis=0), int(np.argmin(alone))
    tried = [CalibrationTrial(f"best member, {names[best]}", alone[best], alone[best])]
    tried.append(CalibrationTrial("mean", log_loss(mean, labels), log_loss(mean, labels)))
    plain = Candidate(np.full(len(names), 1 / len(names)), mean, tried[-1].cross_fitted)
    why_plain, drawn = too_few_rows(labels, groups, len(names)), None
    if not why_plain:
        methods = (
            [method]
            if method
            else [m for m in get_args(Method) if m != "greedy" or len(names) >= MANY]
        )
        fits = {each: fit_candidate(each, rows) for each in methods}
        for each, one in fits.items():
            tried.append(
                CalibrationTrial(
                    each,
                    log_loss(predict_blend(each, one.point, rows.members), labels),
                    one.log_loss,
                )
            )
        used = min(fits, key=lambda each: fits[each].log_loss)
        kept, found, notes = prune_members(used, fits[used], rows, names)
        if method is None and found.log_loss >= plain.log_loss:
            why_plain = f"the best fit has {found.log_loss:.5f} cross-fitted, and the mean {plain.log_loss:.5f}"
        else:
            drawn = weight_spread(
                pool_of(used), found.point, rows.members[kept], labels, groups, draws, seed
            )
    if why_plain:
        used, kept, found = "mean", list(range(len(names))), plain
        notes = [f"nothing is fitted, the plain mean is taken: {why_plain}"]
    point = np.zeros(len(names))
    point[kept] = found.point
    within, heat = {}, None
    if drawn is not None:
        sums, both = np.maximum(drawn.sum(axis=1), 1 / HOTTEST), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        heat = tuple(np.quantile(1 / sums, both).tolist())
        ranges = np.quantile(drawn / sums[:, None], both, axis=0).T.tolist()
        within = {
            names[i]: tuple(ends) for i, ends in zip(kept, ranges, strict=True) if len(kept) > 1
        }
    blend = replace(as_blend(used, point, names), spread=within)
    told = [
        BlendMember(*each, *within.get(each[0], (None, None)))
        for each in zip(names, alone, blend.weights, strict=True)
    ]
    return BlendFit(
        blend=blend,
        method=used,
        rows=len(truth),
        in_sample=log_loss(blend.of(members), labels),
        cross_fitted=found.log_loss,
        members=tuple(told),
        temperature=heat,
        tried=tuple(tried),
        gain=loss_difference(
            row_losses(found.crossed, labels), row_losses(members[best], labels), groups
        ),
        notes=tuple(notes),
        crossed=found.crossed,
    )
