"""Run kit itself, through the trainer and predictor of `kit train` and `kit predict`."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from bout import Job, SecondEpoch, report, wait_for

from kit.data.feature_cache import features_cached
from kit.data.tokenize import tokenize_cached
from kit.evaluation.metrics import log_loss
from kit.model.backbones import resolve_backbone
from kit.model.device import choose_device, prepare_device
from kit.model.inference import logits_to_probabilities, make_collator, predict_logits
from kit.model.memory import training_tokens
from kit.recipe.load import load_recipe
from kit.task import PROMPT, RESPONSES
from kit.training.arguments import training_arguments
from kit.training.optim import Schedule, make_optimizer
from kit.training.setup import FoldSetup, new_model, target_prior
from kit.training.trainer import make_trainer


def make_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return a job's rows as a table of conversations of one turn."""
    columns = {PROMPT: "prompt", **dict(zip(RESPONSES, "ab", strict=True))}
    return pa.table({name: pa.array([[row[key]] for row in rows]) for name, key in columns.items()})


def main() -> None:
    """Train and predict as kit does, with its default recipe or as a judge."""
    job = Job.from_arguments()
    sizes = [
        f"encode.max_tokens={job.tokens}",
        f"train.batch_size={job.batch}",
        "train.epochs=2",
        "train.evals_per_epoch=1",
    ]
    name = job.options.get("recipe", "default")
    if name == "default":
        sizes.append("model.pooling=mean")
    recipe = load_recipe(name, [*sizes, *job.options.get("set", [])], backbone=job.backbone)
    backbone = resolve_backbone(str(job.backbone))
    torch.manual_seed(0)
    rows = [*job.train, *job.predict]
    table = make_table(rows)
    labels = np.array([row["label"] for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        # Of a dataset only the rows are needed: the backbone is no toy.
        model, tokenizer = new_model(recipe, backbone, None)  # ty: ignore[invalid-argument-type]
        compute = choose_device(recipe.train.precision, model.bf16_width)
        if compute.device.type != job.device:
            sys.exit(f"asked to run on {job.device}, but kit takes {compute.device.type}")
        prepare_device(compute)
        model.to(compute.device)

        begun = time.perf_counter()
        shape = recipe.model.shape
        encoded = tokenize_cached(table, "rows", tokenizer, recipe.encode, Path(scratch), shape)
        tokenised = time.perf_counter() - begun
        tabular = features_cached(table, "rows", encoded, Path(scratch))

        # The job's first rows are those to train on; two of the others are for validation.
        trained, others = np.split(np.arange(len(rows)), [len(job.train)])
        model.fit_features(tabular, trained)
        model.start_from_prior(target_prior(labels[trained]))
        collator = make_collator(model, encoded, tokenizer, labels, tabular)
        setup = FoldSetup(
            model=model,
            tokenizer=tokenizer,
            compute=compute,
            train_collator=collator,
            eval_collator=collator,
            train_rows=trained,
            valid_rows=others[:2],
            ids=np.arange(len(rows)),
            labels=labels,
            targets=labels,
            truncated=0.0,
        )
        args = training_arguments(recipe.train, len(trained), compute, Path(scratch))
        schedule = Schedule(make_optimizer(model, recipe.train), recipe.train, args.max_steps)
        trainer = make_trainer(recipe.train, setup, args, schedule)
        collator.max_tokens = training_tokens(
            model.encoder,
            recipe.train,
            compute,
            args.per_device_train_batch_size,
            encoded.sides,
            int(encoded.lengths.max()),
        )
        clock = SecondEpoch()
        trainer.add_callback(clock)
        trainer.train()

        later = table.slice(len(job.train))
        places = np.arange(len(job.predict))
        for number in range(2):
            begun = time.perf_counter()
            digest = f"later {number}"
            tokens = tokenize_cached(later, digest, tokenizer, recipe.encode, Path(scratch), shape)
            numbers = features_cached(later, digest, tokens, Path(scratch))
            test_collator = make_collator(model, tokens, tokenizer, tabular=numbers)
            logits = predict_logits(model, test_collator, places, compute, both_orders=True)
            probabilities = logits_to_probabilities(logits)
            wait_for(compute.device.type)
            predicted = time.perf_counter() - begun

    encoder = model.encoder

    # Operations of a forward pass: two for each weight of a matrix and token, and attention's own.
    lengths = encoded.lengths[trained]
    hidden = encoder.config.hidden_size
    linear = 2 * sum(
        parameter.numel()
        for name, parameter in encoder.named_parameters()
        if parameter.ndim == 2 and "embed" not in name
    )
    quadratic = 4 * encoder.config.num_hidden_layers * hidden
    forward = linear * int(lengths.sum()) + quadratic * int((lengths**2).sum())
    report(
        job,
        clock.ready,
        clock.seconds,
        predicted,
        **{
            "padding": trainer.padding_waste,
            "tokenise rows/s": len(rows) / tokenised,
            "useful tokens/s": int(lengths.sum()) / clock.seconds,
            "GFLOP/s": 3 * forward / clock.seconds / 1e9,
            "GEMM GFLOP/s": matmul_rate(hidden, compute.device, compute.precision),
            "precision": compute.precision,
            "threads": torch.get_num_threads(),
            "log loss": log_loss(probabilities, labels[others]),
        },
    )


def matmul_rate(hidden: int, device: torch.device, precision: str, tokens: int = 4096) -> float:
    """Return the rate of a plain product of the feed-forward layer's size, in 10^9 operations/s."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    left = torch.randn(tokens, hidden, device=device).to(dtype)
    right = torch.randn(hidden, 4 * hidden, device=device).to(dtype)
    operations = 10 * 2 * tokens * hidden * 4 * hidden
    best = 0.0
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(10):
            left @ right
        wait_for(device.type)
        best = max(best, operations / (time.perf_counter() - begun) / 1e9)
    return best


if __name__ == "__main__":
    main()
