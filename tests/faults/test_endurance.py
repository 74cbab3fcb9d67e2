"""A training that is killed again and again, and resumed each time, ends as an undisturbed one, to the last bit."""

import random
import re
from collections import Counter

from assert_complete import contents, leftovers, not_whole
from commands import Workspaces
from fault_client import Fault
from quick_recipe import QUICK

GOING_ON = re.compile(r"going on from step (\d+)")


def test_a_training_killed_many_times_ends_as_if_undisturbed(
    workspaces: Workspaces, seed: int, soaking: bool, tally: Counter[str]
):
    kills, epochs, most = (
        (20, 16, 60) if soaking else (3, 4, 160)
    )  # at most so many file events in a life
    overrides = (*QUICK, f"train.epochs={epochs}")
    argv = (
        "train",
        "--backbone",
        "tiny-electra",
        *(each for o in overrides for each in ("--set", o)),
    )
    found = workspaces.begin("train")
    whole = workspaces.run(argv)
    assert whole.code == 0, whole.stderr
    expected = contents(workspaces.place)

    workspaces.begin("train")
    chance, steps = random.Random(f"{seed} endurance"), []
    for number in range(kills):
        ended = workspaces.run((*argv, "--resume"), Fault(event=chance.randint(1, most)))
        assert ended.signal == 9, (
            f"ended by itself before kill {number + 1}: {ended.code}\n{ended.stderr}"
        )
        assert not not_whole(workspaces.place, found.before, expected)
        steps += map(int, GOING_ON.findall(ended.stderr))
    ended = workspaces.run((*argv, "--resume"))
    assert ended.code == 0, ended.stderr
    steps += map(int, GOING_ON.findall(ended.stderr))

    ours = contents(workspaces.place)
    different = sorted(
        name for name in ours.keys() | expected.keys() if ours.get(name) != expected.get(name)
    )
    assert not different, f"different after {kills} kills, resumed from steps {steps}: {different}"
    assert not leftovers(workspaces.place)
    assert steps == sorted(steps), "a checkpoint was lost"
    assert len(set(steps)) > kills // 4, f"hardly ever resumed: from steps {steps}"
    print(f"{kills} kills; resumed from steps {steps}")
    tally["kills of one training, which ended bit for bit as if undisturbed"] += kills
