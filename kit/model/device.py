"""Choose a device and a precision that works on it. Use `choose_device`.

`python -m kit.model.device` prints the GPUs of this machine as one line of JSON, for a caller that
must not import torch itself.
"""

import contextlib
import ctypes
import json
import os
import re
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

import torch

from kit.errors import DeviceError
from kit.launcher import local_rank

if TYPE_CHECKING:
    from accelerate import PartialState

# Hidden size from which bf16 was faster than float32 in training and inference
# (docs/performance.md).
BF16_WIDTH = 128

# How long a process of torchrun waits for another. Only the first one downloads, tokenises and
# computes features, and on a slow line that takes longer than torch's default of 10 minutes.
PATIENCE = timedelta(hours=2)

# Hardly two passes have the same number of tokens, so that old shapes do not come again.
_ONEDNN_SHAPES = "64"

# Options of glibc's mallopt, from malloc.h.
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_MAX = -4


@dataclass(frozen=True)
class Compute:
    """A device, the autocast type on it ("fp32", "bf16" or "fp16"), and the reason in words."""

    device: torch.device
    precision: str
    reason: str

    def autocast(self) -> torch.autocast:
        """Return the context a forward pass runs in; it does nothing in float32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(
            self.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None
        )


class GpuReport(TypedDict):
    """The GPUs torch sees, and `problem`: what is wrong with them, "" if nothing.

    Attributes:
        capabilities: such as "7.5".
        kernels: architectures that torch was built for.
    """

    names: list[str]
    memory_gb: list[float]
    capabilities: list[str]
    kernels: list[str]
    problem: str


def choose_device(precision: str = "auto", width: int = 0) -> Compute:
    """Return the best device here and a precision that works on it.

    On a GPU "auto" is bf16 from compute capability 8.0, and below it fp16 with loss scaling (a T4
    reports bf16, but emulates it). Without a GPU it is bf16 where the processor multiplies in it
    (AMX, or AVX-512 BF16) and the encoder is wide enough to gain from that, else fp32.

    Args:
        width: hidden size of an encoder that computes well in bf16, 0 where none is known yet.

    Raises:
        DeviceError: torch has no kernels for this GPU (although `torch.cuda.is_available()` is
            true), or the precision asked for cannot run here.
    """
    if not torch.cuda.is_available():
        kind = "mps" if torch.backends.mps.is_available() else "cpu"
        if precision == "fp16":
            raise DeviceError(
                f"fp16 training needs a CUDA GPU; this is {kind}", "Set train.precision=auto."
            )
        units = _bf16_units() if kind == "cpu" and width >= BF16_WIDTH else ""
        if precision == "auto":
            precision = "bf16" if units else "fp32"
        reason = f"no CUDA GPU: {precision} on {kind}{units and f' with {units}'}"
        return Compute(torch.device(kind), precision, reason)

    # torchrun gives each process a GPU of its own.
    number = local_rank()
    if number is None:
        number = torch.cuda.current_device()
    gpus = torch.cuda.device_count()
    if number >= gpus:
        raise DeviceError(
            f"process {number + 1} of this machine has no GPU of its own: torch sees {gpus}",
            f"Start torchrun with --nproc_per_node={gpus}, or check CUDA_VISIBLE_DEVICES.",
        )
    name = torch.cuda.get_device_name(number)
    major, minor = torch.cuda.get_device_capability(number)
    check_kernels(name, (major, minor), torch.cuda.get_arch_list())
    if precision == "bf16" and major < 8:
        raise DeviceError(
            f"bf16 needs compute capability 8.0; this GPU has {major}.{minor}",
            "Set train.precision=auto.",
        )
    if precision == "auto":
        precision = "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    reason = f"{name}, capability {major}.{minor}: {precision}"
    return Compute(torch.device("cuda", number), precision, reason)


def _bf16_units() -> str:
    """Return the name of what multiplies bf16 in this processor, "" where nothing does."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX-512 BF16" if torch.cpu._is_avx512_bf16_supported() else ""


def base_dtype(compute: Compute) -> torch.dtype:
    """Return the type of weights that are frozen: that of the products they are computed with.

    Half as many bytes as in float32, and no casts. On a T4 that is fp16, since it emulates bf16.
    """
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.precision, torch.float32)


def join_processes() -> "PartialState":
    """Return this process's place among torchrun's, and connect them at the first call.

    Everything else that asks for it (Trainer, too) gets the group that exists, with its timeout:
    so the first call has to be this one.
    """
    from accelerate import PartialState

    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return PartialState(cpu=not has_gpu, timeout=PATIENCE)


def prepare_device(compute: Compute) -> None:
    """On a CPU, make this process keep the memory of one batch for the next, and little else.

    glibc would return large blocks to the system, which clears them page by page for the next
    layer: a tenth to a quarter of a training step. With another allocator or C library nothing
    changes. oneDNN would keep what it compiles for the last 1,024 shapes; unless it was used
    before, or the environment says otherwise, it keeps that of a few passes.
    """
    if compute.device.type != "cpu":
        return
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _ONEDNN_SHAPES)
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_TOP_PAD, 64 << 20)


def check_kernels(name: str, capability: tuple[int, int], architectures: list[str]) -> None:
    """Check that torch has kernels for this capability, or PTX that can be compiled for it.

    `sm_XY` runs on X.Y and later of generation X; `compute_XY` compiles for X.Y and everything
    later. With the suffix `a` either is for X.Y alone, with `f` for its generation (NVIDIA's CUDA
    C++ Programming Guide, on compatibility). A ROCm build names its kernels in another way, and is
    let pass.

    Args:
        architectures: what torch was built for, as of `torch.cuda.get_arch_list`.

    Raises:
        DeviceError: nothing in the build runs on this GPU.
    """
    major, minor = capability
    pattern = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")
    matches = [match for text in architectures if (match := pattern.fullmatch(text))]

    def runs(match: re.Match[str]) -> bool:
        kind, suffix = match[1], match[4]
        built = (int(match[2]), int(match[3]))
        if suffix == "a":
            return built == capability
        compiles_later = kind == "compute" and not suffix
        return built <= capability and (built[0] == major or compiles_later)

    if matches and not any(runs(match) for match in matches):
        raise DeviceError(
            f"this torch build has no kernels for {name} (sm_{major}{minor}; it has "
            f"{', '.join(architectures)})",
            "On Kaggle choose the accelerator T4 x2; elsewhere install a torch build for this GPU.",
        )


def inspect_gpus() -> GpuReport:
    """Return what torch sees of this machine's GPUs."""
    kernels = torch.cuda.get_arch_list() if torch.version.cuda else []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_properties(number) for number in range(count)]
    problem = ""
    for gpu in gpus:
        try:
            check_kernels(gpu.name, (gpu.major, gpu.minor), kernels)
        except DeviceError as error:
            problem = str(error)
    return {
        "names": [gpu.name for gpu in gpus],
        "memory_gb": [round(gpu.total_memory / 1e9, 1) for gpu in gpus],
        "capabilities": [f"{gpu.major}.{gpu.minor}" for gpu in gpus],
        "kernels": kernels,
        "problem": problem,
    }


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out; on a CPU torch raises a plain RuntimeError for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return any(word in str(error) for word in words)


if __name__ == "__main__":
    print(json.dumps(inspect_gpus()))
