"""Translate a recipe into transformers' TrainingArguments: rows a pass, steps, evaluations."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import TrainingArguments

from kit.costs.steps import rows_per_pass, training_steps
from kit.model.device import Compute
from kit.recipe.spec import TrainSpec

# Variables with which launchers give their settings to accelerate: precision, passes per step,
# compilation, another device, sharded weights.
_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_")


@contextmanager
def recipe_settings_only() -> Generator[None]:
    """Hide from Trainer what the environment says about matters that the recipe decides.

    `accelerate launch`, and a shell in which its variables are left, would otherwise change the
    precision or the number of passes per step, and the run would not know. Products in float32 are
    float32 products too, whatever the process has chosen before.
    """
    hidden = {name: os.environ[name] for name in os.environ if name.startswith(_LAUNCHER_PREFIXES)}
    precision = torch.get_float32_matmul_precision()
    for name in hidden:
        del os.environ[name]
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        os.environ.update(hidden)
        torch.set_float32_matmul_precision(precision)


def training_arguments(
    spec: TrainSpec, rows: int, compute: Compute, checkpoints: Path
) -> TrainingArguments:
    """Translate a recipe into Trainer's arguments, for `rows` training rows.

    Raises:
        RecipeError: `batch_size` does not fit the processes (see `rows_per_pass`).
    """
    steps = training_steps(spec, rows)
    eval_steps = steps.between_evaluations
    on_gpu = compute.device.type == "cuda"

    args = TrainingArguments(
        output_dir=str(checkpoints),
        use_cpu=compute.device.type == "cpu",
        bf16=compute.precision == "bf16",
        fp16=compute.precision == "fp16",
        num_train_epochs=spec.epochs,
        max_steps=steps.total,
        # The optimizer has the recipe's rates by layer; loggers show this one.
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="log_loss",
        greater_is_better=False,
        # Without this a resumed training would forget how long early stopping has waited.
        restore_callback_states_from_checkpoint=True,
        logging_strategy="steps",
        logging_steps=max(1, min(50, eval_steps // 4, steps.total // 4)),
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
        seed=spec.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        # The collator takes about a millisecond a batch, in which a GPU has nothing to do: Trainer
        # fetches at the start of a step. A worker process would cost more than it saves.
        dataloader_num_workers=0,
        dataloader_pin_memory=on_gpu,
        # Batches are copied from pinned memory while the host goes on.
        accelerator_config={"non_blocking": on_gpu},
        ddp_find_unused_parameters=False,
    )

    # accelerate numbers the CPU where there are several processes, and torch refuses "cpu:0" as the
    # place to load a checkpoint to. Trainer of transformers 5.16 and older does not know that.
    if args.device.type == "cpu":
        args.__dict__["_setup_devices"] = torch.device("cpu")

    # Several GPUs are used through torchrun. Trainer's DataParallel would tear the packs of a batch
    # apart.
    args._n_gpu = min(1, args.n_gpu)
    args.per_device_train_batch_size = rows_per_pass(spec, args.world_size)
    args.gradient_accumulation_steps = spec.batch_size // (
        args.per_device_train_batch_size * args.world_size
    )
    return args
