"""Check that a training that is killed many times, and resumed, ends with the same bits."""

import random
import re
from collections import Counter

from assert_complete import contents, different_files, incomplete_files, leftovers
from commands import Workspaces
from fault_client import Fault
from quick_recipe import QUICK

RESUMED = re.compile(r"resuming from step (\d+)")


def test_a_training_killed_many_times_ends_with_the_same_bits(
    workspaces: Workspaces, seed: int, soaking: bool, tally: Counter[str]
):
    kills = 20 if soaking else 3
    epochs = 16 if soaking else 4
    max_events_per_life = 60 if soaking else 160
    overrides = (*QUICK, f"train.epochs={epochs}")
    sets = [word for override in overrides for word in ("--set", override)]
    argv = ("train", "--backbone", "tiny-electra", *sets)

    # First without a fault.
    clean = workspaces.restore("train")
    undisturbed = workspaces.run(argv)
    assert undisturbed.code == 0, undisturbed.stderr
    expected = contents(workspaces.folder)

    # Then killed again and again.
    workspaces.restore("train")
    rng = random.Random(f"{seed} endurance")
    steps: list[int] = []
    for number in range(kills):
        fault = Fault(event=rng.randint(1, max_events_per_life))
        outcome = workspaces.run((*argv, "--resume"), fault)
        assert outcome.signal == 9, (
            f"ended by itself before kill {number + 1}: {outcome.code}\n{outcome.stderr}"
        )
        assert not incomplete_files(workspaces.folder, clean.before, expected)
        steps += map(int, RESUMED.findall(outcome.stderr))

    outcome = workspaces.run((*argv, "--resume"))
    assert outcome.code == 0, outcome.stderr
    steps += map(int, RESUMED.findall(outcome.stderr))

    different = different_files(contents(workspaces.folder), expected)
    assert not different, f"different after {kills} kills, resumed from steps {steps}: {different}"
    assert not leftovers(workspaces.folder)
    assert steps == sorted(steps), "a checkpoint was lost"
    assert len(set(steps)) > kills // 4, f"hardly ever resumed: from steps {steps}"

    print(f"{kills} kills; resumed from steps {steps}")
    tally["kills of one training, which ended bit for bit as if undisturbed"] += kills
