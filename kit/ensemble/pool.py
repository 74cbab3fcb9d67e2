"""Several predictions made into one: by arithmetic mean, geometric mean, or given weights, matched by id."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from kit.errors import DataError, KitError
from kit.evaluation.metrics import EPS
from kit.evaluation.truth import row_positions
from kit.predictions import make_predictions
from kit.task import CLASSES, ID

Method = Literal["mean", "geometric", "weights"]
SLACK = 0.01  # published figures are often rounded to 3 places; rows further from 1 are not probabilities


def blend_predictions(
    frames: Sequence[pd.DataFrame],
    names: Sequence[str],
    method: Method = "mean",
    weights: Sequence[float] | None = None,
) -> pd.DataFrame:
    """One prediction frame from M, in the first one's order of rows; one frame alone stays what it is.

    - mean: the arithmetic mean of the members' probabilities (linear opinion pool).
    - geometric: their normalised geometric mean (logarithmic opinion pool), see `geometric_pool`.
    - weights: the arithmetic mean with a weight for each member; only the ratios count, 2 1 1 is .5 .25 .25.

    For both pools: Genest & Zidek, "Combining Probability Distributions", Statistical Science 1(1), 1986.

    Args:
        frames: prediction frames with the same ids in any order.
        names: their files, for errors.
        method: how to combine.
        weights: one for each frame with method "weights", else None.

    Raises:
        DataError: ids differ, or a member's rows are not probabilities; names the file and the first ids.
        KitError: no frame, an unknown method, or weights that do not fit.
    """
    if not frames:
        raise KitError("nothing to blend", "Name one prediction file or more.")
    if method not in get_args(Method):
        raise KitError(
            f"no blending method {method!r}", "Choose one of: " + ", ".join(get_args(Method)) + "."
        )
    if method != "weights" and weights is not None:
        raise KitError(
            f"method {method} takes no weights", "Use the method weights, or leave the weights out."
        )
    shares = (
        normalise_weights(weights if weights is not None else [], names)
        if method == "weights"
        else None
    )
    ids, members = stack_predictions(frames, names)
    pooled = geometric_pool(members) if method == "geometric" else arithmetic_pool(members, shares)
    return make_predictions(ids, pooled)


def stack_predictions(
    frames: Sequence[pd.DataFrame], names: Sequence[str], files: Sequence[object] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 (N,) of the first frame, and the members' probabilities (M, N, 3) in that order, each row summing to 1.

    Errors name a member by its name, and send a person to its file; without `files` the names are those of files.

    Raises:
        DataError: as `blend`.
    """
    ids, members = frames[0][ID].to_numpy(), []
    for frame, name, file in zip(frames, names, files or names, strict=True):
        member = frame[list(CLASSES)].to_numpy(np.float64)[
            row_positions(frame[ID].to_numpy(), ids, name, names[0])
        ]
        total = member.sum(axis=1)
        bad = ~(
            (member >= 0).all(axis=1) & (np.abs(total - 1) <= SLACK)
        )  # so written, NaN is bad too
        if bad.any():
            first, more = ids[int(bad.argmax())], int(bad.sum()) - 1
            raise DataError(
                f"{name}: id {first}: not probabilities that sum to 1"
                + f" ({more} more such rows)" * (more > 0),
                f"Run `kit validate {file}` for every problem at once.",
            )
        members.append(member / total[:, None])
    return ids.astype(np.int64), np.stack(members)


def normalise_weights(weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """Weights (M,) scaled to sum to 1.

    Raises:
        KitError: not one for each name, negative, not finite, or all 0.
    """
    shares = np.asarray(weights, np.float64)
    if len(shares) != len(names):
        raise KitError(
            f"{len(shares)} weights for {len(names)} files",
            "Give one weight for each file, in their order.",
        )
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise KitError(
            f"weights must be 0 or more, and one of them above 0: {', '.join(f'{w:g}' for w in shares[:12])}",
            "Give numbers such as 2 1 1; only their ratios count.",
        )
    shares = shares / shares.max()  # so that huge weights do not add up to infinity
    return shares / shares.sum()


def arithmetic_pool(members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The weighted mean over members (M, N, 3) with convex weights (M,), equal ones by default: (N, 3)."""
    return np.average(members, axis=0, weights=weights)


def geometric_pool(members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The normalised weighted geometric mean over members (M, N, 3), as `arithmetic_pool`: (N, 3).

    Computed as a mean of logarithms. A zero would let one member veto a class whatever the others say, so
    probabilities are clipped at EPS first, where the log loss clips them too.
    """
    logarithms = np.average(np.log(np.maximum(members, EPS)), axis=0, weights=weights)
    pooled = np.exp(logarithms - logarithms.max(axis=1, keepdims=True))
    return pooled / pooled.sum(axis=1, keepdims=True)
