# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Turn JSON cells into clean turns. Use `decode_turns`, then perhaps `strip_turns_to_ascii`.

The "unicode" form keeps every language and the line ends. The "ascii" form is that of the
reference study: white space collapsed, other characters removed. Duplicates and prompt groups are
always found on the unicode form, so both forms have the same rows and splits.
"""

import json
import re
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.csv_errors import shorten_cell
from kit.data.raw_csv import RawBatch
from kit.errors import DataError
from kit.task import TEXTS

REPAIRS = {
    "null_turns": "turns that are null, read as the empty text",
    "empty_lists": "cells that are an empty list, read as one empty turn",
    "lone_surrogates": "turns with half a surrogate pair, each half replaced by U+FFFD",
    "nul_characters": "turns with a NUL character, removed",
    "carriage_returns": "turns with CRLF or CR, turned into line feeds",
    "raw_control_characters": "cells whose JSON has unescaped control characters, accepted",
}
TURNS = pa.list_(pa.string())

# json.loads joins proper pairs of surrogates: what is left is a half.
_SURROGATE = re.compile("[\ud800-\udfff]")

# A byte table: str.split() on the whole text is far slower.
_SPACES = bytes(32 if chr(code).isspace() else code for code in range(256))


def repair_text(text: str, repairs: Counter) -> str:
    """Return the text as valid UTF-8 with line feeds only, and count what was done (`REPAIRS`)."""
    if "\0" in text:
        repairs["nul_characters"] += 1
        text = text.replace("\0", "")
    if "\r" in text:
        repairs["carriage_returns"] += 1
        text = text.replace("\r\n", "\n").replace("\r", "\n")

    # Encoding is several times as fast as a search with the expression.
    try:
        text.encode()
    except UnicodeEncodeError:
        repairs["lone_surrogates"] += 1
        text = _SURROGATE.sub("\ufffd", text)
    return text


def strip_to_ascii(text: str) -> str:
    """Return the text in the reference's form.

    White space is collapsed to one space, non-ASCII characters are dropped, and the gaps they leave
    are closed.
    """
    # Non-ASCII white space separates words too, so it is collapsed before it would be dropped.
    if not text.isascii():
        text = " ".join(text.split())

    flat = text.encode("ascii", "ignore").translate(_SPACES)
    while b"  " in flat:
        flat = flat.replace(b"  ", b" ")
    return flat.decode("ascii").strip(" ")


def normalise_prompt(prompt: str) -> str:
    """Return the key of a prompt's group: NFKC, case folded, white space collapsed.

    Args:
        prompt: the turns joined by line feeds.
    """
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def decode_turns(batch: RawBatch, column: str, repairs: Counter) -> pa.ListArray:
    """Return the JSON cells of a column as repaired turns, list<string> (N,).

    There are no nulls, and each row has at least one turn.

    Raises:
        DataError: a cell is not a JSON list of strings and nulls; names row and id.
    """
    turns: list[str] = []
    ends = [0]
    for record, cell in enumerate(batch.cells[column].to_pylist()):
        items = _parse_cell(batch, record, column, cell, repairs)
        if type(items) is not list:
            raise batch.error(record, f"{column} is not a JSON list but {shorten_cell(cell)}")

        if not items:
            repairs["empty_lists"] += 1
            turns.append("")

        for item in items:
            if item is None:
                repairs["null_turns"] += 1
                item = ""
            elif type(item) is not str:
                shown = shorten_cell(json.dumps(item))
                raise batch.error(record, f"{column} contains {shown}, which is not a string")
            # Most texts are plain ASCII and skip the repairs.
            elif not item.isascii() or "\r" in item or "\0" in item:
                item = repair_text(item, repairs)
            turns.append(item)
        ends.append(len(turns))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(turns, pa.string()))


def _parse_cell(batch: RawBatch, record: int, column: str, cell: str, repairs: Counter) -> object:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        # Some writers leave line ends in strings unescaped; then only the strict mode fails.
        try:
            items = json.loads(cell, strict=False)
        except (ValueError, RecursionError):
            raise _json_error(batch, record, column, cell, error) from error

        repairs["raw_control_characters"] += 1
        return items


def _json_error(
    batch: RawBatch, record: int, column: str, cell: str, error: Exception
) -> DataError:
    if not cell:
        return batch.error(record, f"{column} is empty", cut_short=True)

    reason = "nested too deep, or a number too long"
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {error.pos + 1}"

    problem = f"{column} is not valid JSON ({reason}): {shorten_cell(cell)}"
    return batch.error(record, problem, cut_short=True)


def strip_turns_to_ascii(texts: pa.Table) -> pa.Table:
    """Return the table with every turn in the ascii form; the number of turns stays."""
    columns = {}
    for name in texts.column_names:
        chunks = []

        for chunk in texts[name].chunks:
            # The offsets of a slice are those of the whole array.
            offsets = pc.subtract(chunk.offsets, chunk.offsets[0])
            turns = [strip_to_ascii(turn) for turn in chunk.flatten().to_pylist()]
            chunks.append(pa.ListArray.from_arrays(offsets, pa.array(turns, pa.string())))

        columns[name] = pa.chunked_array(chunks, TURNS)
    return pa.table(columns)


def find_uneven_turns(texts: pa.Table) -> np.ndarray:
    """Return a mask of the rows (N,) whose prompt has another number of turns than a response."""
    prompt, *responses = (pc.list_value_length(texts[column]).to_numpy() for column in TEXTS)
    return np.any([prompt != response for response in responses], axis=0)
