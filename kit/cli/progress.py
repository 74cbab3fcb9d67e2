"""Show how far a command is: a live display in a terminal, elsewhere a line a minute.

Use `training_progress`, `count_progress`, `byte_progress` and `stage_progress`; each yields what
the command calls as it goes on. `print_above_display` prints a message above the display. All of it
is on standard error, and under torchrun in the first process only.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import click

from kit.launcher import is_leader

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from kit.training.callbacks import TrainingProgress

# Without a terminal, a line after so many seconds.
LINE_SECONDS = 60

# Characters of a display's bar that it never falls below.
_LEAST_BAR = 6

# The console of the display that is shown, which has to print all messages meanwhile.
_console: "Console | None" = None


def print_above_display(text: str) -> None:
    """Print a message to standard error, above the display if there is one."""
    if _console is None:
        click.echo(text, err=True)
    else:
        _console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


class Work(Protocol):
    """What a display shows of a command's work."""

    label: str

    @property
    def share(self) -> float | None:
        """How much is done, None where it is not known."""

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the end, None where they are not known."""

    def figures(self) -> list[str]:
        """Return what else is known, each with its name or unit."""


@dataclass
class Training:
    """A training of one or several folds, as last reported."""

    label: str
    last: "TrainingProgress | None" = None
    log_loss: float | None = None

    def update(self, progress: "TrainingProgress") -> None:
        """Take a report, and print a line if an evaluation has ended."""
        if self.last and self.last.fold != progress.fold:
            self.log_loss = None
        self.last = progress
        if progress.log_loss is None:
            return
        self.log_loss = progress.log_loss
        figures = [
            progress.fold,
            f"step {progress.step:,}",
            f"loss {_loss(progress.loss)}",
            f"validation loss {_loss(progress.log_loss)}",
            f"accuracy {format_accuracy(progress.accuracy)}",
        ]
        if progress.best:
            figures.append("best")
        print_above_display("  ".join(filter(None, figures)))

    @property
    def share(self) -> float | None:
        """The share of the steps of all folds, of which those before this one are done."""
        if not self.last:
            return None
        return (self.last.part - 1 + self.last.step / self.last.steps) / self.last.parts

    @property
    def seconds_left(self) -> float | None:
        """The time until the last fold ends."""
        if not self.last:
            return None
        left = self.last.seconds_left_in_all
        return self.last.seconds_left if left is None else left

    def figures(self) -> list[str]:
        """Return fold, step, epoch, pace, rate, losses and memory."""
        if not self.last:
            return ["preparing"]
        last = self.last
        pace = f"{_pace(last.rows_per_second)} rows/s"
        if last.evaluated is not None:
            pace = f"validating {last.evaluated:.0%}"
        figures = [
            _place(last),
            f"step {last.step:,} of {last.steps:,}",
            f"epoch {last.epoch:.2f}",
            pace,
            f"lr {'-' if last.lr is None else format(last.lr, '.1e')}",
            f"memory {_size(last.memory)}",
            f"training loss {_loss(last.loss)}",
            f"validation loss {_loss(self.log_loss)}",
            f"best {_loss(last.best_loss)}",
        ]
        return [figure for figure in figures if figure]


@dataclass
class Count:
    """Rows, bytes or stages of which some are done.

    Attributes:
        unit: "rows", "bytes", or "" for stages, whose name says more than their number.
        doing: the stage.
    """

    label: str
    unit: str
    done: int = 0
    total: int = 0
    doing: str = ""
    started: float = field(default_factory=time.monotonic)

    def update(self, done: int, total: int) -> None:
        """Take a report."""
        self.done = done
        self.total = total

    def enter(self, stage: str, done: int, total: int) -> None:
        """Take a report of the stage that begins, and of those that are done."""
        self.doing = stage
        self.update(done, total)

    @property
    def share(self) -> float | None:
        """The share that is done."""
        return min(1.0, self.done / self.total) if self.total else None

    @property
    def seconds_left(self) -> float | None:
        """The time that is left at the pace so far; None for stages, whose lengths differ."""
        if not self.unit or not self.done or not self.total:
            return None
        return (time.monotonic() - self.started) * (self.total - self.done) / self.done

    def figures(self) -> list[str]:
        """Return what is done, of how much, and how fast; or the stage."""
        from kit.storage.memory import peak_memory

        memory = f"memory {_size(peak_memory())}"
        if not self.unit:
            return [self.doing or "preparing", memory]
        if not self.total:
            return ["preparing", memory]
        pace = self.done / max(1e-9, time.monotonic() - self.started)
        if self.unit == "bytes":
            return [f"{self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB", f"{_size(pace)}/s"]
        counted = f"{self.done:,} of {self.total:,} {self.unit}"
        return [counted, f"{_pace(pace)} {self.unit}/s", memory]


@contextmanager
def training_progress(label: str) -> "Generator[Callable[[TrainingProgress], None]]":
    """Yield a listener that shows a training, and prints a line for each evaluation."""
    work = Training(label)
    with _shown(work):
        yield work.update if is_leader() else lambda _: None


@contextmanager
def count_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield a callback of (rows done, all rows)."""
    work = Count(label, "rows")
    with _shown(work):
        yield work.update


