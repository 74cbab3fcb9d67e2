"""The Make targets: listed with what they do, and each a kit command with the user's variables in it."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from kit.cli.main import main

ROOT = Path(__file__).parent.parent
LISTED = """setup demo test soak check download preprocess train predict ensemble validate score report kernel
kernel-status submit bench bench-gpu lock clean"""
TARGETS = LISTED.split()


def make(*arguments: str) -> subprocess.CompletedProcess:
    clean = {
        "PATH": os.environ["PATH"]
    }  # variables of the make that may be running these tests stay out
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=clean)


def planned(*arguments: str) -> list[str]:
    """The kit command that a target would run, in words, after its set-up."""
    done = make("-n", "--assume-old=.venv/installed", *arguments)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1].removeprefix(".venv/bin/"))


def test_help_lists_every_target_in_order():
    listed = [line.split()[1] for line in make("help").stdout.splitlines()]
    assert [name for name in listed if name in TARGETS] == TARGETS


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["download"], "kit download --out data/raw"),
        (["download", "RAW=other"], "kit download --out other"),
        (["train", "FOLD=all"], "kit train --backbone deberta --fold all --data data/processed"),
        (
            ["kernel", "BACKBONE=roberta", "GPU=t4"],
            "kit kernels push train --backbone roberta --gpu t4",
        ),
        (
            ["kernel", "FOLD=0", "ARGS=--dry-run"],
            "kit kernels push train --backbone deberta --gpu t4 --fold 0 --dry-run",
        ),
        (["kernel-status"], "kit kernels status"),
        (["kernel-status", "KERNEL=me/kit-infer"], "kit kernels status me/kit-infer"),
    ],
)
def test_a_target_is_a_kit_command(arguments: list[str], command: str):
    assert planned(*arguments) == command.split()


def test_a_message_of_several_words_and_quotes_stays_one():
    message = 'it\'s "two" encoders; mean'
    assert planned("submit", f"MSG={message}") == [
        "kit",
        "submit",
        "--kernel",
        "kit-infer",
        "-m",
        message,
        "--wait",
    ]


def test_a_submission_without_a_message_is_refused():
    done = make("-n", "submit")
    assert done.returncode == 2
    assert 'make submit MSG="' in done.stderr


def test_every_kit_command_in_it_exists():
    commands = re.findall(
        r"^\t\$\(KIT\) ([a-z-]+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(commands) > 8
    assert set(commands) <= set(main.commands)
