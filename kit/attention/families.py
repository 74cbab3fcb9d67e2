"""List what kit knows of each family of models, by transformers' `model_type`. Use `find_family`.

A family without an entry works too: it is tried whether it keeps to the attention mask (see
`model.checks`), its positions are counted from 0, and it has neither a reward head nor a toy
tokenizer. The number of a parameter's layer is found in the same way for all
(`training.optim.layer_of`).
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class RewardLayers:
    """Where transformers' sequence classifier keeps its two layers, and what it has between them.

    Attributes:
        dense: name of the first layer's module.
        activation: name of the activation, or the key of the configuration that holds it.
        out: name of the second layer's module.
    """

    dense: str
    activation: str
    out: str


@dataclass(frozen=True)
class Family:
    """One family of encoders or decoders.

    Attributes:
        causal: its models are decoders, in which a token sees only those before it.
        bf16_only: activations of its pretrained models overflow in fp16.
        masks_padding: padding is known not to change the states of the tokens next to it.
        positions_after_padding: positions are numbered from the padding id + 1 instead of 0.
        relative_positions: positions are relative, unless the configuration sets
            `position_biased_input`.
        forwards_lengths: transformers forwards unknown arguments to attention, so that kit's own
            can run without padding (DeBERTa can as well; kit's encoder module tells its attention).
        reward: layers of its sequence classifier, None where kit cannot read them.
        toy_tokenizer: kind of tokenizer that its toy backbone is trained with.
    """

    causal: bool = False
    bf16_only: bool = False
    masks_padding: bool = False
    positions_after_padding: bool = False
    relative_positions: bool = False
    forwards_lengths: bool = False
    reward: RewardLayers | None = None
    toy_tokenizer: Literal["byte-level", "unigram", "wordpiece"] | None = None


_DEBERTA_REWARD = RewardLayers("pooler.dense", "pooler_hidden_act", "classifier")
_ROBERTA_REWARD = RewardLayers("classifier.dense", "tanh", "classifier.out_proj")

_DECODER = Family(causal=True, masks_padding=True, forwards_lengths=True)
_TOY_DECODER = dataclasses.replace(_DECODER, toy_tokenizer="byte-level")

FAMILIES: dict[str, Family] = {
    "albert": Family(masks_padding=True),
    "bert": Family(
        masks_padding=True,
        forwards_lengths=True,
        reward=RewardLayers("bert.pooler.dense", "tanh", "classifier"),
    ),
    "camembert": Family(masks_padding=True, positions_after_padding=True),
    "data2vec-text": Family(masks_padding=True, positions_after_padding=True),
    "deberta": Family(masks_padding=True, reward=_DEBERTA_REWARD),
    "deberta-v2": Family(
        masks_padding=True, relative_positions=True, reward=_DEBERTA_REWARD, toy_tokenizer="unigram"
    ),
    "distilbert": Family(masks_padding=True),
    "electra": Family(
        masks_padding=True,
        forwards_lengths=True,
        reward=RewardLayers("classifier.dense", "gelu", "classifier.out_proj"),
        toy_tokenizer="wordpiece",
    ),
    "gemma2": _DECODER,
    "gemma3_text": dataclasses.replace(_DECODER, bf16_only=True),
    "ibert": Family(masks_padding=True, positions_after_padding=True),
    "llama": _TOY_DECODER,
    "longformer": Family(masks_padding=True, positions_after_padding=True),
    "luke": Family(masks_padding=True, positions_after_padding=True),
    "mistral": _DECODER,
    "modernbert": Family(masks_padding=True),
    "mpnet": Family(masks_padding=True, positions_after_padding=True),
    "phi3": _DECODER,
    "qwen2": _TOY_DECODER,
    "qwen3": _DECODER,
    "roberta": Family(
        masks_padding=True,
        positions_after_padding=True,
        forwards_lengths=True,
        reward=_ROBERTA_REWARD,
        toy_tokenizer="byte-level",
    ),
    "roberta-prelayernorm": Family(masks_padding=True, positions_after_padding=True),
    "xlm-roberta": Family(
        masks_padding=True,
        positions_after_padding=True,
        forwards_lengths=True,
        reward=_ROBERTA_REWARD,
    ),
    "xlm-roberta-xl": Family(masks_padding=True, positions_after_padding=True),
    "xmod": Family(masks_padding=True, positions_after_padding=True),
}


def find_family(model_type: str) -> Family:
    """Return what is known of a family; the defaults for one without an entry."""
    return FAMILIES.get(model_type, Family())


def is_language_model(config: dict[str, Any]) -> bool:
    """Return whether a configuration is of a decoder, of a known family or by its own word."""
    names = config.get("architectures") or []
    causal = any(name.endswith("ForCausalLM") for name in names)
    return find_family(config["model_type"]).causal or causal
