"""Predict logits of rows, in their order. Use `make_collator` and `predict_logits`."""

import contextlib
import copy
import dataclasses
import hashlib
import time
from collections.abc import Callable, Generator, Iterator

import numpy as np
import scipy.special
import torch
import torch.distributed as dist
from torch import Tensor

from kit.attention.unpadded import supports_unpadded
from kit.data.feature_cache import FeatureTable
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.model.collator import Collator, cut_token_batches
from kit.model.device import Compute, out_of_memory
from kit.model.memory import free_after_failure, prediction_tokens
from kit.model.pair_model import PairModel
from kit.model.sharding import Turns

# Rows whose pooled vectors are kept at a time: memory does not grow with the number of rows.
WINDOW_ROWS = 16384

# Hidden size from which a GPU has more work with a kernel than the processor with its launch.
WIDE = 768

# Rows that pass the head at a time.
HEAD_ROWS = 2048

# Rows that are read in their second order before the clock is looked at again.
ORDER_ROWS = 256


def make_collator(
    model: PairModel,
    encoded: TokenizedRows,
    tokenizer: PairTokenizer,
    labels: np.ndarray | None = None,
    tabular: FeatureTable | None = None,
    max_tokens: int = 0,
    pad_multiple: int = 1,
    first_only: bool = False,
    vectors: np.ndarray | None = None,
) -> Collator:
    """Return the collator for this model's inputs on the device it is on.

    Args:
        tabular: features of the rows, for a model that reads some; it takes its own from them.
        max_tokens, pad_multiple: as of `Collator`.
        first_only: leave out the second sequences where the model has `reads_first_only`.
        vectors: pooled vectors of all rows, of an encoder that is not trained.
    """
    device = next(model.parameters()).device.type
    names = model.feature_names
    return Collator(
        encoded,
        tokenizer.pad,
        segments=(model.encoder_config.get("type_vocab_size") or 0) > 1,
        labels=labels,
        pack_overhead=_pack_overhead(model, device),
        tabular=tabular.select(*names) if names and tabular else None,
        max_tokens=max_tokens,
        pad_multiple=pad_multiple,
        first_only=first_only,
        one_length=bool(model.reads_padding),
        unpadded=device == "cpu" and pad_multiple == 1 and supports_unpadded(model.encoder),
        vectors=vectors,
    )


def _pack_overhead(model: PairModel, device: str) -> int:
    """Return what another pack costs, in tokens of the encoder.

    On a GPU every kernel of a pack is launched by the processor, which takes as long as the GPU
    needs for some hundred tokens of a small encoder. A wider one keeps the GPU busy meanwhile.
    """
    if device != "cuda":
        return 64
    return 256 if model.encoder.config.hidden_size >= WIDE else 1024


def predict_logits(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    *,
    both_orders: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    budget: "OrderBudget | None" = None,
) -> np.ndarray:
    """Return logits of `rows` in their order, float32: (N, 3), or with `both_orders` (N, 2, 3).

    Under torchrun every process computes every world-th row and gets the logits of all; `progress`
    then counts the rows of the process itself.

    Args:
        budget: the time for second orders of the answers, of a model that reads a whole row at
            once; None for as long as it takes.
    """

    def predict_share(own_rows: np.ndarray) -> np.ndarray:
        if budget and model.spec.shape != "siamese":
            return _predict_in_time(
                model, collator, own_rows, compute, both_orders, progress, budget
            )
        logits = _predict_share(model, collator, own_rows, compute, both_orders, progress)
        _finish_passes(model, collator, compute)
        return logits

    if not dist.is_initialized():
        return predict_share(rows)

    rank, world = dist.get_rank(), dist.get_world_size()
    share = predict_share(rows[rank::world])
    shares: list[np.ndarray] = [share] * world
    dist.all_gather_object(shares, share)

    logits = np.empty((len(rows), *share.shape[1:]), np.float32)
    for number, part in enumerate(shares):
        logits[number::world] = part
    return logits


