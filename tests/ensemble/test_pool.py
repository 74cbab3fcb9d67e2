"""Blends do not depend on the order of anything, and agree with the pools worked out by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.ensemble.pool import blend_predictions
from kit.errors import DataError, KitError
from kit.evaluation.validate import is_gradable
from kit.predictions import make_predictions, read_predictions
from kit.task import CLASSES, SWAP

DATA = Path(__file__).parents[1] / "golden"
NAMES = ["reference_deberta.csv", "reference_roberta.csv", "reference_electra.csv"]
METHODS = ("mean", "geometric", "weights")
CELL = st.one_of(st.floats(1e-6, 1), st.sampled_from([1e-12, 1.0]))


@st.composite
def members(draw, smallest=1):
    """Two to four frames over the same ids, in the same order."""
    rows = draw(st.integers(smallest, 6))
    table = st.lists(st.tuples(CELL, CELL, CELL), min_size=rows, max_size=rows)
    tables = draw(st.lists(table, min_size=2, max_size=4))
    return [make_predictions(np.arange(rows) * 7 + 3, np.array(one)) for one in tables]


def blend(frames, method="mean", weights=None):
    if method == "weights" and weights is None:
        weights = list(range(1, len(frames) + 1))
    return blend_predictions(frames, [f"{i}.csv" for i in range(len(frames))], method, weights)


def numbers(table):
    return table[list(CLASSES)].to_numpy()


def reference():
    return [read_predictions(DATA / name) for name in NAMES]


def test_the_reference_predictions_pick_the_classes_they_picked():
    picks = {
        name: numbers(one).argmax(axis=1).tolist()
        for name, one in zip(NAMES, reference(), strict=True)
    }
    assert picks == dict(zip(NAMES, [[2, 0, 0], [1, 1, 1], [0, 0, 0]], strict=True))


def test_the_mean_of_the_reference_predictions():
    blended = blend_predictions(reference(), NAMES)
    assert blended["id"].tolist() == [136060, 211333, 1233961]
    row_1 = [(0.267 + 0.033 + 0.349) / 3, (0.234 + 0.814 + 0.335) / 3, (0.499 + 0.153 + 0.316) / 3]
    row_2 = [
        (0.363 + 0.298 / 0.999 + 0.349) / 3,
        (0.335 + 0.352 / 0.999 + 0.335) / 3,
    ]  # its figures sum to 0.999
    row_3 = [(0.412 + 0.227 + 0.349) / 3, (0.299 + 0.470 + 0.335) / 3, (0.289 + 0.303 + 0.316) / 3]
    np.testing.assert_allclose(
        numbers(blended), [row_1, [*row_2, 1 - sum(row_2)], row_3], rtol=1e-12
    )
    assert numbers(blended).argmax(axis=1).tolist() == [1, 1, 1]


def test_the_geometric_mean_of_the_reference_predictions():
    blended = blend_predictions(reference(), NAMES, "geometric")
    roots = np.cbrt([0.267 * 0.033 * 0.349, 0.234 * 0.814 * 0.335, 0.499 * 0.153 * 0.316])
    np.testing.assert_allclose(numbers(blended)[0], roots / roots.sum(), rtol=1e-12)
    assert numbers(blended).argmax(axis=1).tolist() == [1, 1, 1]


def test_weights_count_by_their_ratios():
    halves = blend(reference(), "weights", [0.5, 0.25, 0.25])
    np.testing.assert_allclose(
        numbers(blend(reference(), "weights", [2, 1, 1])), numbers(halves), rtol=1e-14
    )
    np.testing.assert_allclose(
        numbers(blend(reference(), "weights", [1.6e308, 8e307, 8e307])), numbers(halves)
    )
    expected = [
        0.267 / 2 + 0.033 / 4 + 0.349 / 4,
        0.234 / 2 + 0.814 / 4 + 0.335 / 4,
        0.499 / 2 + 0.153 / 4 + 0.316 / 4,
    ]
    np.testing.assert_allclose(numbers(halves)[0], expected, rtol=1e-12)


def test_equal_weights_are_the_mean_and_a_weight_of_zero_leaves_a_member_out():
    np.testing.assert_allclose(
        numbers(blend(reference(), "weights", [3, 3, 3])), numbers(blend(reference()))
    )
    np.testing.assert_allclose(
        numbers(blend(reference(), "weights", [1, 0, 1])), numbers(blend(reference()[::2]))
    )


@settings(deadline=None, max_examples=60)
@given(members(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_members_does_not_matter(frames, method, random):
    weights = [random.uniform(0.1, 2) for _ in frames] if method == "weights" else None
    expected = blend(frames, method, weights)
    order = list(range(len(frames)))
    random.shuffle(order)
    shuffled = [frames[i].sample(frac=1, random_state=random.randrange(1000)) for i in order]
    found = blend(shuffled, method, [weights[i] for i in order] if weights else None)
    assert found["id"].tolist() == shuffled[0]["id"].tolist()
    np.testing.assert_allclose(
        numbers(found.sort_values("id")), numbers(expected.sort_values("id")), rtol=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(members(), st.sampled_from(METHODS))
def test_equal_members_blend_to_themselves_and_one_stays_what_it_is(frames, method):
    np.testing.assert_allclose(
        numbers(blend([frames[0]] * 3, method)), numbers(frames[0]), rtol=1e-9, atol=1e-14
    )
    alone = blend(frames[:1], method)
    np.testing.assert_allclose(numbers(alone), numbers(frames[0]), rtol=1e-9, atol=1e-14)
    assert list(alone.columns) == list(frames[0].columns)


@settings(deadline=None, max_examples=60)
@given(members(), st.sampled_from(METHODS))
def test_every_row_of_a_blend_is_taken_by_a_grader_and_lies_between_its_members(frames, method):
    blended = numbers(blend(frames, method))
    assert is_gradable(blended).all()
    if method != "geometric":  # normalising moves a geometric mean out of its members' range
        each = np.stack([numbers(f) for f in frames])
        assert (blended >= each.min(axis=0) - 1e-12).all()
        assert (blended <= each.max(axis=0) + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(members(), st.sampled_from(METHODS))
def test_blending_swapped_answers_is_swapping_the_blend(frames, method):
    def swap(table):
        return make_predictions(table["id"].to_numpy(), numbers(table)[:, list(SWAP)])

    np.testing.assert_allclose(
        numbers(blend([swap(f) for f in frames], method)),
        numbers(swap(blend(frames, method))),
        rtol=1e-9,
    )


def test_one_members_zero_lowers_a_class_without_ending_it():
    sure = make_predictions(np.array([1]), np.array([[0.0, 0.5, 0.5]]))
    other = make_predictions(np.array([1]), np.array([[0.8, 0.1, 0.1]]))
    geometric = numbers(blend([sure, other], "geometric"))[0]
    floor = np.finfo(np.float64).eps  # what the log loss takes a zero for
    assert geometric[0] == pytest.approx(np.sqrt(floor * 0.8) / (2 * np.sqrt(0.5 * 0.1)), rel=1e-6)
    assert geometric[1:] == pytest.approx([0.5, 0.5], abs=1e-7)
    assert numbers(blend([sure, other]))[0] == pytest.approx([0.4, 0.3, 0.3])


def test_ids_that_do_not_match_are_named_with_the_files():
    one, other = reference()[:2]
    with pytest.raises(DataError) as caught:
        blend_predictions([one, other.replace({"id": {211333: 5}})], ["a.csv", "b.csv"])
    assert "b.csv lacks 1 id (211333) of a.csv" in caught.value.problem
    assert "b.csv has 1 id (5) that a.csv does not have" in caught.value.problem
    with pytest.raises(DataError, match=r"b\.csv: 1 id"):
        blend_predictions([one, pd.concat([other, other.iloc[:1]])], ["a.csv", "b.csv"])


@pytest.mark.parametrize(
    "row", [[30.0, 30.0, 40.0], [-0.1, 0.6, 0.5], [np.nan, 0.5, 0.5], [0.0, 0.0, 0.0]]
)
def test_rows_that_are_not_probabilities_are_not_blended(row):
    one, other = reference()[:2]
    other.loc[1, list(CLASSES)] = row
    with pytest.raises(DataError, match=r"b.csv: id 211333: not probabilities that sum to 1\n"):
        blend_predictions([one, other], ["a.csv", "b.csv"])


@pytest.mark.parametrize(
    ("method", "weights", "words"),
    [
        ("weights", [1, 2], "2 weights for 3 files"),
        ("weights", None, "0 weights for 3 files"),
        ("weights", [1, -1, 2], "0 or more"),
        ("weights", [0, 0, 0], "0 or more"),
        ("weights", [1, float("nan"), 1], "0 or more"),
        ("mean", [1, 1, 1], "takes no weights"),
        ("median", None, "no blending method 'median'"),
    ],
)
def test_weights_and_methods_that_do_not_fit_are_refused(method, weights, words):
    with pytest.raises(KitError, match=words):
        blend_predictions(reference(), NAMES, method, weights)


def test_no_files_are_no_blend():
    with pytest.raises(KitError, match="nothing to blend"):
        blend_predictions([], [])
