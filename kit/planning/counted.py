"""Count a training's memory and time without a GPU. Use `count_memory` and `count_time`.

A pass of the recipe's full-size model runs on torch's meta device, where tensors have shapes but no
numbers (see `planning.meta_gpu`). No weights are needed. A count takes seconds to a minute;
`costs.estimate` has the same time by formulas, at once.

Bytes and floating-point operations are counted. Seconds rest on assumed rates of a T4, and no GPU
has confirmed them.
"""

import contextlib
from collections import Counter as Counts
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from kit.costs.devices import T4, DeviceModel
from kit.costs.steps import rows_per_pass
from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.model.adapters import AdapterSpec, add_adapters
from kit.model.backbones import resolve_backbone
from kit.model.device import Compute
from kit.model.encoder import build_encoder, layer_index
from kit.model.inference import make_collator
from kit.model.memory import BATCH_TOKENS, GPU_SHARE, token_bytes
from kit.model.pair_model import PairModel
from kit.model.quantize import WEIGHT_BYTES
from kit.planning.meta_gpu import META, Counter, autocast_to_float16, count_on
from kit.recipe.spec import Recipe
from kit.training.sampler import LengthBuckets
from kit.training.setup import leaves_out_base

GIB = 2**30

# GiB that no tensor accounts for: CUDA's context 0.3, NCCL 0.2, and cuBLAS' workspace.
CONTEXT_GIB = 0.6

# GiB that a recipe may need of a T4. What is left is for fragmentation.
MEMORY_LIMIT_GIB = 14.0

# Bytes of a trained parameter for AdamW's two moments, its gradient, and DDP's copy of that.
MOMENT_BYTES = 8
GRADIENT_BYTES = 4
BUCKET_BYTES = 4

# Batches whose time is counted, from short to long.
SAMPLED_BATCHES = 4


@dataclass(frozen=True)
class CountedMemory:
    """Counted memory of a training on one GPU of several, in GiB, without CUDA's context.

    Attributes:
        parameters: of the model.
        trained: of them, those with a gradient.
        training: at the worst forward and backward pass, all sequences at the token limit.
        evaluation: at the largest pass of an evaluation during training.
    """

    parameters: int
    trained: int
    training: float
    evaluation: float

    @property
    def needed(self) -> float:
        """The larger of both, with CUDA's context and NCCL."""
        return max(self.training, self.evaluation) + CONTEXT_GIB


@dataclass(frozen=True)
class CountedTime:
    """Counted operations of a training row, and its time by each kernel's.

    Attributes:
        operations_per_row: floating-point operations, recomputation and padding included.
        seconds_per_row: of one GPU.
        evaluation_seconds: of one GPU, for a row of an evaluation.
    """

    operations_per_row: float
    seconds_per_row: float
    evaluation_seconds: float


def count_memory(recipe: Recipe, gpus: int = 2, gpu: DeviceModel = T4) -> CountedMemory:
    """Count the memory of a recipe's training on each of `gpus` GPUs.

    Args:
        gpu: their kind, whose attention kernels are assumed to be those of a T4.

    Raises:
        BackboneError: the recipe's backbone is unknown.
        RecipeError: its batch size does not fit so many GPUs.
    """
    spec = recipe.train
    rows = rows_per_pass(spec, gpus)
    sides = 2
    full_lengths = np.full((rows, sides), recipe.encode.max_tokens)
    with count_on(gpu) as count:
        model = _meta_model(recipe)
        parameters = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)

        # Between the passes of one step all gradients are there, so a new one is added to it.
        accumulates = spec.batch_size > rows * gpus or spec.micro_tokens > 0

        # With several GPUs gradients are views of DDP's copies, and need no memory of their own.
        has_views = gpus > 1
        if accumulates or has_views:
            _discard_gradients(model)
        count.restart()
        _training_pass(recipe, model, full_lengths, count, most_parts=1)
        pass_bytes = count.peak

        # The weights are in both counts.
        kept = MOMENT_BYTES * trained - _quantized_saving(recipe, model)
        kept -= _sharding_saving(model, gpus) if spec.shard else 0
        kept += BUCKET_BYTES * trained if gpus > 1 else 0

        model.zero_grad()
        count.restart()
        free = gpu.memory * GIB - CONTEXT_GIB * GIB - count.peak - kept
        _evaluation_pass(recipe, model, _evaluated_sequences(recipe, model, free))
        evaluation_bytes = count.peak

    during_step = GRADIENT_BYTES * trained if accumulates and not has_views else 0
    return CountedMemory(
        parameters=parameters,
        trained=trained,
        training=(kept + during_step + pass_bytes) / GIB,
        evaluation=(kept + evaluation_bytes) / GIB,
    )


