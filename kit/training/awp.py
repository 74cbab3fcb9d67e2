"""A loss taken not at the weights as they are but at the worst ones nearby, which makes for flatter minima."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit.training.optim import layer_of


class WorstNearby:
    """Adversarial weight perturbation: the gradient is taken where the loss of this batch is higher.

    Each matrix W of the encoder's layers moves by size |W| g / |g| along its gradient g for the
    forward and backward pass of a batch and then back (Wu et al. 2020, "Adversarial Weight
    Perturbation Helps Robust Generalization", one step; with the gradient there alone, as SAM,
    Foret et al. 2021). Embeddings, vectors and the head stay: a table of 128,000 rows of which a
    batch touches a few hundred has no meaningful norm, and the head is fresh anyway. Where a step
    consists of several forward passes each has its own perturbation, as in SAM on several devices.

    Args:
        size: of the step, relative to the norm of the matrix.
    """

    def __init__(self, model: nn.Module, size: float):
        self.size = size
        inside = [p for name, p in model.named_parameters() if layer_of(name) is not None]
        self.weights = [weight for weight in inside if weight.ndim > 1 and weight.requires_grad]

    @contextmanager
    def around(self, loss: Tensor) -> Iterator[None]:
        """Holds the perturbed weights for a forward and backward pass; `loss` is that of the weights as they are.

        `grad` of the parameters is left alone, so gradients accumulated before stay. A matrix whose
        gradient is 0 or not finite does not move.
        """
        kept = [weight.data for weight in self.weights]
        self._move(torch.autograd.grad(loss, self.weights, allow_unused=True))
        try:
            yield
        finally:
            for weight, before in zip(self.weights, kept, strict=True):
                weight.data = before

    def _move(self, gradients: tuple[Tensor | None, ...]) -> None:
        """To where the loss is higher; the gradients are not held in memory any longer than this."""
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is not None:
                move = (
                    self.size * weight.data.norm() / gradient.norm() * gradient
                )  # (rows, columns)
                weight.data = torch.where(move.isfinite().all(), weight.data + move, weight.data)
