"""Losses beyond cross-entropy on the batch as it is: at the worst weights nearby, and between two dropout passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from kit.training.optim import layer_of

Loss = Callable[..., Tensor]


class WorstNearby:
    """Adversarial weight perturbation: the gradient is taken where the loss of this batch is higher.

    Each matrix W of the encoder's layers moves by size |W| g / |g| along its gradient g for the forward and backward
    pass of a batch and then back (Wu et al. 2020, "Adversarial Weight Perturbation Helps Robust Generalization", one
    step; with the gradient there alone, as SAM, Foret et al. 2021). Embeddings, vectors and the head stay: a table of
    128,000 rows of which a batch touches a few hundred has no meaningful norm, and the head is fresh anyway. Where a
    step consists of several forward passes each has its own perturbation, as in SAM on several devices.

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

        `grad` of the parameters is left alone, so gradients accumulated before stay. A matrix whose gradient is 0 or
        not finite does not move.
        """
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        kept = [weight.data for weight in self.weights]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            if gradient is not None:
                move = self.size * weight.data.norm() / gradient.norm() * gradient  # (rows, columns)
                weight.data = torch.where(move.isfinite().all(), weight.data + move, weight.data)
        try:
            yield
        finally:
            for weight, before in zip(self.weights, kept, strict=True):
                weight.data = before


def of_two_passes(loss: Loss, weight: float) -> Loss:
    """R-Drop (Liang et al. 2021): the mean loss of two passes, and `weight` times how far apart dropout sets them.

    That distance is half the sum of the two Kullback-Leibler divergences, summed over the rows by their weights and
    divided by `num_items_in_batch`, as `loss` is. Takes the logits of both passes, two of (B, 3), or of both orders
    (B, 2, 3).
    """

    def of_two(logits: tuple[Tensor, Tensor], labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
        both = [loss(each, labels, num_items_in_batch=num_items_in_batch) for each in logits]
        first, second = (functional.log_softmax(each.float(), -1) for each in logits)
        apart = ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2  # KL(p|q) + KL(q|p), halved
        rows = apart.reshape(len(apart), -1).mean(1)  # (B): orders count half each
        if labels.ndim == 2:
            rows = rows * labels.sum(1)
        return sum(both) / 2 + weight * rows.sum() / num_items_in_batch

    return of_two


def twice(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The model called two times on the same batch, each time with dropout of its own."""
    return lambda **inputs: (model(**inputs), model(**inputs))
