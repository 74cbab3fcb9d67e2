"""The registry of encoders: what each is, where its weights come from, and how large it is.

Sizes are never typed in twice: they are read from the configuration files shipped beside this module, and parameters
are counted by building the architecture on torch's meta device.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from kit.attention.families import AFTER_PADDING
from kit.errors import BackboneError


@dataclass(frozen=True)
class Backbone:
    """One encoder of the registry.

    hub_id: repository on the Hugging Face hub; None for a toy architecture that starts from random weights.
    pooling: what `model.pooling = "auto"` means for it.
    pretraining: the objective its weights come from.
    precision: what is known about half precision.
    multilingual: whether its pretraining and its vocabulary cover a hundred languages.
    """

    name: str
    hub_id: str | None
    pooling: str
    pretraining: str
    licence: str
    precision: str = "fp16 and bf16 autocast"
    multilingual: bool = False

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as the hub publishes it (shipped, so that it needs no network)."""
        text = (
            resources.files("kit.model")
            .joinpath(f"configs/{self.name}.json")
            .read_text(encoding="utf-8")
        )
        return json.loads(text)

    @property
    def max_tokens(self) -> int:
        """Tokens of one sequence that the pretraining saw."""
        return max_positions(self.config) or self.config["max_position_embeddings"]

    @property
    def sizes(self) -> dict[str, int]:
        """Layers, hidden size, heads, feed-forward width, vocabulary, max tokens."""
        config = self.config
        return {
            "layers": config["num_hidden_layers"],
            "hidden": config["hidden_size"],
            "heads": config["num_attention_heads"],
            "ffn": config["intermediate_size"],
            "vocabulary": config["vocab_size"],
            "max_tokens": self.max_tokens,
        }


FP16_DEBERTA = "bf16; fp16 only by autocast over float32 weights (its scores overflow in pure fp16)"
RTD, MLM = "replaced-token detection", "masked language model"

BACKBONES: dict[str, Backbone] = {
    record.name: record
    for record in (
        Backbone("deberta", "microsoft/deberta-v3-xsmall", "mean", RTD, "MIT", FP16_DEBERTA),
        Backbone("deberta-base", "microsoft/deberta-v3-base", "mean", RTD, "MIT", FP16_DEBERTA),
        Backbone("deberta-large", "microsoft/deberta-v3-large", "mean", RTD, "MIT", FP16_DEBERTA),
        Backbone("roberta", "FacebookAI/roberta-base", "mean", MLM, "MIT"),
        Backbone("roberta-large", "FacebookAI/roberta-large", "mean", MLM, "MIT"),
        Backbone("electra-small", "google/electra-small-discriminator", "mean", RTD, "Apache-2.0"),
        Backbone("electra-base", "google/electra-base-discriminator", "mean", RTD, "Apache-2.0"),
        Backbone("electra", "google/electra-large-discriminator", "mean", RTD, "Apache-2.0"),
        Backbone(
            "mdeberta",
            "microsoft/mdeberta-v3-base",
            "mean",
            RTD + ", 100 languages",
            "MIT",
            FP16_DEBERTA,
            True,
        ),
        Backbone(
            "xlm-roberta",
            "FacebookAI/xlm-roberta-base",
            "mean",
            MLM + ", 100 languages",
            "MIT",
            multilingual=True,
        ),
        Backbone("modernbert-base", "answerdotai/ModernBERT-base", "mean", MLM, "Apache-2.0"),
        Backbone("modernbert-large", "answerdotai/ModernBERT-large", "mean", MLM, "Apache-2.0"),
        Backbone(
            "reward-deberta",
            "OpenAssistant/reward-model-deberta-v3-large-v2",
            "cls",
            RTD + ", then a reward model of human preferences",
            "MIT",
            FP16_DEBERTA,
        ),
        Backbone("tiny-deberta", None, "mean", "none: random weights", "Apache-2.0", FP16_DEBERTA),
        Backbone("tiny-roberta", None, "mean", "none: random weights", "Apache-2.0"),
        Backbone("tiny-electra", None, "mean", "none: random weights", "Apache-2.0"),
    )
}


def find_backbone(name: str) -> Backbone | Path:
    """A registry record by its exact name, or a directory in Hugging Face layout.

    Raises:
        BackboneError: neither; the message lists the names.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise BackboneError(
            f"{folder}: no config.json in it", "A backbone folder is in Hugging Face layout."
        )
    raise BackboneError(
        f"no backbone {name!r}", f"Registry: {', '.join(BACKBONES)}; or name a folder."
    )


def max_positions(config: dict[str, Any]) -> int | None:
    """The hard limit on tokens of a sequence, or None where positions are relative and any length runs."""
    family = config["model_type"]
    if family == "deberta-v2" and not config.get("position_biased_input", True):
        return None
    positions = config.get("max_position_embeddings")
    if positions and family in AFTER_PADDING:
        return positions - config.get("pad_token_id", 1) - 1
    return positions
