"""Check what a command shows while it works: in a terminal, elsewhere, narrow and in ASCII."""

import io
import itertools
import sys
from collections.abc import Callable

import pytest

from kit.cli import output, progress
from kit.cli.progress import Count, Training, describe, draw
from kit.training.callbacks import TrainingProgress

REPORT = TrainingProgress(
    step=1230,
    steps=3000,
    epoch=0.82,
    seconds_left=600,
    rows_per_second=41.26,
    memory=2_600_000_000,
    loss=1.01234,
    lr=1.2e-5,
    best_loss=0.9961,
    fold="fold1",
    part=2,
    parts=5,
    seconds_left_in_all=11_130,
)
FIGURES = [
    "fold1 (2 of 5)",
    "step 1,230 of 3,000",
    "epoch 0.82",
    "41.3 rows/s",
    "lr 1.2e-05",
    "memory 2.6 GB",
    "training loss 1.0123",
    "validation loss -",
    "best 0.9961",
]


class Terminal(io.StringIO):
    """Record what is written, as a terminal."""

    def isatty(self) -> bool:
        return True


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Let standard error be a terminal. (Before the test itself, pytest would replace it.)"""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    return screen


@pytest.fixture
def training() -> Training:
    """Return a training in its second fold, before the first evaluation of that fold."""
    work = Training("deberta-1a2b3c4d")
    work.update(REPORT)
    return work


@pytest.mark.parametrize(
    "make",
    [
        progress.count_progress,
        progress.byte_progress,
        progress.stage_progress,
        progress.training_progress,
    ],
)
def test_a_display_shows_its_label_as_it_is(make: Callable, monkeypatch: pytest.MonkeyPatch):
    terminal = open_terminal(monkeypatch)
    with make("predict :+1: [bold]"):
        pass
    assert "predict :+1: [bold]" in terminal.getvalue()


def test_messages_have_lines_of_their_own(monkeypatch: pytest.MonkeyPatch):
    terminal = open_terminal(monkeypatch)
    with progress.training_progress("deberta") as listener:
        listener(REPORT)
        output.print_note("resuming :+1: [bold] " + "x" * 100)
        print("a library's warning", file=sys.stderr)
    shown = terminal.getvalue()
    for line in ("resuming :+1: [bold] " + "x" * 100, "a library's warning"):
        # Each message follows the removal of the display, and ends its line.
        assert f"\x1b[2K{line}\n" in shown
    output.print_note("after it")
    assert terminal.getvalue().endswith("after it\n")


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("label", ["deberta-1a2b3c4d", "a-rather-long-name-" * 5])
def test_no_figure_is_broken_at_any_width(width: int, label: str, training: Training):
    from rich.console import Console

    training.label = label
    console = Console(width=width, file=io.StringIO())
    console.print(draw(training, width))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert lines[0].startswith(label[:6])
    assert "28%  3 h 06 min left" in lines[0]
    assert [part for line in lines[1:] for part in line.strip().split("   ")] == FIGURES
    assert len(lines) <= {40: 8, 80: 4, 200: 2}[width]


def test_an_evaluation_shows_how_far_it_is(training: Training):
    training.update(TrainingProgress(step=2, steps=4, epoch=1.0, seconds_left=1, evaluated=0.25))
    assert "validating 25%" in describe(training)


def test_an_encoding_without_the_bars_characters_gets_others(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding="ascii")
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress.training_progress("deberta") as listener:
        listener(REPORT)
    screen.flush()
    assert b"deberta" in raw.getvalue()


def test_without_colour_the_display_has_none(monkeypatch: pytest.MonkeyPatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    with progress.training_progress("deberta") as listener:
        listener(REPORT)
    assert "\x1b[36m" not in terminal.getvalue()
    assert "\x1b[38" not in terminal.getvalue()


def test_a_terminal_that_cannot_move_gets_lines(monkeypatch: pytest.MonkeyPatch):
    terminal = open_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with progress.count_progress("predict") as listener:
        listener(1, 2)
    assert terminal.getvalue() == ""


def test_without_a_terminal_a_line_is_printed_after_each_wait(
    training: Training, capsys: pytest.CaptureFixture[str]
):
    waits = itertools.chain([False, False], [True])
    progress._print_lines(training, lambda: next(waits))
    line = "  ".join(["deberta-1a2b3c4d", *FIGURES, "3 h 06 min left"])
    assert capsys.readouterr().err == f"{line}\n" * 2
    assert progress.LINE_SECONDS <= 60


def test_an_evaluation_prints_a_line(capsys: pytest.CaptureFixture[str]):
    with progress.training_progress("deberta") as listener:
        listener(REPORT)
        figures = {"loss": 1.01, "log_loss": 0.99612, "accuracy": 0.4567}
        listener(
            TrainingProgress(
                step=1436, steps=3000, epoch=1.0, seconds_left=9, fold="fold1", best=True, **figures
            )
        )
    expected = "fold1  step 1,436  loss 1.0100  validation loss 0.9961  accuracy 0.457  best\n"
    assert capsys.readouterr().err == expected
    assert len(expected) <= 80


def test_only_the_first_process_of_torchrun_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    launch = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_PORT": "1"}
    for name, value in {**launch, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with progress.training_progress("deberta") as listener:
        listener(TrainingProgress(step=1, steps=2, epoch=1.0, seconds_left=9, log_loss=1.0))
    assert capsys.readouterr().err == ""


def test_a_count_shows_pace_and_time_left(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("time.monotonic", lambda: 10.0)
    rows = Count("predict", "rows", started=0.0)
    assert describe(rows).startswith("predict  preparing  memory ")
    rows.update(2_500, 25_000)
    assert describe(rows).startswith("predict  2,500 of 25,000 rows  250 rows/s  memory ")
    assert describe(rows).endswith("  2 min left")

    files = Count("download", "bytes", started=0.0)
    files.update(30_000_000, 90_000_000)
    assert describe(files) == "download  30.0 of 90.0 MB  3 MB/s  20 s left"

    stages = Count("preprocess", "")
    stages.enter("reading test.csv", 1, 5)
    assert describe(stages).startswith("preprocess  reading test.csv  memory ")
    assert stages.share == 0.2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3540, "59 min"), (3600, "1 h 00 min")],
)
def test_times_are_written_in_words(seconds: float, expected: str):
    assert progress.format_seconds(seconds) == expected
