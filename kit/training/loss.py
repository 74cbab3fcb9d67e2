"""What a step minimises: cross-entropy over all rows of the optimizer step, and R-Drop's distance of two passes."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[..., Tensor]


def summed_cross_entropy(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int, smoothing: float
) -> Tensor:  # (B, 3), (B,)
    """Cross-entropy over the rows of the whole optimizer step, so that accumulation equals one large batch.

    Labels (B, 3) are probabilities times the weight of their row; then the divisor is the weights'
    sum, and a row of weight 2 counts as two. Logits of both orders, (B, 2, 3) with the classes
    permuted back, count half each.
    """
    if logits.ndim == 3:
        orders = (
            summed_cross_entropy(each, labels, num_items_in_batch, smoothing)
            for each in logits.unbind(1)
        )
        return sum(orders) / 2
    if labels.ndim == 2:
        target = (1 - smoothing) * labels + smoothing * labels.mean(1, keepdim=True)
        return -(target * logits.float().log_softmax(1)).sum() / num_items_in_batch
    return (
        functional.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing)
        / num_items_in_batch
    )


def of_two_passes(loss: Loss, weight: float) -> Loss:
    """R-Drop (Liang et al. 2021): the mean loss of two passes, and `weight` times how far apart dropout sets them.

    That distance is half the sum of the two Kullback-Leibler divergences, summed over the rows by
    their weights and divided by `num_items_in_batch`, as `loss` is. Takes the logits of both
    passes, two of (B, 3), or of both orders (B, 2, 3).
    """

    def of_two(
        logits: tuple[Tensor, Tensor], labels: Tensor, num_items_in_batch: Tensor | int
    ) -> Tensor:
        both = [loss(each, labels, num_items_in_batch=num_items_in_batch) for each in logits]
        first, second = (functional.log_softmax(each.float(), -1) for each in logits)
        apart = ((first.exp() - second.exp()) * (first - second)).sum(
            -1
        ) / 2  # KL(p|q) + KL(q|p), halved
        rows = apart.reshape(len(apart), -1).mean(1)  # (B): orders count half each
        if labels.ndim == 2:
            rows = rows * labels.sum(1)
        return sum(both) / 2 + weight * rows.sum() / num_items_in_batch

    return of_two


def twice(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    """The model called two times on the same batch, each time with dropout of its own."""
    return lambda **inputs: (model(**inputs), model(**inputs))
