"""Parse a report's page into what a reader sees: its tables by caption and its visible text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID_TAGS = ("meta", "link", "base", "br")  # these have no end tag
ADDRESS_ATTRIBUTES = ("href", "src", "xlink:href", "srcset")


@dataclass
class Grid:
    """A table: the texts of its cells by row, and which of them are bold."""

    rows: list[list[str]] = field(default_factory=list)
    bold: list[list[bool]] = field(default_factory=list)

    def row(self, name: str) -> list[str]:
        """Return the cells after the name of the row whose first cell is or begins with it."""
        return next(row[1:] for row in self.rows if row[0] == name or row[0].startswith(f"{name} "))


class Page(HTMLParser):
    """A parsed page.

    Attributes:
        tables: by caption.
        text: the visible text.
        tags: every start tag with its attributes.
        ids: the ids of elements.
        addresses: everything the page links to or would load.
        open: elements that were not closed.
    """

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, Grid] = {}
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str | None] = []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.grid = Grid()
        self.caption = ""
        self.feed(html)
        self.close()

    def table(self, beginning: str) -> Grid:
        """Return the one table whose caption begins with this."""
        (grid,) = (grid for caption, grid in self.tables.items() if caption.startswith(beginning))
        return grid

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, and begin a table, row or cell."""
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        self.addresses += [value or "" for name, value in attrs if name in ADDRESS_ATTRIBUTES]
        if tag not in VOID_TAGS:
            self.open.append(tag)

        if tag == "table":
            self.grid = Grid()
            self.caption = ""
        elif tag == "tr":
            self.grid.rows.append([])
            self.grid.bold.append([])
        elif tag in ("td", "th"):
            self.grid.rows[-1].append("")
            self.grid.bold[-1].append(False)

    def handle_endtag(self, tag: str) -> None:
        """Close the element, and keep a table that ends."""
        assert self.open.pop() == tag, f"{tag} closes another element"
        if tag == "table":
            assert self.caption not in self.tables, "two tables have the same caption"
            self.tables[self.caption] = self.grid

    def handle_data(self, data: str) -> None:
        """Add text to the page, and to the caption or cell it is in."""
        if "style" in self.open or "script" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.grid.rows[-1][-1] += data
            self.grid.bold[-1][-1] |= "strong" in self.open
