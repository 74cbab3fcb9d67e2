"""Draw the report's figures. Use `plot_overview`, `plot_learning`, `plot_reliability` and
`plot_leaderboard`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from kit.reporting.curves import Curve, Points, mean_curve, smooth_points
from kit.reporting.diagnosis import Diagnosis
from kit.reporting.leaderboard import LeaderboardScore
from kit.reporting.svg import (
    DOTTED,
    FAINT,
    INK,
    SERIES,
    SOFT,
    Figure,
    Margins,
    Panel,
    draw_figure,
    label_ends,
)
from kit.reporting.table import CLASS_NAMES

TALL = 200  # points
LABEL_LENGTH = 24  # characters of a name beside a line
CHARACTER_WIDTH = 4.6  # points, of a label's letters


def plot_overview(curves: Mapping[str, Sequence[Curve]]) -> Figure:
    """Plot the validation loss of all runs on one axis, each the mean of its parts.

    Args:
        curves: the parts by run, the best run first; the first runs have colours and names.
    """
    means = {name: points for name, parts in curves.items() if (points := mean_curve(parts))}
    named = list(means)[: len(SERIES)]
    labels = [shorten_name(name) for name in named]
    margin = 10 + CHARACTER_WIDTH * max(map(len, labels))

    def draw(axes: Axes) -> None:
        for name in list(means)[len(SERIES) :]:
            axes.plot(*zip(*means[name], strict=True), color=FAINT, linewidth=0.8)
        # The best run is drawn last, on top of the others.
        for name, colour in reversed(list(zip(named, SERIES, strict=False))):
            width = 2.2 if name == named[0] else 1.4
            marker = "o" if len(means[name]) == 1 else ""
            axes.plot(*zip(*means[name], strict=True), color=colour, linewidth=width, marker=marker)
        _limit_losses(axes, list(means.values()))
        _label_axes(axes)
        ends = [
            (*means[name][-1], label, colour)
            for name, label, colour in zip(named, labels, SERIES, strict=False)
        ]
        label_ends(axes, ends, TALL)

    values = ", ".join(f"{name} {min(loss for _, loss in means[name]):.4f}" for name in named)
    title = f"Validation log loss by epoch, the mean of each run's parts; lowest: {values}"
    return draw_figure("curves", title, [Panel(draw, TALL)], Margins(right=margin), width=480)


def plot_learning(
    name: str, curves: Sequence[Curve], all_curves: Sequence[Curve], key: str
) -> Figure:
    """Plot a run's losses by epoch, its folds on one axis and named, the kept checkpoints marked.

    Args:
        name: the run.
        curves: its parts, each with validation points.
        all_curves: those of every run, which share the limits of the axis.
        key: unique among the learning curves of a page.
    """

    def draw(axes: Axes) -> None:
        for curve in curves:
            # A training of few steps logs no training loss.
            if curve.training:
                smooth = smooth_points(curve.training)
                axes.plot(*zip(*smooth, strict=True), color=SERIES[1], linewidth=0.8)
            axes.plot(*zip(*curve.validation, strict=True), color=SERIES[0], linewidth=1.2)
            axes.plot(*curve.best_point, "o", color=SERIES[0], markersize=5)
        drawn = [curve.validation for curve in all_curves]
        drawn += [smooth_points(curve.training) for curve in all_curves if curve.training]
        _limit_losses(axes, drawn)
        _label_axes(axes)
        ends = [
            (*curve.validation[-1], curve.part.replace("fold", "fold "), INK) for curve in curves
        ]
        label_ends(axes, ends, TALL)

    kept = [curve.best_point[1] for curve in curves]
    epochs = [curve.best_epoch for curve in curves]
    title = f"{name}: kept {kept[0]:.4f} at epoch {epochs[0]:.2f}"
    if len(curves) > 1:
        title = (
            f"{name}: {len(curves)} parts, kept {min(kept):.4f} to {max(kept):.4f} at epochs "
            f"{min(epochs):.2f} to {max(epochs):.2f}"
        )
    return draw_figure(f"curve-{key}", title, [Panel(draw, TALL)], Margins(right=42))


def plot_reliability(diagnosis: Diagnosis, key: str) -> Figure:
    """Plot how often each class is true by its probability, above a histogram of the confidence.

    Args:
        diagnosis: of the model.
        key: unique among the reliability diagrams of a page.
    """
    most = max(bar.rows for bar in diagnosis.confidence)

    def draw_curves(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=DOTTED)
        for bins, colour in zip(diagnosis.reliability, SERIES, strict=False):
            predicted = [each.predicted for each in bins]
            lows, highs = [each.low for each in bins], [each.high for each in bins]
            axes.vlines(predicted, lows, highs, color=colour, linewidth=0.8)
            observed = [each.observed for each in bins]
            axes.plot(predicted, observed, color=colour, marker="o", markersize=3, linewidth=1.2)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.02, 1.02)
        axes.set_ylabel("share that is true")
        axes.set_xlabel("probability of a class", labelpad=2)
        axes.grid(color=SOFT, linewidth=0.5)
        ends = [
            (bins[-1].predicted, bins[-1].observed, label, colour)
            for bins, label, colour in zip(diagnosis.reliability, CLASS_NAMES, SERIES, strict=False)
        ]
        label_ends(axes, ends, TALL)

    def draw_histogram(axes: Axes) -> None:
        lows = [bar.low for bar in diagnosis.confidence]
        width = diagnosis.confidence[0].high - lows[0]
        rows = [bar.rows for bar in diagnosis.confidence]
        correct = [bar.correct for bar in diagnosis.confidence]
        axes.bar(lows, rows, width * 0.9, align="edge", color=FAINT)
        axes.bar(lows, correct, width * 0.9, align="edge", color=INK)
        axes.set_xlim(0, 1)
        axes.set_yticks([0, most])
        axes.set_ylabel("rows")
        axes.set_xlabel("confidence")

    panels = [Panel(draw_curves, TALL, below=36), Panel(draw_histogram, 50)]
    total = sum(bar.rows for bar in diagnosis.confidence)
    right = sum(bar.correct for bar in diagnosis.confidence)
    gaps = [
        each.rows * abs(each.predicted - each.observed)
        for bins in diagnosis.reliability
        for each in bins
    ]
    title = (
        f"{diagnosis.model}: mean distance from the diagonal {sum(gaps) / (3 * total):.3f}; "
        f"the most probable class is right in {right:,} of {total:,} rows"
    )
    return draw_figure(f"reliability-{key}", title, panels, Margins(right=24))


def plot_leaderboard(scores: Sequence[LeaderboardScore]) -> Figure:
    """Plot the public score of submissions by the log loss that was estimated here.

    Args:
        scores: at least one, each with a local score.
    """
    local = [score.local for score in scores if score.local is not None]
    public = [score.public for score in scores]

    def draw(axes: Axes) -> None:
        ends = [min(*local, *public), max(*local, *public)]
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=DOTTED)
        axes.plot(local, public, "o", color=SERIES[0], markersize=5)
        axes.set_xlabel("local log loss")
        axes.set_ylabel("public score")
        axes.grid(color=SOFT, linewidth=0.5)

    pairs = ", ".join(f"{x:.4f} and {y:.4f}" for x, y in zip(local, public, strict=True))
    title = f"Local and public scores of {len(scores)} submissions: {pairs}"
    return draw_figure("leaderboard", title, [Panel(draw, TALL)], Margins())


def shorten_name(name: str) -> str:
    """Return a name of at most `LABEL_LENGTH` characters, without its middle where it is longer.

    Names of runs differ at their ends.
    """
    if len(name) <= LABEL_LENGTH:
        return name
    return f"{name[: LABEL_LENGTH - 10].rstrip()}…{name[-9:]}"


def _label_axes(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.set_ylabel("log loss")
    axes.grid(color=SOFT, linewidth=0.5)


def _limit_losses(axes: Axes, drawn: Sequence[Points]) -> None:
    """Show all losses but the highest twentieth, which a training begins or diverges with."""
    losses = np.array([loss for points in drawn for _, loss in points])
    low, high = losses.min(), np.quantile(losses, 0.95)
    margin = 0.05 * max(high - low, 0.01)
    axes.set_ylim(low - margin, high + margin)
