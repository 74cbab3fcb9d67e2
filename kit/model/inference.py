"""Ordered inference: whatever the batching, row i of the result is row i of the input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from kit.data.encode import Encoded, Vocabulary
from kit.data.tabular import Tabular
from kit.model.batches import Collator
from kit.model.device import Compute
from kit.model.pair import PairModel

TOKENS = {"cuda": 65536, "cpu": 8192, "mps": 16384}  # of a forward pass, padding included


def collator(
    model: PairModel,
    encoded: Encoded,
    vocabulary: Vocabulary,
    labels: np.ndarray | None = None,
    tabular: Tabular | None = None,
) -> Collator:
    """The collator for this model's inputs; opening another pack costs more on a GPU, where kernels wait to launch.

    Args:
        tabular: where the model reads features, those of the rows; it takes its own from them.
    """
    on_gpu = next(model.parameters()).is_cuda
    return Collator(
        encoded,
        vocabulary.pad,
        segments=model.encoder_config.get("type_vocab_size", 0) > 1,
        labels=labels,
        pack_overhead=1024 if on_gpu else 64,
        tabular=tabular.select(*model.reads) if model.reads else None,
    )


def predict_logits(
    model: PairModel,
    collate: Collator,
    rows: np.ndarray,
    compute: Compute,
    *,
    both_orders: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Logits of `rows` in their order, float32: (N, 3), or (N, 2, 3) with the answers as given and swapped.

    Under torchrun every process computes every world-th row and all get the whole; progress is of the own share.
    """
    if not dist.is_initialized():
        return _logits_of_share(model, collate, rows, compute, both_orders, progress)
    rank, world = dist.get_rank(), dist.get_world_size()
    share = _logits_of_share(model, collate, rows[rank::world], compute, both_orders, progress)
    shares: list[np.ndarray] = [share] * world
    dist.all_gather_object(shares, share)
    whole = np.empty((len(rows), *share.shape[1:]), np.float32)
    for number, part in enumerate(shares):
        whole[number::world] = part
    return whole


def _logits_of_share(
    model: PairModel,
    collate: Collator,
    rows: np.ndarray,
    compute: Compute,
    both_orders: bool,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Rows of like length share a batch, the longest first, so that memory runs out at once or never."""
    out = np.empty((len(rows), 2, 3) if both_orders else (len(rows), 3), np.float32)
    training, done = model.training, 0
    model.eval()
    forward = model.both_orders if both_orders else model.forward
    with torch.inference_mode():
        lengths, tokens = collate.lengths[rows].max(1), TOKENS[compute.device.type]
        pending = token_batches(lengths, collate.encoded.sides, tokens)
        while pending:
            places = pending.pop(0)
            batch = collate(rows[places])
            try:
                with compute.autocast():
                    logits = forward(**_on_device(batch, compute.device))
            except torch.OutOfMemoryError:
                if len(places) == 1:
                    raise
                left, tokens = np.concatenate([places, *pending]), tokens // 2
                pending = [left[cut] for cut in token_batches(lengths[left], collate.encoded.sides, tokens)]
                torch.cuda.empty_cache()
                continue
            out[places] = logits.float().cpu().numpy()
            done += len(places)
            progress(done, len(rows))
    model.train(training)
    return out


def _on_device(value: Any, device: torch.device) -> Any:
    """A batch, that is tensors in dictionaries and lists, with every tensor on the device."""
    if isinstance(value, dict):
        return {name: _on_device(each, device) for name, each in value.items() if name != "labels"}
    if isinstance(value, list):
        return [_on_device(each, device) for each in value]
    return value.to(device, non_blocking=True)


def token_batches(lengths: np.ndarray, sides: int, tokens: int) -> list[np.ndarray]:
    """Places 0..N-1, longest first, cut into batches of at most `tokens` padded tokens (at least one row each)."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, tokens // (sides * int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64 over the last axis."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, 3); of both orders (N, 2, 3), their average."""
    each = softmax(logits)
    return each.mean(1) if each.ndim == 3 else each
