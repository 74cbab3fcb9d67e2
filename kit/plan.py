"""Estimate a training's memory and time on GPUs. Use `estimate_memory` and `estimate_hours`.

A pass of the recipe's full-size model runs on torch's meta device, where tensors have shapes but no
numbers. While it runs, code sees tensors "on cuda", autocast and attention follow CUDA's rules, the
bytes of all live tensors are added up, and each operator gets a time. No weights are needed, and no
GPU: a count takes seconds.

Bytes and floating-point operations are counted. Hours are estimates: they rest on the sustained
rates below, and may be wrong by 40%.
"""

import contextlib
import math
import warnings
import weakref
from collections.abc import Generator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kit.attention import deberta
from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.features import PAIR_FEATURES
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.model.backbones import resolve_backbone
from kit.model.encoder import build_encoder
from kit.model.inference import make_collator
from kit.model.memory import BATCH_TOKENS
from kit.model.pair_model import PairModel
from kit.recipe.spec import Recipe
from kit.training.arguments import rows_per_pass
from kit.training.lora import add_adapters
from kit.training.optim import layer_index
from kit.training.sampler import LengthBuckets

GIB = 2**30


@dataclass(frozen=True)
class GPUModel:
    """What a kind of GPU sustains; rates are per second.

    Attributes:
        memory: GiB that CUDA reports.
        matmul: operations of a float16 matrix product.
        batched_matmul: the same for batches of small products.
        matmul_float32: operations of a float32 product.
        attention_forward, attention_backward: operations of the fused attention kernels.
        bandwidth: bytes to and from memory.
        link: bytes of an all-reduce between two of them.
        peak: operations that the data sheet promises in float16.
    """

    name: str
    memory: float
    matmul: float
    batched_matmul: float
    matmul_float32: float
    attention_forward: float
    attention_backward: float
    bandwidth: float
    link: float
    peak: float


# Memory as reported on Kaggle, peak as on the data sheet (65 TFLOPS, 320 GB/s, 8.1 TFLOPS in
# float32). The sustained rates are guesses: 70 W limit a T4's clock, so a third of the peak is what
# public measurements of large float16 products reach. Its cards exchange data through the host.
T4 = GPUModel(
    name="T4",
    memory=14.74,
    matmul=22e12,
    batched_matmul=15e12,
    matmul_float32=4.5e12,
    attention_forward=12e12,
    attention_backward=9e12,
    bandwidth=240e9,
    link=5e9,
    peak=65e12,
)

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

# Seconds of the shortest kernel, and of the host to launch one from Python.
KERNEL_SECONDS = 4e-6
LAUNCH_SECONDS = 15e-6

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

# Batches whose time is counted, from short to long.
SAMPLED_BATCHES = 4

_CUDA = torch.device("cuda", 0)
_META = torch.device("meta")

# CUDA's allocator hands out blocks of this many bytes.
_BLOCK = 512

# Operators under CUDA's autocast, by name in torch's Python interface.
_LOWER_PRECISION = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm", "einsum",
}  # fmt: skip
_FULL_PRECISION = {
    "layer_norm", "softmax", "log_softmax", "sum", "exp", "log", "pow", "__pow__", "rsqrt", "norm",
    "cumsum", "cross_entropy", "softplus",
}  # fmt: skip
_WIDEST = {"cat", "stack", "addcmul", "addcdiv"}

