"""Measure what each group of the trees' features is worth, and what further features would add.

    python benchmarks/features.py --data data/processed [--encoder FOLDER] [--seeds 3] \
        [--per-prompt 1] [--only "without phrases"]

Fits `kit.baselines.trees.Boosted` on all folds of the processed rows, without one group of features
or with further ones, and averages the predictions over the seeds of the trees. Prints the
out-of-fold log loss of each variant, its difference to the shipped features with a 95% interval,
and with how many of the seeds alone it is better. The number of rounds is sought once for each fold
and seed, with the shipped features. Losses per row are kept in --cache, so the same command
continues where it stopped.

With --per-prompt 1 the rows are like the competition's, most of whose prompts have one row.

Further features are the rank of an answer's length among all answers to the same prompt and, where
--encoder is given, embeddings: means over the states of the first 256 tokens of prompt and answers,
as cosines alone and with their first principal components.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from kit.baselines import trees
from kit.baselines.features import MARKS, PHRASES, STYLE_FEATURES
from kit.baselines.features import SHARES as WORD_SHARES
from kit.baselines.rows import FEATURE_NAMES, PairRows, pair_rows
from kit.baselines.similarity import Embedder, cosines
from kit.data.dataset import Dataset, open_dataset
from kit.data.features import LENGTHS, SHARES
from kit.data.prediction_rows import PredictionRows
from kit.evaluation.bootstrap import loss_difference
from kit.evaluation.metrics import row_losses
from kit.task import LABEL

MARKUP = (
    *("list_items", "numbered_items", "headings", "code_fences", "inline_code", "bold"),
    *("table_rows", "links", "paragraphs", "latex", "tags"),
)
GROUPS: dict[str, tuple[str, ...]] = {
    "lengths": (*LENGTHS, "length_ratio"),
    "markup": MARKUP,
    "phrases": (*(name for name in PHRASES if name not in MARKUP), *WORD_SHARES, "refusals"),
    "openings and endings": (*MARKS, "unfinished", "empty"),
    "shape of lines and sentences": (
        *("sentence_length", "line_length", "longest_line", "first_line", "last_line"),
        *("sentences", "questions", "exclamations", "word_length"),
    ),
    "repetition": ("repeated_lines", "repeated_pairs", "compression", "distinct_words"),
    "likeness to the prompt": (
        *("cosine", "rare_of_prompt", "rare_from_prompt", "pairs_of_prompt", "new_words"),
        *("from_prompt", "of_prompt", "script_match"),
    ),
    "kinds of characters": SHARES,
    "likeness of the answers": ("common_words", "same"),
    "the prompt's own": tuple(n for n in FEATURE_NAMES["pair"] if n.startswith("prompt_")),
    "style, as added after 0.1.0": STYLE_FEATURES,
}
SHIPPED = "shipped"
RANKS = "with ranks of lengths"
COSINES = "with cosines of embeddings"
COMPONENTS = "with cosines and 32 components of embeddings"


def without(rows: PairRows, names: tuple[str, ...]) -> PairRows:
    """Return the rows without the features of these names."""
    sides, pair = (
        np.array([name not in names for name in FEATURE_NAMES[kind]]) for kind in ("sides", "pair")
    )
    return dataclasses.replace(
        rows, a=rows.a[:, sides], b=rows.b[:, sides], pair=rows.pair[:, pair]
    )


def with_more(rows: PairRows, sides: tuple[np.ndarray, np.ndarray]) -> PairRows:
    """Return the rows with further features of A and B, (N, F) each."""
    a, b = sides
    return dataclasses.replace(
        rows,
        a=np.hstack([rows.a, a]),
        b=np.hstack([rows.b, b]),
    )


def rank_lengths(rows: PairRows) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of A and of B, 0 to 1, among all answers to the prompt, (N, 1) each."""
    ranks = np.empty_like(rows.lengths)
    for group in np.unique(rows.groups):
        inside = rows.groups == group
        lengths = rows.lengths[inside]
        ordered = np.sort(lengths, axis=None)
        below = np.searchsorted(ordered, lengths, side="left")
        upto = np.searchsorted(ordered, lengths, side="right")
        ranks[inside] = (below + upto) / (2 * ordered.size)
    return ranks[:, :1], ranks[:, 1:]


