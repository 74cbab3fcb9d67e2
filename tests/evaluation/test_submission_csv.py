"""A file of any content is read as a grader's pandas reads it, its rows numbered as a spreadsheet numbers them."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.evaluation.submission_csv import (
    LISTED,
    SubmissionFile,
    SubmissionProblem,
    describe_row,
    list_rows,
    read_submission,
)

HEADER = "id,winner_model_a,winner_model_b,winner_tie\n"
GOOD = HEADER + "11,0.3,0.2,0.5\n12,0.1,0.3,0.6\n"


@pytest.fixture
def reading(tmp_path):
    """Writes this text (or these bytes) and reads it."""

    def of(content: str | bytes) -> SubmissionFile:
        path = tmp_path / "p.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_submission(path)

    return of


def kinds(problems: tuple[SubmissionProblem, ...]) -> list[str]:
    return [problem.kind for problem in problems]


def test_a_good_file_is_read_without_a_word(reading):
    found = reading(GOOD)
    assert (found.problems, found.warnings) == ((), ())
    assert found.lines.tolist() == [2, 3]
    assert found.frame["winner_tie"].tolist() == [0.5, 0.6]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_explained_and_never_raise(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "p.csv"
    path.write_bytes(content)
    found = read_submission(path)
    assert found.frame is not None or found.problems
    if found.frame is not None:
        assert len(found.lines) == len(found.frame)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from(["1,0.1,0.2,0.7", "", "   ", '2,"0.1",0.2,0.7', "3,,x,"]), max_size=12
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_cells_are_those_of_pandas_and_lines_those_of_the_file(tmp_path_factory, lines, end, mark):
    path = tmp_path_factory.mktemp("lines") / "p.csv"
    path.write_bytes((mark + end.join([HEADER.strip(), *lines]) + end).encode())
    found = read_submission(path)
    pd.testing.assert_frame_equal(found.frame, pd.read_csv(path, low_memory=False))
    assert found.lines.tolist() == [number for number, line in enumerate(lines, 2) if line.strip()]


def test_a_line_break_in_a_cell_begins_no_row(reading):
    found = reading(HEADER.strip() + ",note\n" + '11,0.3,0.2,0.5,"two\nlines"\n12,0.1,0.3,0.6,x\n')
    assert found.lines.tolist() == [2, 3]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_named_and_used(reading, separator):
    found = reading(GOOD.replace(",", separator))
    assert kinds(found.problems) == ["delimiter"]
    pd.testing.assert_frame_equal(found.frame, pd.read_csv(io.StringIO(GOOD)))


@pytest.mark.parametrize(("encoding", "rows"), [("utf-16", ()), ("latin-1", (3,))])
def test_another_encoding_is_named_and_read(reading, encoding, rows):
    found = reading((HEADER + "11,0.3,0.2,0.5\n12,é,0.3,0.6\n").encode(encoding))
    (problem,) = found.problems
    assert (problem.kind, problem.rows) == ("encoding", rows)
    assert found.frame["id"].tolist() == [11, 12]


def test_long_rows_are_listed_and_cut(reading):
    found = reading(GOOD + "13,0.2,0.2,0.6,9\n14,0.2,0.2,0.6,9,9\n")
    assert {p.kind: p.rows for p in found.problems} == {"ragged": (4, 5)}
    assert found.frame["winner_tie"].tolist() == [0.5, 0.6, 0.6, 0.6]


def test_one_cell_more_in_every_row_than_in_the_header_is_worth_a_warning(reading):
    found = reading(HEADER + "0,11,0.3,0.2,0.5\n1,12,0.1,0.3,0.6\n")
    assert (found.problems, kinds(found.warnings)) == ((), ["shifted"])
    assert found.frame["id"].tolist() == [11, 12]


def test_a_missing_header_is_recognised_by_its_numbers(reading):
    assert kinds(reading("11,0.3,0.2,0.5\n12,0.1,0.3,0.6\n").problems) == ["no-header"]


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_called_empty(reading, content):
    found = reading(content)
    assert (kinds(found.problems), found.frame) == (["empty"], None)


def test_a_file_that_is_not_there_or_not_a_file_says_why(tmp_path):
    assert "No such file" in read_submission(tmp_path / "absent.csv").problems[0].message
    assert "directory" in read_submission(tmp_path).problems[0].message


def test_only_the_first_rows_are_listed_and_all_are_counted():
    problem = describe_row("x", "odd rows", np.arange(40) % 2 == 0, np.arange(40) + 2)
    assert (problem.count, problem.rows) == (20, tuple(range(2, 2 + 2 * LISTED, 2)))
    assert str(problem) == "odd rows (rows 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 10 more)"
    assert list_rows("id", (3,), 1) == "id 3"
    assert list_rows("id", (3, 5, 9), 3) == "ids 3, 5 and 9"
