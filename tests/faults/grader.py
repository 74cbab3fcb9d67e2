"""Grade a submission by the competition's rules, written from their description alone.

This shares no code with kit or pandas. The rules: columns id and the three classes, others and any
order free; each value a number in [0, 1]; each row's sum, rounded to 6 places, 1; the ids exactly
those of the sample, each once.
"""

import csv
import io
import re
from decimal import Decimal, InvalidOperation

COLUMNS = ("id", "winner_model_a", "winner_model_b", "winner_tie")
NUMBER = re.compile(r"[ \t]*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[ \t]*", re.ASCII)


def grade(data: bytes, ids: set[int]) -> str:
    """Return why a grader refuses the file, or "" if it accepts it."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "not UTF-8"

    rows = [
        cells
        for cells in csv.reader(io.StringIO(text, newline=""))
        if cells and "".join(cells).strip(" \t")
    ]
    if len(rows) < 2:
        return "no rows"
    header, *body = rows
    if any(column not in header for column in COLUMNS):
        return "a column is missing"

    # If the first row is wider than the header, pandas takes its first cells for an index.
    skipped = max(0, len(body[0]) - len(header))
    if any(len(cells) > len(header) + skipped for cells in body):
        return "a row that is too wide"
    body = [cells[skipped:] + [""] * (len(header) + skipped - len(cells)) for cells in body]

    places = [header.index(column) for column in COLUMNS]
    found: list[Decimal] = []
    for cells in body:
        values = [_parse_number(cells[place]) for place in places]
        if None in values:
            return "a cell is not a number"
        number, *probabilities = values
        if not all(0 <= float(p) <= 1 for p in probabilities):
            return "a value outside [0, 1]"
        if round(sum(float(p) for p in probabilities), 6) != 1:
            return "a row does not sum to 1"
        found.append(number)

    if len(set(found)) < len(found):
        return "duplicate id"
    if set(found) != {Decimal(number) for number in ids}:
        return "other ids than the sample's"
    return ""


def _parse_number(cell: str) -> Decimal | None:
    if not NUMBER.fullmatch(cell):
        return None
    try:
        return Decimal(cell.strip(" \t"))
    except InvalidOperation:
        return None