def _predict_share(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    both_orders: bool,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Return the logits of this process's rows, in float32 where half precision was too narrow.

    A single row whose states overflow in fp16 would otherwise end a healthy training, or spoil all
    of a model's predictions.
    """
    logits = _compute_logits(model, collator, rows, compute, both_orders, progress)
    axes = tuple(range(1, logits.ndim))
    bad = np.flatnonzero(~np.isfinite(logits).all(axes))
    if compute.precision == "fp32" or not len(bad):
        return logits

    # Of weights that are not finite nothing finite can be computed.
    trained = [p for p in model.parameters() if p.requires_grad or not model.is_sharded]
    if all(parameter.isfinite().all() for parameter in trained):
        wide = dataclasses.replace(compute, precision="fp32")
        logits[bad] = _compute_logits(
            model, collator, rows[bad], wide, both_orders, lambda done, total: None
        )
    return logits


@dataclasses.dataclass
class OrderBudget:
    """The time for reading rows in the second order of their answers.

    Attributes:
        deadline: as of `time.monotonic`; after it no more second orders are begun.
        rows: how many rows there were.
        both: how many of them were read in both orders.
    """

    deadline: float
    rows: int = 0
    both: int = 0


def _predict_in_time(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    both_orders: bool,
    progress: Callable[[int, int], None],
    budget: OrderBudget,
) -> np.ndarray:
    """Return logits of rows, all read in one order, and in the other as far as time allows.

    The rows that are least decided come first: there the second order changes most.
    """
    logits = np.empty((len(rows), 2, 3) if both_orders else (len(rows), 3), np.float32)
    predict = model.both_orders if both_orders else model.classify
    features = collator.features(rows)
    features = features and _to_device(features, compute)

    def features_of(chosen: np.ndarray) -> dict[str, Tensor] | None:
        return features and {name: values[chosen] for name, values in features.items()}

    training = model.training
    model.eval()
    with torch.inference_mode(), _bf16_encoder(model, compute):
        first = torch.zeros(0)
        for chosen, vectors in _iterate_vectors(model, collator, rows, compute, 1, progress):
            if len(first) != len(rows):
                first = vectors.new_empty(len(rows), vectors.shape[-1])
            first[torch.from_numpy(chosen).to(first.device)] = vectors[:, 0]
            found = model.first_order(vectors[:, 0], features_of(chosen)).float().cpu().numpy()
            logits[chosen] = found[:, None] if both_orders else found

        one_order = logits[:, 0] if both_orders else logits
        by_doubt = np.argsort(softmax_logits(one_order).max(1), kind="stable")
        budget.rows += len(rows)
        for start in range(0, len(rows), ORDER_ROWS):
            if time.monotonic() >= budget.deadline:
                break
            chosen = by_doubt[start : start + ORDER_ROWS]
            seconds = rows[chosen] * collator.encoded.sides + 1
            vectors = _pooled_vectors(model, collator, seconds, compute, lambda share: None)
            both = torch.stack([first[torch.from_numpy(chosen).to(first.device)], vectors], 1)
            logits[chosen] = predict(both, features_of(chosen)).float().cpu().numpy()
            budget.both += len(chosen)
    model.train(training)
    return logits


def _compute_logits(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    both_orders: bool,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Return the logits of rows, computed in the precision of `compute`."""
    logits = np.empty((len(rows), 2, 3) if both_orders else (len(rows), 3), np.float32)
    predict = model.both_orders if both_orders else model.classify
    sides = 1 if model.reads_first_only and not both_orders else collator.encoded.sides

    training = model.training
    model.eval()
    with _no_gradients(model), _bf16_encoder(model, compute):
        for chosen, vectors in _iterate_vectors(model, collator, rows, compute, sides, progress):
            for start in range(0, len(chosen), HEAD_ROWS):
                batch = chosen[start : start + HEAD_ROWS]
                features = collator.features(rows[batch])
                if features is not None:
                    features = _to_device(features, compute)
                found = predict(vectors[start : start + HEAD_ROWS], features)
                logits[batch] = found.float().cpu().numpy()
    model.train(training)
    return logits


def pooled_vectors(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Return the pooled vectors of rows, (N, S, H) float32, in their order.

    Args:
        progress: called with the rows that are done, and all of them.
    """
    sides = collator.encoded.sides
    training = model.training
    model.eval()
    found = np.zeros((0, sides, 1), np.float32)
    with _no_gradients(model), _bf16_encoder(model, compute):
        passes = _iterate_vectors(model, collator, rows, compute, sides, progress)
        for chosen, vectors in passes:
            if len(found) != len(rows):
                found = np.empty((len(rows), *vectors.shape[1:]), np.float32)
            found[chosen] = vectors.float().cpu().numpy()
    model.train(training)
    _finish_passes(model, collator, compute)
    return found


def _no_gradients(model: PairModel) -> contextlib.AbstractContextManager[None]:
    """Return the context to predict in; a sharded model's layers are used in training again."""
    return torch.no_grad() if model.is_sharded else torch.inference_mode()


def _finish_passes(model: PairModel, collator: Collator, compute: Compute) -> None:
    """Help the other processes of a sharded model to finish theirs."""

    def run_pass() -> None:
        pack = collator.pack(np.array([collator.lengths.argmin()]))
        with torch.no_grad(), compute.autocast():
            model.pool(_to_device(pack, compute))

    Turns(model).finish(run_pass)


def _iterate_vectors(
    model: PairModel,
    collator: Collator,
    rows: np.ndarray,
    compute: Compute,
    sides: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield places in `rows`, and the vectors (n, sides, H) of these rows on the device."""
    # The longest rows come first: if memory runs out, it does at once.
    by_length = np.argsort(-collator.lengths[rows, :sides].max(1), kind="stable")
    for start in range(0, len(rows), WINDOW_ROWS):
        window = by_length[start : start + WINDOW_ROWS]
        if collator.vectors is not None:
            known = torch.from_numpy(collator.vectors[rows[window], :sides])
            yield window, known.to(compute.device)
            progress(start + len(window), len(rows))
            continue
        sequences, inverse = distinct_sequences(collator.encoded, rows[window], sides)

        def report(share: float, before: int = start, size: int = len(window)) -> None:
            progress(before + int(share * size), len(rows))

        vectors = _pooled_vectors(model, collator, sequences, compute, report)
        yield window, vectors[torch.from_numpy(inverse).to(vectors.device)]


@contextlib.contextmanager
def _bf16_encoder(model: PairModel, compute: Compute) -> Generator[None]:
    """On a CPU in bf16, put a copy of the encoder with bf16 weights in the encoder's place.

    Autocast would convert a layer's states from and to float32 around every product. Buffers keep
    their type: in bf16 the angles of rotary positions would be wrong, and more so the longer the
    text.
    """
    if compute.device.type != "cpu" or compute.precision != "bf16":
        yield
        return
    if model.base:
        with _bf16_adapters(model):
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


@contextlib.contextmanager
def _bf16_adapters(model: PairModel) -> Generator[None]:
    """Let adapters be bf16, as the weights below them are; those are large, and not copied."""
    adapters = [p for p in model.encoder.parameters() if p.dtype == torch.float32]
    originals = [adapter.data for adapter in adapters]
    for adapter in adapters:
        adapter.data = adapter.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for adapter, original in zip(adapters, originals, strict=True):
            adapter.data = original


def _pooled_vectors(
    model: PairModel,
    collator: Collator,
    sequences: np.ndarray,
    compute: Compute,
    on_share: Callable[[float], None],
) -> Tensor:
    """Return the pooled vectors of U sequences, given by number, on the device: (U, H)."""
    lengths = collator.lengths.ravel()[sequences]
    tokens = model.fitting_tokens
    if not tokens:
        tokens = prediction_tokens(model.encoder, compute, int(lengths.max(initial=1)))
    pending = cut_token_batches(lengths, tokens, collator.one_length)
    turns = Turns(model)
    vectors = []
    done = 0
    while pending:
        batch = pending.pop(0)
        pack = collator.pack(sequences[batch])
        fits = True
        turns.take()
        try:
            with compute.autocast():
                vectors.append(model.pool(_to_device(pack, compute)))
        except (RuntimeError, MemoryError) as error:
            # The others would wait for a sharded model's next layer.
            if len(batch) == 1 or model.is_sharded or not out_of_memory(error):
                raise
            fits = False
        if not fits:
            failed_tokens = pack["input_ids"].numel()
            del pack
            free_after_failure()

            # Halve the pass that failed, which may be smaller than allowed. The model remembers
            # the size for its next windows and evaluations.
            tokens = min(tokens, failed_tokens) // 2
            model.fitting_tokens = tokens
            left = np.concatenate([batch, *pending])
            cuts = cut_token_batches(lengths[left], tokens, collator.one_length)
            pending = [left[cut] for cut in cuts]
            continue
        done += len(batch)
        on_share(done / len(sequences))

    # Batches are in the order of `cut_token_batches`, however often they were cut; undo it.
    inverse = np.argsort(-lengths, kind="stable").argsort()
    return torch.cat(vectors)[torch.from_numpy(inverse).to(compute.device)]


def distinct_sequences(
    encoded: TokenizedRows, rows: np.ndarray, sides: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the U different sequences among the first `sides` of each row, to encode each once.

    One answer is often compared with many others, and many models give the same answer to a short
    prompt.

    Returns:
        The number of the first copy of each (U,), and which of them each side is (N, sides).
    """
    sequences = (rows[:, None] * encoded.sides + np.arange(sides)).ravel()
    starts = encoded.starts[sequences].tolist()
    ends = encoded.starts[sequences + 1].tolist()
    first_lengths = encoded.first_lengths[sequences].tolist()

    # Equal tokens with another boundary between the segments are another sequence.
    seen: dict[tuple[int, bytes], int] = {}
    inverse = np.empty(len(sequences), np.int64)
    for place, (start, end, first) in enumerate(zip(starts, ends, first_lengths, strict=True)):
        content = hashlib.blake2b(encoded.tokens[start:end].data, digest_size=16).digest()
        inverse[place] = seen.setdefault((first, content), len(seen))

    # Assigned in reverse, so that the first copy is assigned last and stays.
    numbers = np.empty(len(seen), np.int64)
    numbers[inverse[::-1]] = sequences[::-1]
    return numbers, inverse.reshape(-1, sides)


def _to_device(tensors: dict[str, Tensor], compute: Compute) -> dict[str, Tensor]:
    """Copy tensors to the device; from pinned memory a GPU fetches them while it computes."""
    if compute.device.type == "cpu":
        return tensors
    pinned = compute.device.type == "cuda"
    return {
        name: (tensor.pin_memory() if pinned else tensor).to(compute.device, non_blocking=True)
        for name, tensor in tensors.items()
    }


def softmax_logits(logits: np.ndarray) -> np.ndarray:
    """Return probabilities in float64, by softmax over the last axis."""
    return scipy.special.softmax(np.asarray(logits, np.float64), axis=-1)


def logits_to_probabilities(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, 3) of logits (N, 3), or of both orders (N, 2, 3) their average."""
    probabilities = softmax_logits(logits)
    return probabilities.mean(1) if probabilities.ndim == 3 else probabilities
