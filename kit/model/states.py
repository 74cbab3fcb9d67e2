"""Compute a frozen encoder's pooled vectors once, and keep them on disk. Use `vectors_cached`.

The vectors of 57,477 rows take some hundred megabytes, and the hours in which the encoder reads
them are spent once, whatever is then trained on them. A reading that was interrupted goes on.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
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
from kit.storage.lock import hold_lock
from kit.storage.seal import DELETE_HINT, check_seal, is_sealed, seal_folder

# Part of the cache key: raise it when the same tokens would give other vectors.
FORMAT = 1

_FILE = "vectors.npy"

# Rows of a block. What is read is kept block by block: a process that is killed has lost minutes.
BLOCK_ROWS = 4096

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
    if not _agree(is_sealed(folder)):
        # Another command may read the same rows by the same encoder. The first process waits for
        # it, and the others for the first.
        lock = hold_lock(cache, folder.name, wait=True) if ranks.is_main_process else nullcontext()
        with lock:
            if not _agree(is_sealed(folder)):
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


def _agree(answer: bool) -> bool:
    """Return the first process's answer, to every process."""
    answers = [answer]
    if dist.is_initialized():
        dist.broadcast_object_list(answers)
    return answers[0]


def _compute_vectors(
    model: PairModel,
    collator: Collator,
    compute: Compute,
    folder: Path,
    log: Callable[[str], None],
) -> None:
    """Write the vectors of all rows to `folder`, block by block, from the first that is missing."""
    rows = np.arange(len(collator.encoded))
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    parts = folder.with_name(f".{folder.name}.part")
    reported = time.monotonic()

    def report(block: np.ndarray, done: int, total: int) -> None:
        nonlocal reported
        read = (block[0] + done * len(block) // total) / len(rows)
        if read < 1 and time.monotonic() - reported >= _REPORT_EVERY:
            reported = time.monotonic()
            log(f"the frozen encoder has read {read:.0%} of the rows")

    for number, block in enumerate(blocks):
        # The first process writes a block when it has the shares of all, which look for it before
        # they compute theirs: they always agree.
        if not is_sealed(parts / str(number)):
            _compute_block(
                model, collator, compute, block, parts / str(number), partial(report, block)
            )

    if not join_processes().is_main_process:
        return
    vectors = np.empty(0, np.float32)
    for number, block in enumerate(blocks):
        check_seal(parts / str(number))
        part = np.load(parts / str(number) / _FILE, mmap_mode="r")
        if not number:
            vectors = np.empty((len(rows), *part.shape[1:]), np.float32)
        vectors[block] = part
    _save_vectors(folder, vectors)
    shutil.rmtree(parts)


def _compute_block(
    model: PairModel,
    collator: Collator,
    compute: Compute,
    block: np.ndarray,
    folder: Path,
    report: Callable[[int, int], None],
) -> None:
    """Write the vectors of some rows to `folder`, by the first process; each computes a share."""
    ranks = join_processes()
    share = pooled_vectors(
        model, collator, block[ranks.process_index :: ranks.num_processes], compute, report
    )
    shares = [share] * ranks.num_processes
    if dist.is_initialized():
        dist.all_gather_object(shares, share)
    if not ranks.is_main_process:
        return

    vectors = np.empty((len(block), *share.shape[1:]), np.float32)
    for number, part in enumerate(shares):
        vectors[number :: len(shares)] = part
    _save_vectors(folder, vectors)


def _save_vectors(folder: Path, vectors: np.ndarray) -> None:
    """Write a folder of vectors whole or not at all, with the hash that tells if it changes."""
    with atomic_folder(folder) as temporary:
        save_array(temporary / _FILE, vectors)
        seal_folder(temporary)