# Operators that launch no kernel.
_VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze",
    "squeeze", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "unflatten",
    "_reshape_alias", "lift_fresh", "diagonal", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided",
}  # fmt: skip


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
    with _counting(gpu) as count:
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
        _training_pass(recipe, model, full_lengths, count)
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
    with _counting(gpu) as count:
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

    # Each sequence has CLS and one SEP after each of its segments.
    if recipe.model.shape == "cross":
        whole = (prompt + answers[0] + answers[1]) / CHARACTERS_PER_TOKEN + 4
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
        spec = replace(spec, pooling="mean")
    with _META:
        encoder = build_encoder(config, spec.fast_attention)
        if recipe.train.gradient_checkpointing:
            _enable_checkpointing(encoder)
        model = PairModel(encoder, config, spec)
        if recipe.train.lora_rank:
            add_adapters(model.encoder, recipe.train)
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
        "context_fn": lambda: (contextlib.nullcontext(), _autocast()),
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
    recipe: Recipe, model: PairModel, lengths: np.ndarray, count: "_Counter"
) -> tuple[float, float]:
    """Run forward and backward over rows of these lengths.

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
    for part in batch.get("parts", [batch]):
        inputs = _on_meta(part)
        labels = inputs.pop("labels")
        before = count.seconds, count.operations
        with _autocast():
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
    """Compute gradients with `_MetaGPU` in force.

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
    with torch.no_grad(), _autocast():
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
    return tree_map(lambda x: x.to(_META) if isinstance(x, Tensor) else x, values)


# The count itself


