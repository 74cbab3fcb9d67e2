"""List the encoders and decoders that kit knows by name. Use `BACKBONES` and `find_record`.

Sizes are read from the configuration files shipped beside this module, so that none is typed in
twice. The module does not import torch: a push to Kaggle checks a backbone's name without it.
"""

import functools
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

from kit.attention.families import find_family
from kit.recipe.load import SHORT_NAMES, is_hub_id


@dataclass(frozen=True)
class JudgeFacts:
    """Where a decoder's weights are, beside the hub.

    Attributes:
        gated: the hub gives it to those alone who have accepted its licence.
        kaggle_model: owner/model/framework/variation/version on Kaggle, None where none is known.
    """

    gated: bool = False
    kaggle_model: str | None = None


@dataclass(frozen=True)
class Backbone:
    """One encoder or decoder of the registry.

    Attributes:
        name: the short name, which recipes, runs and downloaded folders keep.
        hub_id: repository on the Hugging Face hub, None for a toy that starts from random weights.
        pooling: what `model.pooling = "auto"` means for it.
        pretraining: objective its weights come from.
        precision: what is known about half precision.
        multilingual: whether its pretraining and its vocabulary cover a hundred languages.
        judge: facts of a decoder, which reads as a judge; None for an encoder.
    """

    name: str
    hub_id: str | None
    pooling: str
    pretraining: str
    licence: str
    precision: str = "fp16 and bf16 autocast"
    multilingual: bool = False
    judge: JudgeFacts | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration as the hub publishes it, from the file shipped with kit."""
        file = resources.files("kit.model").joinpath(f"configs/{self.name}.json")
        return json.loads(file.read_text(encoding="utf-8"))

    @property
    def full_name(self) -> str:
        """The name that says the size, such as deberta-xsmall for deberta."""
        return next((full for full, short in SHORT_NAMES.items() if short == self.name), self.name)

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters of the `backbone` (layers), the `embedding` (all tables) and in `total`.

        They are shipped, because counting them takes torch and seconds.
        """
        backbone, embedding = _parameter_counts()[self.name]
        return {"backbone": backbone, "embedding": embedding, "total": backbone + embedding}

    @property
    def max_tokens(self) -> int:
        """Longest sequence in the pretraining, in tokens."""
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


@functools.cache
def _parameter_counts() -> dict[str, list[int]]:
    file = resources.files("kit.model").joinpath("parameters.json")
    return json.loads(file.read_text(encoding="utf-8"))


_FP16_DEBERTA = (
    "bf16; fp16 only by autocast over float32 weights (its scores overflow in pure fp16)"
)
_RTD = "replaced-token detection"
_MLM = "masked language model"
_CHAT = "language model, instruction tuned"
_REWARD = "language model, then a reward model of human preferences"
_BF16_ONLY = "bf16 only: its activations overflow in fp16"


def _judge(
    name: str,
    hub_id: str | None,
    licence: str,
    kaggle_model: str | None = None,
    *,
    pretraining: str = _CHAT,
    gated: bool = False,
    precision: str = "fp16 and bf16",
) -> Backbone:
    """Return the record of a decoder."""
    facts = JudgeFacts(gated, kaggle_model)
    return Backbone(name, hub_id, "last", pretraining, licence, precision, judge=facts)


