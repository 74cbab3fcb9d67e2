"""Check that passes are sized by the memory there is, and that a failed pass leaves none behind."""

import dataclasses
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from token_rows import PAD, token_rows
from torch.autograd.graph import saved_tensors_hooks

from kit.data.tokenize import PairTokenizer
from kit.model import inference, memory
from kit.model.device import Compute
from kit.model.encoder import build_encoder
from kit.model.inference import make_collator, predict_logits
from kit.model.memory import (
    CPU_RESIDENT,
    free_after_pass,
    prediction_tokens,
    token_bytes,
    training_tokens,
)
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.load import GENERAL, load_recipe, shipped_recipes
from kit.recipe.spec import ModelSpec, TrainSpec

CPU = Compute(torch.device("cpu"), "fp32", "for this test")
T4 = Compute(torch.device("cuda", 0), "fp16", "for this test")
TOKENIZER = PairTokenizer(SimpleNamespace(), 1, 2, PAD)
ROWS = token_rows(np.random.default_rng(0).integers(3, 60, (23, 2)))
GIB = 2**30

MINILM = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}


def make_model(config: dict[str, Any]) -> PairModel:
    torch.manual_seed(0)
    return PairModel(build_encoder(config), config, ModelSpec(pooling="mean", head_hidden=8))


@pytest.fixture
def model() -> PairModel:
    return make_model(BACKBONES["tiny-electra"].config).eval()


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    model = make_model(BACKBONES["tiny-electra"].config).eval()
    return predict_logits(model, make_collator(model, ROWS, TOKENIZER), np.arange(len(ROWS)), CPU)


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("name", ["minilm", "deberta", "electra-small", "roberta"])
def test_the_estimate_is_what_autograd_keeps(name: str, length: int):
    config = dict(MINILM if name == "minilm" else BACKBONES[name].config)
    config |= {"num_hidden_layers": 2, "vocab_size": 200}
    model = make_model(config).train()
    rows = token_rows(np.full((1, 2), length))
    batch = make_collator(model, rows, TOKENIZER)([0])
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        model(**batch)
    counted = sum(storage.nbytes() for storage in kept.values()) / (2 * length)

    # The estimate has one layer more, for what the backward pass needs itself.
    estimate = token_bytes(model.encoder, CPU, length, training=True) * 2 / 3
    assert 0.75 * counted < estimate < 1.35 * counted


@pytest.mark.parametrize("free_gib", [1.5, 4, 64])
@pytest.mark.parametrize("name", ["minilm", "deberta"])
def test_a_training_on_a_cpu_stays_below_half_of_the_free_memory_and_below_4_gb(
    name: str, free_gib: float, monkeypatch: pytest.MonkeyPatch
):
    config = MINILM if name == "minilm" else BACKBONES[name].config
    with torch.device("meta"):
        encoder = build_encoder(config)
    monkeypatch.setattr(memory, "free_memory", lambda _: int(free_gib * GIB))
    length = 512
    tokens = training_tokens(encoder, TrainSpec(), CPU, rows=32, sides=2, length=length)
    weights = sum(weight.numel() for weight in encoder.parameters())
    needed = tokens * token_bytes(encoder, CPU, length, training=True) + 12 * weights
    assert 2 * length <= tokens < 32 * 2 * length
    if tokens > 2 * length:
        assert needed <= free_gib * GIB / 2
    assert needed + 4 * weights + 0.7 * GIB < 4e9


def test_small_encoders_take_a_batch_at_once(monkeypatch: pytest.MonkeyPatch):
    encoder = build_encoder(BACKBONES["tiny-deberta"].config)
    monkeypatch.setattr(memory, "free_memory", lambda _: 4 * GIB)
    assert training_tokens(encoder, TrainSpec(), CPU, rows=32, sides=2, length=160) == 0
    asked = dataclasses.replace(TrainSpec(), micro_tokens=500)
    assert training_tokens(encoder, asked, CPU, rows=32, sides=2, length=160) == 500


# Not trained on a T4: too large for one, or in bf16 alone.
NOT_ON_A_T4 = ("gemma-2-9b", "gemma-3-1b", "gemma-3-270m")


