"""List what kinds of devices sustain. Use `find_device` and `DeviceModel`.

All rates are assumptions, from data sheets and public measurements, except those that
`planning.probe` measures on the machine at hand.
"""

import re
from dataclasses import dataclass

from kit.errors import KitError


@dataclass(frozen=True)
class DeviceModel:
    """What a kind of device sustains; rates are per second.

    Attributes:
        memory: GiB that the device reports.
        matmul: operations of a matrix product, in the precision that kit trains in.
        batched_matmul: the same for batches of small products.
        matmul_float32: operations of a float32 product.
        attention_forward, attention_backward: operations of the fused attention kernels.
        bandwidth: bytes to and from memory.
        link: bytes of an all-reduce between two of them.
        peak: operations that the data sheet promises in float16.
        launch_seconds: of the host, to start one kernel from Python.
        has_bf16: whether it computes in bf16; a T4 takes fp16.
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
    launch_seconds: float = 15e-6
    has_bf16: bool = True


# Memory as reported on Kaggle, peak as on the data sheet (65 TFLOPS, 320 GB/s, 8.1 TFLOPS in
# float32). The sustained rates are guesses: 70 W limit a T4's clock, so a third of the peak is what
# public measurements of large float16 products reach. Its cards exchange data through the host.
T4 = DeviceModel(
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
    has_bf16=False,
)


def scaled_device(
    name: str, memory: float, matmul: float, bandwidth: float, link: float, peak: float = 0.0
) -> DeviceModel:
    """Return a device whose other rates are to `matmul` as a T4's are.

    Args:
        memory: in GiB.
        matmul, bandwidth, link: sustained operations and bytes a second.
        peak: by default `matmul`.
    """
    scale = matmul / T4.matmul
    return DeviceModel(
        name=name,
        memory=memory,
        matmul=matmul,
        batched_matmul=scale * T4.batched_matmul,
        matmul_float32=scale * T4.matmul_float32,
        attention_forward=scale * T4.attention_forward,
        attention_backward=scale * T4.attention_backward,
        bandwidth=bandwidth,
        link=link,
        peak=peak or matmul,
    )


# The others' rates: half of the peak (a third on an L4, which has 72 W), and four fifths of the
# bandwidth, of the data sheet.
DEVICES = {
    "t4": T4,
    "l4": scaled_device("L4", 22.0, 40e12, 240e9, 10e9, 121e12),
    "rtx-3090": scaled_device("RTX 3090", 23.6, 35e12, 750e9, 10e9, 71e12),
    "rtx-4090": scaled_device("RTX 4090", 23.6, 82e12, 800e9, 10e9, 165e12),
    "a100": scaled_device("A100", 79.0, 156e12, 1600e9, 100e9, 312e12),
    "h100": scaled_device("H100", 79.0, 495e12, 2700e9, 150e9, 989e12),
}


def find_device(name: str) -> tuple[DeviceModel, int]:
    """Return a kind of GPU and how many of them: "a100", "a100x4"; "t4" are Kaggle's two.

    Raises:
        KitError: there is no such kind.
    """
    match = re.fullmatch(r"(.+?)(?:x([1-9]\d?))?", name.lower())
    kind, count = match.groups() if match else ("", None)
    if kind not in DEVICES:
        raise KitError(
            f"no figures for a GPU {name[:20]!r}",
            f"Choose from {', '.join(DEVICES)} (with x4 for four of them), cpu, or `here` for what "
            "this machine trains on.",
        )
    return DEVICES[kind], int(count or (2 if kind == "t4" else 1))
