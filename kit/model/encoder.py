"""Pretrained encoders and their tokenizers: loaded in float32 and complete, or not at all."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError
from kit.model.backbones import BACKBONES, Backbone, find_backbone
from kit.storage.atomic import file_sha256

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


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


def load_config(source: Backbone | Path) -> dict[str, Any]:
    """The configuration of a registry record (shipped) or of a folder."""
    if isinstance(source, Backbone):
        return source.config
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict()
    except Exception as error:  # transformers and the hub each raise kinds of their own
        raise BackboneError(
            f"{source}: its config.json cannot be used: {_first_line(error)}", _FOLDER_HINT
        ) from error
    config.pop("_name_or_path", None)  # where it lay on this machine is no part of a model
    return config


def load_encoder(source: Backbone | Path, fast_attention: bool = True) -> nn.Module:
    """The pretrained encoder in float32, without a pooler; `fast_attention` as in `build`.

    transformers 5 would keep a checkpoint's half precision, in which training goes to NaN or rounds its updates
    away; so float32 is asked for and checked. A checkpoint that lacks encoder weights is an error: silently random
    layers are the most expensive mistake of this trade.

    Raises:
        BackboneError: not found, not downloaded while offline, not loadable, or incomplete.
    """
    from transformers import AutoModel

    from kit.attention.patch import patch_encoder

    place = source.hub_id if isinstance(source, Backbone) else source
    if isinstance(source, Path) and not any((source / name).is_file() for name in WEIGHTS):
        raise BackboneError(
            f"{source}: no weights in it (looked for {', '.join(WEIGHTS)})", _FOLDER_HINT
        )
    with quiet():
        try:
            encoder, report = AutoModel.from_pretrained(
                place,
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are an error, but one that names the weight
            )
        except Exception as error:  # as above, and safetensors
            raise not_loaded(source, error) from error
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    mismatched = sorted(key[0] for key in report["mismatched_keys"] if "pooler" not in key[0])
    if missing or mismatched:
        raise BackboneError(
            f"{place}: {len(missing) + len(mismatched)} encoder weights are missing or of another shape, "
            f"first {(missing + mismatched)[0]}",
            "The folder's config.json and weights do not belong together; download it again.",
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    wrong = {p.dtype for p in encoder.parameters()} - {torch.float32}
    if wrong:
        raise BackboneError(
            f"{place}: weights came as {wrong}, not float32",
            "This is a bug in kit; please report it.",
        )
    return patch_encoder(encoder) if fast_attention else encoder


def load_vocabulary(source: Backbone | Path) -> PairTokenizer:
    """The tokenizer of a registry record (from the hub or its cache) or of a folder.

    Raises:
        BackboneError: not found, not a fast tokenizer, or without the ids that frame a sequence.
    """
    from transformers import AutoTokenizer

    place = source.hub_id if isinstance(source, Backbone) else source
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # as above
            raise not_loaded(source, error) from error
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if not getattr(tokenizer, "is_fast", False) or None in ids:
        raise BackboneError(
            f"{place}: kit needs a fast tokenizer with CLS, SEP and PAD tokens", _FOLDER_HINT
        )
    return PairTokenizer(tokenizer, *ids)


def resolve_backbone(name: str) -> Backbone | Path:
    """As `find`; a registry backbone downloaded to `models/<name>` is used from there."""
    local = Path("models") / name
    return local if name in BACKBONES and (local / "config.json").is_file() else find_backbone(name)


def folder_digest(source: Backbone | Path) -> str | None:
    """A hash over the files of a backbone folder that are read: configuration, tokenizer, weights; None of the hub's.

    A folder may stay where it is and change; its path in the recipe would not tell.
    """
    if isinstance(source, Backbone):
        return None
    weights = next((name for name in WEIGHTS if (source / name).is_file()), "")
    kinds = {".json", ".txt", ".model", Path(weights.removesuffix(".index.json")).suffix}
    files = [p for p in sorted(source.iterdir()) if p.suffix in kinds and p.is_file()]
    content = "".join(f"{path.name} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


_FOLDER_HINT = "A backbone folder holds config.json, model.safetensors and tokenizer files, as Hugging Face lays it out."


def not_loaded(source: Backbone | Path, error: Exception) -> BackboneError:
    """What to tell when a backbone cannot be loaded: what was wrong, and how to get it."""
    if isinstance(source, Path):
        return BackboneError(f"{source}: cannot be loaded: {_first_line(error)}", _FOLDER_HINT)
    return BackboneError(
        f"backbone {source.name} ({source.hub_id}) cannot be loaded: {_first_line(error)}",
        f"It needs the Hugging Face hub once. Where there is a network run `hf download {source.hub_id} --local-dir "
        f"models/{source.name}`; kit then finds it there, and a copy works with `--backbone FOLDER`.",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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
