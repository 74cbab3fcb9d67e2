"""Parts of a loaded encoder exchanged for faster ones of the same weights, names and numbers."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model

from kit.attention import sdpa
from kit.attention.deberta import FastAttention, KeyMaskEncoder, key_mask_encoder
from kit.attention.dropout import QuickDropout


def patch_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder with kit's own attention and dropout, and all else as it came; weights are not copied.

    DeBERTa's attention is another everywhere, that of other families and dropout only in training on a CPU.
    """
    if type(encoder) is DebertaV2Model:
        encoder.encoder = _exchanged(KeyMaskEncoder, encoder.encoder, encoder.config)
        for layer in encoder.encoder.layer:
            layer.attention.self = _exchanged(FastAttention, layer.attention.self, encoder.config)
    elif (
        encoder.config._attn_implementation == "sdpa" and encoder._can_set_attn_implementation()
    ):  # else it has its own
        encoder.set_attn_implementation(sdpa.NAME)
    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, QuickDropout(child.p).train(child.training))
    return encoder


def is_patched(encoder: PreTrainedModel) -> bool:
    """Whether its attention is kit's: of these families it is known that they compute well in bf16 on a CPU."""
    return key_mask_encoder(encoder) is not None or encoder.config._attn_implementation == sdpa.NAME


def _exchanged(kind: type[nn.Module], old: nn.Module, config: object) -> nn.Module:
    with torch.device("meta"):
        new = kind(config)
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)
