"""Run code on a pretended CUDA GPU: tensors that say they are on `cuda:0`, computed by the CPU.

Use `pretend_cuda`:

    with pretend_cuda() as gpu:  # a Tesla T4, capability 7.5
        model.to("cuda")
        loss = model(**batch)  # raises, as CUDA would, where a CPU tensor meets a CUDA tensor
        loss.backward()
    gpu.waits  # what would have made the host wait for the GPU, and where

It finds code that mixes devices, forgets to move a tensor, gives `numpy` a tensor of the GPU, pins
what is not on the host, uses a kernel that a T4 does not have, makes the host wait, or keeps memory
that it should free.

How it works. `Cuda` is a tensor subclass that is a CPU tensor to C++ (so autograd, views, in-place
operators, saved tensors and checkpoints work as usual) and says `cuda:0` to Python. A dispatch mode
sees every operator:

- Factories and copies that name a CUDA device give `Cuda` tensors, those that name the CPU plain
  ones.
- An operator that gets both kinds raises torch's own message, with CUDA's exceptions to the rule:
  CPU numbers without a dimension, copies, and CPU indices of a CUDA tensor.
- What needs an answer of the GPU (`.item()`, `.cpu()`, `nonzero`, a copy from memory that is not
  pinned, …) is counted with the caller's line.
- With a memory limit, an operator whose result exceeds it raises `torch.OutOfMemoryError`.

C++ chooses autocast by the device that it sees, so `autocast("cuda")` is carried out here, by
CUDA's lists and with its cache of weights. `scaled_dot_product_attention` computes in float32 and
rounds, as the fused kernels do, gives 0 to rows that see nothing, as torch does from 2.5 on, and
records the kernel that this GPU would have used.

It has no NCCL, DistributedDataParallel, streams, torch.compile, speed or rounding of a GPU. Caches
that outlive the context and are keyed by device (`functools.lru_cache`) must be cleared by the
caller.
"""

import contextlib
import sys
import traceback
import weakref
from collections import Counter
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

DEVICE = torch.device("cuda", 0)
HOST = torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)

# CUDA's allocator gives memory in blocks of this many bytes.
BLOCK = 512

aten = torch.ops.aten