@pytest.mark.parametrize(
    "name", [name for name in shipped_recipes() if name not in (*GENERAL, *NOT_ON_A_T4)]
)
def test_recipes_keep_their_passes_on_a_t4(name: str, monkeypatch: pytest.MonkeyPatch):
    """None loses more than a quarter of its pass to an estimate that is too careful."""
    recipe = load_recipe(name)
    spec = recipe.train
    with torch.device("meta"):
        encoder = build_encoder(BACKBONES[recipe.backbone].config)
    is_judge = recipe.model.shape == "judge"
    weights = (2 if is_judge else 4) * sum(weight.numel() for weight in encoder.parameters())
    if spec.lora_rank:
        encoder.requires_grad_(False)
    monkeypatch.setattr(memory, "free_memory", lambda _: int(14.44 * GIB) - weights)
    rows = spec.micro_batch_size or spec.batch_size // 2
    length = recipe.encode.max_tokens
    tokens = training_tokens(encoder, spec, T4, rows, 2, length)
    wanted = spec.micro_tokens or rows * 2 * length
    assert tokens == 0 or tokens >= 0.75 * wanted
    if not is_judge:
        assert prediction_tokens(encoder, T4, length) == 65536


def test_a_prediction_takes_what_is_fastest_or_what_fits(
    model: PairModel, monkeypatch: pytest.MonkeyPatch
):
    assert prediction_tokens(model.encoder, CPU, 60) == 4096
    monkeypatch.setattr(memory, "free_memory", lambda _: 10 << 20)
    assert 60 <= prediction_tokens(model.encoder, CPU, 60) < 4096
    monkeypatch.setattr(memory, "free_memory", lambda _: None)
    assert prediction_tokens(model.encoder, CPU, 60) == 4096


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()], ids=["GPU", "CPU"]
)
def test_out_of_memory_halves_the_pass_that_failed_and_is_remembered(
    model: PairModel,
    expected: np.ndarray,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
):
    pool, tried, failed = PairModel.pool, [], []
    alive: list[weakref.ref[torch.Tensor]] = []
    freed: list[bool] = []

    def limited(self: PairModel, pack: dict[str, torch.Tensor]) -> torch.Tensor:
        tokens = pack["input_ids"].numel()
        tried.append(tokens)
        activation = torch.zeros(tokens)
        if tokens > 400:
            failed.append(tokens)
            alive.append(weakref.ref(activation))
            # A new one each time: an exception keeps the frames that it passed.
            raise type(error)(*error.args)
        return pool(self, pack)

    def free() -> None:
        freed.append(alive[-1]() is None)

    monkeypatch.setattr(PairModel, "pool", limited)
    monkeypatch.setattr(inference, "free_after_failure", free)
    collator, rows = make_collator(model, ROWS, TOKENIZER), np.arange(len(ROWS))
    found = predict_logits(model, collator, rows, CPU)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    # A pass of 1,200 tokens fits after two halvings; halving the budget of 4,096 would take four.
    assert len(failed) <= 2
    assert freed == [True] * len(failed)

    # The next evaluation, with a collator of its own, begins with what fitted.
    failed.clear()
    predict_logits(model, make_collator(model, ROWS, TOKENIZER), rows, CPU)
    assert not failed


def test_one_sequence_that_does_not_fit_is_an_error(
    model: PairModel, monkeypatch: pytest.MonkeyPatch
):
    def explode(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PairModel, "pool", explode)
    with pytest.raises(torch.OutOfMemoryError):
        predict_logits(model, make_collator(model, ROWS, TOKENIZER), np.arange(5), CPU)


@pytest.mark.parametrize(
    ("device", "resident", "returned"),
    [("cpu", CPU_RESIDENT + 1, 1), ("cpu", CPU_RESIDENT, 0), ("cuda", CPU_RESIDENT + 1, 0)],
)
def test_only_a_large_process_on_a_cpu_gives_memory_back_after_a_batch(
    monkeypatch: pytest.MonkeyPatch, device: str, resident: int, returned: int
):
    calls = []
    monkeypatch.setattr(memory, "resident_memory", lambda: resident)
    monkeypatch.setattr(memory, "return_freed_memory", lambda: calls.append(1))
    free_after_pass(torch.device(device))
    assert len(calls) == returned
