"""Check that prediction frames survive writing and reading, and that errors name the place."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import DataError, KitError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.task import CLASSES, ID, PREDICTION_COLUMNS

HEADER = "id,winner_model_a,winner_model_b,winner_tie\n"


def test_float32_rows_are_normalised_in_float64():
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 500).astype(np.float32)
    made = make_predictions(np.arange(500), probabilities)

    assert list(made.columns) == list(PREDICTION_COLUMNS)
    np.testing.assert_allclose(made[list(CLASSES)].sum(axis=1), 1, rtol=0, atol=1e-15)


def test_probabilities_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="not finite"):
        make_predictions(np.array([1, 2]), np.array([[0.2, 0.3, 0.5], [np.nan, 0.5, 0.5]]))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(*[st.floats(1e-300, 1)] * 3), min_size=1, max_size=20), st.integers(0, 2**40)
)
def test_what_is_written_is_read_back_to_the_last_bit(tmp_path_factory, rows, first):
    path = tmp_path_factory.mktemp("frame") / "p.csv"
    made = make_predictions(np.arange(first, first + len(rows)), np.array(rows))
    write_predictions(made, path)

    pd.testing.assert_frame_equal(read_predictions(path), made, check_exact=True)


def test_a_written_file_has_plain_line_ends_and_leaves_no_other_file(tmp_path):
    write_predictions(
        make_predictions(np.array([7]), np.array([[1.0, 1.0, 2.0]])), tmp_path / "p.csv"
    )
    assert (tmp_path / "p.csv").read_bytes() == (HEADER + "7,0.25,0.25,0.5\n").encode()
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def test_column_order_and_extra_columns_are_free(tmp_path):
    (tmp_path / "p.csv").write_text(
        "note,winner_tie,id,winner_model_b,winner_model_a\nx,.5,3,.3,.2\n"
    )
    frame = read_predictions(tmp_path / "p.csv")[list(PREDICTION_COLUMNS)]
    assert frame.iloc[0].tolist() == [3, 0.2, 0.3, 0.5]


def test_a_byte_order_mark_is_not_part_of_the_first_column_name(tmp_path):
    (tmp_path / "p.csv").write_text("\ufeff" + HEADER + "3,.2,.3,.5\n", encoding="utf-8")
    assert read_predictions(tmp_path / "p.csv")[ID].tolist() == [3]


@pytest.mark.parametrize("first", ["7,0,0,1", "7.0,.25,.25,.5", '"7","0","1e0",0', "07,1,0,0"])
def test_ids_are_read_as_int64_and_probabilities_as_float64(tmp_path, first):
    (tmp_path / "p.csv").write_text(HEADER + first + "\n8,1,0,0\n")
    frame = read_predictions(tmp_path / "p.csv")
    assert frame[list(PREDICTION_COLUMNS)].dtypes.map(str).tolist() == ["int64"] + ["float64"] * 3
    assert frame[ID].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (HEADER, "no rows"),
        ("id,winner_model_a,winner_tie\n1,.5,.5\n", "no column winner_model_b"),
        (HEADER + "1,.2,.3,.5\n2,.2,x,.5\n", "row 3: winner_model_b is 'x'"),
        (HEADER + "1,.2,.3,.5\n2,.2,,.5\n", "row 3: winner_model_b"),
        (HEADER + "1,.2,.3,inf\n", "row 2: winner_tie is 'inf'"),
        (HEADER + "1.5,.2,.3,.5\n", "row 2: id is '1.5'"),
        (
            HEADER + "7,.2,.3,.5\n9223372036854775808,.2,.3,.5\n",
            "row 3: id is '9223372036854775808'",
        ),
        (HEADER + "1,.2,.3,.5\n2,.2,.3,.5\n1,.2,.3,.5\n", "duplicate id 1 (rows 2 and 4)"),
        (HEADER + "1,.2,.3,.5,.6\n2,.2,.3,.5\n3,.2,.3,.5,.6,.7\n", "not a CSV file"),
    ],
)
def test_an_unusable_file_is_refused_and_the_place_is_named(tmp_path, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read_predictions(tmp_path / "p.csv")
    assert message in caught.value.problem
    assert "p.csv" in caught.value.problem
    assert caught.value.hint


def test_a_missing_file_and_a_directory_are_different_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_predictions(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a directory"):
        read_predictions(tmp_path)


def test_writing_over_a_directory_is_refused(tmp_path):
    with pytest.raises(KitError, match="is a directory"):
        write_predictions(make_predictions(np.array([1]), np.ones((1, 3))), tmp_path)
