"""Compute a decoder's attention without masks, each sequence by itself. Use `causal_attention`.

Sequences are padded on the right, where a causal query does not look, or stand end to end; either
way no mask is needed, and torch's fused kernels run. transformers would build a mask of every query
and key of a batch, which takes the memory of the scores that the kernels avoid, and sends them to
a slower one. It knows this attention as "kit-causal".

Trainings in bf16 on a CPU take the tiles of `sdpa.TiledAttention`: the fused kernel takes two to
three times as long there, mostly in its backward pass, though it computes half the scores.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from kit.attention.dropout import to_steps
from kit.attention.sdpa import SequenceLengths, TiledAttention, can_tile

CAUSAL_NAME = "kit-causal"

# The mask of each window's longest sequence so far, and in which steps of tokens it grows.
_MASKS: dict[tuple[int | None, torch.device, torch.dtype], Tensor] = {}
_MASK_STEP = 256


def causal_attention(
    module: nn.Module,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sequences: SequenceLengths | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[Tensor, None]:
    """Return mixed values (B, T, H, D) for queries (B, H, T, D), keys and values (B, H / g, T, D).

    The interface is transformers', which expects the attention weights as a second value: None,
    since they are not kept.

    Args:
        sliding_window: a query sees itself and the window - 1 keys before it.
        sequences: lengths of the sequences that stand end to end in one row.

    Raises:
        ValueError: there is a mask, or scores are to be capped, which no fused kernel can do.
    """
    if attention_mask is not None or softcap is not None:
        raise ValueError("kit's causal attention takes no mask and no soft cap")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling

    # Each key serves several queries. Repeated, it suits the memory-efficient kernel of a T4, too;
    # for grouped queries that GPU has none.
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, 1)
        value = value.repeat_interleave(groups, 1)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))

    if sequences is not None:
        sequences.arrived = True
    if _suits_tiles(query, dropout):
        size, length = query.shape[0], query.shape[2]
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
        lengths = sequences or [length] * size
        band = _seen_mask(max(lengths), sliding_window, query)
        mixed = TiledAttention.apply(q, k, v, lengths, None, band, scale, to_steps(dropout))
        return mixed.unflatten(0, (size, length)), None

    if sequences is None:
        mixed = _attend(query, key, value, dropout, scale, sliding_window)
    else:
        parts = zip(*(x.split(sequences, 2) for x in (query, key, value)), strict=True)
        mixed = torch.cat([_attend(*part, dropout, scale, sliding_window) for part in parts], 2)
    return mixed.transpose(1, 2), None


def _suits_tiles(query: Tensor, dropout: float) -> bool:
    """Return whether tiles are faster for these queries than torch's kernels."""
    return can_tile(query) and query.dtype == torch.bfloat16 and dropout < 1


def _attend(
    query: Tensor, key: Tensor, value: Tensor, dropout: float, scale: float, window: int | None
) -> Tensor:
    """Attend within sequences of one length, or padded on the right: (B, H, T, D)."""
    length = query.shape[2]
    band = None
    if window is not None and window < length:
        band = _seen_mask(length, window, query)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        dropout_p=dropout,
        is_causal=band is None,
        scale=scale,
    )


def _seen_mask(length: int, window: int | None, query: Tensor) -> Tensor:
    """Return what is added to scores so that a query sees no later key, and its window: (T, T).

    Every layer of every pass needs it, and the mask of a longer sequence holds those of shorter
    ones. torch would make a mask of truths into one of numbers each time.
    """
    key = window, query.device, query.dtype
    mask = _MASKS.get(key)
    if mask is None or len(mask) < length:
        size = -(-length // _MASK_STEP) * _MASK_STEP

        # A tensor of inference mode could not be used in a training that comes later.
        with torch.inference_mode(False):
            seen = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
            if window is not None:
                seen = seen.triu(1 - window)
            mask = torch.zeros(size, size, dtype=query.dtype, device=query.device)
            mask.masked_fill_(~seen, -torch.inf)
        _MASKS[key] = mask
    return mask[:length, :length]


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Return no mask, whatever transformers asks for."""


AttentionInterface.register(CAUSAL_NAME, causal_attention)
AttentionMaskInterface.register(CAUSAL_NAME, no_mask)
