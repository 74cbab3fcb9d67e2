"""Describe the report's sections and tables before they become HTML or Markdown.

Both forms are rendered from the same `Section`s, so they have the same numbers and words.
"""

from dataclasses import dataclass
from typing import Literal

from kit.reporting.diagnosis import DisagreementCase

CLASS_NAMES = ("A", "B", "tie")
TEXT_TITLES = ("Prompt", "Answer A", "Answer B")
MINUS = "\N{MINUS SIGN}"
Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: its content.
        strong: whether it is bold.
        tone: its colour.
        shade: how dark its background is, from 0 to 1.
    """

    text: str
    strong: bool = False
    tone: Tone = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: unique within the report.
        head: column titles.
        body: rows, each named by its first cell.
        folded: whether the page folds it, because a figure shows the same.
    """

    caption: str
    head: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]
    folded: bool = False


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
    cases: tuple[DisagreementCase, ...] = ()
    paragraphs_without_figures: tuple[str, ...] = ()


def format_cells(*texts: str, tone: Tone = "") -> tuple[Cell, ...]:
    """Return cells of these texts, all in one tone."""
    return tuple(Cell(text, tone=tone) for text in texts)


def format_difference(value: float) -> str:
    """Return a difference of log losses with its sign, to four places."""
    return f"{value:+.4f}".replace("-", MINUS)
