"""Estimate a training's memory and time on GPUs. Use `estimate_memory` and `estimate_hours`.

A pass of the recipe's full-size model runs on torch's meta device, where tensors have shapes but no
numbers (see `kit.meta_gpu`). No weights are needed, and no GPU: a count takes seconds.

Bytes and floating-point operations are counted. Hours are estimates: they rest on assumed rates of
a T4, and no GPU has confirmed them.
"""

import contextlib
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.meta_gpu import LAUNCH_SECONDS, META, T4, Counter, GPUModel, autocast_to_float16, count_on
from kit.model.adapters import AdapterSpec, add_adapters
from kit.model.backbones import resolve_backbone
from kit.model.encoder import build_encoder, layer_index
from kit.model.inference import make_collator
from kit.model.memory import BATCH_TOKENS
from kit.model.pair_model import PairModel
from kit.recipe.spec import Recipe
from kit.training.arguments import rows_per_pass
from kit.training.sampler import LengthBuckets
from kit.training.setup import keeps_adapters_only

GIB = 2**30


# GiB that no tensor accounts for: CUDA's context 0.3, NCCL 0.2, and cuBLAS' workspace.
CONTEXT_GIB = 0.6

# GiB that a recipe may need of a T4. What is left is for fragmentation.
MEMORY_LIMIT_GIB = 14.0

# Bytes of a trained parameter for AdamW's two moments, its gradient, and DDP's copy of that.
MOMENT_BYTES = 8
GRADIENT_BYTES = 4
BUCKET_BYTES = 4

# Bytes of a gradient on its way to the other GPU, which a T4's training sends in fp16.
EXCHANGE_BYTES = 2

# Copies of the layers' matrices that an adversarial perturbation holds: gradient, move, result.
AWP_COPIES = 3

# The share of a T4's peak that trainings of encoders reach, from public notebooks.
PEAK_SHARES = (0.25, 0.30)

# The share of gradient bytes, other than the embeddings', that is not hidden behind the backward
# pass. The embeddings' gradient is ready last, so all of it is exposed.
EXPOSED_SHARE = 0.3

# The competition's training rows and kit's default folds; hours that Kaggle gives a session.
COMPETITION_ROWS = 57_477
FOLDS = 5
SESSION_HOURS = 9.0

# Modelled lengths in characters: median and spread (of the logarithm) of prompts, median of
# answers, spread that both answers share and of each alone. A token has four characters.
PROMPT_MEDIAN, PROMPT_SPREAD = 95, 1.65
ANSWER_MEDIAN, SHARED_SPREAD, ANSWER_SPREAD = 1000, 0.6, 0.55
CHARACTERS_PER_TOKEN = 4

# Tokens of a judge's frame, about.
FRAME_TOKENS = {"plain": 45, "chat": 80}

# Batches whose time is counted, from short to long.
SAMPLED_BATCHES = 4


@dataclass(frozen=True)
class MemoryEstimate:
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
class TimeEstimate:
    """Estimated time of one fold's training.

    Attributes:
        mean_tokens: of a sequence, after the token limit.
        operations_per_row: floating-point operations of a training row, recomputation and padding
            included.
        seconds_per_row: of one GPU.
        training_hours: without evaluations.
        evaluation_hours: of all evaluations.
        flat_hours: lower and upper bound by the operations alone, at `PEAK_SHARES` of the peak.
    """

    mean_tokens: float
    operations_per_row: float
    seconds_per_row: float
    training_hours: float
    evaluation_hours: float
    flat_hours: tuple[float, float]

    @property
    def hours(self) -> float:
        """Hours of a fold, evaluations included."""
        return self.training_hours + self.evaluation_hours


