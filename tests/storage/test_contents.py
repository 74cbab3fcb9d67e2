"""Check that a table which is something else is named for what it is, by every reader."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.data.rows import read_rows
from kit.errors import DataError
from kit.evaluation.truth import read_truth
from kit.evaluation.validate import read_sample_ids, validate_submission
from kit.predictions import read_predictions

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"
READERS: list[Callable[[Path], object]] = [
    read_predictions,
    read_truth,
    read_sample_ids,
    lambda path: read_rows(path, labelled=True),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "Git LFS pointer"),
        (PAGE, "web page"),
        (b"PK\x03\x04" + bytes(40), "zip archive"),
        (gzip.compress(b"id\n1\n", mtime=0), "gzip file"),
        ("id\n1\n".encode("utf-16"), "UTF-16"),
    ],
    ids=["pointer", "page", "zip", "gzip", "UTF-16"],
)
def test_a_csv_file_that_is_something_else_is_named_for_what_it_is(
    read: Callable[[Path], object], content: bytes, words: str, tmp_path: Path
):
    file = tmp_path / "file.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(file)


@pytest.mark.parametrize(("content", "words"), [(POINTER, "Git LFS"), (PAGE, "web page")])
def test_such_a_file_is_one_problem_of_a_submission_and_of_a_parquet_file(
    content: bytes, words: str, tmp_path: Path
):
    for name in ("submission.csv", "train.parquet"):
        (tmp_path / name).write_bytes(content)
    (problem,) = validate_submission(tmp_path / "submission.csv").problems
    assert words in problem.message
    with pytest.raises(DataError, match=words):
        read_truth(tmp_path / "train.parquet")
