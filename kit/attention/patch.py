"""Replace parts of an encoder by faster ones of the same weights and names. Use `patch_encoder`."""

from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Model

from kit.attention import causal, sdpa
from kit.attention.deberta import FastAttention, KeyMaskEncoder, key_mask_encoder
from kit.attention.dropout import QuickDropout

Replacement = TypeVar("Replacement", bound=nn.Module)


def patch_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """Give the encoder kit's attention and dropout, and return it; weights are not copied.

    The attention of DeBERTa and of decoders is replaced on every device. That of other families,
    and dropout, behave differently in training on a CPU alone.
    """
    chooses_attention = (
        encoder.config._attn_implementation == "sdpa" and encoder._can_set_attn_implementation()
    )
    if type(encoder) is DebertaV2Model:
        encoder.encoder = _replaced(encoder.encoder, KeyMaskEncoder, encoder.config)
        for layer in encoder.encoder.layer:
            attention = layer.get_submodule("attention")
            own = attention.get_submodule("self")
            attention.self = _replaced(own, FastAttention, encoder.config)
    elif is_causal_decoder(encoder):
        # Gemma 2 is loaded with eager attention, for a cap on its scores. Winners of this
        # competition left it out, and lost nothing.
        if encoder._can_set_attn_implementation():
            encoder.set_attn_implementation(causal.CAUSAL_NAME)
            _remove_soft_caps(encoder)
    # An encoder that does not let its attention be chosen has code of its own for it.
    elif chooses_attention:
        encoder.set_attn_implementation(sdpa.ATTENTION_NAME)

    for parent in list(encoder.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, QuickDropout(child.p).train(child.training))
    return encoder


def is_causal_decoder(encoder: PreTrainedModel) -> bool:
    """Return whether each of its tokens sees only those before it, as in a language model."""
    looks_back = [m.is_causal for m in encoder.modules() if hasattr(m, "is_causal")]
    return bool(looks_back) and all(looks_back) and not encoder.config.is_encoder_decoder


def _remove_soft_caps(encoder: PreTrainedModel) -> None:
    for module in encoder.modules():
        if getattr(module, "attn_logit_softcapping", None) is not None:
            # As in `model.encoder`: torch's stubs forbid None for an attribute of a module.
            module.attn_logit_softcapping = None  # ty: ignore[invalid-assignment]


def is_patched(encoder: PreTrainedModel) -> bool:
    """Return whether its attention is kit's, which is known to compute well in bf16 on a CPU."""
    names = (sdpa.ATTENTION_NAME, causal.CAUSAL_NAME)
    return key_mask_encoder(encoder) is not None or encoder.config._attn_implementation in names


def _replaced(old: nn.Module, new_class: type[Replacement], config: object) -> Replacement:
    """Return a `new_class` with the submodules of `old`."""
    # On the meta device the new module's own weights take neither memory nor random numbers.
    with torch.device("meta"):
        new = new_class(config)
    for name, child in old.named_children():
        setattr(new, name, child)
    return new.train(old.training)
