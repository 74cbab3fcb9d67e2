"""What every contender is given and gives back; each runs in a process, and mostly in an environment, of its own.

A contender trains two epochs on the job's rows, of which the second is timed, then predicts its other rows twice, of
which again the second is timed. It prints one line of JSON.
"""

import json
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback


@dataclass(frozen=True)
class Job:
    """Rows are dictionaries of `prompt`, `a`, `b` (texts) and `label`."""

    backbone: str
    tokens: int
    batch: int
    precision: str
    device: str
    started: float  # time.time() in the process that started this one
    train: list[dict[str, Any]] = field(repr=False)
    predict: list[dict[str, Any]] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def given(cls) -> "Job":
        """The job in the file named on the command line, and what is said beside it."""
        return cls(
            **json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")) | json.loads(sys.argv[2])
        )


class SecondEpoch(TrainerCallback):
    """Times the second epoch of a transformers Trainer: its steps, not the checkpoint at its end."""

    seconds = ready = begun = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts with the second epoch; the first step of all ends the start-up."""
        self.ready = self.ready or time.time()
        if state.epoch and state.epoch >= 1 and not self.begun:
            wait_for(args.device.type)
            self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """And stops with the last step."""
        if state.global_step == state.max_steps:
            wait_for(args.device.type)
            self.seconds = time.perf_counter() - self.begun


def length_batches(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Places of rows alike in length, a batch at a time, in random order."""
    order = np.argsort(-lengths, kind="stable")
    batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
    return [batches[number] for number in np.random.default_rng(0).permutation(len(batches))]


def wait_for(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def report(job: Job, ready: float, train: float, predict: float, **more: Any) -> None:
    """Prints what a contender found: seconds for all rows of the job, start-up and peak memory, and `more`."""
    import torch

    cuda = {"GPU MiB": torch.cuda.max_memory_allocated() / 2**20} if job.device == "cuda" else {}
    figures = {
        "train rows/s": len(job.train) / train,
        "predict rows/s": len(job.predict) / predict,
        "start-up s": ready - job.started,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures | cuda | more))
