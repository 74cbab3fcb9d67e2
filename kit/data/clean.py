"""From JSON cells to clean turns: what every text goes through before a model or a duplicate check sees it.

Two forms: `unicode` keeps every language and the line ends, `ascii` is the reference's (white space collapsed,
non-ASCII stripped). Rows, duplicates and prompt groups are always judged on the unicode form.
"""

import json
import re
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data import csv_errors
from kit.data.raw_csv import RawBatch
from kit.errors import DataError
from kit.task import TEXTS

FORMS = ("unicode", "ascii")
REPAIRS = {
    "null_turns": "turns that are null, read as the empty text",
    "empty_lists": "cells that are an empty list, read as one empty turn",
    "lone_surrogates": "turns with half a surrogate pair, each half replaced by U+FFFD",
    "nul_characters": "turns with a NUL character, removed",
    "carriage_returns": "turns with CRLF or CR, turned into line feeds",
    "raw_control_characters": "cells whose JSON holds control characters unescaped, read as they stand",
}
_SURROGATE = re.compile("[\ud800-\udfff]")  # json.loads joins proper pairs: what is left is a half
_SPACES = bytes(
    32 if chr(code).isspace() else code for code in range(256)
)  # str.split() on the whole is far slower
TURNS = pa.list_(pa.string())


def repair_text(text: str, repairs: Counter) -> str:
    """The text as valid UTF-8 with line feeds only; what was repaired is added to `repairs` (see `REPAIRS`)."""
    if "\0" in text:
        repairs["nul_characters"] += 1
        text = text.replace("\0", "")
    if "\r" in text:
        repairs["carriage_returns"] += 1
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()  # several times as fast as a search with the expression
    except UnicodeEncodeError:
        repairs["lone_surrogates"] += 1
        text = _SURROGATE.sub("\ufffd", text)
    return text


def strip_to_ascii(text: str) -> str:
    """The reference's cleaning: white space collapsed to one space, non-ASCII dropped, the gaps it leaves closed."""
    if not text.isascii():
        text = " ".join(text.split())  # while the white space that is not ASCII is still there
    flat = text.encode("ascii", "ignore").translate(_SPACES)
    while b"  " in flat:
        flat = flat.replace(b"  ", b" ")
    return flat.decode("ascii").strip(" ")


def prompt_key(prompt: str) -> str:
    """What makes two prompts, their turns joined by line feeds, the same: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def decode_turns(batch: RawBatch, column: str, repairs: Counter) -> pa.ListArray:
    """A column's JSON cells as repaired turns (N,) of list<string>: no nulls, at least one turn each.

    Raises:
        DataError: a cell is not a JSON list of strings and nulls; names row and id.
    """
    turns: list[str] = []
    ends = [0]
    for record, cell in enumerate(batch.cells[column].to_pylist()):
        try:
            items = json.loads(cell)
        except (ValueError, RecursionError) as error:
            items = _control_characters(batch, record, column, cell, error, repairs)
        if type(items) is not list:
            raise batch.fault(record, f"{column} is not a JSON list but {csv_errors.shorten(cell)}")
        if not items:
            repairs["empty_lists"] += 1
            turns.append("")
        for item in items:
            if item is None:
                repairs["null_turns"] += 1
                item = ""
            elif type(item) is not str:
                raise batch.fault(
                    record,
                    f"{column} holds {csv_errors.shorten(json.dumps(item))}, which is not a text",
                )
            elif not item.isascii() or "\r" in item or "\0" in item:
                item = repair_text(item, repairs)
            turns.append(item)
        ends.append(len(turns))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(turns, pa.string()))


def _control_characters(
    batch: RawBatch, record: int, column: str, cell: str, error: Exception, repairs: Counter
) -> object:
    try:
        items = json.loads(cell, strict=False)
    except (ValueError, RecursionError):
        raise _not_json(batch, record, column, cell, error) from error
    repairs["raw_control_characters"] += 1
    return items


def _not_json(batch: RawBatch, record: int, column: str, cell: str, error: Exception) -> DataError:
    known = isinstance(error, json.JSONDecodeError)
    why = (
        f"{error.msg} at character {error.pos + 1}"
        if known
        else "nested too deep, or a number too long"
    )
    problem = (
        f"{column} is not valid JSON ({why}): {csv_errors.shorten(cell)}"
        if cell
        else f"{column} is empty"
    )
    return batch.fault(record, problem, cut_short=True)


def to_ascii(texts: pa.Table) -> pa.Table:
    """The same table with every turn stripped to ASCII; the number of turns stays."""
    columns = {}
    for name in texts.column_names:
        chunks = []
        for chunk in texts[name].chunks:
            offsets = pc.subtract(
                chunk.offsets, chunk.offsets[0]
            )  # a slice keeps the offsets of the whole
            turns = [strip_to_ascii(turn) for turn in chunk.flatten().to_pylist()]
            chunks.append(pa.ListArray.from_arrays(offsets, pa.array(turns, pa.string())))
        columns[name] = pa.chunked_array(chunks, TURNS)
    return pa.table(columns)


def uneven_turns(texts: pa.Table) -> np.ndarray:
    """True for the rows (N,) that have another number of turns in the prompt than in a response."""
    prompt, *responses = (pc.list_value_length(texts[c]).to_numpy() for c in TEXTS)
    return np.any([prompt != r for r in responses], axis=0)
