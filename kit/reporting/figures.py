"""Draw the report's figures as SVG elements that take the colours and the font of their page.

Use `plot_intervals`, `plot_learning` and `plot_reliability`.
"""

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from kit.reporting.comparison import ComparisonLine
from kit.reporting.curves import Curve
from kit.reporting.diagnosis import Diagnosis
from kit.reporting.escape import one_line

# Matplotlib draws in these colours, which occur nowhere else, so that each can be replaced by a
# colour of the page, in light and dark.
INK, SOFT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
PAGE_COLOURS = {
    INK: "currentColor",
    SOFT: "var(--rule)",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
}
STYLE = {
    # Text stays text, in the font of the page, and a dollar sign in a name is no formula.
    "svg.fonttype": "none",
    "text.parse_math": False,
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
LABEL_LENGTH = 24  # characters of a model's name on one line
CHARACTER_WIDTH = 5.2  # points
LINE_HEIGHT = 10.5  # points
DOTTED = (0, (2, 3))


@dataclass(frozen=True)
class Figure:
    """An SVG element, and a title that says in words what it shows."""

    svg: str
    title: str


def plot_intervals(lines: Sequence[ComparisonLine], split: str, rows: str) -> Figure:
    """Plot each model's log loss with its interval, in the order of the table.

    Args:
        lines: the table; models without figures of the split are left out.
        split: "valid" or "test".
        rows: the name of the split's rows.
    """
    scored = [(line.name, figures) for line in lines if (figures := getattr(line, split))]
    labels = [_break_label(one_line(name)) for name, _ in scored]
    height = 26 * len(scored) + 32
    # The names have a margin of their own, as wide as the longest.
    margin = 8 + CHARACTER_WIDTH * max(len(piece) for label in labels for piece in label)

    def draw(axes: Axes) -> None:
        for place, ((_, figures), label) in enumerate(zip(scored, labels, strict=True)):
            axes.plot(
                [figures.low, figures.high],
                [place, place],
                color=FIRST,
                solid_capstyle="round",
                linewidth=2.5,
            )
            axes.plot([figures.log_loss], [place], "o", color=FIRST, markersize=6)

            # Each line of a label is placed by itself, since matplotlib would align several by the
            # width of its own font, and the page has another.
            for number, piece in enumerate(label):
                down = LINE_HEIGHT * (number - (len(label) - 1) / 2)
                axes.annotate(
                    piece,
                    (0, place),
                    (-8, -down),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                )

        axes.axvline(math.log(3), color=INK, linewidth=0.8, linestyle=DOTTED)
        axes.set_ylim(len(scored) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"log loss on {rows} rows; dotted: uniform", loc="right")

    values = ", ".join(
        f"{name} {figures.log_loss:.4f} ({figures.low:.4f} to {figures.high:.4f})"
        for name, figures in scored
    )
    title = f"Log loss with 95% intervals on {rows} rows: {values}"
    return _draw_figure(f"intervals-{split}", title, draw, height, (margin, 8, 30, 2))


def _break_label(name: str) -> list[str]:
    """Break a name into one line or two, without its middle where it is longer.

    Names of runs differ at their ends.
    """
    lines = wrap(name, LABEL_LENGTH)
    if len(lines) <= 2:
        return lines
    return [name[: LABEL_LENGTH - 1].rstrip() + "…", name[-LABEL_LENGTH:].lstrip()]


def plot_learning(name: str, curves: Sequence[Curve], key: str) -> Figure:
    """Plot a run's losses by epoch, one curve for each part, with the kept checkpoints marked.

    Args:
        name: the run.
        curves: its parts, each with validation points.
        key: unique among the learning curves of a page.
    """

    def draw(axes: Axes) -> None:
        for curve in curves:
            # A training of few steps logs no training loss.
            if curve.training:
                axes.plot(*zip(*curve.training, strict=True), color=SECOND, linewidth=0.8)
            axes.plot(*zip(*curve.validation, strict=True), color=FIRST, marker=".", markersize=3)
            axes.plot(*curve.best_point, "o", color=FIRST, markersize=7)
        axes.set_xlabel("epoch")
        axes.set_ylabel("log loss")
        axes.grid(color=SOFT, linewidth=0.5)

    values = "; ".join(
        f"{curve.part} best {curve.best_point[1]:.4f} at epoch {curve.best_epoch:.2f}"
        for curve in curves
    )
    title = f"Learning curve of {name}: {values}"
    return _draw_figure(f"curve-{key}", title, draw, 200, (44, 8, 32, 8))


def plot_reliability(diagnosis: Diagnosis, key: str) -> Figure:
    """Plot a model's accuracy by its confidence.

    Args:
        diagnosis: of the model.
        key: unique among the reliability diagrams of a page.
    """
    total = sum(bucket.rows for bucket in diagnosis.bins)
    confidences = [bucket.confidence for bucket in diagnosis.bins]
    accuracies = [bucket.accuracy for bucket in diagnosis.bins]
    areas = [12 + 150 * bucket.rows / total for bucket in diagnosis.bins]

    def draw(axes: Axes) -> None:
        axes.plot([1 / 3, 1], [1 / 3, 1], color=INK, linewidth=0.8, linestyle=DOTTED)
        axes.plot(confidences, accuracies, color=FIRST, linewidth=1)
        axes.scatter(confidences, accuracies, s=areas, color=FIRST, linewidth=0)
        # The most probable of three classes has a probability of at least one third.
        axes.set_xlim(0.3, 1.02)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.grid(color=SOFT, linewidth=0.5)

    gaps = [bucket.rows * abs(bucket.confidence - bucket.accuracy) for bucket in diagnosis.bins]
    title = (
        f"Reliability of {diagnosis.model}: mean distance from the diagonal "
        f"{sum(gaps) / total:.3f} over {total:,} rows"
    )
    return _draw_figure(f"reliability-{key}", title, draw, 220, (40, 8, 32, 8))


def _draw_figure(
    key: str,
    title: str,
    draw: Callable[[Axes], None],
    height: float,
    margins: tuple[float, float, float, float],
) -> Figure:
    """Draw on axes of the given height and margins (left, right, bottom, top), in points."""
    left, right, bottom, top = margins
    # A fixed salt gives the SVG's ids the same values every time.
    style: Any = STYLE | {"svg.hashsalt": key}  # the stubs list the keys as literals
    with rc_context(style):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        bounds = (
            left / WIDTH,
            bottom / height,
            1 - (left + right) / WIDTH,
            1 - (top + bottom) / height,
        )
        axes = canvas.add_axes(bounds, facecolor="none")
        canvas.patch.set_visible(False)
        draw(axes)
        svg = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None})

    title = one_line(title)
    return Figure(_inline_svg(svg.getvalue(), key, title), title)


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
