"""Check that killed, interrupted and starved commands leave whole files and complete later.

SIGKILL comes at chosen file events (before each opening, sync, renaming and removal) and at random
times. Afterwards the same command must end as if it had never been disturbed.
"""

import random
import re
import signal
from collections import Counter

import pytest
from assert_complete import contents, different_files, incomplete_files, leftovers
from commands import STEPS, CleanRun, Workspaces
from fault_client import Fault, Outcome

NAMES = [step.name for step in STEPS]

# The short run tries one command for each way in which kit writes.
SHORT_RUN = ("sample", "download", "preprocess", "train", "ensemble")

# What the next run continues from.
RESUMABLE = re.compile(r"/checkpoints|\.part$")


def survive(workspaces: Workspaces, name: str, fault: Fault) -> Outcome:
    """Run a step under a fault, check what it left, run it again, and compare with a clean run."""
    clean = workspaces.restore(name)
    outcome = workspaces.run(clean.step.argv, fault)
    context = f"{name}, {fault}: ended with {outcome.code or outcome.signal}\n{outcome.stderr}"

    incomplete = incomplete_files(workspaces.folder, clean.before, clean.after)
    assert not incomplete, f"{context}\nneither the old file nor the new one: {incomplete}"

    if outcome.signal is None:
        _check_exit(outcome, fault, context)
        left = [path for path in leftovers(workspaces.folder) if not RESUMABLE.search(path)]
        assert not left, f"{context}\nleft over: {left}"

    _complete(workspaces, clean, context)
    return outcome


def _check_exit(outcome: Outcome, fault: Fault, context: str) -> None:
    """Check that a command that was not killed is done, or ended with one message."""
    assert "Traceback" not in outcome.stderr, context
    if fault.signal == signal.SIGINT and fault.file_size is None and not fault.plain_user:
        assert outcome.code in (0, 130), context
        assert outcome.code == 0 or outcome.stderr.splitlines()[-1] == "Interrupted.", context
    else:
        assert outcome.code in (0, 1), context
        assert outcome.code == 0 or outcome.stderr.count("Error: ") == 1, context


def _complete(workspaces: Workspaces, clean: CleanRun, context: str) -> None:
    """Run the step again and check that all files are those of the clean run."""
    again = workspaces.run((*clean.step.argv, *clean.step.retry_options))
    assert again.code == 0, f"{context}\nagain: {again.stderr}"

    different = different_files(contents(workspaces.folder), clean.after)
    assert not different, f"{context}\ndifferent afterwards: {different}"
    left = leftovers(workspaces.folder)
    assert not left, f"{context}\nleft over: {left}"


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_leaves_whole_files_and_completes(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    clean = workspaces.clean_runs[name]
    rng = random.Random(f"{seed} kill {name}")

    # Each command's share of the time makes an hour kill every command at nearly every event.
    costs = {key: run.events * run.seconds for key, run in workspaces.clean_runs.items()}
    share = 0.4 * costs[name] / sum(costs.values())
    events = rng.sample(range(1, clean.events + 1), clean.events)
    for event, _ in zip(events, rounds(1, share), strict=False):
        survive(workspaces, name, Fault(event=event))
        tally["kills at a file event, survived"] += 1
    tally["file events there are"] += clean.events

    for _ in rounds(int(name in SHORT_RUN), 0.15 / len(NAMES)):
        outcome = survive(workspaces, name, Fault(after_s=rng.uniform(0, clean.seconds)))
        tally["kills at a random time, survived"] += outcome.signal is not None


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_ends_with_130_and_one_line(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    clean = workspaces.clean_runs[name]
    rng = random.Random(f"{seed} interrupt {name}")

    for number in rounds(int(name in SHORT_RUN), 0.1 / len(NAMES)):
        if number % 2:
            fault = Fault(after_s=rng.uniform(0, clean.seconds), signal=signal.SIGINT)
        else:
            fault = Fault(event=rng.randint(1, clean.events), signal=signal.SIGINT)
        outcome = survive(workspaces, name, fault)
        tally["interrupts, ended with 130"] += outcome.code == 130


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_message(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    """RLIMIT_FSIZE stops writes of Python, pyarrow, safetensors and torch, as a full disk does."""
    clean = workspaces.clean_runs[name]
    rng = random.Random(f"{seed} full {name}")

    new = [len(data) for path, data in clean.after.items() if data != clean.before.get(path)]
    for _ in rounds(int(name in SHORT_RUN), 0.1 / len(NAMES)):
        outcome = survive(workspaces, name, Fault(file_size=rng.randrange(max(new))))
        assert outcome.code == 1, outcome.stderr
        tally["full disks, refused"] += 1


@pytest.mark.parametrize("name", NAMES)
def test_a_read_only_folder_is_one_message(name: str, workspaces: Workspaces, tally: Counter[str]):
    clean = workspaces.restore(name)
    paths = workspaces.folder.rglob("*")
    folders = [workspaces.folder, *(path for path in paths if path.is_dir())]

    for folder in folders:
        folder.chmod(0o555)
    outcome = workspaces.run(clean.step.argv, Fault(plain_user=True))
    for folder in folders:
        folder.chmod(0o755)

    assert outcome.code == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert outcome.stderr.count("Error: ") == 1
    assert "ermission denied" in outcome.stderr
    assert contents(workspaces.folder) == clean.before
    tally["read-only folders, refused"] += 1
