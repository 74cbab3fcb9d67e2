"""Tables and sections before they are HTML or Markdown, so that both show the very same figures and words."""

from dataclasses import dataclass
from typing import Literal

from kit.report.disagreement import DisagreementCase

NAMES = ("A", "B", "tie")  # of the classes
TITLES = ("Prompt", "Answer A", "Answer B")  # of the texts
MINUS = "\N{MINUS SIGN}"
Tone = Literal["", "good", "bad", "quiet"]


@dataclass(frozen=True)
class Cell:
    """A cell's text; strong is bold, shade (0 to 1) is how much a cell of a matrix is filled."""

    text: str
    strong: bool = False
    tone: Tone = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it. A folded one is behind a figure that shows the same."""

    caption: str
    head: tuple[str, ...]
    body: tuple[tuple[Cell, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report: paragraphs, the figures of a kind, tables, rows to read.

    Attributes:
        unpictured: the paragraphs where no figure is shown, if they are others.
    """

    anchor: str
    title: str
    paragraphs: tuple[str, ...] = ()
    figures: str = ""
    tables: tuple[Table, ...] = ()
    cases: tuple[DisagreementCase, ...] = ()
    unpictured: tuple[str, ...] = ()


def format_cells(*texts: str) -> tuple[Cell, ...]:
    """Plain cells."""
    return tuple(Cell(text) for text in texts)
