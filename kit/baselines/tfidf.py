"""TF-IDF of words and of character runs, in two steps: counts that depend on one text alone, weights that are learnt.

Counting hashes, so it learns nothing and is done once for all folds; what is rare and what is common is learnt from a
fold's training rows only.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import normalize

WIDTH = 1 << 18  # columns of each kind; two frequent n-grams seldom meet in one
KINDS = (
    {"analyzer": "word", "ngram_range": (1, 2), "token_pattern": r"(?u)\b\w+\b"},
    {"analyzer": "char_wb", "ngram_range": (3, 4)},  # runs within words and at their edges
)
RAREST = 5  # texts that must have an n-gram for it to count

Counts = tuple[sparse.csr_array, ...]  # one of each kind, (N, WIDTH) float32


def count_ngrams(texts: Sequence[str]) -> Counts:
    """1 + ln(n) where an n-gram stands n times in one of the N texts, a row each."""
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
    """ln((1 + N) / (1 + n)) + 1 of an n-gram that n of all N texts have, 0 of a rare one; (WIDTH,) for each kind."""
    weights = []
    for blocks in zip(*counts, strict=True):
        texts = sum(block.shape[0] for block in blocks)
        having = sum(np.bincount(block.indices, minlength=WIDTH) for block in blocks)
        weights.append(
            np.where(having >= RAREST, np.log((1 + texts) / (1 + having)) + 1, 0).astype(np.float32)
        )
    return weights


def weigh_ngrams(counts: Counts, weights: Sequence[np.ndarray]) -> Counts:
    """TF-IDF of the same texts, without the columns of weight 0: each kind's row has the Euclidean length 1, or 0."""
    weighed = []
    for block, weight in zip(counts, weights, strict=True):
        place = np.cumsum(weight > 0, dtype=np.int32) - 1
        scaled = block.copy()
        scaled.data *= weight[block.indices]
        scaled.eliminate_zeros()
        scaled = normalize(scaled, copy=False)
        shape = (block.shape[0], int(place[-1]) + 1)
        weighed.append(sparse.csr_array((scaled.data, place[scaled.indices], scaled.indptr), shape))
    return tuple(weighed)
