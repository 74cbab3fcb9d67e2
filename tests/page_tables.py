"""A page as a reader meets it: its tables by caption, its visible text, and whatever it would load or run."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Grid:
    """A table: texts by row, and the texts that are bold."""

    rows: list[list[str]] = field(default_factory=list)
    bold: list[list[bool]] = field(default_factory=list)


class Page(HTMLParser):
    """Parses a page; `void` elements have no end tag."""

    VOID = ("meta", "link", "br")

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tables: dict[str, Grid] = {}
        self.text, self.ids, self.tags = "", [], []
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.grid, self.caption = Grid(), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for name, value in attributes if name == "id"]
        self.addresses += [
            value for name, value in attributes if name in ("href", "src", "xlink:href", "srcset")
        ]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.grid, self.caption = Grid(), ""
        elif tag == "tr":
            self.grid.rows.append([])
            self.grid.bold.append([])
        elif tag in ("td", "th"):
            self.grid.rows[-1].append("")
            self.grid.bold[-1].append(False)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes another element"
        if tag == "table":
            assert self.caption not in self.tables, "a caption names one table"
            self.tables[self.caption] = self.grid

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self.caption += data
        elif "td" in self.open or "th" in self.open:
            self.grid.rows[-1][-1] += data
            self.grid.bold[-1][-1] |= "strong" in self.open
