"""The figures as SVG that lives inside a page: its colours are the page's, in light and dark, and its text is text."""

import io
import math
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from kit.report.comparison import ComparisonLine
from kit.report.curves import Curve
from kit.report.diagnosis import Diagnosis
from kit.report.escape import one_line as name_of

# What is drawn in these colours takes the page's; they are chosen to occur nowhere else.
INK, SOFT, FIRST, SECOND = "#010203", "#010204", "#010205", "#010206"
PAGE = {INK: "currentColor", SOFT: "var(--rule)", FIRST: "var(--first)", SECOND: "var(--second)"}
STYLE = {
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
WIDTH = 320  # points; a phone's width, so that the text keeps its size there
NAME_LINE, CHARACTER, LINE = (
    24,
    5.2,
    10.5,
)  # characters of a name on one line; points of a character and of a line


@dataclass(frozen=True)
class Figure:
    """An SVG element, and in words what it shows."""

    svg: str
    title: str


def plot_intervals(lines: Sequence[ComparisonLine], split: str, rows: str) -> Figure:
    """Each model's log loss with its interval, in the table's order; names have a margin of their own."""
    known = [(line.name, figures) for line in lines if (figures := getattr(line, split))]
    labels = [_label(name_of(name)) for name, _ in known]
    height = 26 * len(known) + 32
    margin = 8 + CHARACTER * max(len(piece) for label in labels for piece in label)

    def draw(axes: Axes) -> None:
        for place, ((_, figures), label) in enumerate(zip(known, labels, strict=True)):
            axes.plot(
                [figures.low, figures.high],
                [place, place],
                color=FIRST,
                solid_capstyle="round",
                linewidth=2.5,
            )
            axes.plot([figures.log_loss], [place], "o", color=FIRST, markersize=6)
            for number, piece in enumerate(
                label
            ):  # one by one, so that the page's own font is aligned too
                down = LINE * (number - (len(label) - 1) / 2)
                axes.annotate(
                    piece,
                    (0, place),
                    (-8, -down),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    ha="right",
                    va="center_baseline",
                )
        axes.axvline(math.log(3), color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.locator_params(axis="x", nbins=4)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(f"log loss on {rows} rows; dotted: uniform", loc="right")

    told = ", ".join(
        f"{name} {each.log_loss:.4f} ({each.low:.4f} to {each.high:.4f})" for name, each in known
    )
    title = f"Log loss with 95% intervals on {rows} rows: {told}"
    return _figure(f"intervals-{split}", title, draw, height, (margin, 8, 30, 2))


def _label(name: str) -> list[str]:
    """A name on one line or two; what is left out of a longer one is its middle, since names differ at their ends."""
    if len(lines := wrap(name, NAME_LINE)) <= 2:
        return lines
    return [name[: NAME_LINE - 1].rstrip() + "…", name[-NAME_LINE:].lstrip()]


def plot_learning(name: str, curves: Sequence[Curve], key: str) -> Figure:
    """One run's losses over the epochs, all its parts, with the checkpoints that were kept marked."""

    def draw(axes: Axes) -> None:
        for curve in curves:
            if curve.training:
                axes.plot(*zip(*curve.training, strict=True), color=SECOND, linewidth=0.8)
            axes.plot(*zip(*curve.validation, strict=True), color=FIRST, marker=".", markersize=3)
            axes.plot(*plot_best(curve), "o", color=FIRST, markersize=7)
        axes.set_xlabel("epoch")
        axes.set_ylabel("log loss")
        axes.grid(color=SOFT, linewidth=0.5)

    told = "; ".join(
        f"{c.part} best {plot_best(c)[1]:.4f} at epoch {c.best_epoch:.2f}" for c in curves
    )
    return _figure(f"curve-{key}", f"Learning curve of {name}: {told}", draw, 200, (44, 8, 32, 8))


def plot_best(curve: Curve) -> tuple[float, float]:
    """The epoch of the checkpoint that was kept, and the validation log loss there."""
    return min(curve.validation, key=lambda point: (abs(point[0] - curve.best_epoch), point[1]))


def plot_reliability(diagnosis: Diagnosis, key: str) -> Figure:
    """One model's accuracy over its confidence."""
    total = sum(each.rows for each in diagnosis.bins)

    def draw(axes: Axes) -> None:
        confidence, right = (
            [b.confidence for b in diagnosis.bins],
            [b.accuracy for b in diagnosis.bins],
        )
        axes.plot([1 / 3, 1], [1 / 3, 1], color=INK, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.plot(confidence, right, color=FIRST, linewidth=1)
        axes.scatter(
            confidence,
            right,
            s=[12 + 150 * b.rows / total for b in diagnosis.bins],
            color=FIRST,
            linewidth=0,
        )
        axes.set_xlim(0.3, 1.02)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.grid(color=SOFT, linewidth=0.5)

    gap = sum(b.rows * abs(b.confidence - b.accuracy) for b in diagnosis.bins) / total
    title = f"Reliability of {diagnosis.model}: mean distance from the diagonal {gap:.3f} over {total:,} rows"
    return _figure(f"reliability-{key}", title, draw, 220, (40, 8, 32, 8))


def _figure(
    key: str,
    title: str,
    draw: Callable[[Axes], None],
    height: float,
    margins: tuple[float, float, float, float],
) -> Figure:
    """Draws on axes with margins in points (left, right, bottom, top)."""
    left, right, bottom, top = margins
    with rc_context(STYLE | {"svg.hashsalt": key}):
        canvas = Canvas(figsize=(WIDTH / 72, height / 72))
        axes = canvas.add_axes(
            (
                left / WIDTH,
                bottom / height,
                1 - (left + right) / WIDTH,
                1 - (top + bottom) / height,
            ),
            facecolor="none",
        )
        canvas.patch.set_visible(False)
        draw(axes)
        out = io.StringIO()
        FigureCanvasSVG(canvas).print_svg(out, metadata={"Date": None})
    title = name_of(title)
    return Figure(_inline(out.getvalue(), key, title), title)


def _inline(svg: str, key: str, title: str) -> str:
    """The SVG as an element of a page: no namespaces and metadata, ids of its own, the page's colours and font."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _own(name, value, key)
            for name, value in element.attrib.items()
        }
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title}
    return ET.tostring(root, encoding="unicode", short_empty_elements=False)


def _own(name: str, value: str, key: str) -> str:
    """An attribute's value with ids made the figure's own, and colours and font the page's."""
    name = name.rpartition("}")[2]
    if name == "id":
        return f"{key}-{value}"
    if name == "href":
        return value.replace("#", f"#{key}-", 1)
    if name == "style":
        kept = [
            rule.strip()
            for rule in value.split(";")
            if rule.strip() and not rule.strip().startswith("font-family")
        ]
        value = "; ".join(
            f"font-size: {rule.split()[1]}" if rule.startswith("font:") else rule for rule in kept
        )
        for drawn, shown in PAGE.items():
            value = value.replace(drawn, shown)
    return value.replace("url(#", f"url(#{key}-")
