"""Scaled dot-product attention for training on a CPU, where torch has no fast kernel with dropout, nor one in bf16.

Registered with transformers as the attention "kit" of every family that lets its attention be chosen; what it is not
for (inference, GPUs, float32 without dropout) goes on to `scaled_dot_product_attention`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kit.model.chance import STEPS, Draws, flagged, in_steps

NAME = "kit"
CHUNK = 1 << 21  # bytes of scores at a time and thread, for its cache


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls: query, key, value (B, H, T, D), True in the mask (B, 1, T, T) where a query may look.

    Returns mixed values (B, T, H, D) and, as transformers expects it, the weights, which are None.
    """
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    if (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()  # it could not look into numpy's random numbers
        and torch.is_grad_enabled()
        and query.shape == key.shape == value.shape
        and dropout < 1
        and (dropout or kind == torch.bfloat16)
        and (attention_mask.dtype == torch.bool if attention_mask is not None else not _causal(module, kwargs))
    ):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        barred = None if attention_mask is None else _barred(attention_mask, kind)
        q, k, v = (x.to(kind) for x in (query * scale, key, value))
        return Mixed.apply(q, k, v, barred, in_steps(dropout)).transpose(1, 2), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def _causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a query may not look ahead although no mask says so, as `sdpa_attention_forward` takes it."""
    given = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


class Mixed(torch.autograd.Function):
    """Attention over chunks of heads that stay in a CPU's cache; the scale is in q already.

    Of the scores only the probabilities are kept for the backward pass, once, with their sign telling which of them
    dropout removed. Softmax is computed in float32 and rounded to q's type, as torch does under autocast.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, barred: Tensor | None, steps: int) -> Tensor:
        """q, k, v (B, H, T, D) -> mixed values; `barred` (B, 1, 1 or T, T) is added to the scores."""
        size, heads, length, _ = q.shape
        q, k, v = (x.flatten(0, 1).contiguous() for x in (q, k, v))  # (B·H, T, D)
        out, kept = torch.empty_like(v), q.new_empty(len(q), length, length)
        draws = Draws() if steps else None
        with torch.autocast("cpu", enabled=False):
            for rows, some in _chunks(size, heads, length, q.itemsize):
                scores = torch.bmm(q[some], k[some].mT)
                if barred is not None:
                    scores.unflatten(0, (rows.stop - rows.start, -1)).add_(barred[rows])
                weights = torch.softmax(scores, -1, out=kept[some])
                if draws:
                    weights = flagged(weights, draws.signs(weights.shape, steps)).clamp_min(0)
                torch.bmm(weights, v[some], out=out[some])
        ctx.rise = STEPS / (STEPS - steps)
        if steps:
            out.mul_(ctx.rise)
        ctx.save_for_backward(q, k, v, kept, out)
        return out.unflatten(0, (size, heads))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v."""
        q, k, v, kept, out = ctx.saved_tensors
        size, heads = dout.shape[:2]
        dout = dout.flatten(0, 1).contiguous()
        inner = (dout * out).sum(-1, keepdim=True)  # (B·H, T, 1): what softmax's gradient subtracts
        dout = dout * ctx.rise
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            for _, some in _chunks(size, heads, q.shape[1], q.itemsize):
                weights = kept[some]
                used = weights.clamp_min(0) if ctx.rise > 1 else weights
                torch.bmm(used.mT, dout[some], out=dv[some])
                grad = torch.bmm(dout[some], v[some].mT).mul_(used)
                if ctx.rise > 1:
                    weights = torch.abs(weights, out=used)
                grad.addcmul_(weights, inner[some], value=-1)  # of the scores
                torch.bmm(grad, k[some], out=dq[some])
                torch.bmm(grad.mT, q[some], out=dk[some])
        return *(x.unflatten(0, (size, heads)) for x in (dq, dk, dv)), None, None


def _chunks(size: int, heads: int, length: int, width: int) -> Iterator[tuple[slice, slice]]:
    """Rows, and their matrices of B·H, with CHUNK bytes of scores a thread: all of some rows, or some heads of one."""
    fits = max(1, CHUNK * torch.get_num_threads() // (width * length * length))
    if fits >= heads:
        for row in range(0, size, fits // heads):
            rows = slice(row, min(size, row + fits // heads))
            yield rows, slice(rows.start * heads, rows.stop * heads)
    else:
        for row in range(size):
            for head in range(0, heads, fits):
                yield slice(row, row + 1), slice(row * heads + head, row * heads + min(heads, head + fits))


def _barred(mask: Tensor, kind: torch.dtype) -> Tensor:
    """What keeps queries off keys when it is added to the scores, as one row where all queries see the same keys."""
    if (mask == mask[:, :, :1]).all():
        mask = mask[:, :, :1]
    return torch.zeros(mask.shape, dtype=kind).masked_fill_(~mask, torch.finfo(kind).min)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
