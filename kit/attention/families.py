"""List what kit knows of each family of encoders, by transformers' `model_type`. Use `find_family`.

A family without an entry works too: it is tried whether it keeps to the attention mask (see
`model.checks`), its positions are counted from 0, and it has neither a reward head nor a toy
tokenizer. The number of a parameter's layer is found in the same way for all
(`training.optim.layer_of`).
"""

from dataclasses import dataclass
from typing import Literal


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
    """One family of encoders.

    Attributes:
        masks_padding: padding is known not to change the states of the tokens next to it.
        positions_after_padding: positions are numbered from the padding id + 1 instead of 0.
        relative_positions: positions are relative, unless the configuration sets
            `position_biased_input`.
        forwards_lengths: transformers forwards unknown arguments to attention, so that kit's own
            can run without padding (DeBERTa can as well; kit's encoder module tells its attention).
        reward: layers of its sequence classifier, None where kit cannot read them.
        toy_tokenizer: kind of tokenizer that its toy backbone is trained with.
    """

    masks_padding: bool = False
    positions_after_padding: bool = False
    relative_positions: bool = False
    forwards_lengths: bool = False
    reward: RewardLayers | None = None
    toy_tokenizer: Literal["byte-level", "unigram", "wordpiece"] | None = None


_DEBERTA_REWARD = RewardLayers("pooler.dense", "pooler_hidden_act", "classifier")
_ROBERTA_REWARD = RewardLayers("classifier.dense", "tanh", "classifier.out_proj")

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
    "ibert": Family(masks_padding=True, positions_after_padding=True),
    "longformer": Family(masks_padding=True, positions_after_padding=True),
    "luke": Family(masks_padding=True, positions_after_padding=True),
    "modernbert": Family(masks_padding=True),
    "mpnet": Family(masks_padding=True, positions_after_padding=True),
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