def components(vectors: np.ndarray, count: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Return the first principal components of A and of B, (N, count) each; no label is used.

    Args:
        vectors: of prompt, answer A and answer B, (N, 3, H).
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    _, a, b = np.moveaxis(unit, 1, 0)
    both = np.vstack([a, b])
    mean = both.mean(axis=0)
    _, ascending = np.linalg.eigh(np.cov(both - mean, rowvar=False))
    axes = ascending[:, : -count - 1 : -1]
    return (a - mean) @ axes, (b - mean) @ axes


def out_of_fold_losses(
    rows: PairRows, labels: np.ndarray, folds: np.ndarray, rounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit all folds with each seed of the trees.

    Args:
        rows, labels, folds: of all training rows.
        rounds: of each fold and seed, (folds, seeds); 0 seeks them.

    Returns:
        The loss of each row by the trees of each seed and by their mean, (seeds + 1, N), and the
        rounds.
    """
    predictions = np.empty((rounds.shape[1], len(rows), 3))
    used = np.empty_like(rounds)
    for (fold, seed), wanted in np.ndenumerate(rounds):
        train, validation = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        trees.SETTINGS["seed"] = seed
        model = trees.Boosted.fit(rows.take(train), labels[train], int(wanted) or None)
        predictions[seed, validation] = model.predict(rows.take(validation))
        used[fold, seed] = model.rounds
    means = predictions.mean(axis=0)
    return np.stack([row_losses(p, labels) for p in (*predictions, means)]), used


def few_of_each_prompt(groups: np.ndarray, most: int) -> np.ndarray:
    """Return the places of at most so many rows of each prompt, drawn at random."""
    shuffled = np.random.default_rng(0).permutation(len(groups))
    order = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(starts, counts)
    return np.sort(order[rank < most])


def variants(
    rows: PairRows, data: Dataset, kept: np.ndarray, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], PairRows]]]:
    """Yield the name of each variant and what makes its rows, which are those `kept`."""
    yield SHIPPED, lambda: rows
    for name, features in GROUPS.items():
        yield f"without {name}", lambda features=features: without(rows, features)
    yield RANKS, lambda: with_more(rows, rank_lengths(rows))
    if options.encoder:
        source = PredictionRows.of_split(data, "train")
        vectors = Embedder.of_backbone(str(options.encoder)).embed(source, print)[kept]
        similar = rows.with_similarities(cosines(vectors))
        yield COSINES, lambda: similar
        yield COMPONENTS, lambda: with_more(similar, components(vectors))


def main() -> None:
    """Fit all variants and print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-prompt", type=int, default=0, help="rows of each (default: all)")
    parser.add_argument("--only", action="append")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)

    data = open_dataset(options.data)
    rows = pair_rows(data.train(), ngrams=False)
    labels = data.train([LABEL])[LABEL].to_numpy().astype(np.int64)
    folds = np.empty(len(rows), int)
    for fold in range(data.folds):
        folds[data.fold_rows(fold)[1]] = fold

    kept = np.arange(len(rows))
    if options.per_prompt:
        kept = few_of_each_prompt(rows.groups, options.per_prompt)
        rows, labels, folds = rows.take(kept), labels[kept], folds[kept]
    print(f"{len(rows):,} rows of {len(np.unique(rows.groups)):,} prompts")
    print("| features | out-of-fold | difference [95%] | better with |")
    print("| --- | --- | --- | --- |")
    shipped = rounds = None
    for name, make in variants(rows, data, kept, options):
        if options.only and name not in (SHIPPED, *options.only):
            continue
        where = [data.digest("train"), str(options.encoder), options.per_prompt]
        what = [*where, name, options.seeds, trees.Boosted.settings, FEATURE_NAMES]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
        file = options.cache / f"{key}.npz"
        if not file.exists():
            sought = np.zeros((data.folds, options.seeds), int) if rounds is None else rounds
            losses, used = out_of_fold_losses(make(), labels, folds, sought)
            np.savez(file, losses=losses, rounds=used)
        with np.load(file) as saved:
            losses, used = saved["losses"], saved["rounds"]

        mean = losses[-1].mean()
        if shipped is None:
            shipped, rounds = losses, used
            print(f"| {name} | {mean:.4f} | | |", flush=True)
            continue
        paired = loss_difference(losses[-1], shipped[-1], rows.groups)
        better = int((losses[:-1].mean(axis=1) < shipped[:-1].mean(axis=1)).sum())
        print(
            f"| {name} | {mean:.4f} | {paired.mean:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}] "
            f"| {better} of {options.seeds} seeds |",
            flush=True,
        )


if __name__ == "__main__":
    main()
