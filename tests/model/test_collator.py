"""Check that packs hold every sequence once, with the least padding, and lead back to rows."""

from itertools import combinations, pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular_rows import tabular_rows
from token_rows import PAD, token_rows

from kit.data.tokenize import TokenizedRows
from kit.model.collator import MAX_PACKS, Collator, cut_packs

LENGTHS = st.lists(st.integers(3, 30), min_size=1, max_size=9).map(
    lambda lengths: np.array(sorted(lengths, reverse=True))
)
ROWS = st.lists(st.tuples(st.integers(3, 25), st.integers(3, 25)), min_size=1, max_size=8)


def cost(lengths: np.ndarray, ranges: list[tuple[int, int]], overhead: int) -> int:
    return sum((end - start) * int(lengths[start]) + overhead for start, end in ranges)


@settings(deadline=None, max_examples=300)
@given(LENGTHS, st.sampled_from([0, 1, 5, 20, 64, 10**6]), st.integers(1, 5))
def test_no_cut_into_packs_costs_less(lengths: np.ndarray, overhead: int, max_packs: int):
    ranges = cut_packs(lengths, overhead, max_packs)
    assert [row for start, end in ranges for row in range(start, end)] == list(range(len(lengths)))
    assert all(start < end for start, end in ranges)
    assert len(ranges) <= max_packs
    alternatives = (
        list(pairwise([0, *inner, len(lengths)]))
        for packs in range(1, max_packs + 1)
        for inner in combinations(range(1, len(lengths)), packs - 1)
    )
    least = min(cost(lengths, other, overhead) for other in alternatives)
    assert cost(lengths, ranges, overhead) == least


def test_a_pack_that_saves_nothing_is_not_opened():
    assert cut_packs(np.array([9, 9, 9]), 0) == [(0, 3)]
    assert cut_packs(np.array([9, 9, 3]), 7) == [(0, 3)]
    assert cut_packs(np.array([9, 9, 3]), 5) == [(0, 2), (2, 3)]
    assert len(cut_packs(np.arange(100, 0, -1), 0)) == MAX_PACKS


def tokens_of(encoded: TokenizedRows, side: int) -> list[int]:
    return encoded.tokens[encoded.starts[side] : encoded.starts[side + 1]].tolist()


@settings(deadline=None, max_examples=120)
@given(ROWS, st.sampled_from([0, 10, 10**6]), st.booleans(), st.data())
def test_packs_hold_exactly_the_tokens_of_the_rows(
    rows: list, overhead: int, segments: bool, data: st.DataObject
):
    encoded = token_rows(np.array(rows))
    chosen = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(1, len(rows)))]
    batch = Collator(encoded, PAD, segments=segments, pack_overhead=overhead)(chosen)
    assert set(batch) == {"packs", "order"}
    assert batch["order"].shape == (len(chosen), 2)
    found = []
    for pack in batch["packs"]:
        assert set(pack) == {"input_ids", "attention_mask"} | (
            {"token_type_ids"} if segments else set()
        )
        assert all(
            value.dtype == torch.int64 and value.shape == pack["input_ids"].shape
            for value in pack.values()
        )
        assert (pack["input_ids"][pack["attention_mask"] == 0] == PAD).all()
        real = pack["attention_mask"].sum(1).tolist()
        assert max(real) == pack["input_ids"].shape[1]  # padded only to its own longest
        for i, length in enumerate(real):
            assert pack["attention_mask"][i].tolist() == [1] * length + [0] * (max(real) - length)
            types = pack["token_type_ids"][i].tolist() if segments else None
            found.append((pack["input_ids"][i, :length].tolist(), types))
    assert len(found) == 2 * len(chosen)
    for place, row in enumerate(chosen):
        for side in range(2):
            tokens, types = found[batch["order"][place, side]]
            assert tokens == tokens_of(encoded, 2 * row + side)
            if segments:
                first = encoded.first_lengths[2 * row + side]
                padding = len(types) - len(tokens)
                assert types == [0] * first + [1] * (len(tokens) - first) + [0] * padding


