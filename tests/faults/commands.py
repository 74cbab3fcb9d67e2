"""Every command that writes, in pipeline order, and a workspace as each of them finds it and as it leaves it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assert_complete import contents, parse_all
from fault_client import Ended, Fault, Zygote
from quick_recipe import QUICK

from kit.recipe.load import load_recipe

OVERRIDES = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=1")
RUN = f"runs/{load_recipe('tiny-electra', OVERRIDES).run_name}"
TRUTH = ("--truth", "data/processed/train.parquet", "--subset")
VALID = ("runs/baseline-length/holdout/valid.csv", f"{RUN}/holdout/valid.csv")


@dataclass(frozen=True)
class Step:
    """A command, and what is added to it on a second attempt."""

    name: str
    argv: tuple[str, ...]
    again: tuple[str, ...] = ()


STEPS = (
    Step("sample", ("sample", "--rows", "240", "--out", "data/raw"), ("--force",)),
    Step("download", ("download", "--out", "data/kaggle")),
    Step(
        "preprocess", ("preprocess", "--raw", "data/raw", "--out", "data/processed", "--folds", "2")
    ),
    Step(
        "preprocess over another",
        ("preprocess", "--raw", "data/raw", "--out", "data/processed", "--valid", "0.2"),
    ),
    Step("baseline", ("baseline", "length", "--fold", "holdout")),
    Step(
        "train",
        (
            "train",
            "--backbone",
            "tiny-electra",
            *(each for o in OVERRIDES for each in ("--set", o)),
        ),
        ("--resume",),
    ),
    Step("predict", ("predict", RUN), ("--force",)),
    Step(
        "predict input",
        ("predict", RUN, "--input", "data/raw/test.csv", "-o", "input.csv"),
        ("--force",),
    ),
    Step(
        "calibrate",
        ("calibrate", VALID[0], *TRUTH, "--save", "t.json", "-o", "calibrated.csv"),
        ("--force",),
    ),
    Step(
        "ensemble",
        (
            *(
                "ensemble",
                "runs/baseline-length/test.csv",
                f"{RUN}/test.csv",
                "--fit",
                VALID[0],
                "--fit",
                VALID[1],
            ),
            *(*TRUTH, "--save", "blend.json", "-o", "submissions/blend.csv"),
        ),
        ("--force",),
    ),
    Step("report", ("report", RUN, "runs/baseline-length", "-o", "report.md"), ("--force",)),
    Step("kernels push", ("kernels", "push", "train", "--backbone", "tiny-electra", "--dry-run")),
)


@dataclass(frozen=True)
class Undisturbed:
    """A step as it goes when nothing happens: the folders before, every file before and after, events and seconds."""

    step: Step
    start: Path
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]
    events: int
    seconds: float


class Workspaces:
    """The pipeline walked once; then any step again, from the state that it found, in a folder of its own."""

    def __init__(self, zygote: Zygote, root: Path, env: dict[str, str]):
        self.zygote, self.root, self.env = zygote, root, env
        self.place = root / "work"  # always the same path, which some files may name
        self.walked: dict[str, Undisturbed] = {}
        self.place.mkdir()
        for step in STEPS:
            start = root / "starts" / step.name
            shutil.copytree(self.place, start)
            before = contents(start)
            ended = self.run(step.argv)
            assert ended.code == 0, f"{step.name}: {ended.stderr}"
            self.walked[step.name] = Undisturbed(
                step, start, before, contents(self.place), ended.events, ended.seconds
            )
        parse_all(self.place)

    def begin(self, name: str) -> Undisturbed:
        """Puts the workspace back to what the step found."""
        found = self.walked[name]
        shutil.rmtree(self.place)
        shutil.copytree(found.start, self.place)
        return found

    def run(self, argv: tuple[str, ...], fault: Fault | None = None) -> Ended:
        """The command in the workspace."""
        return self.zygote.run(list(argv), self.place, self.env, fault)