def count_time(
    recipe: Recipe, lengths: np.ndarray, gpus: int = 2, gpu: DeviceModel = T4
) -> CountedTime:
    """Count the operations of a few batches, and add up the time of their kernels.

    Args:
        lengths: tokens of the rows' sequences (N, 2), of a sample of the rows.

    Raises:
        BackboneError, RecipeError: see `count_memory`.
    """
    spec = recipe.train
    batches = _sample_batches(lengths, spec.batch_size, rows_per_pass(spec, gpus))
    seconds = forward_seconds = operations = 0.0
    launches = tokens = 0
    with count_on(gpu) as count:
        model = _meta_model(recipe)
        for batch in batches:
            model.zero_grad()
            count.restart()
            forward_seconds += _training_pass(recipe, model, batch, count)
            seconds += count.seconds
            operations += count.operations
            launches += count.launches
            tokens += int(batch.sum())

    # The sample's rows are a little longer or shorter than all rows.
    sampled = sum(len(batch) for batch in batches)
    scale = float(lengths.sum(1).mean()) / (tokens / sampled)
    on_gpu = scale * seconds / sampled
    on_host = launches * gpu.launch_seconds / sampled

    # An evaluation runs the forward pass once, R-Drop twice.
    passes = sampled * (2 if spec.r_drop else 1)
    return CountedTime(
        operations_per_row=scale * operations / sampled,
        seconds_per_row=max(on_gpu, on_host),
        evaluation_seconds=scale * forward_seconds / passes,
    )


def _quantized_saving(recipe: Recipe, model: PairModel) -> float:
    """Return the bytes that quantised matrices of the layers take less than those in half."""
    if recipe.model.quantize == "none":
        return 0.0
    sizes = [
        parameter.numel()
        for name, parameter in model.encoder.named_parameters()
        if layer_index(f"encoder.{name}") is not None
        and parameter.ndim > 1
        and not parameter.requires_grad
    ]

    # Products are computed with one matrix at a time in half precision.
    return (2 - WEIGHT_BYTES[recipe.model.quantize]) * sum(sizes) - 2 * max(sizes)


def _sharding_saving(model: PairModel, gpus: int) -> float:
    """Return the bytes that each GPU saves where every one keeps a part of the frozen weights."""
    sizes: Counts[int | None] = Counts()
    for name, parameter in model.encoder.named_parameters():
        if not parameter.requires_grad:
            sizes[layer_index(f"encoder.{name}")] += parameter.nbytes

    # A layer is there while it runs, and the next one already.
    layer = max((size for index, size in sizes.items() if index is not None), default=0)
    return (1 - 1 / gpus) * (sizes.total() - 2 * layer)


