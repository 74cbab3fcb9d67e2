"""Check that usable rows are told from odd ones exactly as the strict reader does."""

from pathlib import Path

import pytest

from kit.data.odd_rows import copy_usable_rows
from kit.data.rows import read_rows
from kit.errors import DataError
from kit.task import TEXTS


def test_a_file_without_odd_rows_is_used_itself(raw: Path, tmp_path: Path):
    found = copy_usable_rows(raw / "test.csv", tmp_path / "copy.csv")
    assert found.file == raw / "test.csv"
    assert found.problems == ()
    assert list(map(int, found.ids)) == read_rows(raw / "test.csv", labelled=False).ids.tolist()


def test_the_copy_reads_as_the_usable_rows_of_the_original(raw: Path, tmp_path: Path):
    expected = read_rows(raw / "test.csv", labelled=False)
    odd = tmp_path / "odd.csv"
    odd.write_bytes((raw / "test.csv").read_bytes() + b'123456789,"[""p""]",,\r\n')
    with pytest.raises(DataError, match="id 123456789"):
        read_rows(odd, labelled=False)

    found = copy_usable_rows(odd, tmp_path / "copy.csv")
    rows = read_rows(found.file, labelled=False)
    assert found.file == tmp_path / "copy.csv"
    assert rows.ids.tolist() == expected.ids.tolist()
    assert all(rows.texts[name].to_pylist() == expected.texts[name].to_pylist() for name in TEXTS)
    assert len(found.problems) == 1


def test_a_file_that_ends_inside_a_cell_keeps_its_other_rows(raw: Path, tmp_path: Path):
    expected = read_rows(raw / "test.csv", labelled=False)
    cut = tmp_path / "cut.csv"
    cut.write_bytes((raw / "test.csv").read_bytes() + b'123456789,"[""p')
    found = copy_usable_rows(cut, tmp_path / "copy.csv")
    assert read_rows(found.file, labelled=False).ids.tolist() == expected.ids.tolist()
    assert found.ids[-1] == "123456789"


@pytest.mark.parametrize(
    "content", [b"id,prompt\n1,x\n", b"", b"id,prompt,response_a,response_b\n1,,,\n"]
)
def test_a_file_without_a_usable_row_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "test.csv").write_bytes(content)
    with pytest.raises(DataError):
        copy_usable_rows(tmp_path / "test.csv", tmp_path / "copy.csv")
