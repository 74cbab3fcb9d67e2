"""Check that an epoch is every row once, in a new and repeatable order with little padding."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.model.collator import cut_packs
from kit.training import sampler
from kit.training.sampler import LengthBuckets


def chat_lengths(rows: int, seed: int = 0, max_tokens: int = 512) -> np.ndarray:
    """Draw lengths (N, 2) as in chats: lognormal, similar within a row, cut to the budget."""
    rng = np.random.default_rng(seed)
    row = rng.normal(5.6, 0.6, (rows, 1))
    sides = np.exp(row + rng.normal(0, 0.5, (rows, 2)))
    return np.clip(sides, 8, max_tokens).astype(np.int64)


def draw_epoch(
    lengths: np.ndarray, batch_size: int, seed: int = 0, epoch: int = 0, window: int = 256
) -> list[int]:
    """Return the order of one epoch."""
    buckets = LengthBuckets(lengths, batch_size, seed, window)
    buckets.set_epoch(epoch)
    return list(buckets)


def cut_batches(order: list[int], batch_size: int) -> list[list[int]]:
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def padding_share(lengths: np.ndarray, batches: list[list[int]], overhead: int) -> float:
    """Return the share of padding if batches are packed as the collator packs them."""
    padded = 0
    for rows in batches:
        long_first = np.sort(lengths[rows].ravel())[::-1]
        for start, stop in cut_packs(long_first, overhead):
            padded += int(long_first[start]) * (stop - start)
    return 1 - lengths[np.concatenate(batches)].sum() / padded


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 300), st.integers(1, 40), st.integers(1, 8), st.integers(0, 9), st.integers(0, 3)
)
def test_an_epoch_is_every_row_once(rows: int, batch_size: int, window: int, seed: int, epoch: int):
    order = draw_epoch(chat_lengths(rows), batch_size, seed, epoch, window)
    assert sorted(order) == list(range(rows))
    assert all(type(row) is int for row in order)
    assert len(LengthBuckets(chat_lengths(rows), batch_size, seed)) == rows


def test_the_same_seed_and_epoch_give_the_same_order():
    lengths = chat_lengths(500)
    assert draw_epoch(lengths, 16, 3, 2) == draw_epoch(lengths, 16, 3, 2)

    # A resume may iterate over the same sampler again.
    buckets = LengthBuckets(lengths, 16, 3)
    buckets.set_epoch(2)
    assert list(buckets) == list(buckets)


def test_other_epochs_and_seeds_give_other_orders_and_other_batches():
    # All these rows are in one window, so only the blur keeps batches from repeating.
    lengths = chat_lengths(2400)
    seeds_and_epochs = ((0, 0), (0, 1), (1, 0), (1, 1))
    orders = [draw_epoch(lengths, 16, seed, epoch) for seed, epoch in seeds_and_epochs]
    assert len({tuple(order) for order in orders}) == 4

    batches = [{frozenset(batch) for batch in cut_batches(order, 16)} for order in orders]
    pairs = [
        {pair for batch in each for pair in combinations(sorted(batch), 2)} for each in batches
    ]
    for i, j in combinations(range(4), 2):
        assert len(batches[i] & batches[j]) < 0.05 * len(batches[i])
        assert len(pairs[i] & pairs[j]) < 0.6 * len(pairs[i])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 40))
def test_the_incomplete_batch_comes_last_and_is_drawn_at_random(rows: int, batch_size: int):
    lengths = np.repeat(np.arange(10, 10 + rows)[:, None], 2, 1)
    full = rows - rows % batch_size
    drawn = np.random.default_rng([0, 0]).permutation(rows)
    order = draw_epoch(lengths, batch_size, window=10**6)

    # It is neither always the longest rows nor always the shortest.
    assert sorted(order[full:]) == sorted(drawn[full:])


def test_without_blur_batches_are_neighbours_in_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler, "BLUR", 0.0)
    lengths = np.repeat(np.random.default_rng(0).permutation(1024)[:, None] + 10, 2, 1)
    order = draw_epoch(lengths, 16, window=10**6)
    ranges = sorted((lengths[rows].min(), lengths[rows].max()) for rows in cut_batches(order, 16))
    assert ranges == [(10 + i, 25 + i) for i in range(0, 1024, 16)]


def test_both_sides_are_similar_within_a_batch():
    lengths = chat_lengths(8192)
    batches = [lengths[rows] for rows in cut_batches(draw_epoch(lengths, 32), 32)]
    for pick in (np.max, np.min):
        spreads = np.array([pick(batch, axis=1).std() for batch in batches])
        assert spreads.mean() < 0.35 * pick(lengths, axis=1).std()


def test_batches_of_every_length_come_at_any_time():
    lengths = chat_lengths(8192)
    batches = cut_batches(draw_epoch(lengths, 32), 32)
    means = np.array([lengths[rows].mean() for rows in batches])
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.2

    quarters = [quarter.mean() for quarter in np.split(means, 4)]
    assert max(quarters) < 1.25 * min(quarters)


@pytest.mark.parametrize(
    ("batch_size", "overhead"), [(16, 64), (32, 64), (64, 64), (32, 1024), (64, 1024)]
)
def test_less_than_a_twentieth_of_chats_is_padding(batch_size: int, overhead: int):
    # A quarter of the competition's rows.
    lengths = chat_lengths(57_477 // 4)
    batches = cut_batches(draw_epoch(lengths, batch_size), batch_size)
    assert padding_share(lengths, batches, overhead) < 0.05

    shuffled = np.random.default_rng(0).permutation(len(lengths)).tolist()
    assert padding_share(lengths, cut_batches(shuffled, batch_size), 10**9) > 0.3


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 32), (31, 32), (32, 32), (33, 32), (5, 1)])
def test_few_rows_are_an_epoch_too(rows: int, batch_size: int):
    assert sorted(draw_epoch(chat_lengths(rows), batch_size)) == list(range(rows))
