"""Pretrained encoders and their tokenizers: loaded in float32 and complete, or not at all."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError
from kit.model.backbones import FOLDER_HINT, WEIGHTS, ResolvedBackbone


def build_encoder(config: dict[str, Any], fast_attention: bool = True) -> nn.Module:
    """The architecture of a configuration, with random weights, in float32, without a pooler.

    fast_attention: whether attention and dropout are kit's own where that is faster (`attention.patch`), with the same
    names and weights.
    """
    from transformers import AutoConfig, AutoModel

    from kit.attention.patch import patch_encoder

    values = dict(config)
    settings = AutoConfig.for_model(values.pop("model_type"), **values)
    settings.dtype = torch.float32
    encoder = AutoModel.from_config(settings, dtype=torch.float32)
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = (
            None  # kit pools by itself; an unused layer would break distributed training
        )
    return patch_encoder(encoder) if fast_attention else encoder


def count_parameters(config: dict[str, Any]) -> dict[str, int]:
    """Parameters of the encoder without a pooler: `backbone` (layers), `embedding` (all tables and norms), `total`."""
    with torch.device("meta"):
        encoder = build_encoder(config)
    total = sum(p.numel() for p in encoder.parameters())
    embedding = sum(
        p.numel() for name, p in encoder.named_parameters() if name.startswith("embeddings.")
    )
    return {"backbone": total - embedding, "embedding": embedding, "total": total}


def load_encoder(backbone: ResolvedBackbone, fast_attention: bool = True) -> nn.Module:
    """The pretrained encoder in float32, without a pooler; `fast_attention` as in `build`.

    transformers 5 would keep a checkpoint's half precision, in which training goes to NaN or rounds its updates
    away; so float32 is asked for and checked. A checkpoint that lacks encoder weights is an error: silently random
    layers are the most expensive mistake of this trade.

    Raises:
        BackboneError: not found, not downloaded while offline, not loadable, or incomplete.
    """
    from transformers import AutoModel

    from kit.attention.patch import patch_encoder

    source = backbone.source
    if isinstance(source, Path) and not any((source / name).is_file() for name in WEIGHTS):
        raise BackboneError(
            f"{source}: no weights in it (looked for {', '.join(WEIGHTS)})", FOLDER_HINT
        )
    with quiet():
        try:
            encoder, report = AutoModel.from_pretrained(
                source,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are an error, but one that names the weight
            )
        except Exception as error:  # as above, and safetensors
            raise backbone.loading_error(error) from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    mismatched = sorted(key[0] for key in report["mismatched_keys"] if "pooler" not in key[0])
    if missing or mismatched:
        raise BackboneError(
            f"{source}: {len(missing) + len(mismatched)} encoder weights are missing or of another shape, "
            f"first {(missing + mismatched)[0]}",
            "The folder's config.json and weights do not belong together; download it again.",
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    wrong = {p.dtype for p in encoder.parameters()} - {torch.float32}
    if wrong:
        raise BackboneError(
            f"{source}: weights came as {wrong}, not float32",
            "This is a bug in kit; please report it.",
        )
    return patch_encoder(encoder) if fast_attention else encoder


def load_tokenizer(backbone: ResolvedBackbone) -> PairTokenizer:
    """The tokenizer of a registry record (from the hub or its cache) or of a folder.

    Raises:
        BackboneError: not found, not a fast tokenizer, or without the ids that frame a sequence.
    """
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(backbone.source, trust_remote_code=False)
        except Exception as error:  # as above
            raise backbone.loading_error(error) from error
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if not getattr(tokenizer, "is_fast", False) or None in ids:
        raise BackboneError(
            f"{backbone.source}: kit needs a fast tokenizer with CLS, SEP and PAD tokens",
            FOLDER_HINT,
        )
    return PairTokenizer(tokenizer, *ids)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal; errors still come as exceptions."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity(logging.CRITICAL)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
