"""An epoch is every row once, in an order that is new, repeatable, and wastes little on padding."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.model.collator import cut_packs
from kit.training import sampler
from kit.training.sampler import LengthBuckets


def real_lengths(rows: int, seed: int = 0, most: int = 512) -> np.ndarray:
    """Tokens of both sides (N, 2) as chats have them: lognormal, alike within a row, clipped at the budget."""
    rng = np.random.default_rng(seed)
    row = rng.normal(5.6, 0.6, (rows, 1))
    return np.clip(np.exp(row + rng.normal(0, 0.5, (rows, 2))), 8, most).astype(np.int64)


def epoch(
    lengths: np.ndarray, size: int, seed: int = 0, number: int = 0, window: int = 256
) -> list[int]:
    buckets = LengthBuckets(lengths, size, seed, window)
    buckets.set_epoch(number)
    return list(buckets)


def batches(order: list[int], size: int) -> list[list[int]]:
    return [order[i : i + size] for i in range(0, len(order), size)]


def waste(lengths: np.ndarray, each: list[list[int]], overhead: int) -> float:
    """The share of padding when batches are packed as the collator packs them."""
    padded = 0
    for rows in each:
        long_first = np.sort(lengths[rows].ravel())[::-1]
        padded += sum(int(long_first[a]) * (b - a) for a, b in cut_packs(long_first, overhead))
    return 1 - lengths[np.concatenate(each)].sum() / padded


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 300), st.integers(1, 40), st.integers(1, 8), st.integers(0, 9), st.integers(0, 3)
)
def test_an_epoch_is_every_row_once(rows: int, size: int, window: int, seed: int, number: int):
    order = epoch(real_lengths(rows), size, seed, number, window)
    assert sorted(order) == list(range(rows))
    assert all(type(row) is int for row in order)
    assert len(LengthBuckets(real_lengths(rows), size, seed)) == rows


def test_the_same_seed_and_epoch_give_the_same_order():
    lengths = real_lengths(500)
    assert epoch(lengths, 16, 3, 2) == epoch(lengths, 16, 3, 2)
    buckets = LengthBuckets(lengths, 16, 3)
    buckets.set_epoch(2)
    assert list(buckets) == list(buckets)  # a resume may read it twice


def test_other_epochs_and_seeds_have_other_orders_and_other_batches():
    lengths = real_lengths(2400)  # all within one window
    orders = [epoch(lengths, 16, seed, number) for seed, number in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4
    company = [{frozenset(batch) for batch in batches(order, 16)} for order in orders]
    neighbours = [
        {pair for batch in each for pair in combinations(sorted(batch), 2)} for each in company
    ]
    for one in range(4):
        for other in range(one):
            assert len(company[one] & company[other]) < 0.05 * len(company[one])
            assert len(neighbours[one] & neighbours[other]) < 0.6 * len(neighbours[one])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(1, 40))
def test_the_incomplete_batch_comes_last(rows: int, size: int):
    lengths = np.repeat(
        np.arange(10, 10 + rows)[:, None], 2, 1
    )  # all different, so that a bucket is a run
    full = rows - rows % size
    drawn = np.random.default_rng([0, 0]).permutation(rows)
    order = epoch(lengths, size, window=10**6)
    assert sorted(order[full:]) == sorted(
        drawn[full:]
    )  # drawn at random, not always the longest or the shortest


def test_every_slice_is_one_bucket(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sampler, "BLUR", 0.0)
    lengths = np.repeat(np.random.default_rng(0).permutation(1024)[:, None] + 10, 2, 1)
    order = epoch(lengths, 16, window=10**6)
    ranges = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches(order, 16))
    assert ranges == [
        (10 + i, 25 + i) for i in range(0, 1024, 16)
    ]  # neighbours in length, no overlap


def test_both_sides_are_alike_within_a_batch():
    lengths = real_lengths(8192)
    found = [lengths[batch] for batch in batches(epoch(lengths, 32), 32)]
    for pick in (np.max, np.min):
        side = np.array([pick(rows, axis=1).std() for rows in found])
        assert side.mean() < 0.35 * pick(lengths, axis=1).std()


def test_batches_of_every_length_come_at_every_time():
    lengths = real_lengths(8192)
    mean = np.array([lengths[batch].mean() for batch in batches(epoch(lengths, 32), 32)])
    assert abs(np.corrcoef(np.arange(len(mean)), mean)[0, 1]) < 0.2
    quarters = [quarter.mean() for quarter in np.split(mean, 4)]
    assert max(quarters) < 1.25 * min(quarters)


@pytest.mark.parametrize(
    ("size", "overhead"), [(16, 64), (32, 64), (64, 64), (32, 1024), (64, 1024)]
)
def test_less_than_a_twentieth_is_padding_on_real_lengths(size: int, overhead: int):
    lengths = real_lengths(57_477 // 4)
    assert waste(lengths, batches(epoch(lengths, size), size), overhead) < 0.05
    by_chance = np.random.default_rng(0).permutation(len(lengths)).tolist()
    assert waste(lengths, batches(by_chance, size), 10**9) > 0.3


@pytest.mark.parametrize(("rows", "size"), [(1, 32), (31, 32), (32, 32), (33, 32), (5, 1)])
def test_few_rows_are_no_special_case(rows: int, size: int):
    assert sorted(epoch(real_lengths(rows), size)) == list(range(rows))
