"""Measure in a moment how fast this machine's device is. Use `measure_device`."""

import functools
import time
from collections.abc import Callable
from statistics import median

import torch

from kit.costs.devices import DEVICES, DeviceModel, scaled_device
from kit.model.device import Compute
from kit.storage.memory import read_memory

GIB = 2**30

# Rows of the square matrices that are multiplied, and numbers that are copied, by device: large
# enough to keep it busy, and done in a fraction of a second.
_SIZES = {"cpu": (512, 1 << 23), "cuda": (4096, 1 << 27), "mps": (2048, 1 << 25)}
_REPEATS = 3

# Bytes a second of an all-reduce through the host, which nothing here measures.
_LINK = 5e9

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def measure_device(compute: Compute) -> DeviceModel:
    """Return a device's rates: those that kit knows of a GPU, or measured ones.

    Products and copies are measured, once in a process; other rates follow from them as on a T4.
    """
    if compute.device.type == "cuda":
        words = torch.cuda.get_device_name(compute.device).split()
        known = next((gpu for gpu in DEVICES.values() if gpu.name in words), None)
        if known and compute.precision != "fp32":
            return known
    return _measure_rates(compute.device, compute.precision)


@functools.cache
def _measure_rates(device: torch.device, precision: str) -> DeviceModel:
    size, numbers = _SIZES[device.type]
    matrix = torch.ones(size, size, dtype=_DTYPES[precision], device=device)
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
