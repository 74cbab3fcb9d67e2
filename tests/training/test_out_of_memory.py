"""Check that a training that runs out of memory continues with smaller passes, in all processes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from quick_recipe import QUICK
from torch import nn

from kit.errors import DeviceError
from kit.model.pair_model import PairModel
from kit.recipe.load import load_recipe
from kit.training.checkpoints import read_pass_tokens, write_pass_tokens
from kit.training.sampler import LengthBuckets
from kit.training.train import train_recipe
from kit.training.trainer import ddp_settings

STEPS = (*QUICK, "train.max_steps=6", "train.evals_per_epoch=12", "model.head_dropout=0.0")


def limit_passes(patch: pytest.MonkeyPatch, max_tokens: int, from_pass: int = 0) -> list[int]:
    """Let training passes of more tokens run out of memory, and return the tokens of all passes."""
    # Only training calls it; predictions pool pack by pack.
    encode, seen = PairModel.encode, []

    def limited(
        self: PairModel, packs: list[dict[str, torch.Tensor]], order: torch.Tensor
    ) -> torch.Tensor:
        tokens = sum(pack["input_ids"].numel() for pack in packs)
        seen.append(tokens)
        if tokens > max_tokens and len(seen) > from_pass:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return encode(self, packs, order)

    patch.setattr(PairModel, "encode", limited)
    return seen


@pytest.mark.parametrize("from_pass", [0, 4], ids=["at the first step", "after a checkpoint"])
def test_a_training_that_runs_out_of_memory_continues_to_the_same_result(
    from_pass: int,
    fixed_backbone: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    recipe = load_recipe("tiny-roberta", STEPS, backbone=str(fixed_backbone))
    whole = train_recipe(recipe, data, tmp_path / "whole")["parts"]["holdout"]
    said: list[str] = []
    seen = limit_passes(monkeypatch, 300, from_pass)
    found = train_recipe(recipe, data, tmp_path / "cut", say=said.append)["parts"]["holdout"]
    assert found["steps"] == whole["steps"] == 6
    assert found["log_loss"] == pytest.approx(whole["log_loss"], abs=2e-5)
    messages = [line for line in said if "out of memory" in line]
    assert 1 <= len(messages) <= 3
    assert "continuing from the last checkpoint" in messages[0]
    assert sum(tokens > 300 for tokens in seen[from_pass:]) == len(messages)
    if from_pass:
        assert any("resuming from step" in line for line in said)


def test_a_training_does_not_try_forever(
    fixed_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe("tiny-roberta", STEPS, backbone=str(fixed_backbone))
    seen = limit_passes(monkeypatch, 0)
    with pytest.raises(DeviceError, match="out of memory with up to"):
        train_recipe(recipe, data, tmp_path)
    # One pass is that of the trial before the run, the others are of the training.
    assert len(seen) <= 5


def test_a_resumed_training_takes_the_passes_it_began_with(tmp_path: Path):
    assert read_pass_tokens(tmp_path) is None
    write_pass_tokens(tmp_path / "checkpoints", 3000)
    assert read_pass_tokens(tmp_path / "checkpoints") == 3000
    (tmp_path / "checkpoints/passes.json").write_text("{cut")
    assert read_pass_tokens(tmp_path / "checkpoints") is None


def test_memory_that_is_free_later_does_not_change_a_resumed_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With dropout, other passes would draw other masks and end with other weights."""
    recipe = load_recipe("tiny-electra", STEPS)

    def interrupt(event: Any) -> None:
        if event.log_loss is not None and event.step == 2:
            raise KeyboardInterrupt

    results = []
    for name in ("whole", "cut"):
        with monkeypatch.context() as patch:
            patch.setattr("kit.training.fold.training_tokens", lambda *_: 300)
            if name == "whole":
                results.append(train_recipe(recipe, data, tmp_path / name))
                continue
            with pytest.raises(KeyboardInterrupt):
                train_recipe(recipe, data, tmp_path / name, listen=interrupt)
    results.append(train_recipe(recipe, data, tmp_path / "cut", resume=True))
    one, other = (
        (Path(result["run"]) / "holdout/model.safetensors").read_bytes() for result in results
    )
    assert one == other


def test_the_heaviest_batch_of_an_epoch_comes_first_and_the_rest_stays_as_it_was():
    lengths = np.random.default_rng(0).integers(8, 512, (501, 2))
    plain, sorted_ = (
        np.array(list(LengthBuckets(lengths, 16, 3, heaviest_first=first)))
        for first in (False, True)
    )
    batches = [plain[i : i + 16].tolist() for i in range(0, 496, 16)]
    tokens = [lengths[batch].sum() for batch in batches]
    heaviest = batches[int(np.argmax(tokens))]
    assert sorted_[:16].tolist() == heaviest
    rest = [row for batch in batches if batch != heaviest for row in batch]
    assert sorted_[16:].tolist() == rest + plain[496:].tolist()
    few = LengthBuckets(lengths[:5], 16, 3, heaviest_first=True)
    assert sorted(few) == list(range(5))


