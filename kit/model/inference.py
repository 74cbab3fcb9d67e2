"""Ordered inference: whatever the batching, row i of the result is row i of the input."""

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kit.attention.unpadded import supports_unpadded
from kit.data.feature_cache import FeatureTable
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.model.collator import Collator
from kit.model.device import Compute
from kit.model.pair_model import PairModel

TOKENS = {"cuda": 65536, "cpu": 4096, "mps": 16384}  # of a forward pass, were it padded
WINDOW = 16384  # rows whose vectors are held at a time
CLASSIFIED = 2048  # rows that pass the head at a time


def make_collator(
    model: PairModel,
    encoded: TokenizedRows,
    vocabulary: PairTokenizer,
    labels: np.ndarray | None = None,
    tabular: FeatureTable | None = None,
    most: int = 0,
    multiple: int = 1,
    first_only: bool = False,
) -> Collator:
    """The collator for this model's inputs; opening another pack costs more on a GPU, where kernels wait to launch.

    Args:
        tabular: where the model reads features, those of the rows; it takes its own from them.
        most, multiple: as of `Collator`.
        first_only: leave out the sequences that a model of `reads_first` only needs for both orders.
    """
    device = next(model.parameters()).device.type
    return Collator(
        encoded,
        vocabulary.pad,
        segments=model.encoder_config.get("type_vocab_size", 0) > 1,
        labels=labels,
        pack_overhead=1024 if device == "cuda" else 64,
        tabular=tabular.select(*model.reads) if model.reads else None,
        most=most,
        multiple=multiple,
        first_only=first_only,
        unpadded=device == "cpu" and multiple == 1 and supports_unpadded(model.encoder),
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
    """A window of rows at a time, so that memory does not grow with their number; those with long sequences first."""
    out = np.empty((len(rows), 2, 3) if both_orders else (len(rows), 3), np.float32)
    training = model.training
    model.eval()
    sides = 1 if model.reads_first and not both_orders else collate.encoded.sides
    longest_first = np.argsort(-collate.lengths[rows, :sides].max(1), kind="stable")
    with torch.inference_mode(), _whole_in_half(model, compute):
        for done in range(0, len(rows), WINDOW):
            places = longest_first[done : done + WINDOW]

            def tell(share: float, before: int = done, window: int = len(places)) -> None:
                progress(before + int(share * window), len(rows))

            sequences, which = distinct_sequences(collate.encoded, rows[places], sides)
            vectors = _vectors(model, collate, sequences, compute, tell)
            for start in range(0, len(places), CLASSIFIED):
                some = slice(start, start + CLASSIFIED)
                each = vectors[torch.from_numpy(which[some]).to(vectors.device)]  # (B, S, H)
                features = _on_device(collate.features(rows[places[some]]), compute)
                logits = (
                    model.both_orders(each, features)
                    if both_orders
                    else model.classify(each, features)
                )
                out[places[some]] = logits.float().cpu().numpy()
    model.train(training)
    return out


@contextlib.contextmanager
def _whole_in_half(model: PairModel, compute: Compute) -> Iterator[None]:
    """On a CPU in bf16 a copy of the encoder whose weights and states are bf16, too.

    Autocast converts a layer's states from and to float32 around every product. Buffers stay as they are: the angles of
    rotary positions would be wrong by more the longer the text.
    """
    if compute.device.type != "cpu" or compute.precision != "bf16":
        yield
        return
    encoder = model.encoder
    model.encoder = copy.deepcopy(encoder)
    for parameter in model.encoder.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    try:
        yield
    finally:
        model.encoder = encoder


def _vectors(
    model: PairModel,
    collate: Collator,
    sequences: np.ndarray,
    compute: Compute,
    tell: Callable[[float], None],
) -> Tensor:
    """The pooled vectors of sequences (U), by their numbers, on the device: (U, H)."""
    lengths, tokens = collate.lengths.ravel()[sequences], TOKENS[compute.device.type]
    pending, vectors, done = token_batches(lengths, tokens), [], 0
    while pending:
        batch = pending.pop(0)
        pack = collate.pack(sequences[batch])
        try:
            with compute.autocast():
                vectors.append(model.pool(_on_device(pack, compute)))
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            left, tokens = np.concatenate([batch, *pending]), tokens // 2
            pending = [left[cut] for cut in token_batches(lengths[left], tokens)]
            torch.cuda.empty_cache()
            continue
        done += len(batch)
        tell(done / len(sequences))
    back = np.argsort(-lengths, kind="stable").argsort()
    return torch.cat(vectors)[torch.from_numpy(back).to(compute.device)]


def distinct_sequences(
    encoded: TokenizedRows, rows: np.ndarray, sides: int
) -> tuple[np.ndarray, np.ndarray]:
    """The different sequences of rows, each by the number of its first copy, and which of them each side is (N, sides).

    People judge one answer against many others, and many models' answers to a short prompt are the same.
    """
    seen: dict[tuple[int, bytes], int] = {}
    sequences = (rows[:, None] * encoded.sides + np.arange(sides)).ravel()
    starts, ends, firsts = (
        encoded.starts[sequences],
        encoded.starts[sequences + 1],
        encoded.first_lengths[sequences],
    )
    which = np.empty(len(sequences), np.int64)
    for place, (start, end, first) in enumerate(
        zip(starts.tolist(), ends.tolist(), firsts.tolist(), strict=True)
    ):
        content = hashlib.blake2b(encoded.tokens[start:end], digest_size=16).digest()
        which[place] = seen.setdefault((first, content), len(seen))
    numbers = np.empty(len(seen), np.int64)
    numbers[which[::-1]] = sequences[::-1]  # written backwards, so that the first copy stays
    return numbers, which.reshape(-1, sides)


def _on_device(tensors: dict[str, Tensor] | None, compute: Compute) -> dict[str, Tensor] | None:
    """Tensors on the device; from pinned memory a GPU fetches them while it computes."""
    if tensors is None or compute.device.type == "cpu":
        return tensors
    pinned = compute.device.type == "cuda"
    return {
        name: (each.pin_memory() if pinned else each).to(compute.device, non_blocking=True)
        for name, each in tensors.items()
    }


def token_batches(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Places 0..N-1, longest first, cut into batches of at most `tokens` padded tokens (at least one sequence each)."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


def softmax_logits(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64 over the last axis."""
    shifted = np.asarray(logits, np.float64)
    shifted = np.exp(shifted - shifted.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def mean_probabilities(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (N, 3); of both orders (N, 2, 3), their average."""
    each = softmax_logits(logits)
    return each.mean(1) if each.ndim == 3 else each
