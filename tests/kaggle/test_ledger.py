"""Check that the ledger returns every text as written and loses nothing that others wrote."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import DataError
from kit.kaggle import ledger
from kit.kaggle.ledger import LedgerEntry

ENTRY = LedgerEntry("2026-11-23T18:00:00Z", "1001", "some-competition", message="first")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=30)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "submissions/ledger.csv"


def test_a_missing_file_is_an_empty_ledger(path: Path) -> None:
    assert ledger.read_ledger(path) == []


@settings(deadline=None, max_examples=40)
@given(message=TEXTS, runs=TEXTS)
def test_every_text_is_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, message: str, runs: str
) -> None:
    path = tmp_path_factory.mktemp("submissions") / "ledger.csv"
    entries = [ENTRY, LedgerEntry("later", "1002", "c", message=message, runs=runs)]
    for entry in entries:
        ledger.record_submission(entry, path)
    assert ledger.read_ledger(path) == entries


def test_an_update_changes_only_what_kaggle_reports(path: Path) -> None:
    ledger.record_submission(ENTRY, path)
    path.write_text(path.read_text().replace("first", "edited by hand"))

    reported = {
        "status": "ERROR",
        "public_score": "0.9",
        "private_score": "0.8",
        "error": "Notebook Timeout",
    }
    ledger.record_submission(replace(ENTRY, local_score="1.0", **reported), path)

    assert ledger.read_ledger(path) == [replace(ENTRY, message="edited by hand", **reported)]


def test_concurrent_writers_lose_no_entry(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_rows = ledger._read_rows

    def read_slowly(path: Path) -> list[dict[str, str]]:
        rows = read_rows(path)
        time.sleep(0.1)
        return rows

    monkeypatch.setattr(ledger, "_read_rows", read_slowly)
    entries = [replace(ENTRY, ref=str(ref)) for ref in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda entry: ledger.record_submission(entry, path), entries))

    assert {entry.ref for entry in ledger.read_ledger(path)} == {"0", "1", "2", "3"}
    assert [file.name for file in path.parent.iterdir()] == ["ledger.csv"]


def test_added_columns_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text("time,ref,message,thoughts\nthen,7,old,nice\n")
    ledger.record_submission(ENTRY, path)
    assert ledger.read_ledger(path)[0].message == "old"
    assert "nice" in path.read_text()
    assert path.read_text().splitlines()[0].endswith(",thoughts")


@pytest.mark.parametrize(
    "content",
    [b"", b"a,b\n1,2\n", b"<html></html>", b"time,ref,message\n\xff", b'a,"' + b"x" * 2**18],
)
def test_a_file_that_is_not_a_ledger_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a ledger"):
        ledger.record_submission(ENTRY, path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "text",
    ["one\rtwo", "one\r", "\rone", "one\r\rtwo", "one\r\ntwo\rthree", "one\0two", "\x1b[31mred"],
)
def test_a_control_character_makes_no_row_of_its_own(path: Path, text: str) -> None:
    """The csv module does not quote a lone carriage return, but reads it as a row's end."""
    broken = replace(ENTRY, message=text, error=text, file=text)
    for entry in (broken, replace(ENTRY, ref="1002")):
        ledger.record_submission(entry, path)
    first, second = ledger.read_ledger(path)
    assert (first.ref, second.ref) == ("1001", "1002")
    assert first.message == ledger.escape_cell(text)
    assert "\r" not in path.read_bytes().decode().replace("\r\n", "")


def test_a_row_that_an_older_kit_broke_in_two_is_one_entry(path: Path) -> None:
    ledger.record_submission(replace(ENTRY, message="one, two"), path)
    path.write_bytes(path.read_bytes().replace(b'"one, two"', b"one\rtwo"))
    (entry,) = ledger.read_ledger(path)
    assert entry.message == "one\\rtwo"
    ledger.record_submission(replace(ENTRY, ref="1002"), path)
    assert [entry.ref for entry in ledger.read_ledger(path)] == ["1001", "1002"]


def test_the_rest_of_a_broken_message_is_no_entry(path: Path) -> None:
    """An older kit has written the second half of the row above as a row of its own."""
    ledger.record_submission(ENTRY, path)
    path.write_text(path.read_text() + "two" + "," * 13 + "\n")
    assert ledger.read_ledger(path) == [ENTRY]


def test_a_byte_order_mark_and_excels_line_ends_are_read(path: Path) -> None:
    ledger.record_submission(ENTRY, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert ledger.read_ledger(path) == [ENTRY]
    ledger.record_submission(replace(ENTRY, ref="1002"), path)
    assert [entry.ref for entry in ledger.read_ledger(path)] == ["1001", "1002"]
