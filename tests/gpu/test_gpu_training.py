"""Check whole trainings and predictions on a pretended T4: fp16, its loss scale, and its memory."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from interruption import interrupt_at
from pretended_gpu import PretendedGPU, pretend_cuda
from quick_recipe import QUICK
from safetensors.torch import load_file
from tabular_rows import tabular_rows
from token_rows import PAD, token_rows
from torch import Tensor

from kit.attention import deberta
from kit.data.preprocess import preprocess_files
from kit.data.tokenize import PairTokenizer
from kit.errors import DeviceError
from kit.model.device import Compute, choose_device
from kit.model.encoder import build_encoder
from kit.model.inference import make_collator, predict_logits
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.planning.counted import GIB, MOMENT_BYTES, count_memory
from kit.predict import predict_split
from kit.recipe.load import load_recipe
from kit.recipe.spec import ModelSpec, Recipe
from kit.sample.generate import write_sample
from kit.training.callbacks import ScheduleCallback
from kit.training.setup import _enable_checkpointing
from kit.training.train import train_recipe

SHORT = (*QUICK, "train.batch_size=8", "train.max_steps=4", "train.evals_per_epoch=12")
TOKENIZER = PairTokenizer(SimpleNamespace(), 1, 2, PAD)
NO_LIMIT = 10**15

# Waits of the host in an optimizer step of one pass that is logged: one check of the gradient, and
# two for the log. To be lowered with them, and raised for a good reason only.
STEP_WAITS = 3


@pytest.fixture(autouse=True)
def no_cached_tables() -> Iterator[None]:
    """Forget position tables, which are cached by device, before and after a test."""
    deberta.table_rows.cache_clear()
    yield
    deberta.table_rows.cache_clear()


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a preprocessed sample of 60 rows."""
    folder = tmp_path_factory.mktemp("few")
    write_sample(folder / "raw", rows=60, seed=3)
    preprocess_files(folder / "raw", folder / "processed", folds=3, valid=0.2)
    return folder / "processed"


def short_recipe(name: str, *overrides: str) -> Recipe:
    return load_recipe(name, (*SHORT, *overrides))


def count_step_waits(gpu: PretendedGPU, patch: pytest.MonkeyPatch) -> list[Counter]:
    """Return a list that receives the waits of each optimizer step without an evaluation."""
    on_step_end = ScheduleCallback.on_step_end
    steps: list[Counter] = []
    before = Counter()

    def record(self: ScheduleCallback, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        nonlocal before
        if state.global_step > 1 and (state.global_step - 1) % args.eval_steps:
            steps.append(gpu.waits - before)
        on_step_end(self, args, state, control, **kwargs)
        before = gpu.waits.copy()

    patch.setattr(ScheduleCallback, "on_step_end", record)
    return steps


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.reinit_layers=1", "train.head_only=0.5", "train.micro_tokens=300"),
        ("train.gradient_checkpointing=true", "train.micro_batch_size=4", "train.r_drop=1.0"),
        ("train.lora_rank=2", "model.head=fusion", "train.swap_augmentation=true"),
    ],
)
def test_a_training_in_half_precision(few_rows: Path, tmp_path: Path, overrides: tuple[str, ...]):
    with pretend_cuda():
        result = train_recipe(short_recipe("tiny-deberta", *overrides), few_rows, tmp_path)
        frame = predict_split(result["run"], "test", few_rows)
    metrics = result["parts"]["holdout"]
    assert metrics["device"] == "Tesla T4, capability 7.5: fp16"
    assert metrics["steps"] == 4
    assert metrics["skipped_steps"] == 0
    assert np.isfinite(frame.iloc[:, 1:].to_numpy()).all()


