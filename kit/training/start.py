"""The model a training begins from: pretrained weights under a fresh head, or a toy backbone made for these rows."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import torch

from kit.data.dataset import Dataset
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError, RecipeError
from kit.model.backbones import Backbone, ResolvedBackbone, local_backbone, resolve_backbone
from kit.model.encoder import build_encoder, load_encoder, load_tokenizer
from kit.model.pair_model import PairModel
from kit.model.reward import load_reward_head
from kit.model.tiny import write_tiny_backbone
from kit.recipe.spec import ModelSpec, Recipe
from kit.storage.lock import make_once
from kit.task import TEXTS
from kit.training.lora import add_adapters, require_peft
from kit.training.optim import layer_of
from kit.training.reinit import reinitialise


def new_model(recipe: Recipe, data: Dataset) -> tuple[PairModel, PairTokenizer]:
    """The untrained pair model of `recipe` and its tokenizer; random parts follow torch's global seed.

    Raises:
        BackboneError: the encoder cannot be loaded.
        RecipeError: as `require`.
    """
    check_trainable(recipe)
    backbone = resolve_backbone(recipe.backbone)
    config = backbone.config
    if backbone.source is None:
        vocabulary = load_tokenizer(local_backbone(tiny_folder(backbone.record, data)))
        encoder = build_encoder(config, recipe.model.fast_attention)
    else:
        encoder, vocabulary = (
            load_encoder(backbone, recipe.model.fast_attention),
            load_tokenizer(backbone),
        )
    reinitialise(encoder, recipe.train.reinit_layers)
    if len(vocabulary.pretrained) > config["vocab_size"]:
        raise BackboneError(
            f"{recipe.backbone}: its tokenizer has {len(vocabulary.pretrained):,} tokens, its encoder embeddings for "
            f"{config['vocab_size']:,}",
            "Tokenizer and weights do not belong together; download the folder again.",
        )
    if recipe.train.gradient_checkpointing:
        # transformers 5.23 renamed it; reentrant checkpoints cannot be run twice in a step, as packs are
        enable = (
            getattr(encoder, "activation_checkpointing_enable", None)
            or encoder.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    model = PairModel(encoder, config, _pooled(recipe.model, backbone))
    if recipe.model.reward:
        model.reward = load_reward_head(backbone)
    if recipe.train.lora_rank:
        add_adapters(model.encoder, recipe.train)
    return model, vocabulary


def check_trainable(recipe: Recipe) -> None:
    """Raises where the recipe cannot be trained here, which is then known before a run is begun.

    Raises:
        BackboneError: there is no such backbone.
        RecipeError: the recipe asks for more tokens than the encoder has positions, for rates that never reach their
            peak, for adapters without peft, or for something with layers that this encoder does not have.
    """
    spec = recipe.train
    if spec.head_only + spec.warmup > 1:
        raise RecipeError(
            f"train.head_only = {spec.head_only:g} and train.warmup = {spec.warmup:g} are more than all steps",
            "They are shares of the steps, one after the other: set them so that their sum is well below 1.",
        )
    limit = resolve_backbone(recipe.backbone).max_positions
    if limit and recipe.encode.max_tokens > limit:
        raise RecipeError(
            f"encode.max_tokens = {recipe.encode.max_tokens}, but {recipe.backbone} has positions for {limit}",
            f"Add --set encode.max_tokens={limit}, or choose a backbone with relative positions such as deberta.",
        )
    require_peft(spec)
    _require_layers(recipe)


def _require_layers(recipe: Recipe) -> None:
    """Raises RecipeError where the recipe works on the layers of an encoder whose layers have other names."""
    asked = [key for key in ("awp", "lora_rank", "reinit_layers") if getattr(recipe.train, key)]
    if not asked:
        return
    with torch.device("meta"):
        encoder = build_encoder(resolve_backbone(recipe.backbone).config, fast_attention=False)
    if all(layer_of(f"encoder.{name}") is None for name, _ in encoder.named_parameters()):
        raise RecipeError(
            f"train.{asked[0]} works on an encoder's layers, and in {recipe.backbone} no weight is named as one",
            f"Set train.{asked[0]}=0: {type(encoder).__name__} is trained as a whole.",
        )


def tiny_folder(record: Backbone, data: Dataset) -> Path:
    """The folder of a toy backbone whose tokenizer was trained on `data`'s training rows; made when it is not there."""
    key = hashlib.sha256(
        json.dumps([data.digest("train"), record.config], sort_keys=True).encode()
    ).hexdigest()[:16]
    folder = data.cache / f"{record.name}-{key}"
    done = (folder / "config.json").exists
    make_once(
        data.cache,
        folder.name,
        done,
        lambda: write_tiny_backbone(record, _texts(data.train()), folder),
    )
    return folder


def _texts(table: pa.Table) -> Iterator[str]:
    """Every turn, row by row, so that prompts and responses alike shape the tokenizer."""
    for batch in table.select(TEXTS).to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            for turns in row.values():
                yield from turns


def _pooled(spec: ModelSpec, backbone: ResolvedBackbone) -> ModelSpec:
    """The spec with "auto" resolved; a mean over both answers would blur which of them said what."""
    if spec.pooling != "auto":
        return spec
    pooling = "cls" if spec.shape == "cross" else backbone.default_pooling
    return dataclasses.replace(spec, pooling=pooling)
