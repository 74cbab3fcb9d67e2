"""Check that any file is read as a grader's pandas reads it, with a spreadsheet's row numbers."""

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
    list_first,
    read_submission,
    row_problem,
)

HEADER = "id,winner_model_a,winner_model_b,winner_tie\n"
GOOD = HEADER + "11,0.3,0.2,0.5\n12,0.1,0.3,0.6\n"


@pytest.fixture
def read_content(tmp_path):
    """Return a function that writes text or bytes to a file and reads it as a submission."""

    def read(content: str | bytes) -> SubmissionFile:
        path = tmp_path / "p.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_submission(path)

    return read


def kinds(problems: tuple[SubmissionProblem, ...]) -> list[str]:
    return [problem.kind for problem in problems]


def test_good_file_has_no_problems(read_content):
    submission = read_content(GOOD)
    assert (submission.problems, submission.warnings) == ((), ())
    assert submission.row_numbers.tolist() == [2, 3]
    assert submission.frame["winner_tie"].tolist() == [0.5, 0.6]


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_reported_and_never_raise(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "p.csv"
    path.write_bytes(content)
    submission = read_submission(path)
    assert submission.frame is not None or submission.problems
    if submission.frame is not None:
        assert len(submission.row_numbers) == len(submission.frame)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.sampled_from(["1,0.1,0.2,0.7", "", "   ", '2,"0.1",0.2,0.7', "3,,x,"]), max_size=12
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_cells_match_pandas_and_row_numbers_match_the_file(tmp_path_factory, lines, end, mark):
    path = tmp_path_factory.mktemp("lines") / "p.csv"
    path.write_bytes((mark + end.join([HEADER.strip(), *lines]) + end).encode())
    submission = read_submission(path)
    expected = pd.read_csv(path, low_memory=False, dtype={"id": str})
    pd.testing.assert_frame_equal(submission.frame, expected)
    assert submission.row_numbers.tolist() == [
        number for number, line in enumerate(lines, 2) if line.strip()
    ]


def test_line_break_in_a_cell_starts_no_new_row(read_content):
    submission = read_content(
        HEADER.strip() + ",note\n" + '11,0.3,0.2,0.5,"two\nlines"\n12,0.1,0.3,0.6,x\n'
    )
    assert submission.row_numbers.tolist() == [2, 3]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separator_is_reported_and_used(read_content, separator):
    submission = read_content(GOOD.replace(",", separator))
    assert kinds(submission.problems) == ["delimiter"]
    expected = pd.read_csv(io.StringIO(GOOD), dtype={"id": str})
    pd.testing.assert_frame_equal(submission.frame, expected)


@pytest.mark.parametrize(("encoding", "rows"), [("utf-16", ()), ("latin-1", (3,))])
def test_other_encoding_is_reported_and_decoded(read_content, encoding, rows):
    submission = read_content((HEADER + "11,0.3,0.2,0.5\n12,é,0.3,0.6\n").encode(encoding))
    (problem,) = submission.problems
    assert (problem.kind, problem.rows) == ("encoding", rows)
    assert submission.frame["id"].tolist() == ["11", "12"]


def test_long_rows_are_reported_and_cut(read_content):
    submission = read_content(GOOD + "13,0.2,0.2,0.6,9\n14,0.2,0.2,0.6,9,9\n")
    assert {p.kind: p.rows for p in submission.problems} == {"ragged": (4, 5)}
    assert submission.frame["winner_tie"].tolist() == [0.5, 0.6, 0.6, 0.6]


def test_extra_cell_in_every_row_is_a_warning(read_content):
    submission = read_content(HEADER + "0,11,0.3,0.2,0.5\n1,12,0.1,0.3,0.6\n")
    assert (submission.problems, kinds(submission.warnings)) == ((), ["shifted"])
    assert submission.frame["id"].tolist() == ["11", "12"]


def test_missing_header_is_recognised_by_its_numbers(read_content):
    assert kinds(read_content("11,0.3,0.2,0.5\n12,0.1,0.3,0.6\n").problems) == ["no-header"]


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf"])
def test_empty_file_is_reported_as_empty(read_content, content):
    submission = read_content(content)
    assert (kinds(submission.problems), submission.frame) == (["empty"], None)


def test_missing_file_and_directory_are_reported(tmp_path):
    assert "No such file" in read_submission(tmp_path / "absent.csv").problems[0].message
    assert "directory" in read_submission(tmp_path).problems[0].message


def test_first_rows_are_listed_and_all_are_counted():
    problem = row_problem("x", "odd rows", np.arange(40) % 2 == 0, np.arange(40) + 2)
    assert (problem.count, problem.rows) == (20, tuple(range(2, 2 + 2 * LISTED, 2)))
    assert str(problem) == "odd rows (rows 2, 4, 6, 8, 10, 12, 14, 16, 18, 20 and 10 more)"
    assert list_first("id", (3,), 1) == "id 3"
    assert list_first("id", (3, 5, 9), 3) == "ids 3, 5 and 9"
