"""Check the precision for each device, and that a GPU without kernels is refused."""

import ctypes
import os
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState

import kit as kit_package
from kit.errors import DeviceError
from kit.model.device import (
    BF16_WIDTH,
    Compute,
    base_dtype,
    check_kernels,
    choose_device,
    join_processes,
    prepare_device,
)
from kit.model.encoder import build_encoder, frozen_dtype
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec

KAGGLE = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 0), KAGGLE, False),  # a P100
        ((6, 0), ["sm_60", "sm_70"], True),
        ((6, 1), ["sm_60", "sm_70"], True),
        ((7, 5), KAGGLE, True),  # a T4
        ((7, 0), ["sm_75", "sm_80"], False),  # no kernel runs on an older capability
        ((8, 6), ["sm_80"], True),
        ((8, 9), ["sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),  # nor on another generation
        ((12, 0), ["sm_90", "sm_100"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # but PTX is compiled for every later one
        ((12, 1), ["sm_90", "compute_90"], True),
        ((7, 5), ["compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 3), ["sm_100a"], False),  # for 10.0 alone
        ((10, 3), ["sm_100f"], True),  # for the generation
        ((12, 0), ["sm_100f", "compute_100f"], False),
        ((10, 0), ["compute_90a"], False),
        ((9, 0), ["compute_90a"], True),
        ((9, 0), ["gfx90a", "gfx942"], True),  # ROCm
    ],
)
def test_which_kernels_run_on_which_gpu(
    capability: tuple[int, int], architectures: list[str], runs: bool
):
    if runs:
        check_kernels("a GPU", capability, architectures)
        return
    with pytest.raises(DeviceError, match="no kernels for a GPU") as caught:
        check_kernels("a GPU", capability, architectures)
    assert f"sm_{capability[0]}{capability[1]}" in caught.value.problem
    assert all(name in caught.value.problem for name in architectures)
    assert "T4" in caught.value.hint


def pretend_gpus(
    monkeypatch: pytest.MonkeyPatch, name: str, *capabilities: tuple[int, int], number: int = 0
) -> None:
    """Make torch see GPUs of these capabilities, with `number` as the current one."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # A T4 reports it, too, by emulation.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: KAGGLE)


@pytest.mark.parametrize(
    ("name", "capability", "precision"),
    [
        ("Tesla T4", (7, 5), "fp16"),
        ("Tesla V100", (7, 0), "fp16"),
        ("NVIDIA A100", (8, 0), "bf16"),
        ("NVIDIA L4", (8, 9), "bf16"),
        ("NVIDIA H200", (9, 0), "bf16"),
    ],
)
def test_the_precision_follows_the_gpus_capability(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], precision: str
):
    pretend_gpus(monkeypatch, name, capability)
    compute = choose_device()
    assert (compute.device, compute.precision) == (torch.device("cuda:0"), precision)
    assert name in compute.reason
    assert f"{capability[0]}.{capability[1]}" in compute.reason
    assert precision in compute.reason


def test_a_pascal_gpu_with_kernels_computes_in_fp32(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "GTX 1080", (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_61"])
    assert choose_device().precision == "fp32"


def test_a_p100_is_refused_although_cuda_is_available(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "Tesla P100-PCIE-16GB", (6, 0))
    with pytest.raises(DeviceError, match="no kernels for Tesla P100"):
        choose_device()


def test_a_precision_is_taken_as_asked_if_it_works(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "Tesla T4", (7, 5))
    assert choose_device("fp32").precision == "fp32"
    assert choose_device("fp16").precision == "fp16"
    with pytest.raises(
        DeviceError, match=r"bf16 needs compute capability 8\.0; this GPU has 7\.5"
    ) as caught:
        choose_device("bf16")
    assert "train.precision=auto" in caught.value.hint


def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "mixed", (8, 0), (7, 5))
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**launch, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert (choose_device().device, choose_device().precision) == (torch.device("cuda:1"), "fp16")


def test_a_leftover_local_rank_chooses_no_gpu(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "a GPU", (8, 0))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device().device == torch.device("cuda:0")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "Tesla T4", (7, 5), (7, 5))
    launch = {"RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}
    for name, value in {**launch, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=r"process 3 .* torch sees 2") as caught:
        choose_device()
    assert "--nproc_per_node=2" in caught.value.hint


def test_processes_wait_two_hours_for_one_another(monkeypatch: pytest.MonkeyPatch):
    """The first one downloads and tokenises, which may take longer than torch's ten minutes."""
    asked: list[timedelta] = []

    def init(*_: object, timeout: timedelta, **__: object) -> None:
        asked.append(timeout)

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    for name, value in zip(names, "0202", strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(torch.distributed, "init_process_group", init)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    PartialState._reset_state()
    try:
        join_processes()
    finally:
        PartialState._reset_state()
    assert asked == [timedelta(hours=2)]


def test_the_processes_are_joined_in_one_place_only():
    """Whoever asks first decides the timeout, so nothing but `join_processes` may ask."""
    kit = Path(kit_package.__file__).parent
    files = [path for path in kit.rglob("*.py") if "PartialState(" in path.read_text()]
    assert [path.name for path in files] == ["device.py"]


def test_the_current_gpu_is_used_without_torchrun(monkeypatch: pytest.MonkeyPatch):
    pretend_gpus(monkeypatch, "mixed", (7, 5), (8, 0), number=1)
    assert (choose_device().device, choose_device().precision) == (torch.device("cuda:1"), "bf16")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_a_cpu_computes_in_fp32_and_refuses_fp16():
    assert (choose_device().device.type, choose_device().precision) == ("cpu", "fp32")
    assert "cpu" in choose_device().reason
    assert choose_device("bf16").precision == "bf16"
    with pytest.raises(DeviceError, match=r"fp16 .*this is cpu") as caught:
        choose_device("fp16")
    assert "train.precision=auto" in caught.value.hint


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("units", "width", "asked", "precision"),
    [
        ("amx_tile", 0, "auto", "fp32"),
        ("amx_tile", BF16_WIDTH - 1, "auto", "fp32"),
        ("amx_tile", BF16_WIDTH, "auto", "bf16"),
        ("avx512_bf16", BF16_WIDTH - 1, "auto", "fp32"),
        ("avx512_bf16", BF16_WIDTH, "auto", "bf16"),
        ("avx512_bf16", 768, "fp32", "fp32"),
        ("", 768, "auto", "fp32"),
        ("", 768, "bf16", "bf16"),
    ],
)
def test_a_processor_that_multiplies_bf16_computes_wide_encoders_in_it(
    monkeypatch: pytest.MonkeyPatch, units: str, width: int, asked: str, precision: str
):
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name == units)
    compute = choose_device(asked, width)
    assert compute.precision == precision
    assert precision in compute.reason


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("hidden", "fast_attention", "dtype"),
    [
        (64, True, torch.float32),
        (128, True, torch.bfloat16),
        # In transformers' own attention nothing is known to compute well in bf16.
        (128, False, torch.float32),
    ],
)
def test_frozen_weights_have_the_type_that_they_are_computed_in(
    monkeypatch: pytest.MonkeyPatch, hidden: int, fast_attention: bool, dtype: torch.dtype
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    config = BACKBONES["tiny-llama"].config | {"hidden_size": hidden}
    assert frozen_dtype("auto", config, fast_attention) == dtype
    encoder = build_encoder(config, fast_attention)
    model = PairModel(encoder, config, ModelSpec(shape="judge", pooling="last"))
    assert base_dtype(choose_device("auto", model.bf16_width)) == dtype


@pytest.mark.parametrize(
    ("platform", "device", "calls_expected"),
    [("linux", "cpu", 3), ("linux", "cuda", 0), ("darwin", "cpu", 0)],
)
def test_glibc_keeps_memory_for_a_cpu_on_linux(
    monkeypatch: pytest.MonkeyPatch, platform: str, device: str, calls_expected: int
):
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(
        ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *given: calls.append(given))
    )
    prepare_device(Compute(torch.device(device), "fp32", ""))
    assert len(calls) == calls_expected

    # A C library without mallopt is left alone.
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    prepare_device(Compute(torch.device(device), "fp32", ""))


@pytest.mark.parametrize(
    ("before", "device", "after"), [("", "cpu", "64"), ("9", "cpu", "9"), ("", "cuda", None)]
)
def test_onednn_keeps_few_shapes_on_a_cpu_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, before: str, device: str, after: str | None
):
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    monkeypatch.setenv(name, before)
    if not before:
        monkeypatch.delenv(name)
    prepare_device(Compute(torch.device(device), "fp32", ""))
    assert os.environ.get(name) == after


@pytest.mark.usefixtures("no_gpu")
def test_a_mac_uses_its_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (choose_device().device.type, choose_device().precision) == ("mps", "fp32")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast_computes_in_the_precision(precision: str, dtype: torch.dtype):
    with Compute(torch.device("cpu"), precision, "").autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
