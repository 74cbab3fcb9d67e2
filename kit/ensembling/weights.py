"""Fit the weights and the temperature of a blend, cross-fitted and with bootstrap draws.

Use `fit_weights` and `bootstrap_coefficients`; `coefficients_to_blend` turns the result into a
blend.

Weights and temperature are one vector of coefficients v of 0 or more: the weights are v / sum(v),
the temperature is 1 / sum(v), for the arithmetic pool softmax(log(weighted mean) / T) and the
geometric pool softmax(sum(v log p)) alike. The log loss of the geometric pool is convex in v (a
log-linear model); that of the arithmetic pool is smooth, and convex at each temperature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import minimize, nnls

from kit.ensembling.blend import Blend, Pool
from kit.ensembling.calibration import MAX_TEMPERATURE, Calibration
from kit.ensembling.pool import normalise_weights
from kit.evaluation.crossfit import cross_fit_predict, crossfit_folds
from kit.evaluation.metrics import EPS, log_loss, softmax_cross_entropy

# "greedy" is the arithmetic pool of members selected one by one.
BlendMethod = Literal["arithmetic", "geometric", "greedy"]

# Coefficients stay above this during the search: if all were 0, the weights v / sum(v) and the
# temperature 1 / sum(v) would not exist.
MIN_COEFFICIENT = 1e-9

Objective = Callable[[np.ndarray], tuple[float, np.ndarray]]


@dataclass(frozen=True)
class BlendRows:
    """The rows that a blend is fitted to.

    Attributes:
        members: probabilities (M, 3, N) above 0, class-major as for `softmax_cross_entropy`.
        labels: (N,).
        groups: prompt groups (N,).
        folds: cross-fitting folds (N,).
    """

    members: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    folds: np.ndarray

    @classmethod
    def from_predictions(
        cls, members: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int = 0
    ) -> "BlendRows":
        """Return the rows of probabilities (M, N, 3), clipped at EPS and dealt to folds."""
        class_major = np.maximum(members.transpose(0, 2, 1), EPS, order="C")
        return cls(class_major, labels, groups, crossfit_folds(groups, seed=seed))

    def pick(self, members: Sequence[int]) -> "BlendRows":
        """Return the same rows with only these members."""
        return replace(self, members=self.members[list(members)])


@dataclass(frozen=True)
class WeightFit:
    """Fitted coefficients (M,), and the cross-fitted probabilities (N, 3) with their log loss."""

    coefficients: np.ndarray
    cross_fitted: np.ndarray
    log_loss: float


def fit_weights(method: str, rows: BlendRows, start: np.ndarray | None = None) -> WeightFit:
    """Fit coefficients to all rows, and cross-fit them for an estimate on new prompts.

    Args:
        method: a `BlendMethod`.
        rows: the rows to fit to.
        start: coefficients (M,) to start the search from; good ones save time.
    """
    coefficients = _fit_method(method, rows.members, rows.labels, start)

    def fit_predict(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        fitted = _fit_method(method, rows.members[:, :, train], rows.labels[train], coefficients)
        return predict_blend(method, fitted, rows.members[:, :, test])

    cross_fitted = cross_fit_predict(rows.folds, fit_predict)
    return WeightFit(coefficients, cross_fitted, log_loss(cross_fitted, rows.labels))


def _fit_method(
    method: str, members: np.ndarray, labels: np.ndarray, start: np.ndarray | None
) -> np.ndarray:
    if method != "greedy":
        return fit_coefficients(pool_of_method(method), members, labels, start)
    selected = select_members(members, labels)
    coefficients = np.zeros(len(members))
    coefficients[selected] = fit_coefficients("arithmetic", members[selected], labels)
    return coefficients


def pool_of_method(method: str) -> Pool:
    """Return the pool that combines the members of a blend fitted by this method."""
    return "geometric" if method == "geometric" else "arithmetic"


def coefficients_to_blend(method: str, coefficients: np.ndarray, names: Sequence[str]) -> Blend:
    """Return the blend that coefficients (M,) stand for.

    If all are 0, because every member makes the log loss worse, it is the mean at the highest
    temperature.
    """
    if not coefficients.any():
        coefficients = np.full(len(coefficients), MIN_COEFFICIENT)
    total = float(np.clip(coefficients.sum(), 1 / MAX_TEMPERATURE, MAX_TEMPERATURE))
    weights = normalise_weights(coefficients.tolist(), names).tolist()
    return Blend(tuple(names), tuple(weights), pool_of_method(method), Calibration(1 / total))


def predict_blend(method: str, coefficients: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Return probabilities (N, 3) of members (M, 3, N), exactly as a saved blend gives them."""
    blend = coefficients_to_blend(method, coefficients, [""] * len(coefficients))
    return blend.combine(members.transpose(0, 2, 1))


