"""Describe the report's sections and tables before they become HTML or Markdown.

Both forms are rendered from the same `Section`s, so they have the same numbers and words.
"""

from dataclasses import dataclass, replace
from typing import Literal

from kit.reporting.cases import RowCase
from kit.reporting.comparison import ComparisonLine, ModelFigures
from kit.reporting.significance import Verdict

CLASS_NAMES = ("A", "B", "tie")
TEXT_TITLES = ("Prompt", "Answer A", "Answer B")

# A table with a column for each model has at most this many of them: the best.
WIDEST = 6

Tone = Literal["", "good", "bad", "quiet"]
TONES: dict[Verdict, Tone] = {"better": "good", "worse": "bad", "can't tell": "quiet"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: its content.
        note: a smaller text after it.
        strong: whether it is bold.
        tone: its colour.
        shade: how dark its background is, from 0 to 1.
        value: what the page sorts it by, None for its text.
        bar: an interval and the point inside it (low, point, high), on the table's axis.
    """

    text: str
    note: str = ""
    strong: bool = False
    tone: Tone = ""
    shade: float = 0.0
    value: float | None = None
    bar: tuple[float, float, float] | None = None


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: unique within the report.
        head: column titles.
        body: rows, each named by its first cell.
        apart: further rows that are not sorted among the others.
        folded: what the page shows in place of the table until it is opened; neighbours with the
            same words are opened together.
        axis: the range of values that bars are drawn on.
        mark: a value on the axis that every bar is compared with.
        sortable: whether the page can sort it by a column.
    """

    caption: str
    head: tuple[str, ...]
    body: tuple[Row, ...]
    apart: tuple[Row, ...] = ()
    folded: str = ""
    axis: tuple[float, float] | None = None
    mark: float | None = None
    sortable: bool = True


@dataclass(frozen=True)
class Section:
    """A section of the report: paragraphs, then figures, tables and cases.

    Attributes:
        anchor: its id on the page.
        title: its heading.
        paragraphs: its text.
        figures: the kind of figures it shows, or nothing.
        tables: its tables.
        cases: single rows to read.
        paragraphs_without_figures: the text to use instead where figures are not shown.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: str = ""
    tables: tuple[Table, ...] = ()
    cases: tuple[RowCase, ...] = ()
    paragraphs_without_figures: tuple[str, ...] = ()


def format_cells(*texts: str, tone: Tone = "") -> Row:
    """Return cells of these texts, all in one tone."""
    return tuple(Cell(text, tone=tone) for text in texts)


def number_cell(value: float | None, form: str, tone: Tone = "") -> Cell:
    """Return a cell of a number in the given format, an empty one for None."""
    if value is None:
        return Cell("", tone=tone)
    return Cell(format(value, form), tone=tone, value=value)


def loss_cell(figures: ModelFigures | None, strong: bool = False, tone: Tone = "") -> Cell:
    """Return a cell of a log loss with its interval, an empty one for None."""
    if figures is None:
        return Cell("", tone=tone)
    return Cell(
        f"{figures.log_loss:.4f}",
        note=f"[{figures.low:.4f}, {figures.high:.4f}]",
        strong=strong,
        tone=tone,
        value=figures.log_loss,
        bar=(figures.low, figures.log_loss, figures.high),
    )


def format_difference(value: float) -> str:
    """Return a difference of log losses with its sign, to four places."""
    return f"{value:+.4f}"


def format_parameters(parameters: float) -> str:
    """Return a number of parameters, such as 331,590 or 86.3M."""
    return f"{parameters / 1e6:,.1f}M" if parameters >= 1e6 else f"{parameters:,.0f}"


def losses_axis(lines: list[ComparisonLine]) -> tuple[float, float] | None:
    """Return the range of all intervals of these lines, with a margin; None if they have none."""
    found = [figures for line in lines for figures in (line.valid, line.test) if figures]
    if not found:
        return None
    low = min(figures.low for figures in found)
    high = max(figures.high for figures in found)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def drop_empty_columns(table: Table) -> Table:
    """Return the table without the columns that no row of its body fills.

    Rows apart do not count: a column for references alone would compare nothing.
    """
    places = [
        place
        for place in range(len(table.head))
        if place == 0 or any(row[place].text or row[place].note for row in table.body)
    ]
    if not table.body or len(places) == len(table.head):
        return table
    body, apart = (
        tuple(tuple(row[place] for place in places) for row in rows)
        for rows in (table.body, table.apart)
    )
    head = tuple(table.head[place] for place in places)
    return replace(table, head=head, body=body, apart=apart)


def number_names(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the heads of a square table's columns and of its rows: numbers where it is wide."""
    if len(names) <= WIDEST:
        return names, names
    numbers = tuple(str(number) for number in range(1, len(names) + 1))
    return numbers, tuple(f"{number}. {name}" for number, name in zip(numbers, names, strict=True))
