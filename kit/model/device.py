"""What to compute on and how precisely: found out once, said aloud, and refused early when it cannot work."""

import contextlib
import ctypes
import os
import re
import sys
from dataclasses import dataclass

import torch

from kit.errors import DeviceError


@dataclass(frozen=True)
class Compute:
    """A device, the autocast type on it ("fp32", "bf16" or "fp16"), and the reason in words."""

    device: torch.device
    precision: str
    reason: str

    def autocast(self) -> torch.autocast:
        """The context a forward pass runs in; does nothing in float32."""
        kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision)
        return torch.autocast(
            self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None
        )


AMX_WIDTH = 128  # hidden size from which bf16 was faster than float32 in training and inference, see docs/performance.md


def choose_device(precision: str = "auto", width: int = 0) -> Compute:
    """The best device here and a precision that works on it.

    bf16 from compute capability 8.0; below that fp16 with loss scaling (a T4 says it supports bf16, by emulation).
    Without a GPU bf16 where the processor has matrix units for it (AMX) and the encoder is wide enough to gain from
    them; fp32 elsewhere.

    Args:
        width: the hidden size of an encoder that computes well in bf16, 0 where none is known yet.

    Raises:
        DeviceError: the torch build has no kernels for this GPU (`torch.cuda.is_available()` is true all the same),
            or the precision asked for cannot run here.
    """
    if not torch.cuda.is_available():
        kind = "mps" if torch.backends.mps.is_available() else "cpu"
        if precision == "fp16":
            raise DeviceError(
                f"fp16 training needs a CUDA GPU; this is {kind}", "Set train.precision=auto."
            )
        faster = kind == "cpu" and width >= AMX_WIDTH and torch.cpu._is_amx_tile_supported()
        chosen = precision if precision != "auto" else "bf16" if faster else "fp32"
        return Compute(
            torch.device(kind),
            chosen,
            f"no CUDA GPU: {chosen} on {kind}{' with AMX' if faster else ''}",
        )
    number = int(
        os.environ.get("LOCAL_RANK", torch.cuda.current_device())
    )  # torchrun gives each process its own
    name, (major, minor) = (
        torch.cuda.get_device_name(number),
        torch.cuda.get_device_capability(number),
    )
    check_kernels(name, (major, minor), torch.cuda.get_arch_list())
    best = "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if precision == "bf16" and major < 8:
        raise DeviceError(
            f"bf16 needs compute capability 8.0; this GPU has {major}.{minor}",
            "Set train.precision=auto.",
        )
    chosen = best if precision == "auto" else precision
    return Compute(
        torch.device("cuda", number), chosen, f"{name}, capability {major}.{minor}: {chosen}"
    )


def prepare_device(compute: Compute) -> None:
    """Lets this process compute well on the device: on a CPU, keep the memory of one batch for the next.

    glibc hands large blocks back to the system and the system clears them page by page for the next layer, which took
    a tenth to a quarter of a training step. Where another allocator or C library is at work nothing changes.
    """
    if compute.device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            for option, value in (
                (_MMAP_MAX, 0),
                (_TRIM_THRESHOLD, 2**31 - 1),
                (_TOP_PAD, 64 << 20),
            ):
                libc.mallopt(option, value)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of malloc.h


def check_kernels(name: str, capability: tuple[int, int], architectures: list[str]) -> None:
    """Raises unless the build has kernels that run on this capability, or PTX that can be compiled for it.

    `sm_XY` runs on X.Y and later of generation X; `compute_XY` compiles for X.Y and everything later; with the suffix
    `a` either is for X.Y alone, with `f` for its generation (NVIDIA's CUDA C++ Programming Guide, on compatibility).
    A ROCm build names its kernels in another way, and nothing is concluded from them.
    """
    major, minor = capability
    found = [
        re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        for architecture in architectures
    ]
    kernels = [(m[1], (int(m[2]), int(m[3])), m[4]) for m in found if m]

    def runs(kind: str, built: tuple[int, int], suffix: str) -> bool:
        if suffix == "a":
            return built == capability
        return built <= capability and (built[0] == major or (kind == "compute" and not suffix))

    if kernels and not any(runs(*kernel) for kernel in kernels):
        raise DeviceError(
            f"this torch build has no kernels for {name} (sm_{major}{minor}; it has {', '.join(architectures)})",
            "On Kaggle choose the accelerator T4 x2; elsewhere install a torch build for this GPU.",
        )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; torch raises a plain RuntimeError for it on a CPU."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        word in str(error) for word in words
    )
