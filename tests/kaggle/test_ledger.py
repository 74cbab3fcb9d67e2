"""The ledger: what was written comes back, whatever is in the message, and nothing of others' is lost."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import DataError
from kit.remote import ledger
from kit.remote.ledger import Entry

ENTRY = Entry("2026-11-23T18:00:00Z", "1001", "some-competition", message="first")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=30)


def test_no_file_is_an_empty_ledger(tmp_path: Path) -> None:
    assert ledger.read(tmp_path / "ledger.csv") == []


@settings(deadline=None, max_examples=40)
@given(message=TEXTS, runs=TEXTS)
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, message: str, runs: str) -> None:
    path = tmp_path_factory.mktemp("book") / "ledger.csv"
    entries = [ENTRY, Entry("later", "1002", "c", message=message, runs=runs)]
    for entry in entries:
        ledger.record(entry, path)
    assert ledger.read(path) == entries


def test_an_entry_of_the_same_ref_is_replaced(tmp_path: Path) -> None:
    import dataclasses

    path = tmp_path / "ledger.csv"
    ledger.record(ENTRY, path)
    scored = dataclasses.replace(ENTRY, status="COMPLETE", public_score="0.9")
    ledger.record(scored, path)
    assert ledger.read(path) == [scored]


def test_a_column_that_a_person_added_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text("time,ref,message,thoughts\nthen,7,old,nice\n")
    ledger.record(ENTRY, path)
    assert ledger.read(path)[0].message == "old"
    assert "nice" in path.read_text()
    assert path.read_text().splitlines()[0].endswith(",thoughts")


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "<html></html>"])
def test_what_is_no_ledger_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text(text)
    with pytest.raises(DataError, match="is not a ledger"):
        ledger.record(ENTRY, path)
    assert path.read_text() == text
