"""Keep the scalar reward of a reward model on its encoder. Use `load_reward_head`.

A reward model is a sequence classifier with one output: of an encoder two layers on the state of
the first token, of a decoder one on that of the last.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kit.attention.families import FAMILIES, RewardLayers, find_family, is_language_model
from kit.errors import BackboneError
from kit.model.backbones import ResolvedBackbone
from kit.model.base import fetch_backbone, weight_files
from kit.model.checks import check_weights
from kit.model.encoder import quiet_transformers, retry_busy_hub
from kit.model.hub import skip_dead_hub
from kit.model.pooling import LastPooling

# The layer of transformers' sequence classifiers of decoders.
_SCORE = "score.weight"

_CHOOSE = "Choose a reward model, such as the backbone reward-deberta, or set model.reward=false."


class RewardHead(nn.Module):
    """A sequence's reward, in float32: states (n, T, H), mask (n, T) -> (n, 1).

    Attributes:
        sharpness: how far a difference of rewards moves the logits. At 0.5 the odds of A against B
            are e to the power of the difference, as the reward was trained (Bradley & Terry 1952).
    """

    out: nn.Linear

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(0.5))

    def preference_logits(self, rewards: Tensor) -> Tensor:
        """Return what the rewards of both sides add to the logits: (B, 2) -> (B, 3).

        Swapped rewards give exactly the permuted logits.
        """
        lead = self.sharpness * (rewards[:, 0] - rewards[:, 1])
        return torch.stack([lead, -lead, torch.zeros_like(lead)], -1)


class FirstTokenReward(RewardHead):
    """The reward of an encoder, from the first token's state."""

    def __init__(self, hidden: int, activation: str):
        super().__init__()
        from transformers.activations import ACT2FN

        self.dense = nn.Linear(hidden, hidden)
        self.activation = ACT2FN[activation]
        self.out = nn.Linear(hidden, 1)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.activation(self.dense(states[:, 0].float())))


class LastTokenReward(RewardHead):
    """The reward of a decoder, from the last token's state."""

    def __init__(self, hidden: int):
        super().__init__()
        self.pooling = LastPooling()
        self.out = nn.Linear(hidden, 1, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        return self.out(self.pooling(states, mask))


def build_reward_head(config: dict[str, Any], hidden: int) -> RewardHead:
    """Return the reward head for the encoder or decoder of `config`, with random weights.

    Raises:
        BackboneError: kit does not know the sequence classifier of this family.
    """
    if is_language_model(config):
        return LastTokenReward(hidden)
    activation = _reward_layers(config).activation
    return FirstTokenReward(hidden, config.get(activation, activation))


def load_reward_head(backbone: ResolvedBackbone) -> RewardHead:
    """Return the reward head of a checkpoint.

    Raises:
        BackboneError: it cannot be loaded, or is no reward model: it has no classifier, or one with
            several outputs.
    """
    # An unknown family is an error before a large file is read.
    head = build_reward_head(backbone.config, backbone.config["hidden_size"])
    if backbone.source is None:
        raise BackboneError(
            f"{backbone.name} starts from random weights and has no reward", _CHOOSE
        )
    if isinstance(head, FirstTokenReward):
        _load_classifier(head, backbone)
    else:
        _load_score(head, fetch_backbone(backbone))
    check_weights(head, str(backbone.source))
    return head


def _load_classifier(head: FirstTokenReward, backbone: ResolvedBackbone) -> None:
    """Give the head the two layers of an encoder's sequence classifier."""
    from transformers import AutoModelForSequenceClassification

    layers = _reward_layers(backbone.config)
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
    _require_one_output(out.out_features, backbone)
    head.dense = model.get_submodule(layers.dense)
    head.out = out


def _load_score(head: RewardHead, backbone: ResolvedBackbone) -> None:
    """Give the head the layer of a decoder's sequence classifier; the billions below are not read.

    Args:
        backbone: a folder.
    """
    folder = Path(backbone.location)
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as weights:
            if _SCORE in weights.keys():  # noqa: SIM118 - it is no mapping
                score = weights.get_tensor(_SCORE).float()
                _require_one_output(len(score), backbone)
                head.out.weight.data.copy_(score)
                return
    raise BackboneError(
        f"{backbone.source}: not a reward model: its safetensors files lack {_SCORE}", _CHOOSE
    )


def _require_one_output(outputs: int, backbone: ResolvedBackbone) -> None:
    if outputs != 1:
        raise BackboneError(
            f"{backbone.source}: not a reward model: its classifier has {outputs} outputs", _CHOOSE
        )


def _reward_layers(config: dict[str, Any]) -> RewardLayers:
    layers = find_family(config["model_type"]).reward
    if layers is None:
        known = [name for name, family in FAMILIES.items() if family.reward]
        raise BackboneError(
            f"no reward head is known for the family {config['model_type']}",
            f"Families: {', '.join(known)}; or set model.reward=false.",
        )
    return layers
