"""Draw with matplotlib into SVG elements that take the colours and the font of their page.

Use `draw_figure` with functions that draw on axes, in the colours defined here.
"""

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context, rcdefaults, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from sklearn.isotonic import isotonic_regression

from kit.reporting.escape import one_line

# Matplotlib draws in these colours, which occur nowhere else, so that each can be replaced by a
# colour of the page, in light and dark.
INK, SOFT, FAINT = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0102{number:02x}" for number in range(0x10, 0x16))
PAGE_COLOURS = {INK: "currentColor", SOFT: "var(--rule)", FAINT: "var(--faint)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
STYLE = {
    # Text stays text, in the font of the page, and a dollar sign in a name is no formula.
    "svg.fonttype": "none",
    "text.parse_math": False,
    # Numbers have the same minus sign as in tables and in the terminal.
    "axes.unicode_minus": False,
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.5,
}
WIDTH = 320  # points: that of a phone, where the text then keeps its size
DOTTED = (0, (2, 3))


@dataclass(frozen=True)
class Figure:
    """An SVG element, and a title that says in words what it shows."""

    svg: str
    title: str


class Panel(NamedTuple):
    """Axes of a figure: what draws on them, their height and the space below them in points."""

    draw: Callable[[Axes], None]
    height: float
    below: float = 0


class Margins(NamedTuple):
    """Space around the panels of a figure, in points."""

    left: float = 44
    right: float = 8
    bottom: float = 32
    top: float = 8


def draw_figure(
    key: str,
    title: str,
    panels: Sequence[Panel],
    margins: Margins,
    width: float = WIDTH,
) -> Figure:
    """Draw panels below each other.

    Args:
        key: unique among the figures of a page.
        title: what the figure shows, in words.
        panels: from top to bottom.
        margins: around all panels.
        width: of the figure, in points.
    """
    inner = sum(panel.height + panel.below for panel in panels)
    height = margins.top + inner + margins.bottom
    # A fixed salt gives the SVG's ids the same values every time.
    style: Any = STYLE | {"svg.hashsalt": key}  # the stubs list the keys as literals
    with rc_context():
        # What a matplotlibrc file or a notebook has set is not for this page.
        rcdefaults()
        rcParams.update(style)
        canvas = Canvas(figsize=(width / 72, height / 72))
        canvas.patch.set_visible(False)
        upper = height - margins.top
        for panel in panels:
            upper -= panel.height
            bounds = (
                margins.left / width,
                upper / height,
                1 - (margins.left + margins.right) / width,
                panel.height / height,
            )
            panel.draw(canvas.add_axes(bounds, facecolor="none"))
            upper -= panel.below
        svg = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None})

    title = one_line(title)
    return Figure(_inline_svg(svg.getvalue(), key, title), title)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], height: float) -> None:
    """Write a label to the right of each line's end, moved apart where they would overlap.

    Args:
        axes: with their final limits.
        ends: (x, y, label, colour) of each line.
        height: of the axes in points.
    """
    low, high = axes.get_ylim()
    line = 10.0 * (high - low) / height  # the height of a label in units of y

    # The heights that are nearest to the lines' ends, in least squares, and a label's height apart:
    # without the space they need, rising heights are an isotonic regression.
    order = sorted(range(len(ends)), key=lambda place: ends[place][1])
    space = line * np.arange(len(ends))
    heights = isotonic_regression([ends[place][1] for place in order] - space) + space
    # Labels that would leave the axes at the top all move down.
    heights -= max(0.0, heights[-1] - high)

    for place, label_height in zip(order, heights, strict=True):
        x, y, label, colour = ends[place]
        axes.annotate(
            one_line(label),
            (x, y),
            (axes.get_xlim()[1], label_height),
            xycoords="data",
            textcoords="data",
            color=colour,
            va="center",
            ha="left",
            fontsize=8,
            annotation_clip=False,
        )


def _inline_svg(svg: str, key: str, title: str) -> str:
    """Turn an SVG file into an element of a page.

    It loses namespaces, metadata and styles, and its ids become unique on the page by the key.
    """
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)

    # HTML knows SVG elements by their bare names.
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        names = {name: name.rpartition("}")[2] for name in element.attrib}
        element.attrib = {
            names[name]: _inline_attribute(names[name], value, key)
            for name, value in element.attrib.items()
        }

    # Without a size of its own the element is as wide as its column.
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title}
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _inline_attribute(name: str, value: str, key: str) -> str:
    """Give an attribute's ids the key, and its style the page's colours and font."""
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    if name == "style":
        value = _inline_style(value)
    return value.replace("url(#", f"url(#{key}-")


def _inline_style(style: str) -> str:
    rules = []
    for rule in map(str.strip, style.split(";")):
        if rule.startswith("font:"):
            # "font: 9px family" sets size and family at once; only the size is kept.
            rules.append(f"font-size: {rule.split()[1]}")
        elif rule and not rule.startswith("font-family"):
            rules.append(rule)

    style = "; ".join(rules)
    for drawn, shown in PAGE_COLOURS.items():
        style = style.replace(drawn, shown)
    return style
