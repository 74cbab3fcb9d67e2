"""Coefficients of a pool: the weights of its members and the temperature after it, in one vector.

With coefficients v of 0 or more, the weights are v / sum(v) and the temperature is 1 / sum(v), for the arithmetic pool
softmax(log(weighted mean) / T) and for the geometric one softmax(sum(v log p)) alike. The log loss of the geometric
pool is convex in v (a log-linear model); that of the arithmetic pool is smooth, and convex at each temperature.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize, nnls

from kit.ensemble.blend import Pool
from kit.evaluation.softmax import softmax_loss

LEAST = 1e-9  # of a coefficient: the pool of coefficients 0 is nothing
Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


def blend_objective(pool: Pool, members: np.ndarray, labels: np.ndarray) -> Objective:
    """The mean log loss of coefficients (M,) with its gradient.

    Args:
        pool: which.
        members: probabilities (M, 3, N) above 0.
        labels: (N,) in 0, 1, 2.
    """
    flat = (np.log(members) if pool == "geometric" else members).reshape(
        len(members), -1
    )  # (M, 3N)

    def geometric(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, residual = softmax_loss((point @ flat).reshape(3, -1), labels)
        return value, flat @ residual.ravel()

    def arithmetic(point: np.ndarray) -> tuple[float, np.ndarray]:
        total = point.sum()
        mixed = point @ flat
        logs = np.log(mixed / total)
        value, residual = softmax_loss((total * logs).reshape(3, -1), labels)
        residual = residual.ravel()
        return value, total * (flat @ (residual / mixed)) + residual @ logs

    return geometric if pool == "geometric" else arithmetic


def weight_coefficients(
    pool: Pool, members: np.ndarray, labels: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Those of the lowest log loss on these rows, (M,); members that only do harm have exactly 0.

    Args: as `objective`; the search starts at `start`, or at the mean.
    """
    count = len(members)
    found = minimize(
        blend_objective(pool, members, labels),
        np.full(count, 1 / count) if start is None else np.maximum(start, LEAST),
        jac=True,
        method="L-BFGS-B",
        bounds=[(LEAST, None)] * count,
        options={"ftol": 1e-11, "gtol": 1e-7, "maxiter": 500},
    )
    return np.where(found.x > 10 * LEAST, found.x, 0.0)


def choose_weights(members: np.ndarray, labels: np.ndarray, steps: int = 50) -> list[int]:
    """Members of a good arithmetic pool, their numbers in rising order.

    Begins with the best member and adds, again and again and with repetition, the one that lowers the log loss of the
    mean most, until none does or `steps` were made: the greedy forward selection of Caruana et al., "Ensemble Selection
    from Libraries of Models" (2004).

    Args:
        members: probabilities (M, 3, N) above 0.
        labels: (N,).
        steps: at most so many.
    """
    true = np.ascontiguousarray(members[:, labels, np.arange(len(labels))])  # (M, N)
    losses = -np.log(true).mean(axis=1)
    chosen = [int(losses.argmin())]
    total, best = true[chosen[0]].copy(), losses.min()
    while len(chosen) < steps:
        losses = [np.log(len(chosen) + 1) - np.log(total + each).mean() for each in true]
        if min(losses) >= best:
            break
        chosen.append(int(np.argmin(losses)))
        total, best = total + true[chosen[-1]], min(losses)
    return sorted(set(chosen))


def weight_spread(
    pool: Pool,
    point: np.ndarray,
    members: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Coefficients (draws, M) as they come out when whole groups are resampled.

    Each draw takes one Newton step from the optimum of all rows, with their Hessian, to the lowest point where no
    coefficient is negative. What the step leaves is of higher order than the spread itself: the one-step bootstrap of
    Shao & Tu, "The Jackknife and Bootstrap" (1995). A full search would take the time of a fit for each draw.

    Args:
        pool, members, labels: as `objective`.
        point: (M,) what `coefficients` found for them.
        groups: (N,) what row belongs to which group.
        draws: resamplings.
        seed: of the random generator.
    """
    point = np.maximum(point, LEAST)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    gradients = _row_gradients(pool, point, members, labels)
    sums = np.stack(
        [np.bincount(group, weights=each, minlength=len(sizes)) for each in gradients]
    )  # (M, G)
    root, inverse = _root(_hessian(blend_objective(pool, members, labels), point))
    generator = np.random.default_rng(seed)
    drawn = np.empty((draws, len(point)))
    for each in drawn:
        times = np.bincount(generator.integers(0, len(sizes), len(sizes)), minlength=len(sizes))
        gradient = sums @ times * (len(labels) / (sizes @ times))
        each[:] = nnls(root, root @ point - inverse @ gradient)[0]
    return drawn


def _row_gradients(
    pool: Pool, point: np.ndarray, members: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """The derivative of the mean log loss by the coefficients, row by row, (M, N): the rows add up to it."""
    if pool == "geometric":
        slopes = np.log(members)
        logits = np.tensordot(point, slopes, 1)
    else:
        mixed, total = np.tensordot(point, members, 1), point.sum()
        logs = np.log(mixed / total)
        slopes, logits = total * members / mixed + logs, total * logs
    return np.einsum("mkn,kn->mn", slopes, softmax_loss(logits, labels)[1])


def _hessian(evaluate: Objective, point: np.ndarray) -> np.ndarray:
    """Second derivatives (M, M) at `point`, from differences of the gradient."""
    width = 1e-5 * max(1.0, point.max())
    here = evaluate(point)[1]
    hessian = (
        np.stack([evaluate(point + step)[1] - here for step in np.eye(len(point)) * width]) / width
    )
    return (hessian + hessian.T) / 2


def _root(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R with R'R = H, and the inverse of R'; directions in which nearly equal members leave H flat are kept stiff."""
    values, vectors = np.linalg.eigh(hessian)
    scale = np.sqrt(np.maximum(values, max(1e-6 * values.max(), 1e-12)))
    return scale[:, None] * vectors.T, vectors.T / scale[:, None]
