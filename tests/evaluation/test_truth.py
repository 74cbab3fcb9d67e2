"""Check that truth is read from CSV and parquet, and matched to predictions by id."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import DataError
from kit.evaluation import metrics, truth
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.task import CLASSES, TRAIN_COLUMNS

HEADER = "id,winner_model_a,winner_model_b,winner_tie\n"


def write_file(tmp_path, text, name="truth.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_one_hot_columns_become_labels(tmp_path):
    read = truth.read_truth(write_file(tmp_path, HEADER + "9,1,0,0\n4,0,0,1\n5,0,1,0\n"))
    assert read.to_dict("list") == {"id": [9, 4, 5], "label": [0, 2, 1]}
    assert read.dtypes.astype(str).to_dict() == {"id": "int64", "label": "int8"}


def test_competition_train_file_is_read_as_it_is(tmp_path):
    row = {
        "id": 30192,
        "model_a": "x",
        "model_b": "y",
        "prompt": '["a, \\"b\\""]',
        "response_a": "[null]",
    }
    row |= {"response_b": '["c\\nd"]', CLASSES[0]: 0, CLASSES[1]: 1, CLASSES[2]: 0}
    path = tmp_path / "train.csv"
    pd.DataFrame([row], columns=list(TRAIN_COLUMNS)).to_csv(path, index=False)
    assert truth.read_truth(path).to_dict("list") == {"id": [30192], "label": [1]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            HEADER + "9,1,0,0\n4,1,0,1\n",
            "row 3: exactly one class must be 1 and the others 0: id '4'",
        ),
        (
            HEADER + "9,0,0,0\n4,0,0,0\n",
            "row 2: exactly one class must be 1 and the others 0: id '9'",
        ),
        (HEADER + "9,0.4,0.3,0.3\n", "row 2: exactly one"),
        (HEADER + "9,1,,0\n", "row 2: exactly one"),
        (HEADER + "9,2,-1,0\n", "row 2: exactly one"),
        (HEADER + "9,yes,0,0\n", "'yes'"),
        (HEADER + "x,1,0,0\n", "row 2: the id is not a whole number: id 'x'"),
        (HEADER + "9,1,0,0\n\n1.5,1,0,0\n", "row 4: the id is not a whole number: id '1.5'"),
        (
            HEADER + "9,1,0,0\n4,0,1,0\n9,1,0,0\n9,1,0,0\n",
            "duplicate id 9 (rows 2 and 4; duplicate rows in all: 2)",
        ),
        (
            "id,prompt,winner_model_a\n1,x,1\n",
            "no column winner_model_b, winner_tie (it has 'id', 'prompt',",
        ),
        (HEADER, "no rows"),
        ("", "empty"),
        (HEADER + '9,1,0,"0\n', "not a CSV file"),
    ],
)
def test_unusable_truth_is_refused_by_row_and_id(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        truth.read_truth(write_file(tmp_path, text))
    assert words in caught.value.problem
    assert "truth.csv" in caught.value.problem
    assert caught.value.hint


def test_cells_are_escaped_and_shortened_in_errors(tmp_path):
    with pytest.raises(DataError) as caught:
        truth.read_truth(write_file(tmp_path, HEADER + "9,\x1b[31m" + "z" * 500 + ",0,0\n"))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_missing_file_and_directory_have_their_own_errors(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        truth.read_truth(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a directory"):
        truth.read_truth(tmp_path)


def write_parquet(tmp_path, **columns):
    path = tmp_path / "train.parquet"
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_parquet_keeps_groups_and_leaves_out_extra_rows(tmp_path):
    path = write_parquet(
        tmp_path,
        id=[7, 5, 6],
        prompt=[["x"]] * 3,
        label=np.int8([2, 0, 1]),
        group=[0, 1, 0],
        extra=[False, True, False],
    )
    assert truth.read_truth(path).to_dict("list") == {
        "id": [7, 6],
        "label": [2, 1],
        "group": [0, 0],
    }


def test_parquet_needs_known_labels_and_unique_ids(tmp_path):
    with pytest.raises(DataError, match="no column label"):
        truth.read_truth(write_parquet(tmp_path, id=[1], group=[0]))
    with pytest.raises(DataError, match="row 2: unknown label: id '5', label '3'"):
        truth.read_truth(write_parquet(tmp_path, id=[4, 5], label=[0, 3]))
    with pytest.raises(DataError, match=r"duplicate id 4 \(rows 1 and 3\)"):
        truth.read_truth(write_parquet(tmp_path, id=[4, 5, 4], label=[0, 1, 2]))


def test_parquet_file_in_name_only_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a parquet file"):
        truth.read_truth(write_file(tmp_path, HEADER, "train.parquet"))


def make_case(ids, seed=0):
    """Return a prediction frame and a truth for these ids, in this order."""
    generator = np.random.default_rng(seed)
    frame = make_predictions(np.array(ids), generator.dirichlet([1, 1, 1], len(ids)))
    return frame, pd.DataFrame(
        {"id": ids, "label": generator.integers(0, 3, len(ids)).astype(np.int8)}
    )


@settings(deadline=None, max_examples=40)
@given(st.sets(st.integers(0, 2**40), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_order_of_the_file_does_not_matter(ids, random):
    frame, labels = make_case(sorted(ids))
    order = list(range(len(ids)))
    random.shuffle(order)
    probabilities, aligned = truth.align_to_truth(frame.iloc[order], labels, "p.csv")
    np.testing.assert_array_equal(probabilities, frame[list(CLASSES)].to_numpy())
    assert aligned.tolist() == labels["label"].tolist()
    assert (probabilities.dtype, aligned.dtype) == (np.float64, np.int64)


def test_ids_on_one_side_only_are_counted_and_listed():
    frame, _ = make_case([1, 2, 3, 4])
    _, labels = make_case([3, 4, 50, 51, 52, 53, 54, 55, 56])
    with pytest.raises(DataError) as caught:
        truth.align_to_truth(frame, labels, "p.csv")
    assert "p.csv lacks 7 ids (first: 50, 51, 52, 53, 54) of the truth" in caught.value.problem
    assert "p.csv has 2 ids (1, 2) that the truth does not have" in caught.value.problem


def test_part_of_the_truth_is_scored_only_on_request():
    frame, _ = make_case([4, 2])
    _, labels = make_case([1, 2, 3, 4])
    with pytest.raises(DataError, match="lacks 2 ids"):
        truth.align_to_truth(frame, labels, "p.csv")
    part = truth.restrict_truth(labels, frame)
    assert part["id"].tolist() == [2, 4]
    probabilities, _ = truth.align_to_truth(frame, part, "p.csv")
    np.testing.assert_array_equal(probabilities, frame[list(CLASSES)].to_numpy()[::-1])


def test_predictions_of_other_rows_are_answered_with_the_labels_of_theirs():
    labels = pd.DataFrame({"id": [1, 2], "label": [0, 1]})
    frame = make_predictions(np.array([8, 9]), np.full((2, 3), 1 / 3))
    for wanted in (labels, truth.restrict_truth(labels, frame)):
        with pytest.raises(DataError, match=r"oof\.csv: none of its ids, such as 8") as caught:
            truth.align_to_truth(frame, wanted, "oof.csv")
        assert "--truth data/processed/train.parquet" in caught.value.hint


def test_duplicate_ids_are_refused():
    frame, labels = make_case([1, 2, 1])
    with pytest.raises(DataError, match=r"p.csv: 1 duplicate id \(1\)"):
        truth.align_to_truth(frame, labels, "p.csv")


@pytest.mark.parametrize("row", [[0.33, 0.33, 0.33], [1.2, -0.1, -0.1], [np.nan, 0.5, 0.5]])
def test_rows_that_graders_reject_are_not_scored(row):
    frame, labels = make_case([1, 2])
    frame.loc[1, list(CLASSES)] = row
    with pytest.raises(
        DataError, match=r"p\.csv: id 2: not probabilities that sum to 1 to 6 places"
    ) as caught:
        truth.align_to_truth(frame, labels, "p.csv")
    assert "kit validate p.csv" in caught.value.hint


def test_written_prediction_scores_as_the_original_numbers(tmp_path):
    frame, labels = make_case(list(range(100, 0, -1)))
    write_predictions(frame.sample(frac=1, random_state=0), tmp_path / "p.csv")
    probabilities, aligned = truth.align_to_truth(
        read_predictions(tmp_path / "p.csv"), labels, "p.csv"
    )
    expected = metrics.log_loss(frame[list(CLASSES)].to_numpy(), labels["label"].to_numpy())
    assert metrics.log_loss(probabilities, aligned) == expected
