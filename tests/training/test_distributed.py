"""Check that two processes under torchrun take the same steps as one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file
from transformers import TrainingArguments

from kit.data.preprocess import preprocess_files
from kit.recipe.load import load_recipe
from kit.task import SOFT_LABELS, WEIGHT
from kit.training import fold
from kit.training.train import train_recipe

# Without dropout, 16 rows in one process and 8 in each of two are the same step.
SAME_STEPS = (*QUICK, "train.max_steps=8", "model.head_dropout=0.0")


def test_two_processes_take_the_same_steps_as_one(fixed_backbone: Path, raw: Path, tmp_path: Path):
    """On rows of different weights, with features, in passes of few tokens, the head first."""
    data = write_weighted_rows(raw, tmp_path)
    overrides = (
        *SAME_STEPS,
        "model.features=true",
        "train.head_only=0.2",
        "train.r_drop=1.0",
        "train.micro_tokens=300",
    )
    alone = train_alone(fixed_backbone, data, tmp_path / "one", overrides)
    together = train_in_two_processes(fixed_backbone, data, tmp_path / "two", overrides)
    assert together["steps"] == alone["steps"] == 8
    assert together["log_loss"] == pytest.approx(alone["log_loss"], abs=2e-5)

    # The features do make a difference here.
    without = (*overrides, "model.features=false")
    other = train_alone(fixed_backbone, data, tmp_path / "no features", without)
    assert abs(other["log_loss"] - together["log_loss"]) > 1e-3


def test_two_processes_train_the_same_adapters_of_a_judge_as_one(
    judge_base: Path, data: Path, tmp_path: Path
):
    """Also where each of them keeps a half of the base."""
    overrides = (
        *SAME_STEPS,
        "encode.max_tokens=128",
        "train.max_steps=4",
        "train.lora_rank=4",
        "train.lora_dropout=0.0",
        "train.lr=0.01",
        "train.micro_tokens=1500",
        "train.evals_per_epoch=1",
    )
    alone = train_alone(judge_base, data, tmp_path / "one", overrides, "judge")
    one = load_file(next(tmp_path.glob("one/*/holdout/model.safetensors")))
    assert any("lora_B" in name and weight.any() for name, weight in one.items())

    for name, settings in (("two", ()), ("shared", ("train.shard=true",))):
        together = train_in_two_processes(
            judge_base, data, tmp_path / name, (*overrides, *settings), "judge"
        )
        assert together["log_loss"] == pytest.approx(alone["log_loss"], abs=2e-5)
        found = load_file(next(tmp_path.glob(f"{name}/*/holdout/model.safetensors")))
        assert set(found) == set(one)
        for key, weight in one.items():
            torch.testing.assert_close(found[key], weight, rtol=0, atol=2e-5, msg=key)


def train_alone(
    backbone: Path, data: Path, runs: Path, overrides: tuple[str, ...], name: str = "tiny-roberta"
) -> dict[str, Any]:
    """Return the holdout's metrics of a toy trained by the recipe `name` in this process."""
    recipe = load_recipe(name, overrides, backbone=str(backbone))
    return train_recipe(recipe, data, runs)["parts"]["holdout"]


def train_in_two_processes(
    backbone: Path, data: Path, runs: Path, overrides: tuple[str, ...], name: str = "tiny-roberta"
) -> dict[str, Any]:
    """Return the holdout's metrics of a toy trained by two processes on the CPU."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    train = ("-m", "kit", "train", "--recipe", name, "--backbone", str(backbone))
    folders = ("--data", str(data), "--runs", str(runs))
    settings = [argument for override in overrides for argument in ("--set", override)]
    done = subprocess.run(
        [sys.executable, *torchrun, *train, *folders, *settings, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    # The gloo of torch 2.10 prints to stdout, too.
    result = json.loads(done.stdout[done.stdout.index("{") :])
    return result["parts"]["holdout"]


def write_weighted_rows(raw: Path, folder: Path) -> Path:
    """Preprocess the sample with weights of 1 and 3 in turn, and soft labels in every third row."""
    table = pd.read_csv(raw / "train.csv", dtype=str, keep_default_na=False)
    table[WEIGHT] = ["3" if row % 2 else "1" for row in range(len(table))]
    for name, share in zip(SOFT_LABELS, ("0.2", "0.5", "0.3"), strict=True):
        table[name] = ["" if row % 3 else share for row in range(len(table))]

    (folder / "raw").mkdir()
    table.to_csv(folder / "raw" / "train.csv", index=False)
    (folder / "raw" / "test.csv").write_bytes((raw / "test.csv").read_bytes())
    preprocess_files(folder / "raw", folder / "data", folds=3, valid=0.2)
    return folder / "data"


def test_each_process_draws_its_own_dropout(
    fixed_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seeds: list[int] = []
    make_trainer = fold.make_trainer

    def record_seed(*args: Any, **kwargs: Any) -> None:
        make_trainer(*args, **kwargs)
        seeds.append(torch.initial_seed())
        raise KeyboardInterrupt

    monkeypatch.setattr(fold, "make_trainer", record_seed)
    recipe = load_recipe("tiny-roberta", (*QUICK, "train.seed=5"), backbone=str(fixed_backbone))
    for number in (0, 1):
        monkeypatch.setattr(TrainingArguments, "process_index", number)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, data, tmp_path / str(number))
    assert seeds == [5, 6]
