"""Read an encoder's or decoder's sizes from its configuration. Use `model_sizes`.

Parameters are calculated, within one or two per cent of a count: biases and norms are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kit.errors import BackboneError

# Other families' names of the same numbers, in the order in which they are looked for.
_NAMES = {
    "hidden": ("hidden_size", "dim", "d_model", "n_embd"),
    "layers": ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_heads", "num_heads", "n_head"),
    "inner": ("intermediate_size", "hidden_dim", "d_ff", "n_inner"),
    "vocabulary": ("vocab_size",),
}

# Distances of DeBERTa's first version, which has no buckets.
_DISTANCES = 512

# Families without `num_key_value_heads` whose feed-forward layers have a gate, and whose positions
# are rotated into queries and keys, as all newer decoders' are.
_ROTARY = ("modernbert", "nomic_bert")

# Families that normalise queries and keys, and those that normalise what attention and the
# feed-forward layer return, too.
_QUERY_NORMS = ("qwen3", "gemma3")
_OUTPUT_NORMS = ("gemma2", "gemma3")


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a transformer.

    Attributes:
        width: of all heads together, mostly the hidden size.
        key_width: of all keys together; smaller where heads share keys and values.
        normed_width: of the queries and keys that have a norm; 0 in most families.
        output_norms: each half of a layer has a norm behind it, besides the one before it.
        inner: width of the feed-forward layer.
        gated: the feed-forward layer has a third matrix.
        rotary: positions are rotated into queries and keys.
        distances: that attention also scores, as in DeBERTa; 0 in other families.
        causal: a token sees only those before it.
        layer_parameters: of all layers, as often as they run; operations follow from them.
        embedding_parameters: of tables, and of what projects them.
        parameters: of the whole encoder.
    """

    hidden: int
    layers: int
    heads: int
    width: int
    key_width: int
    normed_width: int
    output_norms: bool
    inner: int
    gated: bool
    rotary: bool
    distances: int
    causal: bool
    layer_parameters: int
    embedding_parameters: int
    parameters: int

    def adapter_parameters(self, rank: int) -> int:
        """Of LoRA's two matrices beside every matrix of the layers."""
        attention = 2 * (self.hidden + self.width) + 2 * (self.hidden + self.key_width)
        feed_forward = (3 if self.gated else 2) * (self.hidden + self.inner)
        return rank * self.layers * (attention + feed_forward)


def model_sizes(config: Mapping[str, Any], name: str = "the backbone") -> ModelSizes:
    """Return the sizes that a configuration, as the hub has it, describes.

    Raises:
        BackboneError: it does not have one of the numbers under any name.
    """
    hidden, layers, heads, inner, vocabulary = (_read_number(config, key, name) for key in _NAMES)
    kind = str(config.get("model_type", ""))
    key_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    width, key_width = heads * head, key_heads * head

    is_decoder = "num_key_value_heads" in config and not kind.endswith("bert")
    rotary = is_decoder or kind in _ROTARY
    distances = 0
    if kind in ("deberta", "deberta-v2"):
        buckets = config.get("position_buckets") or 0
        distances = 2 * (buckets if buckets > 0 else _DISTANCES)

    layer = 2 * hidden * width + 2 * hidden * key_width + (3 if rotary else 2) * hidden * inner
    embedded = config.get("embedding_size") or hidden
    embedding = vocabulary * embedded
    if embedded != hidden:
        embedding += embedded * hidden
    if not rotary and config.get("position_biased_input", True):
        embedding += (config.get("max_position_embeddings") or 0) * embedded
    embedding += distances * hidden

    # ALBERT runs one layer's weights again and again.
    stored = config.get("num_hidden_groups") or layers
    return ModelSizes(
        hidden=hidden,
        layers=layers,
        heads=heads,
        width=width,
        key_width=key_width,
        normed_width=width + key_width if kind.startswith(_QUERY_NORMS) else 0,
        output_norms=kind.startswith(_OUTPUT_NORMS),
        inner=inner,
        gated=rotary,
        rotary=rotary,
        distances=distances,
        causal=is_decoder,
        layer_parameters=layer * layers,
        embedding_parameters=embedding,
        parameters=layer * stored + embedding,
    )


def _read_number(config: Mapping[str, Any], key: str, name: str) -> int:
    for known in _NAMES[key]:
        if isinstance(config.get(known), int):
            return config[known]
    raise BackboneError(
        f"{name}: its configuration has no {' or '.join(_NAMES[key])}",
        "Its time cannot be estimated; other commands may still use it.",
    )