def blend_objective(pool: Pool, members: np.ndarray, labels: np.ndarray) -> Objective:
    """Return the mean log loss as a function of coefficients (M,), with its gradient.

    Args:
        pool: how members are combined.
        members: probabilities (M, 3, N) above 0.
        labels: (N,).
    """
    # Flat, so that pooling and its gradient are plain matrix-vector products.
    inputs = np.log(members) if pool == "geometric" else members
    flat = inputs.reshape(len(members), -1)  # (M, 3N)

    def geometric(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        logits = (coefficients @ flat).reshape(3, -1)
        loss, residual = softmax_cross_entropy(logits, labels)
        return loss, flat @ residual.ravel()

    def arithmetic(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        total = coefficients.sum()
        mixed = coefficients @ flat
        log_mean = np.log(mixed / total)
        loss, residual = softmax_cross_entropy((total * log_mean).reshape(3, -1), labels)

        # The logits are total * log(mixed / total): the product rule gives one term by the members
        # in `mixed`, and one by `total`; its derivative inside the logarithm adds a constant to all
        # logits, so it has no effect.
        residual = residual.ravel()
        return loss, total * (flat @ (residual / mixed)) + residual @ log_mean

    return geometric if pool == "geometric" else arithmetic


def fit_coefficients(
    pool: Pool, members: np.ndarray, labels: np.ndarray, start: np.ndarray | None = None
) -> np.ndarray:
    """Return the coefficients (M,) of the lowest log loss on these rows.

    Members that only make the loss worse get exactly 0.

    Args:
        pool, members, labels: as for `blend_objective`.
        start: where to start the search; at the mean by default.
    """
    count = len(members)
    found = minimize(
        blend_objective(pool, members, labels),
        np.full(count, 1 / count) if start is None else np.maximum(start, MIN_COEFFICIENT),
        jac=True,
        method="L-BFGS-B",
        bounds=[(MIN_COEFFICIENT, None)] * count,
        options={"ftol": 1e-11, "gtol": 1e-7, "maxiter": 500},
    )
    return np.where(found.x > 10 * MIN_COEFFICIENT, found.x, 0.0)


def select_members(members: np.ndarray, labels: np.ndarray, steps: int = 50) -> list[int]:
    """Return the indices of members that make a good arithmetic pool, ascending.

    Greedy forward selection with repetition of Caruana et al., "Ensemble Selection from Libraries
    of Models" (2004): starting from the best member, add the one that lowers the log loss of the
    mean most, until none does.

    Args:
        members: probabilities (M, 3, N) above 0.
        labels: (N,).
        steps: the largest number of selections, repetitions included.
    """
    # The log loss needs only the probability of the true class.
    of_truth = np.ascontiguousarray(members[:, labels, np.arange(len(labels))])  # (M, N)

    losses = -np.log(of_truth).mean(axis=1)
    selected = [int(losses.argmin())]
    total = of_truth[selected[0]].copy()
    best = losses.min()
    while len(selected) < steps:
        losses = [np.log(len(selected) + 1) - np.log(total + member).mean() for member in of_truth]
        if min(losses) >= best:
            break
        selected.append(int(np.argmin(losses)))
        total = total + of_truth[selected[-1]]
        best = min(losses)
    return sorted(set(selected))


def bootstrap_coefficients(
    pool: Pool,
    coefficients: np.ndarray,
    members: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    draws: int = 200,
    seed: int = 0,
) -> np.ndarray:
    """Return the coefficients (draws, M) of fits to resampled prompt groups.

    Each draw takes one Newton step from the optimum of all rows, with their Hessian, to the lowest
    point where no coefficient is negative: the one-step bootstrap of Shao & Tu, "The Jackknife and
    Bootstrap" (1995). The error of the single step is of higher order than the spread itself; a
    full search would cost a whole fit for each draw.

    Args:
        pool, members, labels: as for `blend_objective`.
        coefficients: (M,), as `fit_coefficients` found them.
        groups: (N,) prompt group of each row.
        draws: number of resamplings.
        seed: of the random generator.
    """
    optimum = np.maximum(coefficients, MIN_COEFFICIENT)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    gradients = _row_gradients(pool, optimum, members, labels)
    group_gradients = np.stack(
        [np.bincount(group, weights=gradient, minlength=len(sizes)) for gradient in gradients]
    )  # (M, G)

    # With H = R'R, minimising the quadratic model over v >= 0 is non-negative least squares.
    root, inverse = _hessian_root(_hessian(blend_objective(pool, members, labels), optimum))
    generator = np.random.default_rng(seed)
    result = np.empty((draws, len(optimum)))
    for draw in range(draws):
        drawn = generator.integers(0, len(sizes), len(sizes))
        times_drawn = np.bincount(drawn, minlength=len(sizes))
        gradient = group_gradients @ times_drawn * (len(labels) / (sizes @ times_drawn))
        result[draw] = nnls(root, root @ optimum - inverse @ gradient)[0]
    return result


def _row_gradients(
    pool: Pool, coefficients: np.ndarray, members: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the gradient of the mean log loss row by row, (M, N); the rows add up to it."""
    if pool == "geometric":
        slopes = np.log(members)
        logits = np.tensordot(coefficients, slopes, 1)
    else:
        mixed = np.tensordot(coefficients, members, 1)
        total = coefficients.sum()
        log_mean = np.log(mixed / total)
        slopes = total * members / mixed + log_mean
        logits = total * log_mean
    return np.einsum("mkn,kn->mn", slopes, softmax_cross_entropy(logits, labels)[1])


def _hessian(objective: Objective, point: np.ndarray) -> np.ndarray:
    """Return the second derivatives (M, M) at `point`, from differences of the gradient."""
    width = 1e-5 * max(1.0, point.max())
    gradient = objective(point)[1]
    steps = np.eye(len(point)) * width
    hessian = np.stack([objective(point + step)[1] - gradient for step in steps]) / width
    return (hessian + hessian.T) / 2


def _hessian_root(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return R with R'R = H, and the inverse of R'.

    Nearly equal members leave H flat in the direction that exchanges them. Eigenvalues are bounded
    from below, so that a step in such a direction stays finite.
    """
    values, vectors = np.linalg.eigh(hessian)
    scale = np.sqrt(np.maximum(values, max(1e-6 * values.max(), 1e-12)))
    return scale[:, None] * vectors.T, vectors.T / scale[:, None]
