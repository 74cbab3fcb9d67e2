"""Form batches of rows of similar length, in random order. Use `LengthBuckets`."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# Lengths are multiplied by 1 to 1 + BLUR at random before they are sorted, so that the same rows
# rarely meet again in a batch of the next epoch.
BLUR = 0.05


class LengthBuckets(Sampler[int]):
    """Yield row positions so that each `batch_size` consecutive ones are similar in length.

    An epoch is a new permutation. `window` batches of it at a time are sorted by the longer side
    into strips and, within a strip, by the shorter side into batches, as a k-d tree would. Then the
    batches are shuffled. The same seed and epoch give the same order in every process and after a
    resume.

    Args:
        lengths: tokens of each row's sides (N, S).
        batch_size: rows of one optimizer step over all devices.
        window: how many batches are sorted together.
        heaviest_first: begin each epoch with the batch of most tokens: where memory is short, it
            then runs out in the first minute and not after hours.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        window: int = 256,
        heaviest_first: bool = False,
    ):
        self.longer = lengths.max(1)
        self.shorter = lengths.min(1)
        self.batch_size = batch_size
        self.seed = seed
        self.window = window
        self.heaviest_first = heaviest_first
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.longer)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order is yielded next; accelerate's loader calls this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(len(self))
        blur = 1 + BLUR * rng.random(len(self))
        longer = self.longer * blur
        shorter = self.shorter * blur

        full = len(rows) - len(rows) % self.batch_size
        window_rows = self.window * self.batch_size
        batches: list[np.ndarray] = []
        for start in range(0, full, window_rows):
            window = rows[start : min(start + window_rows, full)]
            batches += self._cut_batches(window, longer, shorter)
        order = rng.permutation(len(batches))
        if self.heaviest_first and batches:
            tokens = self.longer + self.shorter
            heaviest = int(np.argmax([tokens[batches[number]].sum() for number in order]))
            order = np.concatenate([order[[heaviest]], np.delete(order, heaviest)])
        for number in order:
            yield from batches[number].tolist()

        # The loader cuts every `batch_size` positions, so the incomplete batch has to come last.
        yield from rows[full:].tolist()

    def _cut_batches(
        self, rows: np.ndarray, longer: np.ndarray, shorter: np.ndarray
    ) -> list[np.ndarray]:
        """Cut a window of rows into batches, the square root of their number in each strip."""
        count = len(rows) // self.batch_size
        strip_rows = round(np.sqrt(count)) * self.batch_size
        rows = rows[np.argsort(-longer[rows], kind="stable")]

        batches = []
        for start in range(0, len(rows), strip_rows):
            strip = rows[start : start + strip_rows]
            strip = strip[np.argsort(-shorter[strip], kind="stable")]
            batches += [
                strip[i : i + self.batch_size] for i in range(0, len(strip), self.batch_size)
            ]
        return batches
