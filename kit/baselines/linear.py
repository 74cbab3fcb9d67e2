"""Fit a logistic regression that is symmetric under a swap of the two answers.

Use `fit_symmetric`. Swapping the answers swaps the probabilities of A and B. The model is what a
multinomial logistic regression becomes when every row is present in both orders, at half the rows
and a third of the coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import softmax
from threadpoolctl import threadpool_limits

from kit.evaluation.metrics import softmax_cross_entropy

Block = np.ndarray | sparse.csr_array  # (N, C) float32


@dataclass(frozen=True)
class SymmetricClassifier:
    """Coefficients of the odd columns, and of the even columns with the intercept of a tie last."""

    odd: np.ndarray
    even: np.ndarray

    def predict(self, odd: Sequence[Block], even: Sequence[Block]) -> np.ndarray:
        """Return probabilities (N, 3) of rows, given in the same blocks as to the fit."""
        return softmax(_logits(odd, even, self.odd, self.even), axis=0).T


# Products this small only wait for a second BLAS thread.
@threadpool_limits.wrap(limits=1, user_api="blas")
def fit_symmetric(
    odd: Sequence[Block],
    even: Sequence[Block],
    labels: np.ndarray,
    penalty: float,
    steps: int = 200,
) -> SymmetricClassifier:
    """Minimise the mean log loss plus penalty / 2 times the sum of squared coefficients.

    The intercept is not penalised. The logits are (d, -d, t): d is linear in the odd columns, t in
    the even ones.

    Args:
        odd: blocks of columns that change their sign when the answers are swapped, each (N, C)
            float32.
        even: blocks of columns that do not.
        labels: (N,) or (N, 3), as for `softmax_cross_entropy`.
        penalty: strength of the L2 penalty.
        steps: at most so many iterations of L-BFGS.
    """
    odd_size = sum(block.shape[1] for block in odd)
    size = odd_size + sum(block.shape[1] for block in even) + 1

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        logits = _logits(odd, even, point[:odd_size], point[odd_size:])
        loss, residual = softmax_cross_entropy(logits, labels)
        toward_a = residual[0] - residual[1]
        toward_tie = residual[2]
        gradient = np.concatenate(
            [
                _transposed_product(odd, toward_a),
                _transposed_product(even, toward_tie),
                [toward_tie.sum()],
            ]
        )
        gradient[:-1] += penalty * point[:-1]
        return loss + penalty / 2 * float(point[:-1] @ point[:-1]), gradient

    options = {"maxiter": steps, "ftol": 1e-7, "gtol": 1e-6}
    found = minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    return SymmetricClassifier(found.x[:odd_size], found.x[odd_size:])


def _logits(
    odd: Sequence[Block],
    even: Sequence[Block],
    odd_coefficients: np.ndarray,
    even_coefficients: np.ndarray,
) -> np.ndarray:
    """Return logits (3, N)."""
    toward_a = _product(odd, odd_coefficients)
    toward_tie = _product(even, even_coefficients[:-1]) + even_coefficients[-1]
    return np.stack([toward_a, -toward_a, toward_tie])


def _product(blocks: Sequence[Block], coefficients: np.ndarray) -> np.ndarray:
    """Return the product of all blocks, side by side, with their coefficients, (N,) float64."""
    # float32 as the blocks are: scipy would copy them to float64 at every step of the search.
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    parts = np.split(coefficients.astype(np.float32), ends)
    products = [block @ part for block, part in zip(blocks, parts, strict=True)]
    start = np.zeros(blocks[0].shape[0])
    return sum((product.astype(np.float64) for product in products), start)


def _transposed_product(blocks: Sequence[Block], residual: np.ndarray) -> np.ndarray:
    """Return the products of the blocks' transposes with (N,), one after the other, float64."""
    residual = residual.astype(np.float32)
    return np.concatenate([(block.T @ residual).astype(np.float64) for block in blocks])
