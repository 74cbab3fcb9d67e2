"""Batches of rows alike in length on both sides, in an order that is random all the same."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

BLUR = 0.05  # what lengths vary by at random before they are sorted, so that few rows meet in the same batch again


class LengthBuckets(Sampler[int]):
    """Yields row places so that every `batch_size` in a row are alike in length.

    An epoch is a fresh permutation; `window` batches of it at a time are sorted by the longer side
    into strips and, within a strip, by the shorter side into batches (as a k-d tree would); then
    the batches are shuffled. The same seed and epoch give the same order in every process and after
    a resume.

    Args:
        lengths: tokens of each row's sides (N, S).
        batch_size: rows of one optimizer step over all devices.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, window: int = 256):
        self.longer, self.shorter = lengths.max(1), lengths.min(1)
        self.batch_size, self.seed, self.window, self.epoch = batch_size, seed, window, 0

    def __len__(self) -> int:
        return len(self.longer)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self))
        blur = 1 + BLUR * rng.random(len(self))
        longer, shorter = self.longer * blur, self.shorter * blur
        full = len(rows) - len(rows) % self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, full, self.window * self.batch_size):
            batches += self._bucket(
                rows[start : min(start + self.window * self.batch_size, full)], longer, shorter
            )
        for number in rng.permutation(len(batches)):
            yield from batches[number].tolist()
        yield from rows[
            full:
        ].tolist()  # the incomplete batch comes last, since the loader cuts every batch_size

    def _bucket(
        self, rows: np.ndarray, longer: np.ndarray, shorter: np.ndarray
    ) -> list[np.ndarray]:
        count = len(rows) // self.batch_size
        strip = round(np.sqrt(count)) * self.batch_size
        rows = rows[np.argsort(-longer[rows], kind="stable")]
        batches = []
        for start in range(0, len(rows), strip):
            part = rows[start : start + strip]
            part = part[np.argsort(-shorter[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return batches
