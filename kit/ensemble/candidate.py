"""One way to blend, tried: fitted to all rows, cross-fitted beside it, and rid of the members that are not worth it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from kit.ensemble.blend import Blend, Pool
from kit.ensemble.calibrate import HOTTEST
from kit.ensemble.calibration import Calibration
from kit.ensemble.pool import normalise_weights
from kit.ensemble.weights import LEAST, choose_weights, weight_coefficients
from kit.evaluation.crossfit import cross_fit
from kit.evaluation.metrics import log_loss

Method = Literal[
    "arithmetic", "geometric", "greedy"
]  # greedy: the arithmetic pool of members chosen one by one
WORTH = 1e-4  # cross-fitted log loss that a member must gain to stay


@dataclass(frozen=True)
class BlendRows:
    """What is fitted to: probabilities (M, 3, N) above 0, labels (N,), prompt groups (N,), folds (N,)."""

    members: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    fold: np.ndarray

    def pick(self, members: Sequence[int]) -> "BlendRows":
        """The same rows of fewer members."""
        return replace(self, members=self.members[list(members)])


@dataclass(frozen=True)
class Candidate:
    """A fit of some members: coefficients (M,), and the cross-fitted probabilities (N, 3) with their log loss."""

    point: np.ndarray
    crossed: np.ndarray
    log_loss: float


def pool_of(method: str) -> Pool:
    """The pool in which members of a blend fitted this way meet."""
    return "geometric" if method == "geometric" else "arithmetic"


def as_blend(method: str, point: np.ndarray, names: Sequence[str]) -> Blend:
    """The blend that coefficients (M,) stand for; where all are 0, no member being any good, the flattest mean."""
    point = point if point.any() else np.full(len(point), LEAST)
    total = float(np.clip(point.sum(), 1 / HOTTEST, HOTTEST))
    return Blend(
        tuple(names),
        tuple(normalise_weights(point, names).tolist()),
        pool_of(method),
        Calibration(1 / total),
    )


def predict_blend(method: str, point: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Probabilities (N, 3) of members (M, 3, N), exactly as a saved blend gives them."""
    return as_blend(method, point, [""] * len(point)).of(members.transpose(0, 2, 1))


def _coefficients(
    method: str, members: np.ndarray, labels: np.ndarray, start: np.ndarray | None
) -> np.ndarray:
    if method != "greedy":
        return weight_coefficients(pool_of(method), members, labels, start)
    point, chosen = np.zeros(len(members)), choose_weights(members, labels)
    point[chosen] = weight_coefficients("arithmetic", members[chosen], labels)
    return point


def fit_candidate(method: str, rows: BlendRows, start: np.ndarray | None = None) -> Candidate:
    """Coefficients by all rows, and what such a fit gives rows of other prompts; `start` only saves time."""
    point = _coefficients(method, rows.members, rows.labels, start)

    def other(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        fitted = _coefficients(method, rows.members[:, :, train], rows.labels[train], point)
        return predict_blend(method, fitted, rows.members[:, :, test])

    crossed = cross_fit(rows.fold, other)
    return Candidate(point, crossed, log_loss(crossed, rows.labels))


def prune_members(
    method: str, found: Candidate, rows: BlendRows, names: Sequence[str]
) -> tuple[list[int], Candidate, list[str]]:
    """Leaves members out, the lightest first, while the cross-fitted log loss stays within `WORTH` of the best seen.

    Returns:
        The numbers of those that stay, the fit of them, and a note on each that went.
    """
    kept = [i for i, coefficient in enumerate(found.point) if coefficient > 0] or [0]
    notes = [
        f"{name} is dropped: it has no weight" for i, name in enumerate(names) if i not in kept
    ]
    if len(kept) < len(names):
        found = fit_candidate(method, rows.pick(kept))
    best = found.log_loss
    while len(kept) > 1:
        lightest = int(found.point.argmin())
        fewer = kept[:lightest] + kept[lightest + 1 :]
        without = fit_candidate(method, rows.pick(fewer), np.delete(found.point, lightest))
        if without.log_loss > best + WORTH:
            break
        change = f"{without.log_loss - found.log_loss:+.5f}"
        notes.append(
            f"{names[kept[lightest]]} is dropped: without it the cross-fitted log loss changes by {change}"
        )
        kept, found, best = fewer, without, min(best, without.log_loss)
    return kept, found, notes
