"""Measure what each choice of the default recipe is worth: one change at a time, several seeds.

    python benchmarks/ablation.py --backbone FOLDER --data data/processed \
        [--truth data/raw/truth.csv] [--only default --only reference] [--seeds 3] [--steps 200] \
        [--batch 16] [--tokens 128] [--workers 1]

Trains on everything but fold 0, with the same rows and the same budget. Prints the log loss of
validation rows, of the same after calibration (cross-fitted), and of test rows: mean and standard
deviation over the seeds, and those of the paired difference to the default recipe. Finished runs
are not trained again, so the same command continues where it stopped. The runs of a variant are in
a folder of its name under --runs.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kit.recipe.load import load_recipe

# A few hundred steps need higher rates than a full training.
RATES = {
    "train.lr": "5e-5",
    "train.head_lr": "5e-4",
}
REFERENCE = {
    "model.head": "fusion",
    "model.features": "false",
    "train.swap_augmentation": "false",
    "train.layer_decay": "1.0",
    "train.label_smoothing": "0.1",
    "train.schedule": "plateau",
    "train.warmup": "0.0",
}
CROSS_ENCODER = "cross-encoder"
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "reference": REFERENCE | {"train.lr": "1e-5", "train.head_lr": "1e-5"},
    "reference at these rates": REFERENCE,
    "no features": {"model.features": "false"},
    "fusion head, both orders": {"model.head": "fusion"},
    "fusion head, one order": {"model.head": "fusion", "train.swap_augmentation": "false"},
    "no layer-wise decay": {"train.layer_decay": "1.0"},
    "label smoothing 0.1": {"train.label_smoothing": "0.1"},
    CROSS_ENCODER: {"model.shape": "cross"},
    "R-Drop 1": {"train.r_drop": "1.0"},
    "fresh top layer": {"train.reinit_layers": "1"},
}


def train_variant(variant: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Train and predict one run, unless it is finished, and return its log losses."""
    # With twice the tokens a sequence, the cross-encoder reads as much text as two sides.
    tokens = options.tokens * (2 if variant == CROSS_ENCODER else 1)
    keys = RATES | {"train.evals_per_epoch": "1", "train.precision": options.precision}
    keys |= VARIANTS[variant]
    keys |= {
        "encode.max_tokens": tokens,
        "train.batch_size": options.batch,
        "train.max_steps": options.steps,
        "train.seed": seed,
    }
    overrides = [f"{key}={value}" for key, value in keys.items()]

    recipe = load_recipe("default", overrides, backbone=str(options.backbone))
    runs = options.runs / variant.replace(" ", "-").replace(",", "")
    run = runs / recipe.run_name
    data = ("--data", str(options.data))
    if not (run / "metrics.json").exists():
        sets = [word for override in overrides for word in ("--set", override)]
        backbone = ("--backbone", str(options.backbone))
        run_kit("train", *backbone, "--fold", "0", *data, "--runs", str(runs), "--resume", *sets)

    truth = ("--truth", str(options.data / "train.parquet"), "--subset", "--json")
    calibrated = json.loads(run_kit("calibrate", str(run / "fold0" / "valid.csv"), *truth))
    losses = {
        "validation": calibrated["before"]["log_loss"],
        "calibrated": calibrated["after"]["log_loss"],
    }
    if options.truth:
        if not (run / "test.csv").exists():
            run_kit("predict", str(run), *data)
        scored = run_kit("score", str(run / "test.csv"), "--truth", str(options.truth), "--json")
        losses["test"] = json.loads(scored)["log_loss"]

    print(f"{variant}, seed {seed}: {losses}", file=sys.stderr, flush=True)
    return losses


def run_kit(*command: str) -> str:
    """Run a kit command in a process of its own, as a user would, and return its output."""
    done = subprocess.run([sys.executable, "-m", "kit", *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"kit {' '.join(command)}\n{done.stderr}")
    return done.stdout


def summarise(
    results: dict[tuple[str, int], dict[str, float]], variants: list[str], seeds: int
) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Return mean and standard deviation of each variant's losses, and of their differences."""
    table = {}
    for variant in variants:
        table[variant] = {}
        for rows in results["default", 0]:
            losses = np.array([results[variant, seed][rows] for seed in range(seeds)])
            default = np.array([results["default", seed][rows] for seed in range(seeds)])
            table[variant][rows] = {
                "alone": mean_and_sd(losses),
                "to default": mean_and_sd(losses - default),
            }
    return table


def mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    """Return the mean and the sample standard deviation, which is NaN for a single value."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def print_markdown(table: dict[str, dict[str, dict[str, tuple[float, float]]]]) -> None:
    """Print the summary as a Markdown table."""
    kinds = list(table["default"])
    print("| variant | " + " | ".join(f"{kind} log loss | to default" for kind in kinds) + " |")
    print("| --- |" + " --- | --- |" * len(kinds))
    for variant, row in table.items():
        cells = (
            "{:.4f} ± {:.4f}".format(*row[kind]["alone"])
            + " | {:+.4f} ± {:.4f}".format(*row[kind]["to default"])
            for kind in kinds
        )
        print(f"| {variant} | " + " | ".join(cells) + " |")


def main() -> None:
    """Train all variants and print the table as Markdown or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--only", action="append", choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    variants = list(dict.fromkeys(["default", *(options.only or VARIANTS)]))
    jobs = [(variant, seed) for seed in range(options.seeds) for variant in variants]
    with ThreadPoolExecutor(options.workers) as pool:
        losses = pool.map(lambda job: train_variant(*job, options), jobs)
        results = dict(zip(jobs, losses, strict=True))

    table = summarise(results, variants, options.seeds)
    if options.json:
        print(json.dumps(table, indent=1))
    else:
        print_markdown(table)


if __name__ == "__main__":
    main()