def _evaluated_sequences(recipe: Recipe, model: PairModel, free: float) -> int:
    """Return the sequences of an evaluation's pass, as `memory.prediction_tokens` sizes it.

    Args:
        free: bytes of the GPU.
    """
    length = recipe.encode.max_tokens
    compute = Compute(torch.device("cuda"), "fp16", "counted")
    each = token_bytes(model.encoder, compute, length, training=False)
    tokens = min(BATCH_TOKENS["cuda"], int(GPU_SHARE * free / each))
    return max(1, tokens // length)


def _sample_batches(lengths: np.ndarray, batch_size: int, micro_rows: int) -> list[np.ndarray]:
    """Return the lengths of a few passes' rows, at even ranks of the batches' total lengths."""
    order = np.array(list(LengthBuckets(lengths, batch_size, seed=0)))
    full = len(order) - len(order) % batch_size
    batches = lengths[order[:full]].reshape(-1, batch_size, lengths.shape[1])
    ranked = np.argsort(batches.sum((1, 2)))
    quantiles = (np.arange(SAMPLED_BATCHES) + 0.5) / SAMPLED_BATCHES
    chosen = batches[ranked[(quantiles * len(ranked)).astype(int)]]
    return [batch[:micro_rows] for batch in chosen]


def _meta_model(recipe: Recipe) -> PairModel:
    """Return a recipe's model on the meta device."""
    backbone = resolve_backbone(recipe.backbone)
    config = backbone.config
    spec = recipe.model

    # Poolings differ by far less than the estimate's error.
    if spec.pooling == "auto":
        spec = replace(spec, pooling="last" if spec.shape == "judge" else "mean")
    dtype = torch.float16 if leaves_out_base(recipe, backbone) else torch.float32
    with META:
        encoder = build_encoder(config, spec.fast_attention, dtype)
        if recipe.train.gradient_checkpointing:
            _enable_checkpointing(encoder)
        model = PairModel(encoder, config, spec)
        if recipe.train.frozen:
            encoder.requires_grad_(False)
        elif recipe.train.lora_rank:
            add_adapters(model.encoder, AdapterSpec.of_recipe(recipe.train))
    return model


def _enable_checkpointing(encoder: nn.Module) -> None:
    """Recompute activations as in a training.

    Where there is no GPU, torch would switch autocast off in the recomputation, and it compares
    devices, which are known by another name in C++.
    """
    method = "activation_checkpointing_enable"
    if not hasattr(encoder, method):
        method = "gradient_checkpointing_enable"
    options = {
        "use_reentrant": False,
        "context_fn": lambda: (contextlib.nullcontext(), autocast_to_float16()),
        "determinism_check": "none",
    }
    getattr(encoder, method)(options)


def _discard_gradients(model: nn.Module) -> None:
    """Free each gradient when it has been computed."""

    def discard(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(discard)


def _training_pass(
    recipe: Recipe,
    model: PairModel,
    lengths: np.ndarray,
    count: Counter,
    most_parts: int | None = None,
) -> float:
    """Run forward and backward over rows of these lengths; return the forward pass's seconds.

    Args:
        most_parts: how many of the passes that `micro_tokens` makes are run, if not all: with rows
            of one length they are alike.
    """
    spec = recipe.train
    encoded = _rows_of(lengths)
    tabular = None
    if model.feature_names:
        tabular = FeatureTable(
            SIDE_NAMES,
            PAIR_FEATURES,
            np.zeros((len(lengths), 2, len(SIDE_NAMES)), np.float32),
            np.zeros((len(lengths), len(PAIR_FEATURES)), np.float32),
        )
    collator = make_collator(
        model,
        encoded,
        _TOKENIZER,
        np.zeros(len(lengths), np.int64),
        tabular,
        max_tokens=spec.micro_tokens,
        first_only=model.reads_first_only and not spec.swap_augmentation,
    )
    batch = collator(np.arange(len(lengths)))
    augment = spec.swap_augmentation and not model.symmetric
    model.train()
    seconds = 0.0
    for part in batch.get("parts", [batch])[:most_parts]:
        inputs = _on_meta(part)
        labels = inputs.pop("labels")
        before = count.seconds
        with autocast_to_float16():
            passes = [model(**inputs, augment=augment) for _ in range(2 if spec.r_drop else 1)]
        seconds += count.seconds - before
        losses = [
            functional.cross_entropy(x.reshape(-1, 3).float(), _like(x, labels)) for x in passes
        ]
        total = sum(losses[1:], losses[0])
        del passes, losses
        _run_backward(total)
    return seconds


def _run_backward(loss: Tensor) -> None:
    """Compute gradients with `count_on` in force.

    `loss.backward()` is an overridable function, within which torch suspends such a mode, and
    DeBERTa's own gradients and recomputed layers need it.
    """
    torch.autograd.graph._engine_run_backward(
        (loss,),
        (torch.ones_like(loss),),
        False,
        False,
        (),
        allow_unreachable=True,
        accumulate_grad=True,
    )


def _like(logits: Tensor, labels: Tensor) -> Tensor:
    return labels if logits.ndim == 2 else torch.cat([labels, labels])


def _evaluation_pass(recipe: Recipe, model: PairModel, sequences: int) -> None:
    """Run a forward pass over as many sequences at the token limit."""
    encoded = _rows_of(np.full((sequences, 1), recipe.encode.max_tokens))
    collator = make_collator(model, encoded, _TOKENIZER)
    pack = _on_meta(collator.pack(np.arange(sequences)))
    model.eval()
    with torch.no_grad(), autocast_to_float16():
        model.pool(pack)


# Rows of numbers need no text.
_TOKENIZER = PairTokenizer(SimpleNamespace(), 1, 2, 0)


def _rows_of(lengths: np.ndarray) -> TokenizedRows:
    """Return rows of one repeated token, whose sequences have these lengths (N, S)."""
    flat = lengths.ravel().astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(flat)]).astype(np.int64)
    tokens = np.zeros(starts[-1], np.int32)
    return TokenizedRows(tokens, starts, flat // 2, flat, lengths.shape[1], cut=0)


def _on_meta(values: Any) -> Any:
    return tree_map(lambda x: x.to(META) if isinstance(x, Tensor) else x, values)
