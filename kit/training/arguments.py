"""A recipe in the words of transformers' Trainer: how many rows at once, how many steps, how often it looks up."""

import math
from pathlib import Path

from transformers import TrainingArguments

from kit.errors import RecipeError
from kit.model.device import Compute
from kit.recipe.spec import TrainSpec


def rows_at_once(spec: TrainSpec, processes: int) -> int:
    """The rows that a process takes per forward pass: `micro_batch_size`, or its share of the batch.

    Raises:
        RecipeError: `batch_size`, which is over all processes, is not a multiple of what they take together.
    """
    micro = spec.micro_batch_size or max(1, spec.batch_size // processes)
    if spec.batch_size % (micro * processes):
        raise RecipeError(
            f"train.batch_size = {spec.batch_size} is not a multiple of {micro} rows x {processes} processes",
            "Set train.batch_size or train.micro_batch_size so that it is.",
        )
    return micro


def steps_per_epoch(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps that see every one of so many training rows once."""
    return math.ceil(rows / spec.batch_size)


def arguments(spec: TrainSpec, rows: int, compute: Compute, checkpoints: Path) -> TrainingArguments:
    """Trainer's arguments for so many training rows; what a device cannot hold at once accumulates.

    Raises:
        RecipeError: as `rows_at_once`.
    """
    per_epoch = steps_per_epoch(spec, rows)
    steps = spec.max_steps or math.ceil(per_epoch * spec.epochs)
    look = max(1, min(per_epoch, steps) // spec.evals_per_epoch)
    args = TrainingArguments(
        output_dir=str(checkpoints),
        use_cpu=compute.device.type == "cpu",
        bf16=compute.precision == "bf16",
        fp16=compute.precision == "fp16",
        num_train_epochs=spec.epochs,
        max_steps=steps,
        max_grad_norm=spec.max_grad_norm,
        eval_strategy="steps",
        eval_steps=look,
        save_strategy="steps",
        save_steps=look,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="log_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # the patience that early stopping has left
        logging_strategy="steps",
        logging_steps=max(1, min(50, look // 4)),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        seed=spec.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,  # the collator takes a millisecond, and the GPU is busy meanwhile
        dataloader_pin_memory=compute.device.type == "cuda",
        ddp_find_unused_parameters=False,
    )
    args._n_gpu = min(
        1, args.n_gpu
    )  # several GPUs are torchrun's business; DataParallel would tear the packs apart
    args.per_device_train_batch_size = rows_at_once(spec, args.world_size)
    args.gradient_accumulation_steps = spec.batch_size // (
        args.per_device_train_batch_size * args.world_size
    )
    return args