def test_gradients_are_views_of_buckets_and_buffers_stay_where_they_are():
    plain = ddp_settings(nn.Linear(2, 2), "fp32")
    assert plain["gradient_as_bucket_view"]
    assert not plain["broadcast_buffers"]
    assert plain["comm_hook"] == DDPCommunicationHookType.NO
    assert ddp_settings(nn.BatchNorm1d(2), "fp32")["broadcast_buffers"]
    assert ddp_settings(nn.Linear(2, 2), "fp16")["comm_hook"] == DDPCommunicationHookType.FP16
    assert set(plain) <= set(vars(DistributedDataParallelKwargs()))


TWO_PROCESSES = """
import json, os, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from accelerate.utils import DistributedDataParallelKwargs
from kit.training.trainer import ddp_settings

dist.init_process_group("gloo")
rank = dist.get_rank()
found = {}
for precision in ("fp32", "fp16"):
    for infinite in (False, True):
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 3))
        handler = DistributedDataParallelKwargs(**ddp_settings(layers, precision))
        model = DistributedDataParallel(layers, **handler.to_kwargs())
        handler.register_comm_hook(model)
        x = torch.randn(2, 16, 64, generator=torch.Generator().manual_seed(1))[rank]
        loss = model(x).square().mean() * 1024
        if infinite and rank == 1:
            loss = loss * 1e6
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        found[f"{precision} {infinite}"] = gradient
close = (found["fp16 False"] - found["fp32 False"]).norm() / found["fp32 False"].norm()
print(json.dumps([float(close), bool(found["fp16 True"].isfinite().all())]), flush=True)

# Without Python's end, in which a thread of Gloo that is still at work aborts the process at times.
dist.barrier()
os._exit(0)
"""


def launch(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes that share this machine."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [sys.executable, *torchrun, str(script), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )


def test_gradients_exchanged_in_half_precision_are_the_same_and_show_an_overflow(tmp_path: Path):
    """In both processes; the loss scaler skips a step whose gradient is infinite in one of them."""
    script = tmp_path / "exchange.py"
    script.write_text(TWO_PROCESSES)
    done = launch(script)
    assert done.returncode == 0, done.stderr
    # Two processes write to one stream, perhaps within a line, and Gloo writes to it as well.
    lines = [json.loads(line) for line in re.findall(r"\[[-.e\d]+, (?:true|false)\]", done.stdout)]
    assert len(lines) == 2
    for difference, finite in lines:
        assert difference < 1e-3
        assert not finite


ONE_RUNS_OUT = """
import json, os, sys
from pathlib import Path
import torch
from kit.model.pair_model import PairModel
from kit.recipe.load import load_recipe
from kit.training.train import train_recipe

backbone, data, runs, limit, steps = sys.argv[1:]
encode, passes = PairModel.encode, []

def limited(self, packs, order):
    tokens = sum(pack["input_ids"].numel() for pack in packs)
    passes.append(tokens)
    if os.environ["RANK"] == "1" and tokens > int(limit) and len(passes) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return encode(self, packs, order)

PairModel.encode = limited
said = []
recipe = load_recipe("tiny-roberta", json.loads(steps), backbone=backbone)
result = train_recipe(recipe, Path(data), Path(runs), say=said.append)
if os.environ["RANK"] == "0":
    print(json.dumps({"said": said, "metrics": result["parts"]["holdout"]}), flush=True)

# As above.
torch.distributed.barrier()
os._exit(0)
"""


def test_one_process_that_runs_out_of_memory_takes_all_of_them_back_together(
    fixed_backbone: Path, data: Path, tmp_path: Path
):
    script = tmp_path / "train.py"
    script.write_text(ONE_RUNS_OUT)
    found = []
    for name, limit in (("whole", 10**9), ("cut", 150)):
        done = launch(
            script,
            str(fixed_backbone),
            str(data),
            str(tmp_path / name),
            str(limit),
            json.dumps(STEPS),
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout[done.stdout.index('{"said"') :]))
    whole, cut = found
    assert not any("out of memory" in line for line in whole["said"])
    assert any("out of memory" in line for line in cut["said"])
    assert any("resuming from step" in line for line in cut["said"])
    assert cut["metrics"]["steps"] == 6
    assert cut["metrics"]["log_loss"] == pytest.approx(whole["metrics"]["log_loss"], abs=2e-5)
