"""A linear model of A, B and tie that cannot favour a place: swapping the answers swaps its first two probabilities.

It is what a multinomial regression becomes when every row is there in both orders, at half the rows and a third of
the coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from kit.evaluation.softmax import softmax, softmax_loss

Block = np.ndarray | sparse.csr_array  # (N, C) float32


@dataclass(frozen=True)
class SymmetricClassifier:
    """Coefficients of what changes its sign in a swap, and of what stays; the last is the intercept of a tie."""

    odd: np.ndarray
    even: np.ndarray

    def predict(self, odd: Sequence[Block], even: Sequence[Block]) -> np.ndarray:
        """Probabilities (N, 3) from the blocks that were fitted to, of other rows."""
        return softmax(_logits(odd, even, self.odd, self.even)).T


@threadpool_limits.wrap(
    limits=1, user_api="blas"
)  # products this small only wait for a second thread
def fit_symmetric(
    odd: Sequence[Block],
    even: Sequence[Block],
    labels: np.ndarray,
    penalty: float,
    steps: int = 200,
) -> SymmetricClassifier:
    """The coefficients of the lowest log loss with an L2 penalty; the intercept is free.

    Logits are (d, -d, t): d is linear in the odd columns, t in the even ones.

    Args:
        odd: blocks of columns that change their sign when the answers are swapped, each (N, C) float32.
        even: blocks of columns that do not.
        labels: (N,) in 0, 1, 2; or (N, 3), as `softmax.loss` takes them.
        penalty: half the sum of squares counts so much against the mean log loss.
        steps: at most so many of L-BFGS.
    """
    cut = sum(block.shape[1] for block in odd)
    size = cut + sum(block.shape[1] for block in even) + 1

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, residual = softmax_loss(_logits(odd, even, point[:cut], point[cut:]), labels)
        toward_a, toward_tie = (residual[0] - residual[1]), residual[2]
        gradient = np.concatenate(
            [_against(odd, toward_a), _against(even, toward_tie), [toward_tie.sum()]]
        )
        gradient[:-1] += penalty * point[:-1]
        return value + penalty / 2 * float(point[:-1] @ point[:-1]), gradient

    options = {"maxiter": steps, "ftol": 1e-7, "gtol": 1e-6}
    found = minimize(objective, np.zeros(size), jac=True, method="L-BFGS-B", options=options)
    return SymmetricClassifier(found.x[:cut], found.x[cut:])


def _logits(
    odd: Sequence[Block], even: Sequence[Block], w: np.ndarray, u: np.ndarray
) -> np.ndarray:
    """Logits (3, N)."""
    toward_a, toward_tie = _times(odd, w), _times(even, u[:-1]) + u[-1]
    return np.stack([toward_a, -toward_a, toward_tie])


def _times(blocks: Sequence[Block], coefficients: np.ndarray) -> np.ndarray:
    """The product of all blocks with their coefficients, (N,) float64."""
    parts = np.split(
        coefficients.astype(np.float32), np.cumsum([block.shape[1] for block in blocks])[:-1]
    )
    return sum((block @ part).astype(np.float64) for block, part in zip(blocks, parts, strict=True))


def _against(blocks: Sequence[Block], residual: np.ndarray) -> np.ndarray:
    """The product of all blocks' transposes with (N,), one after the other, float64."""
    scaled = residual.astype(
        np.float32
    )  # the blocks' type: scipy would copy them to float64 at every step
    return np.concatenate([(block.T @ scaled).astype(np.float64) for block in blocks])
