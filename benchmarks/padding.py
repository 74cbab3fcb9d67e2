"""Padding of a training epoch: kit's buckets and packs against padding every batch to its longest sequence.

    python benchmarks/padding.py [--data data/processed] [--tokens 512] [--batch 32] [--json]

Without --data it makes a sample. Target: under 5% of the encoder's tokens are padding.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.data.tokenize import tokenize_cached
from kit.model.backbones import BACKBONES, local_backbone
from kit.model.collator import Collator, Padding
from kit.model.encoder import load_tokenizer
from kit.recipe.spec import EncodeSpec
from kit.sample.generate import write_sample
from kit.training.sampler import LengthBuckets
from kit.training.setup import tiny_folder

TARGET = 0.05


def waste(collate: Collator, order: np.ndarray, batch: int) -> float:
    """The share of padding when `order`'s rows go through the collator `batch` at a time."""
    collate.count = Padding()
    for start in range(0, len(order), batch):
        collate(order[start : start + batch])
    return collate.count.waste


def main() -> int:
    """Prints the table; exits with 1 when the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or Path(scratch) / "processed"
        if not options.data:
            write_sample(Path(scratch) / "raw", rows=options.rows)
            preprocess_files(Path(scratch) / "raw", data)
        processed = open_dataset(data)
        toy = tiny_folder(BACKBONES["tiny-roberta"], processed)
        vocabulary = load_tokenizer(local_backbone(toy))
        spec = EncodeSpec(max_tokens=options.tokens)
        encoded = tokenize_cached(
            processed.train(), processed.digest("train"), vocabulary, spec, processed.cache
        )
        collate = Collator(encoded, vocabulary.pad, segments=False)
        shuffled = np.random.default_rng(0).permutation(len(encoded))
        lengths = encoded.lengths[shuffled]
        full = [lengths[i : i + options.batch] for i in range(0, len(lengths), options.batch)]
        result = {
            "rows": len(encoded),
            "tokens a side": options.tokens,
            "batch": options.batch,
            "padded to the budget": 1 - lengths.sum() / (lengths.size * options.tokens),
            "padded to the longest of a batch": 1
            - lengths.sum() / sum(part.size * part.max() for part in full),
            "packs, shuffled rows": waste(collate, shuffled, options.batch),
            "packs, length buckets": waste(
                collate,
                np.array(list(LengthBuckets(encoded.lengths, options.batch, seed=0))),
                options.batch,
            ),
        }
    met = result["packs, length buckets"] < TARGET
    if options.json:
        print(json.dumps(result | {"target": TARGET, "met": met}, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:34} {value:.1%}" if isinstance(value, float) else f"{name:34} {value:,}")
        print(f"target: under {TARGET:.0%}: {'met' if met else 'missed'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
