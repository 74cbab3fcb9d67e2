"""What to compute on and how precisely: found out once, said aloud, and refused early when it cannot work."""

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
        return torch.autocast(self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


def choose(precision: str = "auto") -> Compute:
    """The best device here and a precision that works on it.

    bf16 from compute capability 8.0; below that fp16 with loss scaling (a T4 says it supports bf16, by emulation);
    fp32 elsewhere.

    Raises:
        DeviceError: the torch build has no kernels for this GPU (`torch.cuda.is_available()` is true all the same),
            or the precision asked for cannot run here.
    """
    if not torch.cuda.is_available():
        kind = "mps" if torch.backends.mps.is_available() else "cpu"
        if precision == "fp16":
            raise DeviceError(f"fp16 training needs a CUDA GPU; this is {kind}", "Set train.precision=auto.")
        chosen = "fp32" if precision == "auto" else precision
        return Compute(torch.device(kind), chosen, f"no CUDA GPU: {chosen} on {kind}")
    major, minor = torch.cuda.get_device_capability()
    check_kernels(torch.cuda.get_device_name(), (major, minor), torch.cuda.get_arch_list())
    best = "bf16" if major >= 8 else "fp16" if major >= 7 else "fp32"
    if precision == "bf16" and major < 8:
        raise DeviceError(
            f"bf16 needs compute capability 8.0; this GPU has {major}.{minor}", "Set train.precision=auto."
        )
    chosen = best if precision == "auto" else precision
    device = torch.device("cuda", torch.cuda.current_device())
    return Compute(device, chosen, f"{torch.cuda.get_device_name()}, capability {major}.{minor}: {chosen}")


def check_kernels(name: str, capability: tuple[int, int], architectures: list[str]) -> None:
    """Raises unless the build has kernels of this capability's generation, or PTX that can be compiled for it."""
    major, minor = capability
    compiled = [a.removeprefix("sm_").rstrip("af") for a in architectures if a.startswith("sm_")]
    portable = [a.removeprefix("compute_").rstrip("af") for a in architectures if a.startswith("compute_")]
    runs = any(int(a[:-1]) == major and int(a[-1]) <= minor for a in compiled)
    builds = any((int(a[:-1]), int(a[-1])) <= capability for a in portable)
    if not (runs or builds):
        raise DeviceError(
            f"this torch build has no kernels for {name} (sm_{major}{minor}; it has {', '.join(architectures)})",
            "On Kaggle choose the accelerator T4 x2; elsewhere install a torch build for this GPU.",
        )
