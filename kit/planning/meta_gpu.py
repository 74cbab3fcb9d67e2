"""Count memory and time of tensors on torch's meta device as on a GPU. Use `count_on`.

Within its context code sees meta tensors "on cuda", autocast and attention follow CUDA's rules, the
bytes of all live tensors are added up, and each operator gets a time. Nothing is computed.
"""

import contextlib
import warnings
import weakref
from collections.abc import Generator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kit.attention import deberta
from kit.costs.devices import DeviceModel

# Seconds of the shortest kernel.
KERNEL_SECONDS = 4e-6

_CUDA = torch.device("cuda", 0)
META = torch.device("meta")

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


class Counter(TorchDispatchMode):
    """Add up the bytes of live tensors, and each operator's operations and time."""

    def __init__(self, gpu: DeviceModel):
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

    def __init__(self, counter: Counter):
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
    return META if is_cuda else value


@contextlib.contextmanager
def count_on(gpu: DeviceModel) -> Generator[Counter]:
    """Within this context the meta device is a GPU whose memory and time are counted."""
    table_rows = deberta.table_rows

    # Its numbers decide shapes, so they are computed on the CPU. The cache of the function itself
    # must not keep a meta tensor for a GPU's.
    def table_rows_on_meta(*arguments: Any) -> tuple[int, int, Tensor]:
        with torch._C.DisableTorchFunction():
            start, stop, rows = table_rows(*arguments[:-1], torch.device("cpu"))
            return start, stop, rows.to(META)

    counter = Counter(gpu)
    with warnings.catch_warnings(), mock.patch.object(deberta, "table_rows", table_rows_on_meta):
        # torch warns that a checkpoint's autocast has no GPU.
        warnings.simplefilter("ignore")
        with counter, _MetaGPU(counter):
            yield counter


# Weights in float16, until the outermost autocast ends, as in CUDA's autocast.
_cast_weights: dict[int, tuple[Tensor, Tensor]] = {}


@contextlib.contextmanager
def autocast_to_float16() -> Generator[None]:
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
    counter: Counter,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *_: Any,
    is_causal: bool = False,
    **__: Any,
) -> Tensor:
    """Count torch's memory-efficient kernel, the only fused one that a T4 has."""
    if attn_mask is not None and attn_mask.ndim == 2:
        attn_mask = attn_mask[None, None]
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (x.to(torch.float16) for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(torch.float16)
    return _EfficientAttention.apply(query, key, value, attn_mask, is_causal, counter)


class _EfficientAttention(torch.autograd.Function):
    """Allocate what the memory-efficient kernel allocates; nothing is computed on `meta`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        counter: Counter,
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

        # The kernel skips the blocks above the diagonal.
        ctx.seen = 0.5 if is_causal else 1.0
        operations = 4 * ctx.seen * size * heads * length * k.shape[2] * width
        moved = 4 * q.numel() * q.element_size()
        moved += mask.numel() * mask.element_size() if mask is not None else 0
        counter.add(operations, counter.gpu.attention_forward, moved, launches=2)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k, v, and of a bias that has one."""
        q, k, v, mask, _, denominators = ctx.saved_tensors
        kept = [torch.empty_like(denominators), torch.empty(q.shape, device=META)]
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        bias_gradient = None
        if ctx.has_bias_gradient:
            columns = mask.shape[-1]
            bias_gradient = mask.new_empty(*mask.shape[:-1], -(-columns // 16) * 16)[..., :columns]
        del kept

        size, heads, length, width = q.shape
        operations = 10 * ctx.seen * size * heads * length * k.shape[2] * width
        moved = 8 * q.numel() * q.element_size()
        moved += 4 * mask.numel() if ctx.has_bias_gradient else 0
        ctx.counter.add(operations, ctx.counter.gpu.attention_backward, moved, launches=3)
        return dq, dk, dv, bias_gradient, None, None