class PretendedGPU:
    """What the GPU has observed.

    Attributes:
        waits: (kind, place in the code) -> how often the host would have waited.
        kernels: (attention kernel, reasons against faster ones) -> how often.
        allocated: bytes of its live tensors, where memory is tracked.
        peak: the largest number of bytes so far.
        failures: how often memory ran out.
        limit: bytes at which memory runs out; None tracks no memory.
    """

    def __init__(self, capability: tuple[int, int], limit: int | None):
        self.capability = capability
        self.limit = limit
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[tuple[str, str]] = Counter()
        self.allocated = 0
        self.peak = 0
        self.failures = 0
        self.first_failures = 0
        self._sizes: dict[int, int] = {}

    def wait(self, kind: str) -> None:
        """Record that the host would have waited."""
        self.waits[kind, _caller()] += 1

    def allocate(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._sizes[key] = size
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.allocated -= self._sizes.pop(key, 0)


# The GPU of the innermost `pretend_cuda`.
_gpu: PretendedGPU | None = None

# Whether the Python call in progress names the CPU. In C++ every device is the CPU, so an
# operator's own arguments do not tell.
_names_cpu = False


def _caller() -> str:
    """Return the innermost line outside of torch and this file, and the innermost line of kit."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename != __file__ and "/torch/" not in frame.filename
    ]
    innermost = frames[-1:]
    in_kit = [frame for frame in frames if "/kit/" in frame.filename][-1:]
    chosen = innermost if innermost == in_kit else innermost + in_kit
    return " < ".join(
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}"
        for frame in chosen
    )


class Cuda(Tensor):
    """A CPU tensor that says it is on a GPU."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __reduce_ex__(self, protocol: int) -> Any:
        """Serialise a plain tensor: what is loaded from a file is on the host."""
        return to_plain(self.detach()).__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"Cuda({to_plain(self)!r}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("numpy", "__array__"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if name in ("pin_memory", "share_memory_"):
            raise RuntimeError(
                f"cannot {name} 'torch.cuda.Tensor'; only dense CPU tensors can be pinned"
            )
        if name == "get_device":
            return DEVICE.index
        if name == "cuda":
            return args[0]
        if name == "type" and len(args) + len(kwargs) == 1:
            return "torch.cuda.Tensor"
        if name == "scaled_dot_product_attention":
            return attention(*args, **kwargs)

        if name in ("cpu", "to") and isinstance(args[0], Cuda):
            with torch._C.DisableTorchFunctionSubclass(), _naming_devices(name, args, kwargs):
                if _names_cpu:
                    values = (*args[1:], *kwargs.values())
                    dtype = next((x for x in values if isinstance(x, torch.dtype)), None)
                    return aten._to_copy.default(args[0], dtype=dtype, device=HOST)
            args, kwargs = _without_device(args, kwargs)
        if name in ("__getitem__", "__setitem__"):
            index = args[1]
            index = tuple(map(_on_device, index)) if isinstance(index, tuple) else _on_device(index)
            args = (args[0], index, *args[2:])
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(name, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass(), _naming_devices(name, args, kwargs):
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run_operator(func, args, kwargs or {})


def to_plain(x: Any) -> Any:
    """Return the CPU tensor that a `Cuda` is, of the same memory; everything else as it is."""
    if not isinstance(x, Cuda):
        return x
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
        return Tensor._make_subclass(Tensor, x, False)


def to_cuda(x: Tensor) -> Cuda:
    """Return the same memory as a `Cuda`."""
    return Tensor._make_subclass(Cuda, x, False)


@contextlib.contextmanager
def _naming_devices(name: str, args: Any, kwargs: Any) -> Generator[None]:
    """Set `_names_cpu` for a call."""
    global _names_cpu
    before = _names_cpu
    values = [*args, *kwargs.values()]
    models = args[1:] if name in ("to", "type_as") else ()
    _names_cpu = (
        name == "cpu"
        or any(isinstance(x, torch.device | str) and str(x) == "cpu" for x in values)
        or any(isinstance(x, Tensor) and not isinstance(x, Cuda) for x in models)
    )
    try:
        yield
    finally:
        _names_cpu = before


def _is_cuda_name(x: Any) -> bool:
    return isinstance(x, torch.device | str) and str(x).startswith("cuda")


def _without_device(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Leave the device out of `to(cuda)`: C++, which sees a CPU tensor, would make a copy."""
    rest = [None if _is_cuda_name(x) else x for x in args[1:]]
    rest = rest[1:] if rest and rest[0] is None else rest
    rest = [x.dtype if isinstance(x, Cuda) else x for x in rest]
    kept = {k: v for k, v in kwargs.items() if not (k == "device" and _is_cuda_name(v))}
    return (args[0], *rest), kept if rest or kept else {"dtype": args[0].dtype}


def _on_device(index: Any) -> Any:
    """Return an index on the device. Python's binding moves a list before C++ sees a tensor."""
    if not isinstance(index, list | Tensor) or isinstance(index, Cuda):
        return index
    index = torch.as_tensor(index)
    if not index.dim():
        return index
    if _gpu is not None:
        _gpu.wait("index from the host")
    return to_cuda(index)


# Operators

COPIES = {aten.copy_.default, aten._to_copy.default, aten._copy_from.default, aten.copy.default}

# Their indices may come from the CPU.
INDEXED = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}

# They refuse even CPU numbers without a dimension.
STRICT = {
    "_fused_adamw_",
    "_fused_adam_",
    "_amp_foreach_non_finite_check_and_unscale_",
    "_amp_update_scale_",
}

# Their result, or its size, is known only when the GPU has computed it.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "unique_dim",
    "equal",
    "is_nonzero",
    "repeat_interleave",
    "bincount",
    "argwhere",
}


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run_operator(func: Any, args: tuple, kwargs: dict) -> Any:
    """Check an operator, record it, let the CPU compute it, and wrap its results."""
    flat, spec = tree_flatten((args, kwargs))
    gpu = [x for x in flat if isinstance(x, Cuda)]
    cpu = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Cuda)]
    device = kwargs.get("device")
    if not gpu and not _is_cuda(device):
        return func(*args, **kwargs)

    # The formula of a gradient names the CPU, where it means the device of its operands.
    name = func._schema.name.removeprefix("aten::")
    if gpu and device is not None and device.type == "cpu" and not _names_cpu:
        device = DEVICE
    if gpu and kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    _refuse_mixed(func, name, args, gpu, cpu)
    _record_waits(func, name, args, kwargs | {"device": device}, gpu)

    # Compute on the host. An operand that is also a result stays the same object.
    if _is_cuda(device):
        flat = [HOST if isinstance(x, torch.device) else x for x in flat]
    bare = [to_plain(x) for x in flat]
    wrappers = {id(b): x for x, b in zip(flat, bare, strict=True) if isinstance(x, Cuda)}
    new_args, new_kwargs = tree_unflatten(bare, spec)
    if new_kwargs.get("generator") is not None:
        new_kwargs["generator"] = None
    out = func(*new_args, **new_kwargs)
    if name == "copy_":
        return args[0]

    is_on_gpu = bool(gpu) if device is None else _is_cuda(device)
    if is_on_gpu and _gpu is not None and _gpu.limit is not None:
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                _gpu.allocate(tensor)
        tensor = None
        if _gpu.allocated > _gpu.limit:
            # On a GPU the result would not exist; the traceback must not keep it.
            del out
            _gpu.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more")

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return wrappers.get(id(x), to_cuda(x) if is_on_gpu else x)

    return tree_map(wrapped, out)


