"""Scaled dot-product attention for a CPU, where torch has no fast kernel with dropout, nor one in bf16 for training.

Registered with transformers as the attention "kit" of every family that lets its attention be chosen; what it is not
for (GPUs, float32 without dropout) goes on to `scaled_dot_product_attention`, as inference does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kit.attention.chance import STEPS, Draws, flagged, in_steps
from kit.attention.tiles import all_scores, cut_tiles

NAME = "kit"
CHUNK = 1 << 21  # bytes of scores at a time and thread, for its cache
JOINED = 1 << 18  # and of those that sequences of one length have together


class SequenceLengths(list[int]):
    """The lengths of an unpadded batch's sequences, on their way through transformers.

    Attributes:
        arrived: whether attention has them; had they been lost, every token would see the whole batch.
    """

    arrived = False


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sequences: SequenceLengths | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: query, key, value (B, H, T, D), True in the mask (B, 1, T, T) where a query may look.

    Returns mixed values (B, T, H, D) and, as transformers expects it, the weights, which are None.

    Args:
        sequences: of an unpadded batch (`kit.attention.unpadded`); no query looks beyond its own, and there is no mask.
    """
    if sequences is not None:
        sequences.arrived = True
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()  # it could not look into numpy's random numbers
        and torch.is_grad_enabled()
        and query.shape == key.shape == value.shape
        and dropout < 1
        and (dropout or kind == torch.bfloat16)
        and (
            attention_mask.dtype == torch.bool
            if attention_mask is not None
            else not _causal(module, kwargs)
        )
    ):
        size, length = query.shape[0], query.shape[2]
        barred = None if attention_mask is None else _barred(attention_mask, kind)
        q, k, v = (
            x.to(kind).transpose(1, 2).flatten(0, 1) for x in (query, key, value)
        )  # (N, H, D)
        mixed = MixedAttention.apply(
            q, k, v, sequences or [length] * size, barred, scale, in_steps(dropout)
        )
        return mixed.unflatten(0, (size, length)), None
    if sequences is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is not None or _causal(module, kwargs):
        raise ValueError("an unpadded batch has no mask, and its tokens look both ways")
    each = zip(*(x.split(sequences, 2) for x in (query, key, value)), strict=True)
    mixed = [
        functional.scaled_dot_product_attention(*qkv, dropout_p=dropout, scale=scale)
        for qkv in each
    ]
    return torch.cat(mixed, 2).transpose(1, 2), None


def _causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a query may not look ahead although no mask says so, as `sdpa_attention_forward` takes it."""
    given = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


class MixedAttention(torch.autograd.Function):
    """Attention over pieces that stay in a CPU's cache.

    Of the scores only the probabilities are kept for the backward pass, once, with their sign telling which of them
    dropout removed. Softmax is computed in float32 and rounded to q's type, as torch does under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Sequence[int],
        barred: Tensor | None,
        scale: float,
        steps: int,
    ) -> Tensor:
        """q, k, v (N, H, D) of sequences of these `lengths` -> mixed values (N, H, D).

        Args:
            barred: (B, 1, 1 or T, T), added to the scores of B sequences, all of T tokens.
        """
        room = CHUNK * torch.get_num_threads() // q.itemsize
        pieces = cut_tiles(
            lengths, q.shape[1], room, JOINED * torch.get_num_threads() // q.itemsize
        )
        out, kept = v.new_empty(v.shape), all_scores(pieces, q)
        draws = Draws() if steps else None
        with torch.autocast("cpu", enabled=False):
            for piece in pieces:
                qs, ks, vs = (piece.of(x).flatten(0, 1) for x in (q, k, v))  # (h·n, T, D)
                each = piece.of_scores(kept)  # (h, n, T, T)
                weights = each.flatten(0, 1)
                torch.baddbmm(weights, qs, ks.mT, beta=0, alpha=scale, out=weights)
                if barred is not None:
                    each.add_(barred[piece.sequences, 0])
                torch.softmax(weights, -1, out=weights)
                if draws:
                    weights = flagged(weights, draws.signs(weights.shape, steps)).clamp_min(0)
                _put(piece.of(out), torch.bmm(weights, vs))
        ctx.rise = STEPS / (STEPS - steps)
        if steps:
            out.mul_(ctx.rise)
        ctx.pieces, ctx.scale = pieces, scale
        ctx.save_for_backward(q, k, v, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, kept, out = ctx.saved_tensors
        inner = (dout * out).sum(
            -1, keepdim=True, dtype=torch.float32
        )  # (N, H, 1): softmax's gradient subtracts it
        inner = inner.mul_(ctx.scale).to(q.dtype)
        dout = dout * ctx.rise
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            for piece in ctx.pieces:
                qs, ks, vs, do, below = (piece.of(x).flatten(0, 1) for x in (q, k, v, dout, inner))
                weights = piece.of_scores(kept).flatten(0, 1)
                used = weights.clamp_min(0) if ctx.rise > 1 else weights
                _put(piece.of(dv), torch.bmm(used.mT, do))
                grad = torch.empty_like(weights)
                torch.baddbmm(grad, do, vs.mT, beta=0, alpha=ctx.scale, out=grad).mul_(used)
                if ctx.rise > 1:
                    weights = torch.abs(weights, out=used)
                grad.addcmul_(weights, below, value=-1)  # of the scores, and times the scale
                _put(piece.of(dq), torch.bmm(grad, ks))
                _put(piece.of(dk), torch.bmm(grad.mT, qs))
        return dq, dk, dv, None, None, None, None


def _put(place: Tensor, values: Tensor) -> None:
    place.copy_(values.view(place.shape))


def _barred(mask: Tensor, kind: torch.dtype) -> Tensor:
    """What keeps queries off keys when it is added to the scores, as one row where all queries see the same keys."""
    if (mask == mask[:, :, :1]).all():
        mask = mask[:, :, :1]
    return torch.zeros(mask.shape, dtype=kind).masked_fill_(~mask, torch.finfo(kind).min)


AttentionInterface.register(NAME, sdpa_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
