"""Check that faults of raw files are repaired and counted, or refused with file, row and id."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.data import raw_csv
from kit.data.rows import RawRows, read_rows
from kit.errors import DataError
from kit.task import CLASSES, TEST_COLUMNS, TEXTS, TRAIN_COLUMNS

IDS, LABELS = (11, 22, 33), (0, 1, 2)


def cell(*turns: object) -> str:
    return json.dumps(turns).replace("/", "\\/")


def cell_of(number: int) -> str:
    """Return a quoted cell whose length and turns depend on the number."""
    return '"' + cell("x" * (number % 31 * 11), *["y"] * (number % 3)).replace('"', '""') + '"'


def table(columns: tuple[str, ...] = TRAIN_COLUMNS, **changed: object) -> bytes:
    """Return three rows in Kaggle's form.

    Args:
        changed: columns with other cells: one for the second row, or a list of three.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for i, (number, label) in enumerate(zip(IDS, LABELS, strict=True)):
        row = {
            "id": number,
            "model_a": "a/b",
            "model_b": "c",
            "prompt": cell(f'say "{i}"', "и/или"),
            "response_a": cell("one, two\nthree", None),
            "response_b": cell(f"b{i}", "\ud83d\ude00"),
            **{name: int(k == label) for k, name in enumerate(CLASSES)},
        }
        for name, value in changed.items():
            if isinstance(value, list):
                row[name] = value[i]
            elif i == 1:
                row[name] = value
        writer.writerow([row.get(column, "") for column in columns])
    return out.getvalue().encode()