def _refuse_mixed(func: Any, name: str, args: tuple, gpu: list, cpu: list) -> None:
    if not gpu or not cpu or func in COPIES:
        return
    wrong = [x for x in cpu if x.dim() or name in STRICT]
    if func in INDEXED and isinstance(args[0], Cuda):
        values = args[2:3]
        wrong = [x for x in values if isinstance(x, Tensor) and not isinstance(x, Cuda) and x.dim()]
    if wrong or (func in INDEXED and not isinstance(args[0], Cuda)):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! (when checking arguments of {name}; CPU tensors of shape "
            f"{[tuple(x.shape) for x in wrong]})"
        )


def _record_waits(func: Any, name: str, args: tuple, kwargs: dict, gpu: list) -> None:
    if _gpu is None:
        return
    if name in WAITING and gpu:
        _gpu.wait(name)
    elif func in INDEXED:
        indices = [x for x in args[1] if isinstance(x, Tensor)]
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            _gpu.wait("index by a mask (nonzero)")
        if any(not isinstance(x, Cuda) for x in indices):
            _gpu.wait("index from the host")
    elif name in ("_to_copy", "copy_"):
        if name == "copy_":
            source = args[1]
            to_gpu = isinstance(args[0], Cuda)
            non_blocking = args[2] if len(args) > 2 else False
        else:
            source = args[0]
            device = kwargs["device"]
            to_gpu = isinstance(source, Cuda) if device is None else _is_cuda(device)
            non_blocking = kwargs.get("non_blocking", False)
        from_gpu = isinstance(source, Cuda)
        pinned = getattr(source, "_is_pinned", False)
        if from_gpu and not to_gpu:
            _gpu.wait("copy to the host")
        elif to_gpu and not from_gpu and not (non_blocking and pinned):
            memory = "pinned" if pinned else "pageable"
            _gpu.wait(f"copy from the host, {memory}, non_blocking={non_blocking}")


# Autocast, by the lists of CUDA's autocast

LOWER_PRECISION = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm",
    "baddbmm", "addr", "conv1d", "conv2d", "conv3d", "einsum", "prelu", "chain_matmul", "multi_dot",
}  # fmt: skip
FULL_PRECISION = {
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal",
    "rsqrt", "sinh", "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm",
    "native_layer_norm", "group_norm", "nuclear_norm", "cosine_similarity", "nll_loss", "kl_div",
    "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "cdist", "renorm", "logsumexp",
    "binary_cross_entropy_with_logits", "dist", "pdist", "norm", "rms_norm", "cross_entropy",
}  # fmt: skip
FULL_PRECISION_WITHOUT_DTYPE = {"prod", "softmax", "log_softmax", "cumprod", "cumsum", "sum"}
WIDEST = {
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sample", "index_put",
    "tensordot", "scatter_add", "cat", "stack",
}  # fmt: skip

# Weights in half precision, until the outermost autocast ends.
_cast_weights: dict[int, tuple[Tensor, Tensor]] = {}
_clear_torch_cache = torch.clear_autocast_cache


