"""Check that pools agree with figures worked out by hand, in any order of rows and members."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.ensembling.pool import blend_predictions
from kit.errors import DataError, KitError
from kit.evaluation.validate import is_gradable
from kit.predictions import make_predictions, read_predictions
from kit.task import CLASSES, SWAP

DATA = Path(__file__).parents[1] / "golden"
NAMES = ["reference_deberta.csv", "reference_roberta.csv", "reference_electra.csv"]
METHODS = ("mean", "geometric", "weights")
CELL = st.one_of(st.floats(1e-6, 1), st.sampled_from([1e-12, 1.0]))


@st.composite
def draw_frames(draw):
    """Draw two to four frames over the same ids, in the same order."""
    rows = draw(st.integers(1, 6))
    rows_of_cells = st.lists(st.tuples(CELL, CELL, CELL), min_size=rows, max_size=rows)
    tables = draw(st.lists(rows_of_cells, min_size=2, max_size=4))
    return [make_predictions(np.arange(rows) * 7 + 3, np.array(table)) for table in tables]


def blend(frames, method="mean", weights=None):
    """Blend frames under made-up file names, with weights 1, 2, … where the method needs some."""
    if method == "weights" and weights is None:
        weights = list(range(1, len(frames) + 1))
    return blend_predictions(frames, [f"{i}.csv" for i in range(len(frames))], method, weights)


def class_columns(table):
    return table[list(CLASSES)].to_numpy()


def reference_frames():
    return [read_predictions(DATA / name) for name in NAMES]


def test_reference_predictions_have_their_known_classes():
    picks = {
        name: class_columns(frame).argmax(axis=1).tolist()
        for name, frame in zip(NAMES, reference_frames(), strict=True)
    }
    assert picks == dict(zip(NAMES, [[2, 0, 0], [1, 1, 1], [0, 0, 0]], strict=True))


def test_mean_of_the_reference_predictions():
    blended = blend_predictions(reference_frames(), NAMES)
    assert blended["id"].tolist() == [136060, 211333, 1233961]
    row_1 = [(0.267 + 0.033 + 0.349) / 3, (0.234 + 0.814 + 0.335) / 3, (0.499 + 0.153 + 0.316) / 3]
    # One member's published figures sum to 0.999.
    row_2 = [(0.363 + 0.298 / 0.999 + 0.349) / 3, (0.335 + 0.352 / 0.999 + 0.335) / 3]
    row_3 = [(0.412 + 0.227 + 0.349) / 3, (0.299 + 0.470 + 0.335) / 3, (0.289 + 0.303 + 0.316) / 3]
    np.testing.assert_allclose(
        class_columns(blended), [row_1, [*row_2, 1 - sum(row_2)], row_3], rtol=1e-12
    )
    assert class_columns(blended).argmax(axis=1).tolist() == [1, 1, 1]


def test_geometric_mean_of_the_reference_predictions():
    blended = blend_predictions(reference_frames(), NAMES, "geometric")
    roots = np.cbrt([0.267 * 0.033 * 0.349, 0.234 * 0.814 * 0.335, 0.499 * 0.153 * 0.316])
    np.testing.assert_allclose(class_columns(blended)[0], roots / roots.sum(), rtol=1e-12)
    assert class_columns(blended).argmax(axis=1).tolist() == [1, 1, 1]


def test_only_ratios_of_weights_count():
    halves = blend(reference_frames(), "weights", [0.5, 0.25, 0.25])
    np.testing.assert_allclose(
        class_columns(blend(reference_frames(), "weights", [2, 1, 1])),
        class_columns(halves),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        class_columns(blend(reference_frames(), "weights", [1.6e308, 8e307, 8e307])),
        class_columns(halves),
    )
    expected = [
        0.267 / 2 + 0.033 / 4 + 0.349 / 4,
        0.234 / 2 + 0.814 / 4 + 0.335 / 4,
        0.499 / 2 + 0.153 / 4 + 0.316 / 4,
    ]
    np.testing.assert_allclose(class_columns(halves)[0], expected, rtol=1e-12)


def test_equal_weights_are_the_mean_and_weight_zero_leaves_a_member_out():
    np.testing.assert_allclose(
        class_columns(blend(reference_frames(), "weights", [3, 3, 3])),
        class_columns(blend(reference_frames())),
    )
    np.testing.assert_allclose(
        class_columns(blend(reference_frames(), "weights", [1, 0, 1])),
        class_columns(blend(reference_frames()[::2])),
    )


@settings(deadline=None, max_examples=60)
@given(draw_frames(), st.sampled_from(METHODS), st.randoms(use_true_random=False))
def test_order_of_rows_and_members_does_not_matter(frames, method, random):
    weights = [random.uniform(0.1, 2) for _ in frames] if method == "weights" else None
    expected = blend(frames, method, weights)
    order = list(range(len(frames)))
    random.shuffle(order)
    shuffled = [frames[i].sample(frac=1, random_state=random.randrange(1000)) for i in order]
    found = blend(shuffled, method, [weights[i] for i in order] if weights else None)
    assert found["id"].tolist() == shuffled[0]["id"].tolist()
    np.testing.assert_allclose(
        class_columns(found.sort_values("id")), class_columns(expected.sort_values("id")), rtol=1e-9
    )


@settings(deadline=None, max_examples=60)
@given(draw_frames(), st.sampled_from(METHODS))
def test_equal_members_and_single_members_are_unchanged(frames, method):
    np.testing.assert_allclose(
        class_columns(blend([frames[0]] * 3, method)),
        class_columns(frames[0]),
        rtol=1e-9,
        atol=1e-14,
    )
    alone = blend(frames[:1], method)
    np.testing.assert_allclose(
        class_columns(alone), class_columns(frames[0]), rtol=1e-9, atol=1e-14
    )
    assert list(alone.columns) == list(frames[0].columns)


@settings(deadline=None, max_examples=60)
@given(draw_frames(), st.sampled_from(METHODS))
def test_blended_rows_are_gradable_and_lie_between_their_members(frames, method):
    blended = class_columns(blend(frames, method))
    assert is_gradable(blended).all()

    # Normalising moves a geometric mean out of its members' range.
    if method != "geometric":
        members = np.stack([class_columns(frame) for frame in frames])
        assert (blended >= members.min(axis=0) - 1e-12).all()
        assert (blended <= members.max(axis=0) + 1e-12).all()


@settings(deadline=None, max_examples=60)
@given(draw_frames(), st.sampled_from(METHODS))
def test_blending_commutes_with_swapping_the_answers(frames, method):
    def swap(table):
        return make_predictions(table["id"].to_numpy(), class_columns(table)[:, list(SWAP)])

    of_swapped = class_columns(blend([swap(frame) for frame in frames], method))
    swapped_blend = class_columns(swap(blend(frames, method)))
    np.testing.assert_allclose(of_swapped, swapped_blend, rtol=1e-9)


def test_zero_of_one_member_does_not_veto_a_class():
    sure = make_predictions(np.array([1]), np.array([[0.0, 0.5, 0.5]]))
    other = make_predictions(np.array([1]), np.array([[0.8, 0.1, 0.1]]))
    geometric = class_columns(blend([sure, other], "geometric"))[0]
    floor = np.finfo(np.float64).eps
    assert geometric[0] == pytest.approx(np.sqrt(floor * 0.8) / (2 * np.sqrt(0.5 * 0.1)), rel=1e-6)
    assert geometric[1:] == pytest.approx([0.5, 0.5], abs=1e-7)
    assert class_columns(blend([sure, other]))[0] == pytest.approx([0.4, 0.3, 0.3])


def test_ids_that_do_not_match_are_listed_with_the_files():
    first, second = reference_frames()[:2]
    with pytest.raises(DataError) as caught:
        blend_predictions([first, second.replace({"id": {211333: 5}})], ["a.csv", "b.csv"])
    assert "b.csv lacks 1 id (211333) of a.csv" in caught.value.problem
    assert "b.csv has 1 id (5) that a.csv does not have" in caught.value.problem
    with pytest.raises(DataError, match=r"b\.csv: 1 duplicate id"):
        blend_predictions([first, pd.concat([second, second.iloc[:1]])], ["a.csv", "b.csv"])


@pytest.mark.parametrize(
    "row", [[30.0, 30.0, 40.0], [-0.1, 0.6, 0.5], [np.nan, 0.5, 0.5], [0.0, 0.0, 0.0]]
)
def test_rows_that_are_not_probabilities_are_refused(row):
    first, second = reference_frames()[:2]
    second.loc[1, list(CLASSES)] = row
    with pytest.raises(DataError, match=r"b.csv: id 211333: not probabilities that sum to 1\n"):
        blend_predictions([first, second], ["a.csv", "b.csv"])


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
def test_invalid_weights_and_methods_are_refused(method, weights, words):
    with pytest.raises(KitError, match=words):
        blend_predictions(reference_frames(), NAMES, method, weights)


def test_no_files_are_refused():
    with pytest.raises(KitError, match="nothing to blend"):
        blend_predictions([], [])
