"""Run a batch without padding on a CPU. Use `supports_unpadded`, `run_unpadded`, `pad_states`.

The sequences are end to end in one row, and only attention keeps them apart. All that works on a
token alone (projections, feed-forward layers, norms, dropout, embeddings) then sees real tokens
only, and all of a batch at once ("unpadding", as in ModernBERT, Warner et al. 2024, section 2.1.2).
"""

from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from kit.attention import causal, sdpa
from kit.attention.deberta import key_mask_encoder
from kit.attention.families import find_family
from kit.errors import BackboneError


def supports_unpadded(encoder: PreTrainedModel) -> bool:
    """Return whether `run_unpadded` gives this encoder's states.

    Its attention must be kit's, and nothing else in it may look at a neighbouring token.
    """
    config = encoder.config
    inner = key_mask_encoder(encoder)
    if inner is not None:
        return inner.conv is None and not config.output_attentions
    family = find_family(config.model_type)
    if family.causal:
        return family.forwards_lengths and config._attn_implementation == causal.CAUSAL_NAME
    return (
        family.forwards_lengths
        and config._attn_implementation == sdpa.ATTENTION_NAME
        and not getattr(config, "is_decoder", False)
    )


def run_unpadded(encoder: PreTrainedModel, pack: dict[str, Tensor]) -> Tensor:
    """Return the states of all N tokens of n sequences, one after another: (N, H).

    Args:
        pack: input_ids and the like (1, N), and `lengths` (n,).

    Raises:
        BackboneError: this version of transformers does not give attention the lengths.
    """
    lengths = pack["lengths"]
    starts = lengths.cumsum(0) - lengths
    inputs: dict[str, Any] = {name: value for name, value in pack.items() if name != "lengths"}

    # Some encoders have a buffer of zeros for this, shorter than a whole batch in one row.
    family = find_family(encoder.config.model_type)
    if not family.causal:
        inputs.setdefault("token_type_ids", torch.zeros_like(inputs["input_ids"]))

    tokens = torch.arange(inputs["input_ids"].shape[1])
    positions = (tokens - starts.repeat_interleave(lengths))[None]
    sequences = sdpa.SequenceLengths(lengths.tolist())
    inner = key_mask_encoder(encoder)
    if inner is not None:
        with inner.unpadded(sequences):
            states = encoder(**inputs, position_ids=positions).last_hidden_state
    else:
        if family.positions_after_padding:
            positions = positions + encoder.config.pad_token_id + 1
        inputs |= {"attention_mask": None, "position_ids": positions}
        states = encoder(**inputs, sequences=sequences).last_hidden_state
    if not sequences.arrived:
        raise BackboneError(
            f"transformers {transformers.__version__} does not tell attention where a sequence "
            "ends",
            "Set model.fast_attention=false, or install another version of transformers.",
        )

    return states[0]


def pad_states(states: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return unpadded states (N, H) padded, (n, T, H), and which of them are real, (n, T).

    Args:
        lengths: of the sequences (n,).
    """
    starts = lengths.cumsum(0) - lengths
    columns = torch.arange(int(lengths.max()))
    real = columns < lengths[:, None]
    places = torch.where(real, starts[:, None] + columns, 0)

    # Of torch's gathers this one has the fastest gradient on a CPU.
    return functional.embedding(places, states), real