def test_rows_may_be_a_list_or_an_array_and_may_repeat():
    collator = Collator(token_rows(np.array([[5, 7], [9, 4], [6, 6]])), PAD, segments=False)
    listed, array = collator([2, 0, 2]), collator(np.array([2, 0, 2]))
    assert torch.equal(listed["order"], array["order"])
    assert sorted(listed["order"].ravel().tolist()) == list(range(6))
    assert all(
        torch.equal(a["input_ids"], b["input_ids"])
        for a, b in zip(listed["packs"], array["packs"], strict=True)
    )


def test_one_side_may_be_far_longer_than_the_other():
    encoded = token_rows(np.array([[512, 3]]))
    batch = Collator(encoded, PAD, segments=False)([0])
    assert [tuple(pack["input_ids"].shape) for pack in batch["packs"]] == [(1, 512), (1, 3)]
    assert batch["order"].tolist() == [[0, 1]]
    flipped = Collator(token_rows(np.array([[3, 512]])), PAD, segments=False)([0])
    assert flipped["order"].tolist() == [[1, 0]]


@settings(deadline=None, max_examples=100)
@given(ROWS, st.integers(1, 200), st.sampled_from([1, 8]))
def test_parts_are_of_bounded_size_and_hold_every_row_once(
    rows: list, max_tokens: int, multiple: int
):
    encoded, labels = token_rows(np.array(rows)), np.arange(len(rows))
    collator = Collator(
        encoded, PAD, segments=False, labels=labels, max_tokens=max_tokens, pad_multiple=multiple
    )
    batch = collator(labels)
    assert batch["labels"].tolist() == labels.tolist()
    parts = batch.get("parts", [batch])
    assert "packs" not in batch or len(parts) == 1
    assert sorted(row for part in parts for row in part["labels"].tolist()) == labels.tolist()
    whole = Collator(encoded, PAD, segments=False, labels=labels, pad_multiple=multiple)
    for part in parts:
        padded = sum(pack["input_ids"].numel() for pack in part["packs"])
        assert padded <= max_tokens or len(part["labels"]) == 1
        alone = whole(part["labels"].numpy())
        assert torch.equal(part["order"], alone["order"])
        assert all(
            torch.equal(a["input_ids"], b["input_ids"])
            for a, b in zip(part["packs"], alone["packs"], strict=True)
        )


@settings(deadline=None, max_examples=50)
@given(ROWS, st.sampled_from([4, 64]))
def test_lengths_are_padded_to_a_multiple(rows: list, multiple: int):
    encoded, chosen = token_rows(np.array(rows)), range(len(rows))
    plain, padded = (
        Collator(encoded, PAD, segments=False, pad_multiple=number)(chosen)
        for number in (1, multiple)
    )
    assert all(pack["input_ids"].shape[1] % multiple == 0 for pack in padded["packs"])
    for batch in (plain, padded):
        assert (
            sum(int(pack["attention_mask"].sum()) for pack in batch["packs"]) == encoded.starts[-1]
        )


def test_labels_are_those_of_the_rows():
    encoded = token_rows(np.array([[5, 7], [9, 4], [6, 6], [3, 3]]))
    collator = Collator(encoded, PAD, segments=False, labels=np.array([0, 1, 2, 1], np.int8))
    labels = collator([3, 2, 0])["labels"]
    assert labels.tolist() == [1, 2, 0]
    assert labels.dtype == torch.int64


def test_features_are_the_raw_numbers_of_the_rows():
    tabular = tabular_rows(4)
    encoded = token_rows(np.array([[5, 7], [9, 4], [6, 6], [3, 3]]))
    found = Collator(encoded, PAD, segments=False, tabular=tabular)([3, 0])["features"]
    assert {name: each.dtype for name, each in found.items()} == {
        "sides": torch.float32,
        "pair": torch.float32,
    }
    assert torch.equal(found["sides"], torch.from_numpy(tabular.sides[[3, 0]]))
    assert torch.equal(found["pair"], torch.from_numpy(tabular.pair[[3, 0]]))


def test_packing_leaves_a_fraction_of_the_padding():
    lengths = np.random.default_rng(0).integers(50, 513, (32, 2))
    waste = []
    for overhead in (10**9, 64):
        collator = Collator(token_rows(lengths), PAD, segments=False, pack_overhead=overhead)
        packs = collator(range(32))["packs"]
        padded = sum(pack["input_ids"].numel() for pack in packs)
        waste.append(1 - lengths.sum() / padded)
    assert waste[0] > 0.4
    assert waste[1] < waste[0] / 2
