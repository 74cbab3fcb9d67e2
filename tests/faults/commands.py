"""List every command that writes, in pipeline order, and run each in the workspace it needs."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from assert_complete import contents, parse_all
from fault_client import Fault, ForkServer, Outcome
from quick_recipe import QUICK

from kit.baselines.models import baseline_run_name
from kit.recipe.load import load_recipe

OVERRIDES = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=1")
SETS = tuple(word for override in OVERRIDES for word in ("--set", override))
BASELINE = f"runs/{baseline_run_name('length')}"
RUN = f"runs/{load_recipe('tiny-electra', OVERRIDES).run_name}"
TRUTH = ("--truth", "data/processed/train.parquet", "--subset")


@dataclass(frozen=True)
class Step:
    """A command, and the options that a second attempt needs."""

    name: str
    argv: tuple[str, ...]
    retry_options: tuple[str, ...] = ()


STEPS = (
    Step(
        "sample",
        ("sample", "--rows", "240", "--out", "data/raw"),
        ("--force",),
    ),
    Step(
        "download",
        ("download", "--out", "data/kaggle"),
    ),
    Step(
        "preprocess",
        ("preprocess", "--raw", "data/raw", "--out", "data/processed", "--folds", "2"),
    ),
    Step(
        "preprocess over another",
        ("preprocess", "--raw", "data/raw", "--out", "data/processed", "--valid", "0.2"),
    ),
    Step(
        "baseline",
        ("baseline", "length", "--fold", "holdout"),
    ),
    Step(
        "train",
        ("train", "--backbone", "tiny-electra", *SETS),
        ("--resume",),
    ),
    Step(
        "sweep",
        (
            *("sweep", "tiny-electra", "--key", "train.lr=1e-3,2e-3"),
            *("--seeds", "1", "--trials", "2", *SETS),
        ),
    ),
    Step(
        "predict",
        ("predict", RUN),
        ("--force",),
    ),
    Step(
        "predict input",
        ("predict", RUN, "--input", "data/raw/test.csv", "-o", "input.csv"),
        ("--force",),
    ),
    Step(
        "calibrate",
        (
            *("calibrate", f"{BASELINE}/holdout/valid.csv", *TRUTH),
            *("--save", "t.json", "-o", "calibrated.csv"),
        ),
        ("--force",),
    ),
    Step(
        "ensemble",
        (
            *("ensemble", f"{BASELINE}/test.csv", f"{RUN}/test.csv"),
            *("--fit", f"{BASELINE}/holdout/valid.csv", "--fit", f"{RUN}/holdout/valid.csv"),
            *(*TRUTH, "--save", "blend.json", "-o", "submissions/blend.csv"),
        ),
        ("--force",),
    ),
    Step(
        "report",
        ("report", RUN, BASELINE, "-o", "report.md"),
        ("--force",),
    ),
    Step(
        "kernels push",
        ("kernels", "push", "train", "--backbone", "tiny-electra", "--dry-run"),
    ),
)


@dataclass(frozen=True)
class CleanRun:
    """A step without faults: the folder and files it found, the files it left, and its cost."""

    step: Step
    start: Path
    before: Mapping[str, bytes]
    after: Mapping[str, bytes]
    events: int
    seconds: float


class Workspaces:
    """Run the pipeline once; then put any step back into the state that it found."""

    def __init__(self, server: ForkServer, root: Path, env: dict[str, str]):
        self.server = server
        self.env = env
        # Always the same path, because some files contain it.
        self.folder = root / "work"
        self.folder.mkdir()
        self.clean_runs: dict[str, CleanRun] = {}

        for step in STEPS:
            start = root / "starts" / step.name
            shutil.copytree(self.folder, start)
            before = contents(start)

            outcome = self.run(step.argv)
            assert outcome.code == 0, f"{step.name}: {outcome.stderr}"
            self.clean_runs[step.name] = CleanRun(
                step, start, before, contents(self.folder), outcome.events, outcome.seconds
            )
        parse_all(self.folder)

    def restore(self, name: str) -> CleanRun:
        """Put the workspace back to what the step found."""
        clean = self.clean_runs[name]
        shutil.rmtree(self.folder)
        shutil.copytree(clean.start, self.folder)
        return clean

    def run(self, argv: tuple[str, ...], fault: Fault | None = None) -> Outcome:
        """Run a command in the workspace."""
        return self.server.run(list(argv), self.folder, self.env, fault)
