"""What each choice of the default recipe is worth: one change at a time, several seeds, same rows and budget.

    python benchmarks/ablation.py --backbone FOLDER --data data/processed --truth data/raw/truth.csv \
        [--only default --only reference] [--seeds 3] [--steps 200] [--batch 16] [--tokens 128] [--workers 1]

Trains on everything but fold 0 and prints log loss, of validation, of validation calibrated (cross-fitted) and of test
rows: mean and standard deviation over the seeds, and those of the paired difference to the default recipe. Runs that
are done are not trained again, so it goes on where it stopped; a variant's runs stand in a folder of its name under
--runs.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kit.recipe.load import load_recipe

RATES = {
    "train.lr": "5e-5",
    "train.head_lr": "5e-4",
}  # a few hundred steps need more than a full training does
REFERENCE = {
    "model.head": "fusion",
    "model.features": "false",
    "train.swap_augmentation": "false",
    "train.layer_decay": "1.0",
    "train.label_smoothing": "0.1",
    "train.schedule": "plateau",
    "train.warmup": "0.0",
}
VARIANTS: dict[str, dict[str, str]] = {
    "default": {},
    "reference": REFERENCE | {"train.lr": "1e-5", "train.head_lr": "1e-5"},
    "reference at these rates": REFERENCE,
    "no features": {"model.features": "false"},
    "fusion head, both orders": {"model.head": "fusion"},
    "fusion head, one order": {"model.head": "fusion", "train.swap_augmentation": "false"},
    "no layer-wise decay": {"train.layer_decay": "1.0"},
    "label smoothing 0.1": {"train.label_smoothing": "0.1"},
    "cross-encoder": {
        "model.shape": "cross"
    },  # with twice the tokens a sequence, so that it reads as much
    "moving average 0.99": {"train.ema": "0.99"},
    "R-Drop 1": {"train.r_drop": "1.0"},
    "perturbed weights 0.005": {"train.awp": "0.005"},
}


def train(variant: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Trains and predicts one run, unless it is there, and returns its log losses."""
    tokens = options.tokens * (2 if "cross" in variant else 1)
    budget = {
        "encode.max_tokens": tokens,
        "train.batch_size": options.batch,
        "train.max_steps": options.steps,
    }
    keys = (
        RATES
        | {"train.evals_per_epoch": "1", "train.precision": options.precision}
        | VARIANTS[variant]
    )
    sets = [f"{key}={value}" for key, value in (keys | budget | {"train.seed": seed}).items()]
    recipe = load_recipe("default", sets, backbone=str(options.backbone))
    runs = options.runs / variant.replace(" ", "-").replace(",", "")
    run = runs / recipe.run_name
    overrides = [part for each in sets for part in ("--set", each)]
    data = ["--data", str(options.data)]
    if not (run / "metrics.json").exists():
        backbone = ["--backbone", str(options.backbone), "--fold", "0"]
        kit("train", *backbone, *data, "--runs", str(runs), "--resume", *overrides)
    truth = ["--truth", str(options.data / "train.parquet"), "--subset", "--json"]
    calibrated = json.loads(kit("calibrate", str(run / "fold0" / "valid.csv"), *truth))
    losses = {
        "validation": calibrated["before"]["log_loss"],
        "calibrated": calibrated["after"]["log_loss"],
    }
    if options.truth:
        if not (run / "test.csv").exists():
            kit("predict", str(run), *data)
        losses["test"] = json.loads(
            kit("score", str(run / "test.csv"), "--truth", str(options.truth), "--json")
        )["log_loss"]
    print(f"{variant}, seed {seed}: {losses}", file=sys.stderr, flush=True)
    return losses


def kit(*command: str) -> str:
    """A kit command in a process of its own, so that a run is what a user would get; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "kit", *command],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )
    if done.returncode:
        sys.exit(f"kit {' '.join(command)}\n{done.stderr}")
    return done.stdout


def main() -> None:
    """Prints the table as Markdown, or as JSON."""
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
        results = dict(zip(jobs, pool.map(lambda job: train(*job, options), jobs), strict=True))
    table = {}
    for variant in variants:
        table[variant] = row = {}
        for rows in results["default", 0]:
            losses = np.array([results[variant, seed][rows] for seed in range(options.seeds)])
            default = np.array([results["default", seed][rows] for seed in range(options.seeds)])
            row[rows] = {
                "alone": _mean_and_sd(losses),
                "to default": _mean_and_sd(losses - default),
            }
    if options.json:
        print(json.dumps(table, indent=1))
        return
    kinds = list(results["default", 0])
    print("| variant | " + " | ".join(f"{kind} log loss | to default" for kind in kinds) + " |")
    print("| --- |" + " --- | --- |" * len(kinds))
    for variant, row in table.items():
        cells = (
            "{:.4f} ± {:.4f}".format(*row[k]["alone"])
            + " | {:+.4f} ± {:.4f}".format(*row[k]["to default"])
            for k in kinds
        )
        print(f"| {variant} | " + " | ".join(cells) + " |")


def _mean_and_sd(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
