"""Compute scaled dot-product attention fast on a CPU. Use `sdpa_attention`, through transformers.

Torch has no fast CPU kernel for training with dropout or in bf16. This one is registered with
transformers as the attention "kit" of every family that lets its attention be chosen. What it is
not for (GPUs, float32 without dropout, inference) goes on to torch's
`scaled_dot_product_attention`.
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

from kit.attention.dropout import STEPS, RandomBits, copy_signs, to_steps
from kit.attention.tiles import cut_tiles, empty_scores

ATTENTION_NAME = "kit"

# Bytes of scores at a time and thread, so that they stay in its cache.
CHUNK_BYTES = 1 << 21

# The same for a tile that several sequences of one length share.
JOINED_BYTES = 1 << 18


class SequenceLengths(list[int]):
    """The lengths of an unpadded batch's sequences, on their way through transformers.

    Attributes:
        arrived: whether attention has received them. If they were lost, every token would see the
            whole batch.
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
    """Return mixed values (B, T, H, D) for query, key and value (B, H, T, D).

    The interface is transformers', which expects the attention weights as a second value: None,
    since they are not kept.

    Args:
        attention_mask: True where a query may look at a key (B, 1, T, T).
        sequences: of an unpadded batch (`attention.unpadded`), which has no mask; each query sees
            its own sequence.
    """
    if sequences is not None:
        sequences.arrived = True
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    if _suits_tiles(module, query, key, value, attention_mask, dropout, dtype, kwargs):
        size, length = query.shape[0], query.shape[2]
        bias = None if attention_mask is None else _mask_bias(attention_mask, dtype)
        q, k, v = (x.to(dtype).transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        lengths = sequences or [length] * size
        mixed = TiledAttention.apply(q, k, v, lengths, bias, None, scale, to_steps(dropout))
        return mixed.unflatten(0, (size, length)), None

    if sequences is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if attention_mask is not None or _is_causal(module, kwargs):
        raise ValueError("an unpadded batch has no mask, and its tokens look both ways")
    parts = zip(*(x.split(sequences, 2) for x in (query, key, value)), strict=True)
    mixed = [
        functional.scaled_dot_product_attention(*part, dropout_p=dropout, scale=scale)
        for part in parts
    ]
    return torch.cat(mixed, 2).transpose(1, 2), None


def _suits_tiles(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float,
    dtype: torch.dtype,
    kwargs: dict[str, Any],
) -> bool:
    """Return whether `TiledAttention` computes this, and is faster than torch's kernels."""
    if not can_tile(query):
        return False
    if not query.shape == key.shape == value.shape or dropout >= 1:
        return False
    # In float32 without dropout torch's own kernel is fast.
    if not dropout and dtype != torch.bfloat16:
        return False
    if attention_mask is None:
        return not _is_causal(module, kwargs)
    return attention_mask.dtype == torch.bool


def can_tile(query: Tensor) -> bool:
    """Return whether queries are of a training for which `TiledAttention` is made."""
    # torch.compile cannot trace numpy's random numbers.
    trained = query.device.type == "cpu" and torch.is_grad_enabled()
    return trained and not torch.compiler.is_compiling()


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Return whether queries see no later keys without a mask, as transformers decides it."""
    given = kwargs.get("is_causal")
    return getattr(module, "is_causal", True) if given is None else given


class TiledAttention(torch.autograd.Function):
    """Attention over tiles that stay in a CPU's cache.

    Of the scores only the probabilities are kept for the backward pass, once; a negative sign marks
    those that dropout removed. Softmax is computed in float32 and rounded to q's type, as torch
    does under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Sequence[int],
        bias: Tensor | None,
        band: Tensor | None,
        scale: float,
        steps: int,
    ) -> Tensor:
        """Return mixed values (N, H, D) for q, k, v (N, H, D) of sequences of these `lengths`.

        Args:
            bias: (B, 1, 1 or T, T), added to the scores of B sequences, all of T tokens.
            band: (L, L), added to the scores of every sequence, as much of it as T tokens need.
            scale: of the scores.
            steps: dropout probability, as of `to_steps`.
        """
        threads = torch.get_num_threads()
        max_scores = CHUNK_BYTES * threads // q.itemsize
        joined_scores = JOINED_BYTES * threads // q.itemsize
        tiles = cut_tiles(lengths, q.shape[1], max_scores, joined_scores)
        out = v.new_empty(v.shape)
        kept = empty_scores(tiles, q)
        bits = RandomBits() if steps else None
        with torch.autocast("cpu", enabled=False):
            for tile in tiles:
                qs, ks, vs = (tile.of(x).flatten(0, 1) for x in (q, k, v))  # (h·n, T, D)
                scores = tile.of_scores(kept)  # (h, n, T, T)
                weights = scores.flatten(0, 1)
                torch.baddbmm(weights, qs, ks.mT, beta=0, alpha=scale, out=weights)
                if bias is not None:
                    scores.add_(bias[tile.sequences, 0])
                if band is not None:
                    weights.add_(band[: tile.length, : tile.length])
                torch.softmax(weights, -1, out=weights)
                if bits:
                    copy_signs(weights, bits.draw_signs(weights.shape, steps))
                    weights = weights.clamp_min(0)
                _write(tile.of(out), torch.bmm(weights, vs))

        # What dropout left is scaled up, so that the mean stays.
        ctx.dropout_scale = STEPS / (STEPS - steps)
        if steps:
            out.mul_(ctx.dropout_scale)
        ctx.tiles = tiles
        ctx.scale = scale
        ctx.save_for_backward(q, k, v, kept, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, kept, out = ctx.saved_tensors

        # What the gradient of softmax subtracts, scaled as the products below are: (N, H, 1).
        inner = (dout * out).sum(-1, keepdim=True, dtype=torch.float32)
        inner = inner.mul_(ctx.scale).to(q.dtype)
        dout = dout * ctx.dropout_scale
        dropped = ctx.dropout_scale > 1
        dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            for tile in ctx.tiles:
                qs, ks, vs, do, ins = (tile.of(x).flatten(0, 1) for x in (q, k, v, dout, inner))
                weights = tile.of_scores(kept).flatten(0, 1)
                used = weights.clamp_min(0) if dropped else weights
                _write(tile.of(dv), torch.bmm(used.mT, do))

                # Of the scores, times the scale.
                grad = torch.empty_like(weights)
                torch.baddbmm(grad, do, vs.mT, beta=0, alpha=ctx.scale, out=grad).mul_(used)
                if dropped:
                    weights = torch.abs(weights, out=used)
                grad.addcmul_(weights, ins, value=-1)
                _write(tile.of(dq), torch.bmm(grad, ks))
                _write(tile.of(dk), torch.bmm(grad.mT, qs))
        return dq, dk, dv, None, None, None, None, None


def _write(view: Tensor, values: Tensor) -> None:
    view.copy_(values.view(view.shape))


def _mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the mask as numbers to add to scores; one row where all queries see the same keys."""
    if (mask == mask[:, :, :1]).all():
        mask = mask[:, :, :1]
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


AttentionInterface.register(ATTENTION_NAME, sdpa_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
