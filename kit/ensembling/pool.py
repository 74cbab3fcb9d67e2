"""Blend prediction frames by arithmetic mean, geometric mean or given weights, matched by id.

Use `blend_predictions` with frames, `arithmetic_pool` and `geometric_pool` with arrays. These are
the linear and the logarithmic opinion pool of Genest & Zidek, "Combining Probability
Distributions", Statistical Science 1(1), 1986.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import softmax

from kit.errors import DataError, KitError
from kit.evaluation.metrics import EPS
from kit.evaluation.truth import row_positions
from kit.predictions import make_predictions
from kit.task import CLASSES, ID
from kit.wording import counted

PoolMethod = Literal["mean", "geometric", "weights"]

# Published figures are often rounded to 3 places; rows further from a sum of 1 are not
# probabilities.
SUM_TOLERANCE = 0.01


def blend_predictions(
    frames: Sequence[pd.DataFrame],
    names: Sequence[str],
    method: PoolMethod = "mean",
    weights: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Blend M prediction frames into one, in the first one's order of rows.

    - mean: the arithmetic mean of the members' probabilities (linear opinion pool).
    - geometric: their normalised geometric mean (logarithmic opinion pool).
    - weights: the arithmetic mean with a weight for each member. Only the ratios count: 2, 1, 1
      means 0.5, 0.25, 0.25.

    Args:
        frames: prediction frames with the same ids in any order.
        names: their files, for errors.
        method: how to combine.
        weights: one for each frame with method "weights", else None.

    Raises:
        DataError: ids differ, or a member's rows are not probabilities; names the file and the
            first ids.
        KitError: no frame, an unknown method, or weights that do not fit.
    """
    if not frames:
        raise KitError("nothing to blend", "Name one prediction file or more.")
    if method not in get_args(PoolMethod):
        raise KitError(
            f"no blending method {method!r}",
            "Choose one of: " + ", ".join(get_args(PoolMethod)) + ".",
        )
    if method != "weights" and weights is not None:
        raise KitError(
            f"method {method} takes no weights", "Use the method weights, or leave the weights out."
        )

    shares = None
    if method == "weights":
        shares = normalise_weights([] if weights is None else weights, names)
    ids, members = stack_predictions(frames, names)
    pooled = geometric_pool(members) if method == "geometric" else arithmetic_pool(members, shares)
    return make_predictions(ids, pooled)


def stack_predictions(
    frames: Sequence[pd.DataFrame], names: Sequence[str], files: Sequence[object] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stack prediction frames in the first one's order of rows, each row normalised to a sum of 1.

    Args:
        frames: prediction frames with the same ids in any order.
        names: what errors call them.
        files: what error hints call them; the names by default.

    Returns:
        Ids int64 (N,) and probabilities (M, N, 3).

    Raises:
        DataError: ids differ, or a member's rows are not probabilities.
    """
    ids = frames[0][ID].to_numpy()
    members = []
    for frame, name, file in zip(frames, names, files or names, strict=True):
        order = row_positions(frame[ID].to_numpy(), ids, name, names[0])
        member = frame[list(CLASSES)].to_numpy(np.float64)[order]

        # Written so that NaN is bad too.
        total = member.sum(axis=1)
        bad = ~((member >= 0).all(axis=1) & (np.abs(total - 1) <= SUM_TOLERANCE))
        if bad.any():
            first_id = ids[int(bad.argmax())]
            more = f" ({int(bad.sum()) - 1} more such rows)" if bad.sum() > 1 else ""
            raise DataError(
                f"{name}: id {first_id}: not probabilities that sum to 1{more}",
                f"Run `kit validate {file}` for every problem at once.",
            )
        members.append(member / total[:, None])
    return ids.astype(np.int64), np.stack(members)


def normalise_weights(weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """Return weights (M,) scaled to a sum of 1.

    Raises:
        KitError: not one for each name, negative, not finite, or all 0.
    """
    shares = np.asarray(weights, np.float64)
    if len(shares) != len(names):
        raise KitError(
            f"{counted(len(shares), 'weight')} for {counted(len(names), 'file')}",
            "Give one weight for each file, in their order.",
        )
    if not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        given = ", ".join(f"{weight:g}" for weight in shares[:12])
        raise KitError(
            f"weights must be 0 or more, and one of them above 0: {given}",
            "Give numbers such as 2 1 1; only their ratios count.",
        )

    # By the largest first, so that the sum of huge weights does not overflow.
    shares = shares / shares.max()
    return shares / shares.sum()


def arithmetic_pool(members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the linear opinion pool: the weighted mean over members.

    Args:
        members: probabilities (M, N, 3).
        weights: convex weights (M,); equal ones by default.

    Returns:
        Probabilities (N, 3).
    """
    return np.average(members, axis=0, weights=weights)


def geometric_pool(members: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the logarithmic opinion pool: the normalised weighted geometric mean over members.

    A zero would let one member veto a class, so probabilities are first clipped at EPS, where the
    log loss clips them too. Arguments and result as for `arithmetic_pool`.
    """
    return softmax(np.average(np.log(np.maximum(members, EPS)), axis=0, weights=weights), axis=1)
