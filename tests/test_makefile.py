"""Check that `make help` lists every target, and that targets run the right kit commands."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from kit.cli.main import main

ROOT = Path(__file__).parent.parent
TARGETS = (
    *("setup", "demo", "test", "soak", "check", "download", "preprocess", "train", "predict"),
    *("ensemble", "validate", "score", "report", "kernel", "kernel-status", "submit"),
    *("bench", "bench-gpu", "lock", "clean"),
)


def make(*arguments: str) -> subprocess.CompletedProcess:
    # Without the variables of the make that may be running these tests.
    env = {"PATH": os.environ["PATH"]}
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, env=env)


def planned_command(*arguments: str) -> list[str]:
    """Return the words of the kit command that a target would run."""
    done = make("-n", "--assume-old=.venv/installed", *arguments)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[-1].removeprefix(".venv/bin/"))


def test_help_lists_every_target_in_order():
    listed = [line.split()[1] for line in make("help").stdout.splitlines()]
    assert [name for name in listed if name in TARGETS] == list(TARGETS)


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
def test_a_target_runs_a_kit_command_with_the_variables(arguments: list[str], command: str):
    assert planned_command(*arguments) == command.split()


def test_a_message_with_spaces_and_quotes_stays_one_argument():
    message = 'it\'s "two" encoders; mean'
    expected = ["kit", "submit", "--kernel", "kit-infer", "-m", message, "--wait"]
    assert planned_command("submit", f"MSG={message}") == expected


def test_a_submission_without_a_message_is_refused():
    done = make("-n", "submit")
    assert done.returncode == 2
    assert 'make submit MSG="' in done.stderr


def test_every_kit_command_in_the_makefile_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^\t\$\(KIT\) ([a-z-]+)", makefile, re.MULTILINE)

    assert len(commands) > 8
    assert set(commands) <= set(main.commands)
