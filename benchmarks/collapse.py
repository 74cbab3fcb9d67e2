"""Show the collapse guard at work: a deep, thin ELECTRA under the reference's regime and kit's own.

    python benchmarks/collapse.py [--rows 3000] [--epochs 1] [--layers 24] [--hidden 32] \
        [--lr RATE] [--json]

The encoder starts from random weights, so this shows what a regime makes of a deep encoder in
little time, not the collapse of a pretrained one. Both regimes see the same rows equally often.
With its own rate the reference has learned nothing by the end of the epoch. With `--lr 0.01` for
both, the flat rate collapses for good, and the same peak with a head-only phase, warm-up and
layer-wise decay learns. Exits with 0 when the guard stops the reference and the other learns.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.errors import CollapseError
from kit.model.encoder import build_encoder
from kit.model.registry import BACKBONES
from kit.recipe.load import load_recipe
from kit.sample.generate import write_sample
from kit.task import LABEL
from kit.training.callbacks import TrainingProgress
from kit.training.guard import CollapseGuard, prior_log_loss
from kit.training.setup import tiny_folder
from kit.training.train import train_recipe

REGIMES = ("electra-reference", "electra")


def make_deep_encoder(folder: Path, processed: Dataset, layers: int, hidden: int) -> Path:
    """Save ELECTRA-large's configuration made deep and thin, with random weights."""
    tiny = BACKBONES["tiny-electra"]
    shape = {
        "hidden_size": hidden,
        "embedding_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, hidden // 16),
        "vocab_size": tiny.config["vocab_size"],
    }
    torch.manual_seed(0)
    build_encoder(BACKBONES["electra"].config | shape).save_pretrained(folder)

    # The tokenizer is the toy encoder's, made from these rows.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder(tiny, processed) / name).read_bytes())
    return folder


def train_regime(
    name: str, encoder: Path, data: Path, runs: Path, constant: float, options: argparse.Namespace
) -> dict:
    """Train under one recipe; return its steps, losses, what the guard said, and if it learned.

    Args:
        constant: log loss of predicting the class shares.
    """
    overrides = [
        f"encode.max_tokens={options.tokens}",
        f"train.epochs={options.epochs}",
        "train.micro_batch_size=0",
        "train.gradient_checkpointing=false",
        "train.evals_per_epoch=4",
    ]
    if options.lr:
        overrides += [f"train.lr={options.lr}", f"train.head_lr={options.lr}"]

    curve: list[TrainingProgress] = []
    guard = ""
    try:
        train_recipe(load_recipe(name, overrides, str(encoder)), data, runs, listen=curve.append)
    except CollapseError as error:
        guard = error.problem

    losses = [event.log_loss for event in curve if event.log_loss is not None]
    return {
        "steps": curve[-1].step,
        "log loss": losses,
        "learned": min(losses) < constant - CollapseGuard.MARGIN,
        "guard": guard,
    }


def main() -> int:
    """Train under both regimes and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument(
        "--lr", type=float, help="the peak rate of the top layer and of the head, in both regimes"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        data = root / "processed"
        write_sample(root / "raw", rows=options.rows)
        preprocess_files(root / "raw", data)

        processed = open_dataset(data)
        encoder = make_deep_encoder(root / "deep", processed, options.layers, options.hidden)
        train_rows, valid_rows = processed.fold_rows("holdout")
        labels = processed.train([LABEL])[LABEL].to_numpy()
        constant = prior_log_loss(labels[train_rows], labels[valid_rows])
        regimes = {
            name: train_regime(name, encoder, data, root / "runs", constant, options)
            for name in REGIMES
        }

    met = bool(regimes["electra-reference"]["guard"]) and regimes["electra"]["learned"]
    if options.json:
        print(json.dumps({"class shares": constant, **regimes, "met": met}, indent=1))
    else:
        print(f"log loss of the class shares: {constant:.4f}")
        for name, regime in regimes.items():
            losses = " ".join(f"{loss:.4f}" for loss in regime["log loss"])
            verdict = regime["guard"] or ("learned" if regime["learned"] else "")
            print(f"{name}: {regime['steps']} steps, validation log loss {losses} {verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
