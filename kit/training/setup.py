"""Prepare one fold for training: model, tokenizer, device, rows and collators. Use `prepare_fold`.

`new_model` makes the untrained model alone; `check_trainable` refuses what cannot be trained.
"""

import dataclasses
import getpass
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import transformers
from torch import nn

from kit.data.dataset import Dataset
from kit.data.feature_cache import features_cached
from kit.data.frame import require_room
from kit.data.tokenize import PairTokenizer, TokenizedRows, tokenize_cached
from kit.errors import RecipeError
from kit.evaluation.metrics import class_prior
from kit.model import tiny
from kit.model.adapters import AdapterSpec, add_adapters, require_peft
from kit.model.backbones import ResolvedBackbone, local_backbone, refuse_fp16_overflow
from kit.model.base import fetch_backbone, refer_to_base
from kit.model.checks import check_vocabulary, find_padding_reader
from kit.model.collator import PAD_MULTIPLE, Collator
from kit.model.device import (
    Compute,
    choose_device,
    join_processes,
    prepare_device,
)
from kit.model.encoder import (
    build_encoder,
    frozen_dtype,
    layer_index,
    load_encoder,
    load_tokenizer,
)
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.quantize import require_bitsandbytes
from kit.model.registry import Backbone
from kit.model.reward import load_reward_head
from kit.model.sharding import shard_base
from kit.model.states import vectors_cached
from kit.recipe.spec import ModelSpec, Recipe
from kit.storage.lock import make_once
from kit.task import ID, LABEL, TEXTS
from kit.training.pace import announce_reading
from kit.training.teacher import teacher_targets


@dataclass(frozen=True)
class FoldSetup:
    """Everything that training a fold begins with.

    Attributes:
        train_collator: batches to learn from, with soft labels and weights where there are some.
        eval_collator: batches to validate on, with the labels.
        train_rows, valid_rows: numbers of the rows to learn from (T,) and to validate on (V,).
        ids, labels: of all rows, int64 (N,).
        targets: what is learned of each row: labels (N,), or probabilities times weights (N, 3).
        truncated: the share of sequences that were cut to the token budget.
    """

    model: PairModel
    tokenizer: PairTokenizer
    compute: Compute
    train_collator: Collator
    eval_collator: Collator
    train_rows: np.ndarray
    valid_rows: np.ndarray
    ids: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    truncated: float


def prepare_fold(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    fold: int | str,
    log: Callable[[str], None],
    teacher: pd.DataFrame | None = None,
) -> FoldSetup:
    """Prepare one fold, with random weights by the seed. All processes of torchrun call this.

    Args:
        teacher: predictions to learn from beside the labels (see `training.teacher`).

    Raises:
        RecipeError, BackboneError: see `new_model`.
        DeviceError: the device cannot run this.
    """
    spec = recipe.train

    # Refuse an unusable device before a model is downloaded for it.
    compute = choose_device(spec.precision)
    ranks = join_processes()
    transformers.set_seed(spec.seed)

    # The first process downloads and fills the caches; the others find them full.
    with ranks.main_process_first():
        model, tokenizer = new_model(recipe, backbone, dataset)
        compute = choose_device(spec.precision, model.bf16_width)
        log(compute.reason)

        table = dataset.train()
        digest = dataset.digest("train")
        tokens = tokenize_cached(
            table, digest, tokenizer, recipe.encode, dataset.cache, recipe.model.shape
        )
        features = None
        if recipe.model.features:
            features = features_cached(table, digest, tokens, dataset.cache)

    # The texts are no longer needed. Without this, their memory would stay with pyarrow.
    del table
    pa.default_memory_pool().release_unused()

    truncated = tokens.cut / (len(tokens) * tokens.sides)
    log(
        f"{len(tokens):,} rows encoded; {truncated:.0%} of sequences cut to "
        f"{recipe.encode.max_tokens} tokens{_describe_retention(tokens)}"
    )

    train_rows, valid_rows = dataset.fold_rows(fold)
    rows = dataset.train([ID, LABEL])
    labels = rows[LABEL].to_numpy()
    targets = dataset.targets()
    if features is not None:
        model.fit_features(features, train_rows)
    model.start_from_prior(target_prior(targets[train_rows]))

    # The collators pad as the model's device wants it, so the model is moved first.
    prepare_device(compute)
    if spec.shard:
        shard_base(model, compute.device)
    model.to(compute.device)
    pad_multiple = PAD_MULTIPLE if spec.compile else 1
    learned = targets
    if teacher is not None:
        learned = teacher_targets(targets, rows[ID].to_numpy(), teacher)
    vectors = None
    if spec.frozen:
        vectors = _frozen_vectors(recipe, backbone, dataset, model, tokens, tokenizer, compute, log)
    train_collator = make_collator(
        model,
        tokens,
        tokenizer,
        learned,
        features,
        max_tokens=spec.micro_tokens,
        pad_multiple=pad_multiple,
        first_only=model.reads_first_only and not spec.swap_augmentation,
        vectors=vectors,
    )
    eval_collator = make_collator(
        model,
        tokens,
        tokenizer,
        labels,
        tabular=features,
        pad_multiple=pad_multiple,
        vectors=vectors,
    )
    if spec.compile:
        _name_compile_cache()
        model.encoder.compile(dynamic=True)

    return FoldSetup(
        model=model,
        tokenizer=tokenizer,
        compute=compute,
        train_collator=train_collator,
        eval_collator=eval_collator,
        train_rows=train_rows,
        valid_rows=valid_rows,
        ids=rows[ID].to_numpy(),
        labels=labels,
        targets=targets,
        truncated=truncated,
    )


