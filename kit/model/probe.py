"""Measure in a moment how fast this machine's device is. Use `measure_device`."""

import time
from collections.abc import Callable
from statistics import median

import torch

from kit.costs.devices import DeviceModel, scaled_device
from kit.model.device import Compute
from kit.storage.memory import read_memory

GIB = 2**30

# Rows of the square matrices that are multiplied, and numbers that are copied, by device: large
# enough to keep it busy, and done in a fraction of a second.
_SIZES = {"cpu": (1024, 1 << 24), "cuda": (4096, 1 << 27), "mps": (2048, 1 << 25)}
_REPEATS = 7

# Bytes a second of an all-reduce through the host, which nothing here measures.
_LINK = 5e9

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure_device(compute: Compute) -> DeviceModel:
    """Measure products and copies on a device; other rates follow from them as on a T4."""
    device = compute.device
    size, numbers = _SIZES[device.type]
    matrix = torch.ones(size, size, dtype=_DTYPES[compute.precision], device=device)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    products = 2 * size**3 / _median_seconds(lambda: matrix @ matrix, device)
    copies = 8 * numbers / _median_seconds(lambda: target.copy_(source), device)

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        name = device.type.upper()
        memory = read_memory().total or 0
    return scaled_device(name, memory / GIB, products, copies, _LINK)


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median time of some calls, after one that is not counted."""
    seconds = []
    for _ in range(1 + _REPEATS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