def _clear_cast_weights() -> None:
    _cast_weights.clear()
    _clear_torch_cache()


def _autocast(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments as CUDA's autocast hands them on."""
    half = torch.get_autocast_dtype("cuda")
    if name in LOWER_PRECISION:
        dtype = half
    elif name in FULL_PRECISION or (
        name in FULL_PRECISION_WITHOUT_DTYPE and kwargs.get("dtype") is None
    ):
        dtype = torch.float32
    elif name in WIDEST:
        leaves = tree_leaves((args, kwargs))
        floats = {x.dtype for x in leaves if isinstance(x, Cuda) and x.is_floating_point()}
        if len(floats) < 2:
            return args, kwargs
        dtype = torch.float32 if torch.float32 in floats else half
    else:
        return args, kwargs

    def cast(x: Any) -> Any:
        if not isinstance(x, Cuda) or not x.is_floating_point():
            return x
        if x.dtype in (torch.float64, dtype):
            return x
        with torch._C.DisableTorchFunctionSubclass():
            is_weight = x.dtype == torch.float32 and x.requires_grad and x.is_leaf
            if not (is_weight and dtype == half and torch.is_autocast_cache_enabled()):
                return x.to(dtype)
            if id(x) not in _cast_weights:
                _cast_weights[id(x)] = (x, x.to(dtype))
            return _cast_weights[id(x)][1]

    return tree_map(cast, (args, kwargs))


# Attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute `scaled_dot_product_attention`, in float32 inside, rounded to the queries' type."""
    if torch.is_autocast_enabled("cuda"):
        half = torch.get_autocast_dtype("cuda")
        query, key, value = (x.to(half) for x in (query, key, value))
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.to(half)
    if any(x is not None and not isinstance(x, Cuda) for x in (query, key, value, attn_mask)):
        raise RuntimeError(
            "Expected query, key, value and attn_mask to be on the same device; found cuda:0 and "
            "cpu"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError(f"Expected query, key, and value to have the dtype {query.dtype}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, query.dtype):
        raise RuntimeError(
            f"Expected attn_mask dtype to be bool or {query.dtype}, but got {attn_mask.dtype}"
        )
    if _gpu is not None:
        _gpu.kernels[attention_kernel(query, key, value, attn_mask, _gpu.capability)] += 1

    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return _FusedAttention.apply(query, key, value, attn_mask, dropout_p, is_causal, scale)


class _FusedAttention(torch.autograd.Function):
    """Keep what a fused kernel keeps, not the scores: the backward pass computes them again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        dropout: float,
        is_causal: bool,
        scale: float,
    ) -> Tensor:
        ctx.options = (dropout, is_causal, scale)
        ctx.random_state = torch.get_rng_state()
        out = _attend(query, key, value, mask, *ctx.options)
        ctx.save_for_backward(query, key, value, mask, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, mask, _ = ctx.saved_tensors
        inputs = [x.detach().requires_grad_() for x in saved]
        if mask is not None and mask.requires_grad:
            mask = mask.detach().requires_grad_()
        random_state = torch.get_rng_state()
        torch.set_rng_state(ctx.random_state)
        with torch.enable_grad():
            out = _attend(*inputs, mask, *ctx.options)
        torch.set_rng_state(random_state)

        has_bias_gradient = mask is not None and mask.requires_grad
        wanted = [*inputs, mask] if has_bias_gradient else inputs
        gradients = torch.autograd.grad(out, wanted, grad)
        padding = [None] * (7 - len(gradients))
        return *gradients, *padding


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    is_causal: bool,
    scale: float,
) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        scores = (query.float() @ key.float().mT) * scale
        if is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask.float()
        # A row that sees nothing gives 0, and passes no gradient on.
        sees_nothing = (scores == -torch.inf).all(-1, keepdim=True)
        scores = scores.masked_fill(sees_nothing, 0.0)
        weights = scores.softmax(-1).masked_fill(sees_nothing, 0.0)
        if dropout:
            weights = nn.functional.dropout(weights, dropout, True)
        mixed = (weights @ value.float()).to(query.dtype)

    # The kernels return (B, T, H, D), seen from the other side.
    return mixed.transpose(1, 2).contiguous().transpose(1, 2)


def attention_kernel(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, capability: tuple[int, int]
) -> tuple[str, str]:
    """Return the kernel that torch uses and the reasons against faster ones (sdp_utils.cpp)."""
    is_half = q.dtype in HALF
    is_modern = capability >= (8, 0)
    multiple = 8 if is_half else 4
    if is_modern and mask is None and is_half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256:
        return "flash", ""

    reasons = [f"flash: {'a mask' if mask is not None else 'capability below 8.0 or type'}"]
    against_efficient = {
        f"type {q.dtype}": q.dtype == torch.bfloat16 and not is_modern,
        f"head size {q.shape[-1]} is not a multiple of {multiple}": q.shape[-1] % multiple
        or v.shape[-1] % multiple,
        "the last stride of q, k or v is not 1": any(x.stride(-1) != 1 for x in (q, k, v)),
        "the last stride of the mask is not 1": mask is not None and mask.stride(-1) != 1,
        "not four dimensions": q.dim() != 4,
    }
    found = [text for text, holds in against_efficient.items() if holds]
    if found:
        return "math", "; ".join([*reasons, *found])
    if mask is not None and mask.dtype != torch.bool and any(s % 8 for s in mask.stride()[:-1]):
        reasons.append("the mask is copied: its rows are not aligned to 8")
    return "memory-efficient", "; ".join(reasons)


# The machine


class _NumberedDevice(TorchFunctionMode):
    """Read "cuda" as "cuda:0"; C++ would ask a driver that does not exist which one it means."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is torch.device:
            return func(*args, **kwargs)

        def numbered(x: Any) -> Any:
            return DEVICE if isinstance(x, torch.device | str) and str(x) == "cuda" else x

        args = tuple(map(numbered, args))
        kwargs = {key: numbered(value) for key, value in kwargs.items()}
        if name == "cuda" and not isinstance(args[0], Cuda):
            return args[0].to(DEVICE)
        if name in ("tensor", "as_tensor", "asarray") and str(kwargs.get("device")) == str(DEVICE):
            return func(*args, **kwargs | {"device": None}).to(DEVICE)
        is_model_cuda = any(isinstance(x, Cuda) for x in args[1:])
        if name in ("to", "type_as") and is_model_cuda and not isinstance(args[0], Cuda):
            return args[0].to(DEVICE, args[1].dtype)
        return func(*args, **kwargs)


class _OperatorMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # In inference mode `to` arrives as one operator, not as the copy that it consists of.
        if func.namespace == "aten" and func._schema.name == "aten::to":
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return _run_operator(func, args, kwargs or {})


def _backward(self: Tensor, gradient: Any = None, *rest: Any, **kwargs: Any) -> None:
    torch.autograd.backward((self,), gradient, *rest, **kwargs)


def _move_module(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Do as nn.Module.to: a parameter that is already on its device stays the same object."""
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

    def moved(x: Tensor) -> Tensor:
        kind = dtype if dtype is not None and x.is_floating_point() else x.dtype
        if (device is None or device.type == x.device.type) and kind == x.dtype:
            return x
        return x.detach().to(device=device or x.device, dtype=kind, non_blocking=non_blocking)

    for inner in module.modules():
        for name, old in inner._parameters.items():
            new = old if old is None else moved(old)
            if new is not old:
                inner._parameters[name] = _parameter(new, old.requires_grad)
        for name, old in inner._buffers.items():
            inner._buffers[name] = old if old is None else moved(old)
    return module


def _parameter(data: Tensor, requires_grad: bool) -> Tensor:
    """Return a parameter, on either device."""
    if not isinstance(data, Cuda):
        return nn.Parameter(data, requires_grad)
    parameter = data.detach().requires_grad_(requires_grad)

    # By this torch knows a parameter of another class.
    parameter._is_param = True
    return parameter


def _pin_memory(self: Tensor, _device: Any = None) -> Tensor:
    if isinstance(self, Cuda):
        raise RuntimeError("cannot pin 'torch.cuda.Tensor' only dense CPU tensors can be pinned")
    copy = self.clone()
    copy._is_pinned = True
    return copy


def _group_tensors(lists: Any, indices: bool = False) -> Any:
    """Name the device of the groups that C++ makes of an optimizer's or a norm's tensors."""
    groups = torch._C._group_tensors_by_device_and_dtype(lists, indices)
    if isinstance(next((x for x in lists[0] if x is not None), None), Cuda):
        return {(DEVICE, dtype): group for (_, dtype), group in groups.items()}
    return groups


class _DeviceContext:
    """Stand in for `torch.cuda.device`."""

    def __init__(self, device: Any = None):
        self.idx = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def _answers(name: str, capability: tuple[int, int], memory: int) -> dict[str, Any]:
    """Return what takes the place of torch.cuda's functions, by name."""
    major, minor = capability
    properties = SimpleNamespace(
        name=name, major=major, minor=minor, total_memory=memory, multi_processor_count=40
    )
    constants = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "is_initialized": True,
        "init": None,
        "_lazy_init": None,
        "get_device_name": name,
        "get_device_capability": capability,
        "set_device": None,
        "get_device_properties": properties,
        "get_arch_list": ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"],
        "is_bf16_supported": True,
        "empty_cache": None,
        "mem_get_info": (memory, memory),
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        "reset_peak_memory_stats": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "seed_all": None,
        "is_current_stream_capturing": False,
        "_is_in_bad_fork": False,
    }
    answers: dict[str, Any] = {
        key: lambda *_, value=value, **__: value for key, value in constants.items()
    }
    return answers | {
        "device": _DeviceContext,
        "memory_allocated": lambda *_: _gpu.allocated,
        "synchronize": lambda *_: _gpu.wait("synchronize"),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "set_rng_state_all": lambda states: torch.set_rng_state(states[0]),
    }


def _forget_machine() -> None:
    """Clear what transformers and accelerate have found out about this machine."""
    names = (
        "transformers.utils.import_utils",
        "accelerate.utils.imports",
        "accelerate.utils.other",
    )
    for module in filter(None, map(sys.modules.get, names)):
        for value in list(vars(module).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@contextlib.contextmanager
def pretend_cuda(
    name: str = "Tesla T4",
    capability: tuple[int, int] = (7, 5),
    memory: int = 15_828_320_256,
    limit: int | None = None,
) -> Generator[PretendedGPU]:
    """Within this context the machine has one GPU. Nothing of it is left afterwards but tensors.

    Args:
        memory: bytes that the GPU says it has.
        limit: bytes of tensors at which memory runs out; None tracks no memory, which is faster.
    """
    global _gpu
    outer = _gpu
    _gpu = PretendedGPU(capability, limit)
    stream = SimpleNamespace(is_capturing=lambda: False)
    replacements: list[tuple[Any, str, Any]] = [
        (torch.version, "cuda", "12.8"),
        (torch.accelerator, "is_available", lambda: True),
        (torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda")),
        (torch, "clear_autocast_cache", _clear_cast_weights),
        # What runs inside of a backward pass, such as a checkpoint, must be seen, so the pass
        # itself must not be handled as one function.
        (torch.autograd, "has_torch_function", lambda _: False),
        (Tensor, "backward", _backward),
        (Tensor, "pin_memory", _pin_memory),
        (Tensor, "is_pinned", lambda self, *_: getattr(self, "_is_pinned", False)),
        (nn.Module, "to", _move_module),
        (nn.Module, "cuda", lambda self, *_: _move_module(self, DEVICE)),
    ]
    if hasattr(torch.accelerator, "current_stream"):
        replacements.append((torch.accelerator, "current_stream", lambda *_: stream))
    grouping = ("torch.utils._foreach_utils", "torch.nn.utils.clip_grad", "torch.optim.optimizer")
    group = "_group_tensors_by_device_and_dtype"
    modules = [sys.modules[module] for module in grouping]
    replacements += [(each, group, _group_tensors) for each in modules if hasattr(each, group)]
    for function, answer in _answers(name, capability, memory).items():
        owners = [each for each in (torch.cuda, torch.cuda.random) if hasattr(each, function)]
        replacements += [(each, function, answer) for each in owners]

    with contextlib.ExitStack() as stack:
        stack.callback(_forget_machine)
        for owner, attribute, replacement in replacements:
            stack.enter_context(mock.patch.object(owner, attribute, replacement))
        _forget_machine()
        stack.enter_context(_OperatorMode())
        stack.enter_context(_NumberedDevice())
        try:
            yield _gpu
        finally:
            _cast_weights.clear()
            _gpu = outer
