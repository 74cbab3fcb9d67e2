"""A batch without padding, on a CPU: the sequences stand end to end in one row, and only attention keeps them apart.

What a token passes by itself (projections, feed-forward layers, norms, dropout, embeddings) then sees real tokens
alone, and all of a batch at once ("unpadding", as in ModernBERT, Warner et al. 2024, section 2.1.2).
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from kit.attention import sdpa
from kit.attention.deberta import key_mask_encoder
from kit.attention.families import find_family
from kit.errors import BackboneError


def supports_unpadded(encoder: nn.Module) -> bool:
    """Whether `run` gives this encoder's states: its attention is kit's, and nothing else looks at a neighbour."""
    config, inner = encoder.config, key_mask_encoder(encoder)
    if inner is not None:
        return inner.conv is None and not config.output_attentions
    return (
        find_family(config.model_type).forwards_lengths
        and config._attn_implementation == sdpa.NAME
        and not config.is_decoder
    )


def run_unpadded(encoder: nn.Module, pack: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The states of a pack of (1, N) tokens with `lengths` (n,), padded: (n, T, H), and which are real (n, T).

    Raises:
        BackboneError: this version of transformers does not tell attention where a sequence ends.
    """
    lengths = pack["lengths"]
    inputs: dict[str, Any] = {name: each for name, each in pack.items() if name != "lengths"}
    inputs.setdefault(
        "token_type_ids", torch.zeros_like(inputs["input_ids"])
    )  # some keep too few zeros of their own
    starts = lengths.cumsum(0) - lengths
    places = (torch.arange(inputs["input_ids"].shape[1]) - starts.repeat_interleave(lengths))[None]
    told, inner = sdpa.SequenceLengths(lengths.tolist()), key_mask_encoder(encoder)
    if inner is not None:
        with inner.unpadded(told):
            states = encoder(**inputs, position_ids=places).last_hidden_state
    else:
        config = encoder.config
        after_padding = find_family(config.model_type).positions_after_padding
        first = config.pad_token_id + 1 if after_padding else 0
        inputs |= {"attention_mask": None, "position_ids": places + first}
        states = encoder(**inputs, sequences=told).last_hidden_state
    if not told.arrived:
        raise BackboneError(
            f"transformers {transformers.__version__} does not tell attention where a sequence ends",
            "Set model.fast_attention=false, or install another version of transformers.",
        )
    places = torch.arange(int(lengths.max()))
    real = places < lengths[:, None]
    where = torch.where(real, starts[:, None] + places, 0)
    return functional.embedding(
        where, states[0]
    ), real  # the gather whose gradient is the fastest on a CPU
