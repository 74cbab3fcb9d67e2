"""Generate rows of random tokens for tests that need no text, the same for a seed."""

import numpy as np

from kit.data.tokenize import TokenizedRows

CLS, SEP, PAD = 1, 2, 0


def token_rows(lengths: np.ndarray, seed: int = 0, tokens: int = 200) -> TokenizedRows:
    """Return framed rows whose sides have these lengths (N, S), with ids from 4 to `tokens` - 1."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths.ravel())]).astype(np.int64)
    ids = rng.integers(4, tokens, starts[-1]).astype(np.int32)

    # The first segment is CLS, perhaps a prompt, SEP.
    first = rng.integers(2, np.maximum(lengths.ravel(), 3))
    ids[starts[:-1]] = CLS
    ids[starts[:-1] + first - 1] = SEP
    ids[starts[1:] - 1] = SEP
    return TokenizedRows(
        ids,
        starts,
        first.astype(np.int32),
        lengths.ravel().astype(np.int32),
        lengths.shape[1],
        cut=0,
    )


def swapped(encoded: TokenizedRows) -> TokenizedRows:
    """Return the same rows with their sides in the opposite order."""
    order = np.arange(len(encoded.starts) - 1).reshape(-1, encoded.sides)[:, ::-1].ravel()
    pieces = [encoded.tokens[encoded.starts[i] : encoded.starts[i + 1]] for i in order]
    starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
    return TokenizedRows(
        np.concatenate(pieces),
        starts,
        encoded.first_lengths[order],
        encoded.whole_lengths[order],
        encoded.sides,
        encoded.cut,
    )
