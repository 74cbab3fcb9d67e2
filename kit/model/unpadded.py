"""A batch without padding, on a CPU: the sequences stand end to end in one row, and only attention keeps them apart.

What a token passes by itself (projections, feed-forward layers, norms, dropout, embeddings) then sees real tokens
alone, and all of a batch at once ("unpadding", as in ModernBERT, Warner et al. 2024, section 2.1.2).
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from kit.errors import BackboneError
from kit.model import dot_product
from kit.model.deberta import KeyMaskEncoder

# Families that hand on to attention what they are given, by where their positions begin; DeBERTa is told by its mask.
COUNTED_FROM_0 = ("bert", "electra")
COUNTED_FROM_PADDING = ("roberta", "xlm-roberta")


def suits(encoder: nn.Module) -> bool:
    """Whether `run` gives this encoder's states: its attention is kit's, and nothing else looks at a neighbour."""
    if isinstance(getattr(encoder, "encoder", None), KeyMaskEncoder):
        return encoder.encoder.conv is None
    family = encoder.config.model_type in COUNTED_FROM_0 + COUNTED_FROM_PADDING
    return family and encoder.config._attn_implementation == dot_product.NAME and not encoder.config.is_decoder


def run(encoder: nn.Module, pack: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The states of a pack that has `lengths` (n,), padded: (n, T, H), and which of them are real (n, T).

    Raises:
        BackboneError: this version of transformers does not tell attention where a sequence ends.
    """
    lengths = pack["lengths"]
    sequences = lengths.tolist()
    inputs: dict[str, Any] = {name: each for name, each in pack.items() if name != "lengths"}
    inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))  # some keep too few zeros of their own
    starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    inputs["position_ids"] = (torch.arange(len(starts)) - starts)[None]
    if isinstance(getattr(encoder, "encoder", None), KeyMaskEncoder):
        encoder.encoder.sequences = sequences
        try:
            states = encoder(**inputs).last_hidden_state
        finally:
            encoder.encoder.sequences = None
    else:
        if encoder.config.model_type in COUNTED_FROM_PADDING:
            inputs["position_ids"] += encoder.config.pad_token_id + 1
        inputs["attention_mask"], told = None, dot_product.Sequences(sequences)
        states = encoder(**inputs, sequences=told).last_hidden_state
        if not told.arrived:
            raise BackboneError(
                f"transformers {transformers.__version__} keeps a batch's sequences from their attention",
                "Set model.fast_attention=false, or install another version of transformers.",
            )
    places = torch.arange(int(lengths.max()))
    real = places < lengths[:, None]
    where = torch.where(real, (lengths.cumsum(0) - lengths)[:, None] + places, 0)
    return functional.embedding(where, states[0]), real  # the gather whose gradient is the fastest on a CPU