def _frozen_vectors(
    recipe: Recipe,
    backbone: ResolvedBackbone,
    dataset: Dataset,
    model: PairModel,
    tokens: TokenizedRows,
    tokenizer: PairTokenizer,
    compute: Compute,
    log: Callable[[str], None],
) -> np.ndarray:
    """Return what the frozen encoder makes of all rows (N, S, H), from the cache if it has it."""
    # A toy's random weights follow the seed.
    weights = model.base.digest if model.base else [backbone.name, recipe.train.seed]
    identity = [
        dataset.digest("train"),
        tokenizer.digest,
        dataclasses.asdict(recipe.encode),
        dataclasses.asdict(model.spec),
        weights,
    ]
    collator = make_collator(model, tokens, tokenizer)

    def begin() -> None:
        announce_reading(recipe, model.encoder_config, collator.lengths, compute, log)

    return vectors_cached(model, collator, compute, identity, dataset.cache, begin, log)


def _describe_retention(tokens: TokenizedRows) -> str:
    """Return in words how much of prompts and answers the token budget keeps."""
    counts = tokens.retention
    if counts is None or not tokens.cut:
        return ""
    prompt = counts.prompt_kept / max(1, counts.prompt)
    answer = counts.answer_kept / max(1, counts.answer)
    return f", which keep {prompt:.0%} of the prompts and {answer:.0%} of the answers"


def target_prior(targets: np.ndarray) -> np.ndarray:
    """Return the mean class probabilities (3,) of training targets.

    Args:
        targets: labels (N,), or probabilities times weights (N, 3); see `Dataset.targets`.
    """
    if targets.ndim == 1:
        return class_prior(targets)
    return targets.sum(0, dtype=np.float64) / targets.sum(dtype=np.float64)


