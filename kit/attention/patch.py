"""Replace parts of an encoder by faster ones of the same weights and names. Use `patch_encoder`."""

from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model

from kit.attention import sdpa
from kit.attention.deberta import FastAttention, KeyMaskEncoder, key_mask_encoder
from kit.attention.dropout import QuickDropout

Replacement = TypeVar("Replacement", bound=nn.Module)


def patch_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """Give the encoder kit's attention and dropout, and return it; weights are not copied.

    DeBERTa's attention is replaced on every device. That of other families, and dropout, behave
    differently in training on a CPU alone.
    """
    if type(encoder) is DebertaV2Model:
        encoder.encoder = _replaced(encoder.encoder, KeyMaskEncoder, encoder.config)
        for layer in encoder.encoder.layer:
            attention = layer.get_submodule("attention")
            own = attention.get_submodule("self")
            attention.self = _replaced(own, FastAttention, encoder.config)
    # An encoder that does not let its attention be chosen has code of its own for it.
    elif encoder.config._attn_implementation == "sdpa" and encoder._can_set_attn_implementation():
        encoder.set_attn_implementation(sdpa.ATTENTION_NAME)

    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, QuickDropout(child.p).train(child.training))
    return encoder


def is_patched(encoder: PreTrainedModel) -> bool:
    """Return whether its attention is kit's, which is known to compute well in bf16 on a CPU."""
    return (
        key_mask_encoder(encoder) is not None
        or encoder.config._attn_implementation == sdpa.ATTENTION_NAME
    )


def _replaced(old: nn.Module, new_class: type[Replacement], config: object) -> Replacement:
    """Return a `new_class` with the submodules of `old`."""
    # On the meta device the new module's own weights take neither memory nor random numbers.
    with torch.device("meta"):
        new = new_class(config)
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)
