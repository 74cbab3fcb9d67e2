"""Run kit itself, through the trainer and predictor of `kit train` and `kit predict`."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from bout import Job, SecondEpoch, report, wait_for

from kit.data.feature_cache import features_cached
from kit.data.tokenize import tokenize_cached
from kit.model.backbones import resolve_backbone
from kit.model.device import choose_device, prepare_device
from kit.model.encoder import load_encoder, load_tokenizer
from kit.model.inference import logits_to_probabilities, make_collator, predict_logits
from kit.model.pair_model import PairModel
from kit.recipe.load import load_recipe
from kit.task import PROMPT, RESPONSES
from kit.training.trainer import make_trainer


def main() -> None:
    """Train and predict as kit does, with its default recipe."""
    job = Job.from_arguments()
    switches = job.options.get("set", [])
    sizes = [
        f"encode.max_tokens={job.tokens}",
        f"train.batch_size={job.batch}",
        "train.epochs=2",
        "model.pooling=mean",
    ]
    recipe = load_recipe(
        "default", [*sizes, "train.evals_per_epoch=1", *switches], backbone=job.backbone
    )
    backbone = resolve_backbone(str(job.backbone))
    encoder = load_encoder(backbone, recipe.model.fast_attention)
    compute = choose_device(recipe.train.precision, encoder.config.hidden_size)
    if compute.device.type != job.device:
        sys.exit(f"asked to run on {job.device}, but kit takes {compute.device.type}")
    prepare_device(compute)
    torch.manual_seed(0)
    model = PairModel(encoder, encoder.config.to_dict(), recipe.model).to(compute.device)
    tokenizer = load_tokenizer(backbone)
    rows = [*job.train, *job.predict]
    columns = {PROMPT: "prompt", **dict(zip(RESPONSES, "ab", strict=True))}
    table = pa.table(
        {name: pa.array([[row[key]] for row in rows]) for name, key in columns.items()}
    )
    labels = np.array([row["label"] for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        encoded = tokenize_cached(table, "rows", tokenizer, recipe.encode, Path(scratch))
        tokenised = time.perf_counter() - begun
        tabular = features_cached(table, "rows", encoded, Path(scratch))
        # The job's first rows are those to train on; two of the others are for validation.
        trained, others = np.split(np.arange(len(rows)), [len(job.train)])
        model.fit_features(tabular, trained)
        collator = make_collator(model, encoded, tokenizer, labels, tabular)
        trainer = make_trainer(
            recipe.train,
            model,
            collator,
            collator,
            trained,
            others[:2],
            False,
            compute,
            Path(scratch),
            lambda _: None,
        )
        clock = SecondEpoch()
        trainer.add_callback(clock)
        trainer.train()

        later = table.slice(len(job.train))
        places = np.arange(len(job.predict))
        for number in range(2):
            begun = time.perf_counter()
            tokens = tokenize_cached(
                later, f"later {number}", tokenizer, recipe.encode, Path(scratch)
            )
            numbers = features_cached(later, f"later {number}", tokens, Path(scratch))
            test_collator = make_collator(model, tokens, tokenizer, tabular=numbers)
            logits = predict_logits(model, test_collator, places, compute, both_orders=True)
            logits_to_probabilities(logits)
            wait_for(compute.device.type)
            predicted = time.perf_counter() - begun

    # Operations of a forward pass: two for each weight of a matrix and token, and attention's own.
    lengths = encoded.lengths[trained]
    hidden = encoder.config.hidden_size
    linear = 2 * sum(
        parameter.numel()
        for name, parameter in encoder.named_parameters()
        if parameter.ndim == 2 and "embeddings" not in name
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