def _name_compile_cache() -> None:
    """Name torch's folder for compiled code where it cannot: it asks for the user's name.

    A container may run as a user without an entry in the system's list.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        folder = Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}"
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def new_model(
    recipe: Recipe, backbone: ResolvedBackbone, dataset: Dataset
) -> tuple[PairModel, PairTokenizer]:
    """Return the untrained model of a recipe and its tokenizer.

    Its random parts follow torch's global seed.

    Raises:
        BackboneError: the encoder cannot be loaded.
        RecipeError: the recipe does not fit the encoder's layers.
    """
    config = backbone.config
    frame = recipe.encode.frame if backbone.is_decoder else None
    shape = recipe.model.shape
    folder = None
    if backbone.source is None:
        # A toy backbone has no files: its tokenizer is trained on these rows, and its weights are
        # random.
        assert backbone.record is not None, "only the registry's backbones have no files"
        toy = local_backbone(tiny_folder(backbone.record, dataset))
        tokenizer = load_tokenizer(toy, frame, shape)
        encoder = build_encoder(config, recipe.model.fast_attention)
    else:
        dtype = torch.float32
        if leaves_out_base(recipe, backbone):
            # Weights that are not trained need no more digits than they are computed with.
            dtype = frozen_dtype(recipe.train.precision, config, recipe.model.fast_attention)
            backbone = fetch_backbone(backbone)
            folder = backbone.source
        encoder = load_encoder(backbone, recipe.model.fast_attention, dtype, recipe.model.quantize)
        tokenizer = load_tokenizer(backbone, frame, shape)

        # A run is loaded again by what it saves, so that has to be what was loaded here.
        config = backbone.own_config

    if tokenizer.frame:
        require_room(tokenizer.frame, recipe.encode)
    check_vocabulary(tokenizer, config["vocab_size"], recipe.backbone)
    reinitialise_layers(encoder, recipe.train.reinit_layers)
    if recipe.train.gradient_checkpointing:
        _enable_checkpointing(encoder)
    model = PairModel(encoder, config, _resolve_pooling(recipe.model, backbone))
    find_padding_reader(model, tokenizer)
    if model.reads_padding and recipe.train.compile:
        raise RecipeError(
            f"train.compile pads sequences, and {type(encoder).__name__} reads its padding",
            "Set train.compile=false.",
        )
    if recipe.model.reward:
        model.reward = load_reward_head(backbone)
    adapters = None
    if recipe.train.frozen:
        model.encoder.requires_grad_(False)
    elif recipe.train.lora_rank:
        adapters = AdapterSpec.of_recipe(recipe.train)
        add_adapters(model.encoder, adapters)
    if isinstance(folder, Path):
        model.leave_out_base(refer_to_base(backbone, folder), adapters)
    return model, tokenizer


def leaves_out_base(recipe: Recipe, backbone: ResolvedBackbone) -> bool:
    """Whether a run of the recipe keeps only a reference to the backbone's own weights."""
    return recipe.train.frozen or (recipe.train.lora_rank > 0 and backbone.is_decoder)


def check_trainable(recipe: Recipe, backbone: ResolvedBackbone) -> None:
    """Refuse a recipe that cannot be trained here, before a run directory exists.

    Raises:
        BackboneError: the backbone's configuration cannot be used.
        DeviceError: the device cannot run this.
        RecipeError: more tokens than the encoder has positions, rates that never reach their peak,
            adapters without peft, or work on layers that this encoder does not have.
    """
    spec = recipe.train
    if spec.head_only + spec.warmup > 1:
        raise RecipeError(
            f"train.head_only = {spec.head_only:g} and train.warmup = {spec.warmup:g} are more "
            "than all steps together",
            "Both are shares of the steps, one after the other: their sum should be well below 1.",
        )

    _check_shape(recipe, backbone)
    precision = choose_device(spec.precision).precision
    refuse_fp16_overflow(recipe.backbone, backbone.config, precision, "this GPU")
    limit = backbone.max_positions
    if limit and recipe.encode.max_tokens > limit:
        raise RecipeError(
            f"encode.max_tokens = {recipe.encode.max_tokens}, but {recipe.backbone} has positions "
            f"for {limit}",
            f"Add --set encode.max_tokens={limit}, or choose a backbone with relative positions, "
            "such as deberta.",
        )

    if spec.shard and not backbone.is_decoder:
        raise RecipeError(
            f"train.shard = true, but {recipe.backbone} is an encoder "
            f"({backbone.config['model_type']})",
            "Set train.shard=false: an encoder is small enough.",
        )
    require_peft(spec.lora_rank)
    _check_quantized(recipe, backbone)
    needs_layers = [key for key in ("lora_rank", "reinit_layers") if getattr(spec, key)]
    if needs_layers:
        with torch.device("meta"):
            encoder = build_encoder(backbone.config, fast_attention=False)
        if all(layer_index(f"encoder.{name}") is None for name, _ in encoder.named_parameters()):
            raise RecipeError(
                f"train.{needs_layers[0]} works on an encoder's layers, and no weight of "
                f"{recipe.backbone} is named as part of one",
                f"Set train.{needs_layers[0]}=0: {type(encoder).__name__} is trained as a whole.",
            )