def test_a_training_step_rarely_waits_for_the_gpu(
    few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pretend_cuda() as gpu:
        steps = count_step_waits(gpu, monkeypatch)
        recipe = short_recipe("tiny-deberta", "train.evals_per_epoch=1")
        train_recipe(recipe, few_rows, tmp_path)
    assert steps
    for waits in steps:
        assert waits.total() <= STEP_WAITS, waits


def test_an_interrupted_training_ends_with_the_same_weights(
    few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = short_recipe("tiny-electra")
    with pretend_cuda():
        whole = train_recipe(recipe, few_rows, tmp_path / "whole")
        with monkeypatch.context() as patch:
            interrupt_at(3, patch)
            with pytest.raises(KeyboardInterrupt):
                train_recipe(recipe, few_rows, tmp_path / "cut")
        resumed = train_recipe(recipe, few_rows, tmp_path / "cut", resume=True)
    one, other = (
        load_file(Path(result["run"]) / "holdout/model.safetensors") for result in (whole, resumed)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_schedule_waits_while_steps_are_skipped(
    few_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    initialise = torch.amp.GradScaler.__init__
    rates = []
    on_step_end = ScheduleCallback.on_step_end

    def with_large_scale(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self._init_scale = 2.0**120

    def record(self: ScheduleCallback, *args: Any, **kwargs: Any) -> None:
        on_step_end(self, *args, **kwargs)
        rates.append([group["lr"] for group in self.schedule.optimizer.param_groups])

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", with_large_scale)
    monkeypatch.setattr(ScheduleCallback, "on_step_end", record)
    with pretend_cuda():
        recipe = short_recipe("tiny-electra", "train.warmup=0.5")
        result = train_recipe(recipe, few_rows, tmp_path, guard=False)
    assert result["parts"]["holdout"]["skipped_steps"] == 4
    assert len({str(rate) for rate in rates}) == 1


# Memory


def make_model(name: str, layers: int = 2) -> PairModel:
    torch.manual_seed(0)
    config = BACKBONES[name].config | {"num_hidden_layers": layers, "vocab_size": 200}
    return PairModel(build_encoder(config), config, ModelSpec(pooling="mean", head_hidden=8))


ROWS = token_rows(np.full((12, 2), 64))
NUMBERS = np.arange(12)


def predict_rows(model: PairModel, compute: Compute) -> np.ndarray:
    return predict_logits(model, make_collator(model, ROWS, TOKENIZER), NUMBERS, compute)


def predict_within(share: float, patch: pytest.MonkeyPatch) -> tuple[PretendedGPU, list[float]]:
    """Predict twice where only a share of the activations of the first pass fits.

    Returns:
        The GPU, and the share of activations that was there at each `empty_cache`.
    """
    model = make_model("tiny-electra")
    with pretend_cuda(limit=NO_LIMIT) as gpu:
        compute = choose_device()
        model.to(compute.device)
        weights = gpu.allocated
        expected = predict_rows(model, compute)
        activations = gpu.peak - weights

        gpu.limit = int(weights + share * activations)
        left: list[float] = []
        patch.setattr(
            torch.cuda,
            "empty_cache",
            lambda: left.append((gpu.allocated - weights) / activations),
        )
        found = predict_rows(model, compute)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        gpu.first_failures = gpu.failures
        predict_rows(model, compute)
    return gpu, left


def test_prediction_goes_on_in_smaller_passes(monkeypatch: pytest.MonkeyPatch):
    gpu, left = predict_within(0.6, monkeypatch)
    assert gpu.first_failures
    assert left


def test_the_pass_that_failed_is_halved(monkeypatch: pytest.MonkeyPatch):
    gpu, _ = predict_within(0.6, monkeypatch)
    assert gpu.first_failures == 1


def test_what_fits_is_remembered(monkeypatch: pytest.MonkeyPatch):
    gpu, _ = predict_within(0.6, monkeypatch)
    assert gpu.failures == gpu.first_failures


def test_memory_is_free_when_the_cache_is_emptied(monkeypatch: pytest.MonkeyPatch):
    _, left = predict_within(0.6, monkeypatch)
    assert max(left) < 0.1


def test_a_sequence_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(torch.OutOfMemoryError):
        predict_within(0.01, monkeypatch)


@pytest.mark.parametrize("name", ["tiny-electra", "tiny-roberta", "tiny-deberta"])
def test_prediction_needs_no_more_memory_for_more_layers(name: str):
    activations = []
    for layers in (2, 6):
        model = make_model(name, layers)
        with pretend_cuda(limit=NO_LIMIT) as gpu:
            compute = choose_device("fp32")
            model.to(compute.device)
            weights = gpu.allocated
            predict_rows(model, compute)
            activations.append(gpu.peak - weights)
    assert activations[1] == pytest.approx(activations[0], rel=0.02)


def test_rows_that_overflow_in_half_precision_are_predicted_in_float32(
    monkeypatch: pytest.MonkeyPatch,
):
    model = make_model("tiny-electra")
    pool = PairModel.pool

    def overflow(self: PairModel, pack: dict[str, Tensor]) -> Tensor:
        vectors = pool(self, pack)
        if torch.is_autocast_enabled("cuda"):
            vectors[0] = torch.inf
        return vectors

    monkeypatch.setattr(PairModel, "pool", overflow)
    with pretend_cuda():
        compute = choose_device()
        assert np.isfinite(predict_rows(model.to(compute.device), compute)).all()


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("name", ["tiny-deberta", "tiny-roberta", "tiny-electra"])
def test_the_memory_plan_counts_what_a_training_allocates(name: str, checkpointing: str):
    # The scores that the pretended GPU computes for a moment, where a fused kernel has none, are
    # small for sequences as short as these.
    overrides = ("encode.max_tokens=8", f"train.gradient_checkpointing={checkpointing}")
    recipe = load_recipe(name, overrides)
    size = recipe.train.batch_size
    plan = count_memory(recipe, gpus=1)
    counted = plan.training * GIB - MOMENT_BYTES * plan.trained

    config = BACKBONES[name].config
    encoder = build_encoder(config)
    if recipe.train.gradient_checkpointing:
        _enable_checkpointing(encoder)
    model = PairModel(encoder, config, dataclasses.replace(recipe.model, pooling="mean")).train()
    with pretend_cuda(limit=NO_LIMIT) as gpu:
        compute = choose_device()
        model.to(compute.device)
        tabular = tabular_rows(size) if recipe.model.features else None
        labels = np.zeros(size, int)
        rows = token_rows(np.full((size, 2), 8))
        collator = make_collator(model, rows, TOKENIZER, labels, tabular)
        batch = send_to_device(collator(np.arange(size)), compute.device)
        labels = batch.pop("labels")
        augment = recipe.train.swap_augmentation and not model.symmetric
        with compute.autocast():
            logits = model(**batch, augment=augment)
        torch.nn.functional.cross_entropy(logits.reshape(size, -1, 3)[:, 0], labels).backward()
    assert gpu.peak == pytest.approx(counted, rel=0.02)


@pytest.fixture(scope="module")
def training_memory(few_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """Return the bytes of a training's weights, gradients and moments, and those of its peak."""
    with pretend_cuda(limit=NO_LIMIT) as gpu:
        result = train_recipe(
            short_recipe("tiny-electra"), few_rows, tmp_path_factory.mktemp("runs")
        )
    return 16 * result["parts"]["holdout"]["parameters"], gpu.peak


def test_training_goes_on_in_smaller_passes(
    few_rows: Path, tmp_path: Path, training_memory: tuple[int, int]
):
    fixed, peak = training_memory
    with pretend_cuda(limit=int(fixed + 0.75 * (peak - fixed))) as gpu:
        result = train_recipe(short_recipe("tiny-electra"), few_rows, tmp_path)
    assert gpu.failures
    assert result["parts"]["holdout"]["steps"] == 4


def test_a_training_that_cannot_fit_is_an_error(
    few_rows: Path, tmp_path: Path, training_memory: tuple[int, int]
):
    fixed, _ = training_memory
    with pretend_cuda(limit=fixed), pytest.raises(DeviceError, match="out of memory"):
        train_recipe(short_recipe("tiny-electra"), few_rows, tmp_path)
