"""The ledger: what was written comes back, whatever is in the message, and nothing of others' is lost."""

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


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    assert ledger.read_ledger(tmp_path / "ledger.csv") == []


@settings(deadline=None, max_examples=40)
@given(message=TEXTS, runs=TEXTS)
def test_any_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, message: str, runs: str
) -> None:
    path = tmp_path_factory.mktemp("book") / "ledger.csv"
    entries = [ENTRY, LedgerEntry("later", "1002", "c", message=message, runs=runs)]
    for entry in entries:
        ledger.record_submission(entry, path)
    assert ledger.read_ledger(path) == entries


def test_of_an_entry_that_is_there_only_what_kaggle_tells_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    ledger.record_submission(ENTRY, path)
    path.write_text(path.read_text().replace("first", "a better word"))
    told = {
        "status": "ERROR",
        "public_score": "0.9",
        "private_score": "0.8",
        "error": "Notebook Timeout",
    }
    ledger.record_submission(replace(ENTRY, local_score="1.0", **told), path)
    assert ledger.read_ledger(path) == [replace(ENTRY, message="a better word", **told)]


def test_two_at_once_lose_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path) -> list[dict[str, str]]:
        rows = read(path)
        time.sleep(0.1)
        return rows

    read = ledger._rows
    monkeypatch.setattr(ledger, "_rows", slowly)
    entries = [replace(ENTRY, ref=str(ref)) for ref in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda entry: ledger.record_submission(entry, tmp_path / "book/ledger.csv"), entries
            )
        )
    assert {entry.ref for entry in ledger.read_ledger(tmp_path / "book/ledger.csv")} == {
        "0",
        "1",
        "2",
        "3",
    }
    assert [path.name for path in (tmp_path / "book").iterdir()] == ["ledger.csv"]


def test_a_column_that_a_person_added_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text("time,ref,message,thoughts\nthen,7,old,nice\n")
    ledger.record_submission(ENTRY, path)
    assert ledger.read_ledger(path)[0].message == "old"
    assert "nice" in path.read_text()
    assert path.read_text().splitlines()[0].endswith(",thoughts")


@pytest.mark.parametrize(
    "text", [b"", b"a,b\n1,2\n", b"<html></html>", b"time,ref,message\n\xff", b'a,"' + b"x" * 2**18]
)
def test_what_is_no_ledger_is_not_overwritten(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "ledger.csv"
    path.write_bytes(text)
    with pytest.raises(DataError, match="is not a ledger"):
        ledger.record_submission(ENTRY, path)
    assert path.read_bytes() == text
