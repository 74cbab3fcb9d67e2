"""The scalar reward of a reward model, kept on its encoder: one number that already tells good answers from bad ones.

A reward model is a sequence classifier with one output, so its classifier is two layers on the first token's state.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kit.errors import BackboneError
from kit.model.backbones import Backbone
from kit.model.encoder import not_loaded, quiet

# By family, where transformers keeps the two layers of its sequence classifiers, and what stands between them.
CLASSIFIERS = {
    "bert": ("bert.pooler.dense", "tanh", "classifier"),
    "deberta": ("pooler.dense", "pooler_hidden_act", "classifier"),
    "deberta-v2": ("pooler.dense", "pooler_hidden_act", "classifier"),
    "electra": ("classifier.dense", "gelu", "classifier.out_proj"),
    "roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": ("classifier.dense", "tanh", "classifier.out_proj"),
}


class RewardHead(nn.Module):
    """The reward of a sequence from its first token's state, in float32: (n, T, H) -> (n, 1).

    sharpness: by how much a difference of rewards moves the logits. At 0.5 the odds of A against B are e to the power
    of the difference, as the reward was trained (Bradley & Terry 1952).
    """

    def __init__(self, hidden: int, activation: str):
        super().__init__()
        from transformers.activations import ACT2FN

        self.dense = nn.Linear(hidden, hidden)
        self.activation = ACT2FN[activation]
        self.out = nn.Linear(hidden, 1)
        self.sharpness = nn.Parameter(torch.tensor(0.5))

    def forward(self, states: Tensor) -> Tensor:
        return self.out(self.activation(self.dense(states[:, 0].float())))

    def prefer(self, rewards: Tensor) -> Tensor:
        """What the two rewards of a row add to its logits: (B, 2) -> (B, 3); exactly permuted when they swap."""
        lead = self.sharpness * (rewards[:, 0] - rewards[:, 1])
        return torch.stack([lead, -lead, torch.zeros_like(lead)], -1)


def build_reward_head(config: dict[str, Any], hidden: int) -> RewardHead:
    """The reward head that belongs on the encoder of `config`, with random weights.

    Raises:
        BackboneError: a family whose sequence classifier is another.
    """
    if config["model_type"] not in CLASSIFIERS:
        raise BackboneError(
            f"no reward head is known for the family {config['model_type']}",
            f"Families: {', '.join(CLASSIFIERS)}; or set model.reward=false.",
        )
    activation = CLASSIFIERS[config["model_type"]][1]
    return RewardHead(hidden, config.get(activation, activation))


def load_reward_head(source: Backbone | Path, config: dict[str, Any]) -> RewardHead:
    """The reward head of a checkpoint.

    Raises:
        BackboneError: it cannot be loaded, or is no reward model: no classifier in it, or one with several outputs.
    """
    from transformers import AutoModelForSequenceClassification

    head = build_reward_head(
        config, config["hidden_size"]
    )  # an unknown family is told before a large file is read
    place = source.hub_id if isinstance(source, Backbone) else source
    if place is None:
        raise BackboneError(f"{source.name} starts from random weights and has no reward", _OTHER)
    with quiet():
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                place, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # transformers and the hub each raise kinds of their own
            raise not_loaded(source, error) from error
    dense, _, out = CLASSIFIERS[config["model_type"]]
    missing = sorted(
        key for key in report["missing_keys"] if key.startswith((dense + ".", out + "."))
    )
    if missing:
        raise BackboneError(f"{place}: not a reward model: its weights lack {missing[0]}", _OTHER)
    layers = {"dense": model.get_submodule(dense), "out": model.get_submodule(out)}
    if layers["out"].out_features != 1:
        raise BackboneError(
            f"{place}: not a reward model: its classifier has {layers['out'].out_features} outputs",
            _OTHER,
        )
    head.dense, head.out = layers["dense"], layers["out"]
    return head


_OTHER = "Choose one, such as the backbone reward-deberta, or set model.reward=false."
