"""Compute training losses: cross-entropy over the rows of an optimizer step, and R-Drop."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

LossFunction = Callable[..., Tensor]


def summed_cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int, smoothing: float
) -> Tensor:
    """Return the cross-entropy summed over rows and divided by the rows of the optimizer step.

    So gradients accumulated over several passes equal those of one large batch.

    Args:
        logits: (B, 3), or (B, 2, 3) for both orders of the answers with the classes permuted back;
            each order then counts half.
        labels: classes (B,), or probabilities times the weight of their row (B, 3).
        num_items_in_batch: rows of the step, or the sum of their weights.
        smoothing: the share of each label's weight that is spread over all classes.
    """
    if logits.ndim == 3:
        first, second = (
            summed_cross_entropy(order, labels, num_items_in_batch, smoothing)
            for order in logits.unbind(1)
        )
        return (first + second) / 2

    if labels.ndim == 2:
        targets = (1 - smoothing) * labels + smoothing * labels.mean(1, keepdim=True)
        return -(targets * logits.float().log_softmax(1)).sum() / num_items_in_batch

    total = functional.cross_entropy(
        logits.float(), labels, reduction="sum", label_smoothing=smoothing
    )
    return total / num_items_in_batch


def r_drop_loss(loss: LossFunction, weight: float) -> LossFunction:
    """Return R-Drop's loss (Liang et al. 2021): the mean of two passes' losses plus a divergence.

    The divergence is half the sum of the two Kullback-Leibler divergences, summed over the rows by
    their weights and divided by `num_items_in_batch`, as `loss` is. The function returned takes the
    logits of both passes (see `forward_twice`), each as `loss` takes them.

    Args:
        loss: of one pass, such as `summed_cross_entropy`.
        weight: of the divergence.
    """

    def compute(
        logits: tuple[Tensor, Tensor], labels: Tensor, num_items_in_batch: Tensor | int
    ) -> Tensor:
        first_loss, second_loss = (
            loss(one_pass, labels, num_items_in_batch=num_items_in_batch) for one_pass in logits
        )
        mean = (first_loss + second_loss) / 2

        # KL(p|q) + KL(q|p), halved. Where there are both orders of the answers, each counts half.
        first, second = (functional.log_softmax(one_pass.float(), -1) for one_pass in logits)
        divergence = ((first.exp() - second.exp()) * (first - second)).sum(-1) / 2
        by_row = divergence.reshape(len(divergence), -1).mean(1)  # (B,)
        if labels.ndim == 2:
            by_row = by_row * labels.sum(1)
        return mean + weight * by_row.sum() / num_items_in_batch

    return compute


def forward_twice(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a function that calls the model twice on a batch, each time with new dropout."""
    return lambda **inputs: (model(**inputs), model(**inputs))
