"""Check that all readers of CSV files keep ids of 16 to 18 digits, and judge cells alike."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.data.labels import read_targets
from kit.data.raw_csv import open_raw_csv, parse_ids
from kit.errors import DataError
from kit.evaluation.truth import read_truth, truth_from_frame
from kit.evaluation.validate import read_sample_ids, validate_submission
from kit.predictions import parse_whole_numbers, read_predictions
from kit.task import ID, PREDICTION_COLUMNS

HEADER = ",".join(PREDICTION_COLUMNS) + "\n"
# A float holds only the first one's even neighbours.
IDS = [2**53 + 1, 2**53 + 3, 10**17 + 1, 10**18 - 1]


def write(path: Path, *lines: str) -> Path:
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def raw_ids(path: Path) -> list[int]:
    batches = open_raw_csv(path, PREDICTION_COLUMNS).batches
    return np.concatenate([parse_ids(batch) for batch in batches]).tolist()


def raw_labels(path: Path) -> list[int]:
    (batch,) = open_raw_csv(path, PREDICTION_COLUMNS).batches
    return read_targets(batch, label_required=True).labels.tolist()


@pytest.mark.parametrize("blank", ["", ",,,"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_truth_beside_a_blank_line_keeps_its_ids(tmp_path: Path, blank: str, place: int):
    lines = [f"{number},1,0,0" for number in IDS]
    lines.insert(place, blank)
    assert read_truth(write(tmp_path / "truth.csv", *lines))[ID].tolist() == IDS


def test_every_reader_keeps_ids_beside_a_blank_line(tmp_path: Path):
    lines = [f"{number},1,0,0" for number in IDS]
    file = write(tmp_path / "file.csv", *lines[:2], "", *lines[2:])
    assert read_predictions(file)[ID].tolist() == IDS
    assert read_sample_ids(file).tolist() == IDS
    assert raw_ids(file) == IDS
    assert validate_submission(file, file).ok


def test_an_empty_id_is_named_and_the_others_stay_exact(tmp_path: Path):
    file = write(tmp_path / "file.csv", f"{IDS[0]},1,0,0", ",1,0,0", f"{IDS[1]},1,0,0")
    with pytest.raises(DataError, match="row 3: id is 'nan'"):
        read_predictions(file)
    (problem,) = validate_submission(file).problems
    assert (problem.kind, problem.rows) == ("id", (3,))


@pytest.mark.parametrize(
    ("cells", "values", "whole"),
    [
        (["1", " 2", "+3", "-4", "1.0", "1e3"], [1, 2, 3, -4, 1, 1000], [True] * 6),
        (["9223372036854775807", "9223372036854775808"], [2**63 - 1, 0], [True, False]),
        (["9" * 400, "x", None, "1.5", "inf", "\x001"], [0] * 6, [False] * 6),
        ([float(2**53), 5.0, np.nan], [0, 5, 0], [False, True, False]),
        (pd.array([1, None], "Int64"), [1, 0], [True, False]),
    ],
)
def test_whole_numbers_are_read_exactly(cells: list, values: list[int], whole: list[bool]):
    found, is_whole = parse_whole_numbers(pd.Series(cells, index=[7] * len(cells)))
    assert (found.tolist(), is_whole.tolist()) == (values, whole)


@pytest.mark.parametrize(
    "words", ["1 0", "1.0 0.0", "True False", "TRUE FALSE", "true false", "1 False", "TRUE 0.0"]
)
def test_labels_are_judged_alike(tmp_path: Path, words: str):
    yes, no = words.split()
    file = write(
        tmp_path / "truth.csv", f"1,{yes},{no},{no}", f"2,{no},{no},{yes}", f"3, {yes},0,{no} "
    )
    assert raw_labels(file) == [0, 2, 0]
    assert read_truth(file)["label"].tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    "cells", ["yes,no,no", "1,1,0", "0,0,0", "2,0,-1", "1,,0", "1.00,0,0", "01,0,0"]
)
def test_what_is_no_label_is_refused_alike(tmp_path: Path, cells: str):
    file = write(tmp_path / "truth.csv", f"1,{cells}")
    with pytest.raises(DataError, match="not one-hot"):
        raw_labels(file)
    with pytest.raises(DataError, match="exactly one class must be 1"):
        read_truth(file)


NUMBERS = ("7", " 7", "7\t", "+7", "7.0", "7e0")
NOT_IDS = (
    *("TRUE", "True", "false", "9223372036854775808", "18446744073709551615", "9" * 30),
    *("7\u00a0", "\u00a07", "7\u2003", "7.5", "9007199254740993.0", "1_0", "0x7", "7\v", "", "inf"),
)


@pytest.mark.parametrize("cell", [*NUMBERS, *NOT_IDS])
@pytest.mark.parametrize("beside", ["", "TRUE", "12"])
def test_an_id_is_judged_alike_by_every_command(tmp_path: Path, cell: str, beside: str):
    good = cell in NUMBERS and beside != "TRUE"
    file = write(tmp_path / "file.csv", f"{cell},1,0,0", *([f"{beside},0,1,0"] if beside else []))
    assert_verdict(file, good, "id")
    if good:
        assert read_predictions(file)[ID].iloc[0] == 7


NOT_PROBABILITIES = (
    *("TRUE", "False", "0\u00a0", "\u00a00", "nan", "", "inf", "0x0", "0_0", "\x000", "０"),
)


@pytest.mark.parametrize("cell", ["0", " 0", "0\t", "0.0", "-0.0", "0e5", *NOT_PROBABILITIES])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_probability_is_judged_alike_by_every_command(tmp_path: Path, cell: str, rows: int):
    lines = [f"{number},{cell},0.5,0.5" for number in range(rows)]
    assert_verdict(write(tmp_path / "file.csv", *lines), cell not in NOT_PROBABILITIES, "winner")


@pytest.mark.parametrize("cells", ["TRUE,FALSE,FALSE", "1,FALSE,0"])
def test_true_is_no_probability_even_in_a_whole_column(tmp_path: Path, cells: str):
    assert_verdict(write(tmp_path / "file.csv", f"1,{cells}", f"2,{cells}"), False, "winner")


def assert_verdict(file: Path, good: bool, column: str) -> None:
    """Compare what `kit validate` says with what all commands do that read predictions."""
    assert validate_submission(file).ok == good
    if good:
        read_predictions(file)
        return
    with pytest.raises(DataError, match=f"{column}.* is .*, not a"):
        read_predictions(file)


@pytest.mark.parametrize(
    "ids",
    [[1.0, np.nan], [1, 1.5], ["1", "a"], [2.0**53, 1.0], [None, 1], [True, False], [True, 5]],
)
def test_ids_of_a_frame_that_are_no_whole_numbers_are_refused(ids: list):
    for labels in (
        {"label": [0, 1]},
        dict(zip(PREDICTION_COLUMNS[1:], ([1, 0], [0, 1], [0, 0]), strict=True)),
    ):
        with pytest.raises(DataError, match="the id is not a whole number"):
            truth_from_frame(pd.DataFrame({"id": ids, **labels}))


def test_labels_of_a_frame_may_be_of_any_type():
    table = pd.DataFrame([[1, 0, 0], [0, 0, 1]], columns=list(PREDICTION_COLUMNS[1:]))
    for kind in ("int64", "float32", "bool", "Int64", str):
        frame = table.astype(kind).assign(id=[5, 6])
        assert truth_from_frame(frame)["label"].tolist() == [0, 2]


@pytest.mark.parametrize(
    "text", ["\0" + HEADER + "1,1,0,0\n", HEADER + "\x001,1,0,0\n", HEADER + "1,\x001,0,0\n"]
)
def test_nul_characters_in_the_competitions_files_are_removed_alike(tmp_path: Path, text: str):
    file = tmp_path / "file.csv"
    file.write_text(text)
    assert raw_ids(file) == [1]
    assert raw_labels(file) == [0]
    assert read_truth(file).to_numpy().tolist() == [[1, 0]]
    assert read_sample_ids(file).tolist() == [1]


def test_nul_characters_in_a_submission_are_refused_alike(tmp_path: Path):
    file = tmp_path / "file.csv"
    file.write_text(HEADER + "\x001,1,0,0\n")
    with pytest.raises(DataError, match="not a 64-bit whole number"):
        read_predictions(file)
    assert not validate_submission(file).ok
