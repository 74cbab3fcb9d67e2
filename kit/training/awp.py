"""Perturb weights adversarially during training. Use `WeightPerturbation`."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kit.model.encoder import layer_index


class WeightPerturbation:
    """Take gradients at nearby weights where the loss is higher, which leads to flatter minima.

    For the forward and backward pass of a batch, each matrix W of the encoder's layers moves along
    its gradient g by size |W| g / |g|, and then back (Wu et al. 2020, "Adversarial Weight
    Perturbation Helps Robust Generalization", one step; using the gradient there alone, as in SAM,
    Foret et al. 2021). Embeddings, vectors and the head do not move: of a table of 128,000 rows a
    batch touches a few hundred, so its norm says little, and the head is fresh anyway. If a step
    consists of several forward passes, each has its own perturbation, as in SAM on several devices.

    Args:
        size: of the perturbation, relative to the norm of the matrix.
    """

    def __init__(self, model: nn.Module, size: float):
        self.size = size
        in_layers = [p for name, p in model.named_parameters() if layer_index(name) is not None]
        self.weights = [p for p in in_layers if p.ndim > 1 and p.requires_grad]

    @contextmanager
    def applied(self, loss: Tensor) -> Generator[None]:
        """Perturb the weights for a forward and backward pass.

        The parameters' `grad` is left alone, so gradients accumulated before are kept. A matrix
        whose gradient is 0 or not finite does not move.

        Args:
            loss: of the batch at the weights as they are.
        """
        original = [weight.data for weight in self.weights]
        self._perturb(torch.autograd.grad(loss, self.weights, allow_unused=True))
        try:
            yield
        finally:
            for weight, data in zip(self.weights, original, strict=True):
                weight.data = data

    def _perturb(self, gradients: tuple[Tensor | None, ...]) -> None:
        """Move the weights along their gradients, which are freed when this returns."""
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is None:
                continue
            move = self.size * weight.data.norm() / gradient.norm() * gradient  # (rows, columns)
            weight.data = torch.where(move.isfinite().all(), weight.data + move, weight.data)