class _Counter(TorchDispatchMode):
    """Add up the bytes of live tensors, and each operator's operations and time."""

    def __init__(self, gpu: GPUModel):
        super().__init__()
        self.gpu = gpu
        self.allocated = 0
        self._sizes: dict[int, int] = {}
        self.restart()

    def restart(self) -> None:
        """Start times again from zero, and the peak from the tensors that are there now."""
        self.peak = self.allocated
        self.seconds = 0.0
        self.operations = 0.0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.is_meta]
        for tensor in outputs:
            self._allocate(tensor)
        name = func._schema.name.removeprefix("aten::")
        if outputs and name not in _VIEWS:
            inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self._time(name, inputs, outputs)
        return out

    def _allocate(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._sizes[key] = size
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.allocated -= self._sizes.pop(key, 0)

    def _time(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        moved = sum(x.numel() * x.element_size() for x in [*inputs, *outputs])
        operations = 0
        rate = 1.0
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = inputs[-2:]
            operations = 2 * left.numel() * right.shape[-1]
            batched = self.gpu.matmul if left.ndim == 2 else self.gpu.batched_matmul
            rate = self.gpu.matmul_float32 if left.dtype == torch.float32 else batched
        self.add(operations, rate, moved)

    def add(self, operations: float, rate: float, moved: float, launches: int = 1) -> None:
        """Count a kernel that is bound by arithmetic, by memory, or by its start."""
        self.operations += operations
        self.seconds += max(operations / rate, moved / self.gpu.bandwidth, KERNEL_SECONDS)
        self.launches += launches


class _MetaGPU(TorchFunctionMode):
    """Let meta tensors say that they are on a GPU, under its autocast and attention."""

    def __init__(self, counter: _Counter):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        is_meta = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        if is_meta and getattr(func, "__self__", None) is Tensor.device:
            return _CUDA

        # Whether a mask is all ones is asked once a pass; with padding it is not.
        if is_meta and name == "__bool__":
            return False
        args = tuple(map(_meta_device, args))
        kwargs = {key: _meta_device(value) for key, value in kwargs.items()}
        if name == "scaled_dot_product_attention":
            return _fused_attention(self.counter, *args, **kwargs)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _cast(name, args, kwargs)
        return func(*args, **kwargs)


def _meta_device(value: Any) -> Any:
    is_cuda = isinstance(value, torch.device | str) and str(value).startswith("cuda")
    return _META if is_cuda else value


@contextlib.contextmanager
def _counting(gpu: GPUModel) -> Generator[_Counter]:
    """Within this context the meta device is a GPU whose memory and time are counted."""
    table_rows = deberta.table_rows

    # Its numbers decide shapes, so they are computed on the CPU. The cache of the function itself
    # must not keep a meta tensor for a GPU's.
    def table_rows_on_meta(*arguments: Any) -> tuple[int, int, Tensor]:
        with torch._C.DisableTorchFunction():
            start, stop, rows = table_rows(*arguments[:-1], torch.device("cpu"))
            return start, stop, rows.to(_META)

    counter = _Counter(gpu)
    with warnings.catch_warnings(), mock.patch.object(deberta, "table_rows", table_rows_on_meta):
        # torch warns that a checkpoint's autocast has no GPU.
        warnings.simplefilter("ignore")
        with counter, _MetaGPU(counter):
            yield counter


# Weights in float16, until the outermost autocast ends, as in CUDA's autocast.
_cast_weights: dict[int, tuple[Tensor, Tensor]] = {}


@contextlib.contextmanager
def _autocast() -> Generator[None]:
    """Enable autocast to float16 as on a GPU; `torch.autocast` refuses it where there is none."""
    before = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before)
        torch.set_autocast_dtype("cuda", dtype)
        _cast_weights.clear()


def _cast(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments as CUDA's autocast hands them on."""
    if name in _LOWER_PRECISION:
        dtype = torch.float16
    elif name in _FULL_PRECISION and kwargs.get("dtype") is None:
        dtype = torch.float32
    elif name in _WIDEST:
        floats = {x.dtype for x in tree_leaves(args) if _is_float(x)}
        if len(floats) < 2:
            return args, kwargs
        dtype = torch.float32
    else:
        return args, kwargs

    def cast(x: Any) -> Any:
        if not _is_float(x) or x.dtype == dtype:
            return x
        if not (dtype == torch.float16 and x.requires_grad and x.is_leaf):
            return x.to(dtype)
        if id(x) not in _cast_weights:
            _cast_weights[id(x)] = (x, x.to(dtype))
        return _cast_weights[id(x)][1]

    return tree_map(cast, (args, kwargs))


def _is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta and x.is_floating_point()


def _fused_attention(
    counter: _Counter,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Tensor:
    """Count torch's memory-efficient kernel, the only fused one that a T4 has."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.float16) for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(torch.float16)
    return _EfficientAttention.apply(query, key, value, attn_mask, counter)


class _EfficientAttention(torch.autograd.Function):
    """Allocate what the memory-efficient kernel allocates; nothing is computed on `meta`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, counter: _Counter
    ) -> Tensor:
        """Return mixed values, and keep what the backward pass reads."""
        out = torch.empty_like(q.transpose(1, 2)).transpose(1, 2)

        # The logarithms of the softmax's denominators, in rows of a multiple of 32.
        size, heads, length, width = q.shape
        denominators = q.new_empty(size, heads, -(-length // 32) * 32, dtype=torch.float32)
        ctx.has_bias_gradient = mask is not None and mask.requires_grad

        # A mask of booleans becomes numbers in rows of a multiple of 8.
        if mask is not None and mask.dtype == torch.bool:
            mask = q.new_empty(mask.shape[0], 1, mask.shape[-2], -(-mask.shape[-1] // 8) * 8)
        ctx.save_for_backward(q, k, v, mask, out, denominators)
        ctx.counter = counter

        operations = 4 * size * heads * length * k.shape[2] * width
        moved = 4 * q.numel() * q.element_size()
        moved += mask.numel() * mask.element_size() if mask is not None else 0
        counter.add(operations, counter.gpu.attention_forward, moved, launches=2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v, and of a bias that has one."""
        q, k, v, mask, _, denominators = ctx.saved_tensors
        kept = [torch.empty_like(denominators), torch.empty(q.shape, device=_META)]
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        bias_gradient = None
        if ctx.has_bias_gradient:
            columns = mask.shape[-1]
            bias_gradient = mask.new_empty(*mask.shape[:-1], -(-columns // 16) * 16)[..., :columns]
        del kept

        size, heads, length, width = q.shape
        operations = 10 * size * heads * length * k.shape[2] * width
        moved = 8 * q.numel() * q.element_size()
        moved += 4 * mask.numel() if ctx.has_bias_gradient else 0
        ctx.counter.add(operations, ctx.counter.gpu.attention_backward, moved, launches=3)
        return dq, dk, dv, bias_gradient, None


def sessions_needed(hours_per_fold: float, folds: int = FOLDS) -> int:
    """Return the Kaggle sessions for this many folds, 0 if not even one fold fits."""
    at_once = math.floor(SESSION_HOURS / hours_per_fold)
    return math.ceil(folds / at_once) if at_once else 0