def _check_shape(recipe: Recipe, backbone: ResolvedBackbone) -> None:
    """Raise RecipeError if the shape is for decoders and this is an encoder, or the other way."""
    kind = backbone.config["model_type"]
    if backbone.is_decoder and recipe.model.shape == "cross":
        raise RecipeError(
            f"{recipe.backbone} is a decoder ({kind}), and model.shape = cross reads with an "
            "encoder",
            "Add --set model.shape=judge.",
        )
    if backbone.is_decoder or recipe.model.shape != "judge":
        return
    raise RecipeError(
        f"model.shape = judge reads with a decoder, and {recipe.backbone} is none that kit knows "
        f"({kind})",
        "Choose a decoder (`kit backbones`), or add --set model.shape=cross.",
    )


def _check_quantized(recipe: Recipe, backbone: ResolvedBackbone) -> None:
    """Raise RecipeError if an encoder or random weights are to be quantised."""
    quantize = recipe.model.quantize
    if quantize == "none":
        return
    if not backbone.is_decoder:
        raise RecipeError(
            f'model.quantize = "{quantize}", but {recipe.backbone} is an encoder '
            f"({backbone.config['model_type']})",
            "Set model.quantize=none: an encoder is small enough.",
        )
    if backbone.source is None:
        raise RecipeError(
            f'model.quantize = "{quantize}", but {backbone.name} starts from random weights',
            "Set model.quantize=none, or choose a decoder with weights.",
        )
    require_bitsandbytes(quantize)


def reinitialise_layers(encoder: nn.Module, layers: int) -> None:
    """Draw new weights for the top `layers` of an encoder, as its architecture initialises them.

    Zhang et al. 2021, "Revisiting Few-sample BERT Fine-tuning": with 1 to 6 fresh top layers of 24,
    fine-tuning is steadier and learns faster. Weights outside the layers stay: embeddings,
    DeBERTa's relative positions, ModernBERT's final norm. The draw follows torch's global seed.

    Raises:
        RecipeError: the encoder has fewer layers.
    """
    if not layers:
        return
    depth = 1 + max(
        (layer_index("." + name) or 0 for name, _ in encoder.named_parameters()), default=0
    )
    if layers > depth:
        raise RecipeError(
            f"train.reinit_layers = {layers}, but the encoder has {depth} layers",
            "Usual are 1 to a quarter of them.",
        )

    named = ((layer_index(f".{name}."), module) for name, module in encoder.named_modules())
    modules = [module for layer, module in named if layer is not None and layer >= depth - layers]

    # transformers 5 takes marked parameters for loaded ones and would draw nothing. Some modules
    # draw for the modules inside them, so all marks go before the first draw.
    for module in modules:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
    for module in modules:
        # Every encoder is a PreTrainedModel, though it is passed on as a Module.
        encoder._init_weights(module)  # ty: ignore[not-callable]


def tiny_folder(record: Backbone, dataset: Dataset) -> Path:
    """Return the folder of a toy backbone, its tokenizer trained on the dataset's training rows."""
    content = [dataset.digest("train"), record.config]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder = dataset.cache / f"{record.name}-{key}"
    make_once(
        dataset.cache,
        folder.name,
        (folder / "config.json").exists,
        lambda: tiny.write_tiny_backbone(record, _iterate_turns(dataset.train()), folder),
    )
    return folder


def _iterate_turns(table: pa.Table) -> Iterator[str]:
    """Yield every turn, row by row, so that prompts and responses alike shape the tokenizer."""
    for batch in table.select(TEXTS).to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            for turns in row.values():
                yield from turns


def _enable_checkpointing(encoder: nn.Module) -> None:
    """Recompute activations in the backward pass.

    Reentrant checkpoints cannot run twice in a step, as the packs of a batch do. transformers 5.23
    renamed the method.
    """
    method = "activation_checkpointing_enable"
    if not hasattr(encoder, method):
        method = "gradient_checkpointing_enable"
    getattr(encoder, method)({"use_reentrant": False})


def _resolve_pooling(spec: ModelSpec, backbone: ResolvedBackbone) -> ModelSpec:
    """Return the spec with pooling "auto" resolved.

    Under "cross" a mean over the whole sequence would blur which answer said what, so it is "cls".
    Of a decoder the last token alone has seen all others.
    """
    if spec.pooling != "auto":
        return spec
    by_shape = {"cross": "cls", "judge": "last"}
    pooling = by_shape.get(spec.shape, "last" if backbone.is_decoder else backbone.default_pooling)
    return dataclasses.replace(spec, pooling=pooling)