@contextmanager
def byte_progress(label: str) -> Generator[Callable[[int, int], None]]:
    """Yield a callback of (bytes done, all bytes)."""
    work = Count(label, "bytes")
    with _shown(work):
        yield work.update


@contextmanager
def stage_progress(label: str) -> Generator[Callable[[str, int, int], None]]:
    """Yield a callback of (stage that begins, stages done, all stages)."""
    work = Count(label, "")
    with _shown(work):
        yield work.enter


@contextmanager
def _shown(work: Work) -> Generator[None]:
    """Show the work until the end of the block."""
    if not is_leader():
        yield
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _live_display(work):
            yield
    else:
        with _lines(work):
            yield


@contextmanager
def _live_display(work: Work) -> Generator[None]:
    """Draw the work again and again at the bottom of the terminal."""
    from rich.console import Console
    from rich.live import Live

    global _console
    console = Console(stderr=True)
    live = Live(
        console=console,
        get_renderable=lambda: draw(work, console.width),
        transient=True,
        # What a library prints to a redirected standard output stays there.
        redirect_stdout=sys.stdout.isatty(),
    )
    with live:
        live.refresh()
        _console = console
        try:
            yield
        finally:
            _console = None


@contextmanager
def _lines(work: Work) -> Generator[None]:
    """Print a line about the work every minute."""
    ended = threading.Event()
    thread = threading.Thread(
        target=_print_lines, args=(work, lambda: ended.wait(LINE_SECONDS)), daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _print_lines(work: Work, wait: Callable[[], bool]) -> None:
    """Print a line after each wait, until one returns that the work has ended."""
    while not wait():
        print_above_display(describe(work))


def describe(work: Work) -> str:
    """Return the work as one line."""
    left = work.seconds_left
    time_left = [] if left is None else [f"{format_seconds(left)} left"]
    return "  ".join([work.label, *work.figures(), *time_left])


def draw(work: Work, width: int) -> "RenderableType":
    """Return the work as a bar with its label and the time left, and lines of figures below."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share = work.share
    left = work.seconds_left
    ending = "" if share is None else f"{share:4.0%}"
    if left is not None:
        ending += f"  {format_seconds(left)} left"

    label = work.label
    room = width - len(ending) - _LEAST_BAR - 4
    if len(label) > room:
        label = label[: max(0, room - 3)] + "..."
    bar = ProgressBar(total=1.0, completed=share or 0.0, pulse=share is None)
    head = Table.grid(expand=True, padding=(0, 2, 0, 0))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(Text(label, style="bold"), bar, Text(ending, style="cyan"))
    lines = [Text(line, no_wrap=True) for line in _fill_lines(work.figures(), width)]
    return Group(head, *lines)


def _fill_lines(parts: Sequence[str], width: int) -> list[str]:
    """Join parts into lines of at most `width` characters, none of them broken."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}   {part}" if lines[-1] else part
        if len(joined) < width or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def format_seconds(seconds: float) -> str:
    """Return a time in words, to two units: "3 h 05 min", "4 min", "12 s"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def format_accuracy(accuracy: float | None) -> str:
    """Return an accuracy to three places, nothing for None."""
    return "" if accuracy is None else f"{accuracy:.3f}"


def _place(progress: "TrainingProgress") -> str:
    """Return the fold, and its number where there are several."""
    if progress.parts == 1:
        return progress.fold
    return f"{progress.fold} ({progress.part} of {progress.parts})"


def _pace(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _size(size: float) -> str:
    """Return bytes in MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