def estimate_memory(recipe: Recipe, gpus: int = 2, gpu: GPUModel = T4) -> MemoryEstimate:
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

        model.zero_grad()
        count.restart()
        sequences = max(1, BATCH_TOKENS["cuda"] // recipe.encode.max_tokens)
        _evaluation_pass(recipe, model, sequences)
        evaluation_bytes = count.peak

    # The weights are in both counts.
    kept = MOMENT_BYTES * trained
    kept += BUCKET_BYTES * trained if gpus > 1 else 0
    kept += 4 * trained if spec.ema else 0
    during_step = GRADIENT_BYTES * trained if accumulates and not has_views else 0
    if spec.awp:
        during_step += AWP_COPIES * 4 * _matrix_parameters(model)
    return MemoryEstimate(
        parameters=parameters,
        trained=trained,
        training=(kept + during_step + pass_bytes) / GIB,
        evaluation=(kept + evaluation_bytes) / GIB,
    )


def estimate_hours(
    recipe: Recipe,
    lengths: np.ndarray | None = None,
    *,
    rows: int = COMPETITION_ROWS,
    folds: int = FOLDS,
    gpus: int = 2,
    gpu: GPUModel = T4,
) -> TimeEstimate:
    """Estimate the time of one fold.

    Args:
        lengths: tokens of the rows' sequences (N, 2), of a sample of the rows; by default modelled.
        rows: of all folds together.

    Raises:
        BackboneError, RecipeError: see `estimate_memory`.
    """
    spec = recipe.train
    if lengths is None:
        lengths = model_lengths(8192, recipe)
    micro_rows = rows_per_pass(spec, gpus)
    batches = _sample_batches(lengths, spec.batch_size, micro_rows)

    seconds = forward_seconds = operations = forward_operations = 0.0
    launches = tokens = 0
    with count_on(gpu) as count:
        model = _meta_model(recipe)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        embedding = sum(
            p.numel()
            for name, p in model.encoder.named_parameters()
            if p.requires_grad and "embeddings" in name
        )
        for batch in batches:
            model.zero_grad()
            count.restart()
            forward = _training_pass(recipe, model, batch, count)
            forward_seconds += forward[0]
            forward_operations += forward[1]
            seconds += count.seconds
            operations += count.operations
            launches += count.launches
            tokens += int(batch.sum())

    # The sample's rows are a little longer or shorter than all rows.
    sampled = sum(len(batch) for batch in batches)
    scale = float(lengths.sum(1).mean()) / (tokens / sampled)
    factor = 1 + bool(spec.awp)
    on_gpu = factor * scale * seconds / sampled
    on_host = factor * launches * LAUNCH_SECONDS / sampled
    seconds_per_row = max(on_gpu, on_host)
    operations_per_row = factor * scale * operations / sampled

    # An evaluation runs the forward pass once, R-Drop twice.
    passes = sampled * (2 if spec.r_drop else 1)
    evaluation_seconds = scale * forward_seconds / passes
    evaluation_operations = scale * forward_operations / passes

    # AdamW, clipping and unscaling read or write ten numbers of four bytes for a parameter.
    update = 40 * trained / gpu.bandwidth
    exchange = 0.0
    if gpus > 1:
        exposed = embedding + EXPOSED_SHARE * (trained - embedding)
        exchange = EXCHANGE_BYTES * exposed / gpu.link

    train_rows = rows * (folds - 1) / folds
    seen = spec.epochs * train_rows
    step_seconds = (update + exchange) / spec.batch_size
    training_hours = seen * (seconds_per_row / gpus + step_seconds) / 3600
    evaluations = spec.epochs * spec.evals_per_epoch
    evaluated = evaluations * rows / folds
    evaluation_hours = evaluated * evaluation_seconds / gpus / 3600
    all_operations = seen * operations_per_row + evaluated * evaluation_operations
    low, high = (
        all_operations / (gpus * share * gpu.peak) / 3600 for share in reversed(PEAK_SHARES)
    )
    return TimeEstimate(
        mean_tokens=float(lengths.mean()),
        operations_per_row=operations_per_row,
        seconds_per_row=seconds_per_row,
        training_hours=training_hours,
        evaluation_hours=evaluation_hours,
        flat_hours=(low, high),
    )


def model_lengths(rows: int, recipe: Recipe, seed: int = 0) -> np.ndarray:
    """Return lengths in tokens of rows like the competition's (N, 2), cut to the recipe's limit."""
    rng = np.random.default_rng(seed)
    prompt = np.exp(rng.normal(np.log(PROMPT_MEDIAN), PROMPT_SPREAD, rows))
    shared = rng.normal(0, SHARED_SPREAD, rows)
    answers = [
        np.exp(np.log(ANSWER_MEDIAN) + shared + rng.normal(0, ANSWER_SPREAD, rows))
        for _ in range(2)
    ]

    # Each sequence has CLS and one SEP after each of its segments, or a frame around them.
    if recipe.model.shape in ("cross", "judge"):
        around = FRAME_TOKENS[recipe.encode.frame] if recipe.model.shape == "judge" else 4
        whole = (prompt + answers[0] + answers[1]) / CHARACTERS_PER_TOKEN + around
        lengths = np.stack([whole, whole], 1)
    else:
        sides = [(prompt + answer) / CHARACTERS_PER_TOKEN + 3 for answer in answers]
        lengths = np.stack(sides, 1)
    return np.minimum(recipe.encode.max_tokens, lengths).astype(int)


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
    config = resolve_backbone(recipe.backbone).config
    spec = recipe.model

    # Poolings differ by far less than the estimate's error.
    if spec.pooling == "auto":
        spec = replace(spec, pooling="last" if spec.shape == "judge" else "mean")
    dtype = torch.float16 if keeps_adapters_only(recipe) else torch.float32
    with META:
        encoder = build_encoder(config, spec.fast_attention, dtype)
        if recipe.train.gradient_checkpointing:
            _enable_checkpointing(encoder)
        model = PairModel(encoder, config, spec)
        if recipe.train.lora_rank:
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


def _matrix_parameters(model: nn.Module) -> int:
    """Count the parameters of the layers' matrices."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if layer_index(name) is not None and parameter.ndim > 1
    )


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
) -> tuple[float, float]:
    """Run forward and backward over rows of these lengths.

    Args:
        most_parts: how many of the passes that `micro_tokens` makes are run, if not all: with rows
            of one length they are alike.

    Returns:
        Seconds and operations of the forward pass.
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
    seconds = operations = 0.0
    for part in batch.get("parts", [batch])[:most_parts]:
        inputs = _on_meta(part)
        labels = inputs.pop("labels")
        before = count.seconds, count.operations
        with autocast_to_float16():
            passes = [model(**inputs, augment=augment) for _ in range(2 if spec.r_drop else 1)]
        seconds += count.seconds - before[0]
        operations += count.operations - before[1]
        losses = [
            functional.cross_entropy(x.reshape(-1, 3).float(), _like(x, labels)) for x in passes
        ]
        total = sum(losses[1:], losses[0])
        del passes, losses
        _run_backward(total)
    return seconds, operations


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


def sessions_needed(hours_per_fold: float, folds: int = FOLDS) -> int:
    """Return the Kaggle sessions for this many folds, 0 if not even one fold fits."""
    at_once = math.floor(SESSION_HOURS / hours_per_fold)
    return math.ceil(folds / at_once) if at_once else 0
