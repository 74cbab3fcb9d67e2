"""Say before a training what it takes: rows, steps, hours, memory and disk. Use `make_plan`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kit.costs.devices import DeviceModel, find_device
from kit.costs.disk import training_disk
from kit.costs.estimate import (
    estimate_prediction,
    estimate_training,
    sequences_per_row,
    trained_parameters,
)
from kit.costs.lengths import HIDDEN_ROWS, competition_lengths
from kit.costs.sessions import KAGGLE_HOURS, sessions_needed
from kit.costs.sizes import ModelSizes, model_sizes
from kit.costs.steps import rows_per_pass, training_steps
from kit.data.dataset import open_dataset
from kit.data.options import PreprocessOptions
from kit.errors import DeviceError
from kit.model.backbones import ResolvedBackbone, refuse_fp16_overflow, resolve_backbone
from kit.model.device import Compute, choose_device, join_processes
from kit.model.memory import CPU_ACTIVATIONS
from kit.model.probe import measure_device
from kit.model.quantize import WEIGHT_BYTES
from kit.planning.counted import GIB, count_memory
from kit.planning.rows import count_lengths
from kit.recipe.spec import Recipe
from kit.run import Run, parse_folds
from kit.training.dry_run import TriedSteps, try_steps
from kit.training.setup import check_trainable

# The share of a GPU's memory that a training may need; what is left is for fragmentation.
MEMORY_SHARE = 0.95

# GiB of a process on a CPU that no model accounts for: Python and its packages.
PROCESS_GIB = 0.6

# Bytes of a trained parameter on a CPU: the weight, its gradient and AdamW's two moments.
TRAINED_BYTES = 16


@dataclass(frozen=True)
class Plan:
    """What a training takes. Times and disk are estimated, rows and steps counted.

    Attributes:
        run: the name of its run directory.
        device: in words, such as "2 x T4".
        parts: folders of the folds, or of the holdout, that will be trained.
        train_rows, valid_rows: of one fold.
        rows_from: "counted", or whose number of rows it is.
        sequences: of a row, that the encoder reads.
        mean_tokens: of a sequence, after truncation to `max_tokens`.
        tokens_from: where the lengths come from, in words.
        steps: of one fold.
        batch_size: rows of a step.
        parameters, trained: of the encoder, and of them those with a gradient (or its adapters').
        operations_per_row, operations: floating-point operations, of a fold's training row and of
            its whole training.
        fold_hours: of one fold, evaluations included.
        evaluation_hours: of them, those of the evaluations.
        shared_hours: of them, those that are spent once for all folds.
        memory_gib: that the training needs of each device; None where it cannot be counted.
        memory_limit_gib: that each device has for it.
        memory_from: "counted" or "estimated", or why there is none.
        output_gb: of the models and predictions of all folds.
        checkpoints_gb: of the checkpoints, at most, until a fold is finished.
        predicted_rows: that the hours of a prediction are for, of one model.
        one_order_hours, both_orders_hours: of a prediction.
        max_hours: of a session; None where there is no limit.
        sessions: how many are needed, 0 if nothing fits; None without a limit.
        refused: why no such training is begun, "" if it is.
        tried: what two real steps took, None where none were taken.
    """

    run: str
    backbone: str
    device: str
    parts: list[str]
    train_rows: int
    valid_rows: int
    rows_from: str
    sequences: int
    mean_tokens: float
    max_tokens: int
    tokens_from: str
    steps: int
    batch_size: int
    parameters: int
    trained: int
    operations_per_row: float
    operations: float
    fold_hours: float
    evaluation_hours: float
    shared_hours: float
    memory_gib: float | None
    memory_limit_gib: float
    memory_from: str
    output_gb: float
    checkpoints_gb: float
    predicted_rows: int
    one_order_hours: float
    both_orders_hours: float
    max_hours: float | None
    sessions: int | None
    refused: str = ""
    tried: TriedSteps | None = None

    @property
    def folds(self) -> int:
        """How many folds will be trained."""
        return len(self.parts)

    @property
    def hours(self) -> float:
        """Hours of all folds."""
        return self.folds * self.fold_hours - (self.folds - 1) * self.shared_hours

    @property
    def memory_fits(self) -> bool:
        """Whether the memory is enough, as far as it is known."""
        return self.memory_gib is None or self.memory_gib <= self.memory_limit_gib

    @property
    def fits(self) -> bool:
        """Whether memory and hours are enough, in as many sessions as it takes."""
        return not self.refused and self.memory_fits and self.sessions != 0

    @property
    def verdict(self) -> str:
        """Whether it fits, in words."""
        if self.refused:
            return f"refused: {self.refused}"
        if not self.memory_fits:
            one = self.device.rpartition(" x ")[2]
            return (
                f"does not fit: it needs {self.memory_gib:.1f} GiB of one {one}, which has "
                f"{self.memory_limit_gib:.1f} for it. What helps: train.micro_tokens, "
                "train.gradient_checkpointing, encode.max_tokens, or a larger GPU"
            )
        if self.sessions is None:
            return "fits into memory"
        if self.sessions == 0:
            return f"does not fit: one fold takes longer than {self.max_hours:g} h"
        if self.sessions == 1:
            return f"fits into {self.max_hours:g} h"
        return f"fits into {self.max_hours:g} h fold by fold: {self.sessions} sessions"

    def as_dict(self) -> dict[str, Any]:
        """Return all figures for JSON."""
        return {
            **dataclasses.asdict(self),
            "folds": self.folds,
            "hours": self.hours,
            "fits": self.fits,
            "verdict": self.verdict,
        }


def make_plan(
    recipe: Recipe,
    data: Path | None = None,
    fold: str = "all",
    gpu: str = "t4",
    max_hours: float | None = None,
    steps: bool = False,
    log: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a training, on processed rows or on rows like the competition's.

    Args:
        data: the processed rows; None for the competition's number and modelled lengths.
        gpu: a kind of GPU (see `find_device`), "cpu" or "here": what this machine trains on.
        max_hours: of a session; by default Kaggle's nine hours on its own T4, else none.
        steps: also load the model and take two real steps on `data`; see `training.dry_run`.
        log: called with each message of these steps.

    Raises:
        KitError: the recipe, data or backbone cannot be used, or there is no such device.
    """
    backbone = resolve_backbone(recipe.backbone)
    check_trainable(recipe, backbone)
    sizes = model_sizes(backbone.config, recipe.backbone)
    if gpu in ("cpu", "here"):
        compute = _compute_here(recipe, sizes, gpu)
        device, devices = measure_device(compute), join_processes().num_processes
    else:
        compute = None
        device, devices = find_device(gpu)
    rows_per_pass(recipe.train, devices)

    dataset = None if data is None else open_dataset(data)
    chosen = parse_folds(fold, dataset.folds if dataset else PreprocessOptions.folds)
    if dataset:
        lengths = count_lengths(recipe, backbone, dataset, chosen[0])
    else:
        lengths = competition_lengths(recipe)
    tried = None
    if steps and dataset:
        tried = try_steps(recipe, backbone, dataset, chosen[0], log)
    training = estimate_training(recipe, sizes, lengths, device, devices)
    disk = training_disk(sizes, recipe, lengths.valid_rows)
    one_order, both_orders = (
        estimate_prediction(
            recipe, sizes, lengths, HIDDEN_ROWS, device, devices, both_orders=both_orders
        )
        for both_orders in (False, True)
    )
    if max_hours is None and gpu == "t4":
        max_hours = KAGGLE_HOURS
    sessions = None
    if max_hours is not None:
        sessions = sessions_needed(
            training.hours, len(chosen), max_hours, disk.output, training.shared_hours
        )

    if compute is not None and compute.device.type != "cuda":
        memory, source = _estimate_cpu_memory(recipe, sizes), "estimated"
    else:
        memory, source = _count_memory(recipe, device, devices)
    return Plan(
        run=recipe.run_name,
        backbone=recipe.backbone,
        device=f"{devices} x {device.name}" if devices > 1 else device.name,
        parts=[Run(Path()).fold(number).name for number in chosen],
        train_rows=lengths.train_rows,
        valid_rows=lengths.valid_rows,
        rows_from="the competition's" if data is None else "counted",
        sequences=sequences_per_row(recipe, training=True),
        mean_tokens=lengths.mean_tokens,
        max_tokens=recipe.encode.max_tokens,
        tokens_from=lengths.source,
        steps=training_steps(recipe.train, lengths.train_rows).total,
        batch_size=recipe.train.batch_size,
        parameters=sizes.parameters,
        trained=trained_parameters(sizes, recipe.train),
        operations_per_row=training.operations_per_row,
        operations=training.operations,
        fold_hours=training.hours,
        evaluation_hours=training.evaluation_hours,
        shared_hours=training.shared_hours,
        memory_gib=memory,
        memory_limit_gib=MEMORY_SHARE * device.memory,
        memory_from=source,
        output_gb=len(chosen) * disk.output / 1e9,
        checkpoints_gb=disk.checkpoints / 1e9,
        predicted_rows=HIDDEN_ROWS,
        one_order_hours=one_order,
        both_orders_hours=both_orders,
        max_hours=max_hours,
        sessions=sessions,
        refused=_refusal(recipe, backbone, device, compute),
        tried=tried,
    )


def _refusal(
    recipe: Recipe, backbone: ResolvedBackbone, device: DeviceModel, compute: Compute | None
) -> str:
    """Return why this device cannot train this encoder, "" if it can."""
    precision = recipe.train.precision
    if precision == "auto":
        kind = "bf16" if device.has_bf16 else "fp16"
        precision = compute.precision if compute else kind
    try:
        refuse_fp16_overflow(recipe.backbone, backbone.config, precision, f"a {device.name}")
    except DeviceError as error:
        return error.problem
    return ""


def _compute_here(recipe: Recipe, sizes: ModelSizes, gpu: str) -> Compute:
    """Return the device and precision of a training on this machine."""
    width = sizes.hidden if recipe.model.fast_attention else 0
    compute = choose_device(recipe.train.precision, width)
    if gpu == "cpu" and compute.device.type != "cpu":
        return Compute(torch.device("cpu"), "fp32", "as asked")
    return compute


def _count_memory(recipe: Recipe, device: DeviceModel, devices: int) -> tuple[float | None, str]:
    """Return the GiB that a training needs of each GPU, and "counted"; or None, and why."""
    try:
        return count_memory(recipe, devices, device).needed, "counted"
    # What a meta tensor cannot do depends on the encoder: a count is no reason to refuse it.
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:80]
        return None, f"cannot be counted for this encoder: {reason}"


def _estimate_cpu_memory(recipe: Recipe, sizes: ModelSizes) -> float:
    """Return the GiB of a training on a CPU, whose passes are sized by the memory there is."""
    trained = trained_parameters(sizes, recipe.train)
    frozen = 0.0
    if recipe.train.lora_rank or recipe.train.frozen:
        frozen = 4.0 * sizes.parameters
    if recipe.model.quantize != "none":
        frozen -= (4 - WEIGHT_BYTES[recipe.model.quantize]) * sizes.layer_parameters
    weights = frozen + TRAINED_BYTES * trained
    return (weights + CPU_ACTIVATIONS) / GIB + PROCESS_GIB
