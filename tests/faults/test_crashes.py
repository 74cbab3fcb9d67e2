"""Killed, interrupted, without room or without leave: every file is whole, and the same command ends as if undisturbed.

SIGKILL comes at chosen events (before each opening, sync, renaming and removal there is) and at random times.
"""

import random
import re
import signal
from collections import Counter

import pytest
from assert_complete import contents, leftovers, not_whole
from commands import STEPS, Undisturbed, Workspaces
from fault_client import Ended, Fault

NAMES = [step.name for step in STEPS]
SOME = (
    "sample",
    "download",
    "preprocess",
    "train",
    "ensemble",
)  # in the quick part: one of each way to write
RESUMABLE = re.compile(r"/checkpoints|\.part$")  # what the next run goes on with


def survive(workspaces: Workspaces, name: str, fault: Fault) -> Ended:
    """Runs a step under a fault, looks at what it left, runs it again, and compares with the undisturbed run."""
    found = workspaces.begin(name)
    ended = workspaces.run(found.step.argv, fault)
    said = f"{name}, {fault}: ended with {ended.code or ended.signal}\n{ended.stderr}"
    bad = not_whole(workspaces.place, found.before, found.after)
    assert not bad, f"{said}\nneither the old file nor the new one: {bad}"
    if ended.signal is None:
        _check_end(ended, fault, said)
        left = [each for each in leftovers(workspaces.place) if not RESUMABLE.search(each)]
        assert not left, f"{said}\nleft: {left}"
    _complete(workspaces, found, said)
    return ended


def _check_end(ended: Ended, fault: Fault, said: str) -> None:
    """Of a command that was not killed: done, or one message and exit code 1, or 130 after Ctrl-C."""
    assert "Traceback" not in ended.stderr, said
    if fault.signal == signal.SIGINT and fault.file_size is None and not fault.plain_user:
        assert ended.code in (0, 130), said
        assert ended.code == 0 or ended.stderr.splitlines()[-1] == "Interrupted.", said
    else:
        assert ended.code in (0, 1), said
        assert ended.code == 0 or ended.stderr.count("Error: ") == 1, said


def _complete(workspaces: Workspaces, found: Undisturbed, said: str) -> None:
    again = workspaces.run((*found.step.argv, *found.step.again))
    assert again.code == 0, f"{said}\nagain: {again.stderr}"
    ours = contents(workspaces.place)
    different = sorted(
        name for name in ours.keys() | found.after.keys() if ours.get(name) != found.after.get(name)
    )
    assert not different, f"{said}\nafterwards different: {different}"
    assert not leftovers(workspaces.place), f"{said}\nleft over: {leftovers(workspaces.place)}"


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_command_leaves_whole_files_and_completes(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    found, chance = workspaces.walked[name], random.Random(f"{seed} kill {name}")
    costs = {each: walked.events * walked.seconds for each, walked in workspaces.walked.items()}
    share = (
        0.4 * costs[name] / sum(costs.values())
    )  # so that an hour kills each command at nearly every event
    events = chance.sample(range(1, found.events + 1), found.events)
    for event, _ in zip(events, rounds(1, share), strict=False):
        survive(workspaces, name, Fault(event=event))
        tally["kills at a file event, survived"] += 1
    tally["file events there are"] += found.events
    for _ in rounds(int(name in SOME), 0.15 / len(NAMES)):
        ended = survive(workspaces, name, Fault(after_s=chance.uniform(0, found.seconds)))
        tally["kills at a random time, survived"] += ended.signal is not None


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_ends_with_130_and_one_line(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    found, chance = workspaces.walked[name], random.Random(f"{seed} interrupt {name}")
    for number in rounds(int(name in SOME), 0.1 / len(NAMES)):
        moment = (
            {"after_s": chance.uniform(0, found.seconds)}
            if number % 2
            else {"event": chance.randint(1, found.events)}
        )
        ended = survive(workspaces, name, Fault(**moment, signal=signal.SIGINT))
        tally["interrupts, ended with 130"] += ended.code == 130


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_message(
    name: str, workspaces: Workspaces, rounds: type, seed: int, tally: Counter[str]
):
    """RLIMIT_FSIZE: a file that grows beyond it cannot be written, in Python, pyarrow, safetensors or torch."""
    found, chance = workspaces.walked[name], random.Random(f"{seed} full {name}")
    grown = [len(data) for path, data in found.after.items() if data != found.before.get(path)]
    for _ in rounds(int(name in SOME), 0.1 / len(NAMES)):
        ended = survive(workspaces, name, Fault(file_size=chance.randrange(max(grown))))
        assert ended.code == 1, ended.stderr
        tally["full disks, refused"] += 1


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_may_not_be_written_is_one_message(
    name: str, workspaces: Workspaces, tally: Counter[str]
):
    found = workspaces.begin(name)
    folders = [workspaces.place, *(path for path in workspaces.place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    ended = workspaces.run(found.step.argv, Fault(plain_user=True))
    for folder in folders:
        folder.chmod(0o755)
    assert ended.code == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("Error: ") == 1
    assert "ermission denied" in ended.stderr
    assert contents(workspaces.place) == found.before
    tally["folders without leave, refused"] += 1