_RECORDS = (
    Backbone("deberta", "microsoft/deberta-v3-xsmall", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("deberta-base", "microsoft/deberta-v3-base", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("deberta-large", "microsoft/deberta-v3-large", "mean", _RTD, "MIT", _FP16_DEBERTA),
    Backbone("roberta", "FacebookAI/roberta-base", "mean", _MLM, "MIT"),
    Backbone("roberta-large", "FacebookAI/roberta-large", "mean", _MLM, "MIT"),
    Backbone("electra-small", "google/electra-small-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone("electra-base", "google/electra-base-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone("electra", "google/electra-large-discriminator", "mean", _RTD, "Apache-2.0"),
    Backbone(
        "mdeberta",
        "microsoft/mdeberta-v3-base",
        "mean",
        f"{_RTD}, 100 languages",
        "MIT",
        _FP16_DEBERTA,
        multilingual=True,
    ),
    Backbone(
        "xlm-roberta",
        "FacebookAI/xlm-roberta-base",
        "mean",
        f"{_MLM}, 100 languages",
        "MIT",
        multilingual=True,
    ),
    Backbone("modernbert-base", "answerdotai/ModernBERT-base", "mean", _MLM, "Apache-2.0"),
    Backbone("modernbert-large", "answerdotai/ModernBERT-large", "mean", _MLM, "Apache-2.0"),
    Backbone(
        "reward-deberta",
        "OpenAssistant/reward-model-deberta-v3-large-v2",
        "cls",
        f"{_RTD}, then a reward model of human preferences",
        "MIT",
        _FP16_DEBERTA,
    ),
    Backbone("tiny-deberta", None, "mean", "none: random weights", "Apache-2.0", _FP16_DEBERTA),
    Backbone("tiny-roberta", None, "mean", "none: random weights", "Apache-2.0"),
    Backbone("tiny-electra", None, "mean", "none: random weights", "Apache-2.0"),
    _judge(
        "qwen2.5-0.5b",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Apache-2.0",
        "qwen-lm/qwen2.5/transformers/0.5b-instruct/1",
    ),
    _judge(
        "qwen2.5-1.5b",
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Apache-2.0",
        "qwen-lm/qwen2.5/transformers/1.5b-instruct/1",
    ),
    _judge(
        "qwen2.5-3b",
        "Qwen/Qwen2.5-3B-Instruct",
        "Qwen Research: not commercial",
        "qwen-lm/qwen2.5/transformers/3b-instruct/1",
    ),
    _judge("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Apache-2.0", "qwen-lm/qwen-3/transformers/0.6b/1"),
    _judge("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Apache-2.0", "qwen-lm/qwen-3/transformers/1.7b/1"),
    _judge("qwen3-4b", "Qwen/Qwen3-4B", "Apache-2.0", "qwen-lm/qwen-3/transformers/4b/1"),
    _judge(
        "skywork-0.6b", "Skywork/Skywork-Reward-V2-Qwen3-0.6B", "Apache-2.0", pretraining=_REWARD
    ),
    _judge(
        "skywork-1.7b", "Skywork/Skywork-Reward-V2-Qwen3-1.7B", "Apache-2.0", pretraining=_REWARD
    ),
    _judge(
        "llama-3.2-1b",
        "meta-llama/Llama-3.2-1B-Instruct",
        "Llama 3.2 Community",
        "metaresearch/llama-3.2/transformers/1b-instruct/1",
        gated=True,
    ),
    _judge(
        "llama-3.2-3b",
        "meta-llama/Llama-3.2-3B-Instruct",
        "Llama 3.2 Community",
        "metaresearch/llama-3.2/transformers/3b-instruct/1",
        gated=True,
    ),
    _judge("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
    _judge("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0"),
    _judge("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0"),
    _judge(
        "gemma-2-2b",
        "google/gemma-2-2b-it",
        "Gemma terms",
        "google/gemma-2/transformers/gemma-2-2b-it/2",
        gated=True,
    ),
    _judge(
        "gemma-2-9b",
        "google/gemma-2-9b-it",
        "Gemma terms",
        "google/gemma-2/transformers/gemma-2-9b-it/2",
        gated=True,
    ),
    _judge(
        "gemma-3-270m",
        "google/gemma-3-270m-it",
        "Gemma terms",
        "google/gemma-3/transformers/gemma-3-270m-it/1",
        gated=True,
        precision=_BF16_ONLY,
    ),
    _judge(
        "gemma-3-1b",
        "google/gemma-3-1b-it",
        "Gemma terms",
        "google/gemma-3/transformers/gemma-3-1b-it/1",
        gated=True,
        precision=_BF16_ONLY,
    ),
    _judge("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", "MIT"),
    _judge("tiny-llama", None, "Apache-2.0", pretraining="none: random weights"),
    _judge("tiny-qwen", None, "Apache-2.0", pretraining="none: random weights"),
)
BACKBONES: dict[str, Backbone] = {record.name: record for record in _RECORDS}


def find_record(name: str) -> Backbone | None:
    """Return the entry of the registry with this short name, full name or hub id, None without."""
    if is_hub_id(name):
        return next((record for record in _RECORDS if record.hub_id == name), None)
    return BACKBONES.get(SHORT_NAMES.get(name, name))


def max_positions(config: dict[str, Any]) -> int | None:
    """Return the hard limit on tokens of a sequence, None where positions are relative."""
    family = find_family(config["model_type"])
    if family.relative_positions and not config.get("position_biased_input", True):
        return None
    positions = config.get("max_position_embeddings")
    if positions and family.positions_after_padding:
        return positions - config.get("pad_token_id", 1) - 1
    return positions
