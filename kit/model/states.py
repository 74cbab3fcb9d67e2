"""Compute a frozen encoder's pooled vectors once, and keep them on disk. Use `vectors_cached`.

The vectors of 57,477 rows take some hundred megabytes, and the hours in which the encoder reads
them are spent once, whatever is then trained on them.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from kit.errors import DataError
from kit.model.collator import Collator
from kit.model.device import Compute, join_processes
from kit.model.inference import pooled_vectors
from kit.model.pair_model import PairModel
from kit.storage.atomic import atomic_folder, save_array
from kit.storage.seal import DELETE_HINT, check_seal, is_sealed, seal_folder

# Part of the cache key: raise it when the same tokens would give other vectors.
FORMAT = 1

_FILE = "vectors.npy"

# Seconds between messages of how far it has come.
_REPORT_EVERY = 60.0


def vectors_cached(
    model: PairModel,
    collator: Collator,
    compute: Compute,
    identity: Any,
    cache: Path,
    begin: Callable[[], None] = lambda: None,
    log: Callable[[str], None] = lambda _: None,
) -> np.ndarray:
    """Return the pooled vectors of all rows, (N, S, H) float32, mapped from disk.

    All processes of torchrun call this; each computes a share of the rows.

    Args:
        identity: what decides the vectors: hashes of tokens and weights, pooling. It is made into
            the name of a folder in `cache`, and must be the same for equal vectors only.
        begin: called before the encoder reads the rows, if the cache does not have them.
        log: called about once a minute with how far it has come.

    Raises:
        DataError: the cached vectors are damaged.
    """
    text = json.dumps([FORMAT, identity, compute.precision], sort_keys=True)
    folder = cache / f"vectors-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    ranks = join_processes()
    if not is_sealed(folder):
        begin()
        _compute_vectors(model, collator, compute, folder, log)
    ranks.wait_for_everyone()

    check_seal(folder)
    rows = len(collator.encoded)
    try:
        vectors = np.load(folder / _FILE, mmap_mode="r")
        complete = vectors.ndim == 3 and len(vectors) == rows
    except (OSError, ValueError, EOFError):
        complete = False
    if not complete:
        raise DataError(f"{folder}: the cached vectors are incomplete", DELETE_HINT)
    return vectors


def _compute_vectors(
    model: PairModel,
    collator: Collator,
    compute: Compute,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Write the vectors of all rows to `folder`, by the first process."""
    ranks = join_processes()
    rows = np.arange(len(collator.encoded))[ranks.process_index :: ranks.num_processes]
    reported = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal reported
        if done < total and time.monotonic() - reported >= _REPORT_EVERY:
            reported = time.monotonic()
            log(f"the frozen encoder has read {done / total:.0%} of the rows")

    share = pooled_vectors(model, collator, rows, compute, report)
    shares = [share] * ranks.num_processes
    if dist.is_initialized():
        dist.all_gather_object(shares, share)
    if not ranks.is_main_process:
        return

    vectors = np.empty((len(collator.encoded), *share.shape[1:]), np.float32)
    for number, part in enumerate(shares):
        vectors[number :: len(shares)] = part
    with atomic_folder(folder) as temporary:
        save_array(temporary / _FILE, vectors)
        seal_folder(temporary)