def same(one: RawRows, other: RawRows) -> bool:
    return (
        one.texts.equals(other.texts)
        and np.array_equal(one.ids, other.ids)
        and np.array_equal(one.targets.labels, other.targets.labels)
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        path = tmp_path / "train.csv"
        path.write_bytes(data)
        return path

    return written


WHOLE = table()
SECOND = "row 3, id 22"
THIRD = "row 4, id 33"
DOWNLOAD = "kit download"
FAULTS = {
    "no text": (b"", ["the file is empty", DOWNLOAD]),
    "only line ends": (b"\n\r\n", ["the file is empty", DOWNLOAD]),
    "only a header": (
        WHOLE[: WHOLE.index(b"\n") + 1],
        ["no rows below the header", DOWNLOAD],
    ),
    "a zip archive": (b"PK\x03\x04rest", ["a zip archive", "Unpack it"]),
    "a gzip file": (b"\x1f\x8brest", ["a gzip file", "Unpack it"]),
    "UTF-16": (WHOLE.decode().encode("utf-16"), ["UTF-16", "save it as CSV in UTF-8"]),
    "a missing column": (
        table(tuple(c for c in TRAIN_COLUMNS if c != "response_b")),
        ["row 1: no column response_b (it has 'id', 'model_a'", "Name the columns id,prompt"],
    ),
    "no header": (
        WHOLE[WHOLE.index(b"\n") + 1 :],
        ["row 1: no column id", "Name the columns id"],
    ),
    "a web page": (
        b"<!DOCTYPE html>\n<p>Sign in</p>\n",
        ["is a web page", "Download it again"],
    ),
    "a repeated column": (
        WHOLE.replace(b"model_a,model_b", b"prompt,model_b", 1),
        ["duplicate column prompt", "Remove"],
    ),
    "semicolons": (WHOLE.replace(b",", b";"), ["separated by semicolons", "with commas"]),
    "tabs": (WHOLE.replace(b",", b"\t"), ["separated by tabs", "with commas"]),
    "too few cells": (
        WHOLE.replace(b",0,1,0\n", b",0,1\n"),
        [SECOND, "8 cells where the header has 9", "double quotes"],
    ),
    "too many cells": (
        WHOLE.replace(b",0,1,0\n", b",0,1,0,\n"),
        [SECOND, "10 cells where the header", "double quotes"],
    ),
    "an open quote": (
        WHOLE.replace(b'b1"", ""\\ud83d\\ude00""]"', b'b1""]'),
        [SECOND, "closing quote is missing", DOWNLOAD],
    ),
    "a last quote never closed": (
        table((*(c for c in TRAIN_COLUMNS if c != "prompt"), "prompt"))[:-2] + b"\n",
        [THIRD, "the quote that opens prompt is never closed", DOWNLOAD],
    ),
    "not UTF-8": (
        WHOLE.replace(b"b1", b"b\xe9"),
        [SECOND, "response_b is not UTF-8", "Save the file as UTF-8"],
    ),
    "a header and a cell not UTF-8": (
        WHOLE.replace(b"model_b", b"m\xefdel_b", 1).replace(b"b1", b"b\xe9"),
        ["row 1, id 'id'", r"'m\udcefdel_b' is not UTF-8"],
    ),
    "cut in a cell": (WHOLE[: WHOLE.rindex(b"b2")], [THIRD, "cut off inside response_b", DOWNLOAD]),
    "cut between cells": (
        WHOLE[: WHOLE.rindex(b',"[""b2')],
        [THIRD, "cut off in this row: 5 of 9 cells", DOWNLOAD],
    ),
    "cut before a label": (
        WHOLE[: WHOLE.rindex(b"0,0,1")],
        [THIRD, "cut off in this row: 7 of 9 cells", DOWNLOAD],
    ),
    "cut before the last label": (
        WHOLE[:-2],
        [THIRD, "cut off in this row: not one-hot", DOWNLOAD],
    ),
    "unbalanced JSON": (
        table(prompt='["a", "b"'),
        [SECOND, "prompt is not valid JSON", "at character", DOWNLOAD],
    ),
    "single quotes": (
        table(prompt="['a']"),
        [SECOND, "prompt is not valid JSON", "\"['a']\"", DOWNLOAD],
    ),
    "code": (table(prompt='__import__("os")'), [SECOND, "prompt is not valid JSON", DOWNLOAD]),
    "an empty cell": (table(response_a=""), [SECOND, "response_a is empty", DOWNLOAD]),
    "a JSON object": (
        table(response_a='{"a": 1}'),
        [SECOND, "response_a is not a JSON list", DOWNLOAD],
    ),
    "a JSON string": (
        table(response_b='"text"'),
        [SECOND, "response_b is not a JSON list", DOWNLOAD],
    ),
    "a JSON null": (table(response_b="null"), [SECOND, "response_b is not a JSON list", DOWNLOAD]),
    "a number in the list": (
        table(prompt="[1]"),
        [SECOND, "prompt contains '1', which is not a string", DOWNLOAD],
    ),
    "a list in the list": (
        table(prompt='[["a"]]'),
        [SECOND, "prompt contains", "not a string", DOWNLOAD],
    ),
    "not a number": (table(prompt="[NaN]"), [SECOND, "prompt contains 'NaN'", DOWNLOAD]),
    "deep nesting": (table(prompt="[" * 200_000), [SECOND, "nested too deep", DOWNLOAD]),
    "a huge number": (
        table(prompt="[" + "9" * 5000 + "]"),
        [SECOND, "a number too long", DOWNLOAD],
    ),
    "control characters": (table(prompt="\x1b[31m" + "x" * 500), [SECOND, "\\x1b[31mxx", DOWNLOAD]),
    "two winners": (
        table(winner_model_a=1),
        [SECOND, "not one-hot", "winner_model_a '1'", "Exactly one"],
    ),
    "no winner": (table(winner_model_b=0), [SECOND, "not one-hot", "Exactly one"]),
    "a label of 2": (
        table(winner_model_b=2),
        [SECOND, "not one-hot", "winner_model_b '2'", "Exactly one"],
    ),
    "soft labels": (
        table(winner_model_b=0.5, winner_tie=0.5),
        [SECOND, "not one-hot", "Exactly one"],
    ),
    "an empty label": (
        table(winner_tie=""),
        [SECOND, "not one-hot", "winner_tie ''", "Exactly one"],
    ),
    "an id with letters": (table(id="x22"), ["row 3, id 'x22'", "not a whole number", DOWNLOAD]),
    "a fractional id": (table(id="22.5"), ["row 3, id '22.5'", "not a whole number", DOWNLOAD]),
    "an empty id": (table(id=""), ["row 3, id ''", "not a whole number", DOWNLOAD]),
    "an id of 19 digits": (table(id="9" * 19), ["row 3, id 9999", "at most 18 digits", DOWNLOAD]),
    "a gigantic id": (table(id="9" * 10**6), ["row 3, id '9999", "at most 18 digits", DOWNLOAD]),
    "a repeated id": (
        table(id=[33, 22, 33]),
        ["duplicate id 33 (rows 2 and 4)", "its own id"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_file_is_refused_with_file_row_id_and_remedy(
    name: str, write: Callable[[bytes], Path]
) -> None:
    data, expected = FAULTS[name]
    path = write(data)
    with pytest.raises(DataError) as caught:
        read_rows(path, labelled=True)
    message = str(caught.value)
    assert message.startswith(str(path))
    for fragment in expected:
        assert fragment in message
    assert caught.value.hint
    assert len(message) < len(str(path)) + 500
    assert message.replace("\n", "").isprintable()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a directory, not a CSV file\n.*Name the file in it"):
        read_rows(tmp_path, labelled=True)


def test_a_missing_file_names_the_commands_that_make_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.csv: no such file\n.*kit download.*kit sample"):
        read_rows(tmp_path / "train.csv", labelled=True)


REPAIRS = {
    "nothing": (WHOLE, {}),
    "NUL bytes": (WHOLE.replace(b"b1", b"\0b\x001"), {"nul_bytes": 2}),
    "a byte order mark": (b"\xef\xbb\xbf" + WHOLE, {"byte_order_mark": 1}),
    "CRLF": (WHOLE.replace(b"\n", b"\r\n"), {"crlf_line_ends": 4}),
    "CR": (WHOLE.replace(b"\n", b"\r"), {}),
    "blank lines": (WHOLE.replace(b"\n", b"\n\n"), {}),
    "no last line end": (WHOLE[:-1], {}),
    "no model names": (table((*TEST_COLUMNS, *CLASSES)), {}),
    "another order of columns": (table(TRAIN_COLUMNS[::-1]), {}),
    "further columns": (table(("", "language", *TRAIN_COLUMNS)), {}),
    "labels as pandas writes floats": (
        table(**{c: [float(k == i) for i in range(3)] for k, c in enumerate(CLASSES)}),
        {},
    ),
    "labels as pandas writes flags": (
        table(**{c: [k == i for i in range(3)] for k, c in enumerate(CLASSES)}),
        {},
    ),
    "a raw line end in a text": (WHOLE.replace(b"two\\n", b"two\n"), {"raw_control_characters": 3}),
    "a raw CRLF in a text": (
        WHOLE.replace(b"two\\n", b"two\r\n"),
        {"raw_control_characters": 3, "carriage_returns": 3, "crlf_line_ends": 3},
    ),
    "an escaped CRLF": (WHOLE.replace(b"two\\n", b"two\\r\\n"), {"carriage_returns": 3}),
    "an escaped NUL": (WHOLE.replace(b"b1", b"b\\u00001"), {"nul_characters": 1}),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_gives_the_plain_rows_and_is_counted(
    name: str, write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.csv"
    plain.write_bytes(WHOLE)
    data, expected = REPAIRS[name]
    rows = read_rows(write(data), labelled=True)
    assert same(rows, read_rows(plain, labelled=True))
    assert {k: v for k, v in rows.repairs.items() if v and k != "null_turns"} == expected
    assert rows.repairs["null_turns"] == 3


def test_ignored_columns_are_named(write: Callable[[bytes], Path]) -> None:
    rows = read_rows(write(table(("language", *TRAIN_COLUMNS))), labelled=True)
    assert rows.ignored == ("language", "model_a", "model_b")


def test_kaggles_escapes_are_decoded(write: Callable[[bytes], Path]) -> None:
    first = read_rows(write(WHOLE), labelled=True).texts.to_pylist()[0]
    assert first["prompt"] == ['say "0"', "и/или"]
    assert first["response_a"] == ["one, two\nthree", ""]
    assert first["response_b"] == ["b0", "😀"]


def test_a_cell_larger_than_a_block_is_read_whole(write: Callable[[bytes], Path]) -> None:
    long = "многое " * (raw_csv.BLOCK // 6)
    rows = read_rows(write(table(response_b=cell(long))), labelled=True)
    assert rows.texts["response_b"][1].as_py() == [long]
    with pytest.raises(DataError, match=SECOND):
        read_rows(write(table(response_b=cell(long)[:-1])), labelled=True)


@pytest.mark.parametrize("block", [150, 400, 1000])
def test_rows_do_not_depend_on_the_block_size(
    block: int, write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        f"{i},x,y,{','.join([cell_of(i), cell_of(i * 7), cell_of(i * 5)])},1,0,0\n"
        for i in range(40)
    ]
    path = write(",".join(TRAIN_COLUMNS).encode() + b"\n" + "".join(lines).encode())
    whole = read_rows(path, labelled=True)
    assert whole.ids.tolist() == list(range(40))
    monkeypatch.setattr(raw_csv, "BLOCK", block)
    assert same(read_rows(path, labelled=True), whole)


@pytest.mark.parametrize("piece", [4, 5, 64])
def test_repair_counts_do_not_depend_on_the_piece_size(
    piece: int, write: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(b"\xef\xbb\xbf" + WHOLE.replace(b"\n", b"\r\n").replace(b"b1", b"\0b\x001"))
    monkeypatch.setattr(raw_csv, "PIECE", piece)
    assert raw_csv.count_byte_repairs(path) == {
        "nul_bytes": 2,
        "byte_order_mark": 1,
        "crlf_line_ends": 4,
    }


def test_the_row_of_a_fault_counts_blank_lines_as_a_spreadsheet_does(
    write: Callable[[bytes], Path],
) -> None:
    with pytest.raises(DataError, match="row 5, id 22"):
        read_rows(write(table(prompt="x").replace(b"\n", b"\n\n")), labelled=True)


def test_duplicate_ids_are_allowed_where_they_will_be_renumbered(
    write: Callable[[bytes], Path],
) -> None:
    path = write(table(id=[5, 5, 5]))
    assert read_rows(path, labelled=True, unique_ids=False).ids.tolist() == [5, 5, 5]


@pytest.mark.parametrize("columns", [TRAIN_COLUMNS, TEST_COLUMNS], ids=["train", "test"])
def test_a_file_cut_anywhere_is_refused_or_gives_complete_rows(
    columns: tuple[str, ...], write: Callable[[bytes], Path]
) -> None:
    data, labelled = table(columns), columns == TRAIN_COLUMNS
    rows = read_rows(write(data), labelled).texts.to_pylist()
    refused = 0
    for end in range(len(data) // 2, len(data)):
        try:
            left = read_rows(write(data[:end]), labelled).texts.to_pylist()
        except DataError:
            refused += 1
        else:
            assert data[:end].endswith(b"\n") or data[end : end + 1] == b"\n"
            assert left == rows[: len(left)]
    assert refused > 0.4 * len(data)


TURNS = st.lists(
    st.none() | st.text(st.characters(exclude_categories=()), max_size=8), min_size=1, max_size=3
)


@given(st.lists(st.tuples(TURNS, TURNS, TURNS), min_size=1, max_size=4), st.booleans())
@settings(deadline=None, max_examples=60)
def test_any_text_is_read_back_but_for_the_documented_repairs(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], escaped: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "test.csv"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(TEST_COLUMNS)
    for number, texts in enumerate(rows):
        # A lone surrogate has no UTF-8: it can only be escaped.
        has_surrogate = any(
            0xD800 <= ord(char) < 0xE000 for turns in texts for turn in turns for char in turn or ""
        )
        escape = escaped or has_surrogate
        writer.writerow([number, *(json.dumps(turns, ensure_ascii=escape) for turns in texts)])
    path.write_bytes(out.getvalue().encode())

    read = read_rows(path, labelled=False).texts.to_pylist()
    for got, texts in zip(read, rows, strict=True):
        for name, turns in zip(TEXTS, texts, strict=True):
            # Pairs of surrogates become one character.
            joined = json.loads(json.dumps(turns))
            wanted = [
                (t or "").replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
                for t in joined
            ]
            assert got[name] == [
                "".join("\ufffd" if 0xD800 <= ord(c) < 0xE000 else c for c in t) for t in wanted
            ]
