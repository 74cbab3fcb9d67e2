"""The guard at work: a deep, thin ELECTRA on the sample, under the reference's regime and under kit's own.

    python benchmarks/collapse.py [--rows 3000] [--epochs 1] [--layers 24] [--hidden 32] [--lr RATE] [--json]

The encoder starts from random weights, so what is shown is what a regime makes of a deep encoder in little time, not
the collapse of a pretrained one. Both regimes see the same rows equally often. With its own rate the reference has
learned nothing by the end of the epoch. With `--lr 0.01` for both, the flat rate collapses for good, and the same peak
under a head-only phase, warm-up and layer-wise decay learns. Exits with 0 when the guard stops the reference and the
other learns.
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
from kit.model.backbones import BACKBONES
from kit.model.encoder import build_encoder
from kit.recipe.load import load_recipe
from kit.sample.generate import write_sample
from kit.task import LABEL
from kit.training.callbacks import TrainingProgress
from kit.training.guard import CollapseGuard, constant_loss
from kit.training.setup import tiny_folder
from kit.training.train import train_recipe


def backbone(folder: Path, processed: Dataset, layers: int, hidden: int) -> Path:
    """ELECTRA-large's configuration made deep and thin, with random weights and a tokenizer for these rows."""
    tiny = BACKBONES["tiny-electra"]
    shape = {"hidden_size": hidden, "embedding_size": hidden, "intermediate_size": 2 * hidden}
    shape |= {"num_hidden_layers": layers, "num_attention_heads": max(1, hidden // 16)}
    torch.manual_seed(0)
    build_encoder(
        BACKBONES["electra"].config | shape | {"vocab_size": tiny.config["vocab_size"]}
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder(tiny, processed) / name).read_bytes())
    return folder


def main() -> int:
    """Prints how both trainings went."""
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
        write_sample(root / "raw", rows=options.rows)
        preprocess_files(root / "raw", root / "processed")
        processed = open_dataset(root / "processed")
        folder = backbone(root / "deep", processed, options.layers, options.hidden)
        train_rows, valid_rows = processed.fold_rows("holdout")
        labels = processed.train([LABEL])[LABEL].to_numpy()
        result = {"class shares": constant_loss(labels[train_rows], labels[valid_rows])}
        for name in ("electra-reference", "electra"):
            overrides = [f"encode.max_tokens={options.tokens}", f"train.epochs={options.epochs}"]
            overrides += (
                [f"train.lr={options.lr}", f"train.head_lr={options.lr}"] if options.lr else []
            )
            overrides += [
                "train.micro_batch_size=0",
                "train.gradient_checkpointing=false",
                "train.evals_per_epoch=4",
            ]
            curve: list[TrainingProgress] = []
            try:
                train_recipe(
                    load_recipe(name, overrides, str(folder)),
                    root / "processed",
                    root / "runs",
                    listen=curve.append,
                )
                guard = ""
            except CollapseError as error:
                guard = error.problem
            losses = [event.log_loss for event in curve if event.log_loss is not None]
            learned = min(losses) < result["class shares"] - CollapseGuard.MARGIN
            result[name] = {
                "steps": curve[-1].step,
                "log loss": losses,
                "learned": learned,
                "guard": guard,
            }
    met = bool(result["electra-reference"]["guard"]) and result["electra"]["learned"]
    if options.json:
        print(json.dumps(result | {"met": met}, indent=1))
    else:
        print(f"log loss of the class shares: {result['class shares']:.4f}")
        for name in ("electra-reference", "electra"):
            each = result[name]
            losses, verdict = (
                " ".join(f"{loss:.4f}" for loss in each["log loss"]),
                "learned" if each["learned"] else "",
            )
            print(
                f"{name}: {each['steps']} steps, validation log loss {losses} {each['guard'] or verdict}"
            )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
