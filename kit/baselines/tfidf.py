"""Compute TF-IDF of word and character n-grams in two steps: hashed counts, then learnt weights.

Use `count_ngrams`, `inverse_frequencies` and `weigh_ngrams`. Counting depends on one text alone, so
it is done once for all folds; document frequencies are learnt from a fold's training rows only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

# Columns for each kind: enough that two frequent n-grams rarely share one.
WIDTH = 1 << 18

# Words and pairs of words; character runs within words and at their edges.
KINDS: tuple[dict[str, Any], ...] = (
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    {"analyzer": "char_wb", "ngram_range": (3, 4)},
)

MIN_TEXTS = 5  # that must contain an n-gram for it to count

Counts = tuple[sparse.csr_array, ...]  # one of each kind, (N, WIDTH) float32


def count_ngrams(texts: Sequence[str]) -> Counts:
    """Return 1 + ln(n) for an n-gram that occurs n times in a text, a row for each of N texts."""
    counts = []
    for kind in KINDS:
        hashing = HashingVectorizer(
            n_features=WIDTH, alternate_sign=False, norm=None, dtype=np.float32, **kind
        )
        block = sparse.csr_array(hashing.transform(texts))
        block.data = 1 + np.log(block.data)
        counts.append(block)
    return tuple(counts)


def inverse_frequencies(counts: Sequence[Counts]) -> list[np.ndarray]:
    """Return the weight of each n-gram, (WIDTH,) for each kind.

    It is ln((1 + N) / (1 + n)) + 1 for an n-gram in n of all N texts, and 0 where n is below
    MIN_TEXTS.
    """
    weights = []
    for blocks in zip(*counts, strict=True):
        texts = sum(block.shape[0] for block in blocks)
        containing = sum(np.bincount(block.indices, minlength=WIDTH) for block in blocks)
        inverse = np.log((1 + texts) / (1 + containing)) + 1
        weights.append(np.where(containing >= MIN_TEXTS, inverse, 0).astype(np.float32))
    return weights


def weigh_ngrams(counts: Counts, weights: Sequence[np.ndarray]) -> Counts:
    """Return the TF-IDF of the same texts, without the columns of weight 0.

    Rows have Euclidean length 1 within each kind, or 0 where a text has no frequent n-gram.
    """
    weighed = []
    for block, weight in zip(counts, weights, strict=True):
        scaled = block.copy()
        scaled.data *= weight[block.indices]
        scaled.eliminate_zeros()
        scaled = normalize(scaled, copy=False)

        new_column = np.cumsum(weight > 0, dtype=np.int32) - 1
        shape = (block.shape[0], int(new_column[-1]) + 1)
        entries = (scaled.data, new_column[scaled.indices], scaled.indptr)
        weighed.append(sparse.csr_array(entries, shape))
    return tuple(weighed)
