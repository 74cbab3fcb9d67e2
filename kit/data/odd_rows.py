"""Separate the rows of a test file that cannot be used from the others. Use `copy_usable_rows`.

Everywhere else a file with such a row is refused, and its owner mends it. Of Kaggle's hidden rows
there is no owner to ask, and one odd cell must not cost the predictions of all rows.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kit.data.csv_errors import check_header, format_location, iterate_rows, shorten_cell
from kit.data.from_frame import decode_json_turns
from kit.data.raw_csv import ID_PATTERN
from kit.data.rows import read_rows
from kit.errors import DataError
from kit.task import ID, TEST_COLUMNS, TEXTS


@dataclass(frozen=True)
class UsableRows:
    """The rows of a test file, sorted into usable and odd ones.

    Attributes:
        file: a file of the usable rows alone: the original where all are.
        ids: of all rows as they are written, in the order of the file, each id once.
        problems: what is wrong with each odd row, with its row and id.
    """

    file: Path
    ids: tuple[str, ...]
    problems: tuple[str, ...] = ()


def copy_usable_rows(path: str | Path, out: str | Path) -> UsableRows:
    """Find the rows of a file like test.csv that can be predicted, and copy them to `out`.

    `out` is written only if there are others: cells that are no lists of texts or not UTF-8, too
    few or too many cells, ids that are no whole numbers or occur again.

    Raises:
        DataError: a column is missing, or no row can be used.
    """
    path = Path(path)
    try:
        rows = read_rows(path, labelled=False)
        return UsableRows(path, tuple(map(str, rows.ids.tolist())))
    except DataError:
        pass

    rows_left = iterate_rows(path)
    _, names = next(rows_left, (1, []))
    check_header(path, names, TEST_COLUMNS)
    places = {column: names.index(column) for column in TEST_COLUMNS}

    usable: dict[str, list[str]] = {}
    ids: dict[str, None] = {}
    problems: list[str] = []
    for number, cells in rows_left:
        record_id = cells[places[ID]] if len(cells) > places[ID] else ""
        record_id = record_id.encode(errors="surrogateescape").decode(errors="replace")
        problem = _find_problem(cells, names, places)
        if not problem:
            record_id = str(int(record_id))
            if record_id in usable:
                problem = "this id has occurred before, and that row is used"
            else:
                usable[record_id] = [cells[places[column]] for column in TEST_COLUMNS]
        if problem:
            problems.append(f"{format_location(path, number, record_id)}: {problem}")
        ids[record_id] = None
    if not usable:
        raise DataError(f"{path}: no row can be used", "Fetch it again (`kit download`).")

    with Path(out).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(TEST_COLUMNS)
        writer.writerows(usable.values())
    return UsableRows(Path(out), tuple(ids), tuple(problems))


def _find_problem(cells: list[str], names: list[str], places: Mapping[str, int]) -> str | None:
    """Return what keeps the strict reader from using a row, or None."""
    if len(cells) != len(names):
        return f"{len(cells)} cells where the header has {len(names)}"
    if not ID_PATTERN.fullmatch(cells[places[ID]]):
        return "the id is not a whole number of at most 18 digits"
    for column in TEXTS:
        cell = cells[places[column]]
        if re.search("[\udc80-\udcff]", cell):
            return f"{column} is not UTF-8 text"
        if decode_json_turns(cell) is None:
            return f"{column} is not a JSON list of texts but {shorten_cell(cell)}"
    return None
