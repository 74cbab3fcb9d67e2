"""Keep the scalar reward of a reward model on its encoder. Use `load_reward_head`.

A reward model is a sequence classifier with one output: two layers on the state of the first token.
"""

from typing import Any

import torch
from torch import Tensor, nn

from kit.attention.families import FAMILIES, RewardLayers, find_family
from kit.errors import BackboneError
from kit.model.backbones import ResolvedBackbone
from kit.model.checks import check_weights
from kit.model.encoder import quiet_transformers, retry_busy_hub
from kit.model.hub import skip_dead_hub

_CHOOSE = "Choose a reward model, such as the backbone reward-deberta, or set model.reward=false."


class RewardHead(nn.Module):
    """A sequence's reward, from its first token's state, in float32: states (n, T, H) -> (n, 1).

    Attributes:
        sharpness: how far a difference of rewards moves the logits. At 0.5 the odds of A against B
            are e to the power of the difference, as the reward was trained (Bradley & Terry 1952).
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

    def preference_logits(self, rewards: Tensor) -> Tensor:
        """Return what the rewards of both sides add to the logits: (B, 2) -> (B, 3).

        Swapped rewards give exactly the permuted logits.
        """
        lead = self.sharpness * (rewards[:, 0] - rewards[:, 1])
        return torch.stack([lead, -lead, torch.zeros_like(lead)], -1)


def build_reward_head(config: dict[str, Any], hidden: int) -> RewardHead:
    """Return the reward head for the encoder of `config`, with random weights.

    Raises:
        BackboneError: kit does not know the sequence classifier of this family.
    """
    activation = _reward_layers(config).activation
    return RewardHead(hidden, config.get(activation, activation))


def load_reward_head(backbone: ResolvedBackbone) -> RewardHead:
    """Return the reward head of a checkpoint.

    Raises:
        BackboneError: it cannot be loaded, or is no reward model: it has no classifier, or one with
            several outputs.
    """
    from transformers import AutoModelForSequenceClassification

    # An unknown family is an error before a large file is read.
    layers = _reward_layers(backbone.config)
    head = build_reward_head(backbone.config, backbone.config["hidden_size"])
    if backbone.source is None:
        raise BackboneError(
            f"{backbone.name} starts from random weights and has no reward", _CHOOSE
        )

    with (
        quiet_transformers(),
        skip_dead_hub(backbone.location),
        backbone.readable_location() as location,
    ):
        try:
            model, report = retry_busy_hub(
                lambda: AutoModelForSequenceClassification.from_pretrained(
                    location,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    output_loading_info=True,
                )
            )
        # transformers, huggingface_hub and safetensors raise exceptions of many unrelated classes.
        except Exception as error:
            raise backbone.loading_error(error) from error

    prefixes = (f"{layers.dense}.", f"{layers.out}.")
    missing = sorted(key for key in report["missing_keys"] if key.startswith(prefixes))
    if missing:
        raise BackboneError(
            f"{backbone.source}: not a reward model: its weights lack {missing[0]}", _CHOOSE
        )
    out = model.get_submodule(layers.out)
    if out.out_features != 1:
        raise BackboneError(
            f"{backbone.source}: not a reward model: its classifier has {out.out_features} outputs",
            _CHOOSE,
        )
    head.dense = model.get_submodule(layers.dense)
    head.out = out
    check_weights(head, str(backbone.source))
    return head


def _reward_layers(config: dict[str, Any]) -> RewardLayers:
    layers = find_family(config["model_type"]).reward
    if layers is None:
        known = [name for name, family in FAMILIES.items() if family.reward]
        raise BackboneError(
            f"no reward head is known for the family {config['model_type']}",
            f"Families: {', '.join(known)}; or set model.reward=false.",
        )
    return layers
