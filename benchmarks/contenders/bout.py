"""Read a contender's job and report its times. Use `Job.from_arguments` and `report`.

Each contender runs in a process of its own, and most in an environment of their own. It trains two
epochs on the job's rows and then predicts its other rows twice; the second of each is timed. It
prints one line of JSON.
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
    """Sizes, settings and rows; a row is a dictionary of `prompt`, `a`, `b` (texts) and `label`.

    Attributes:
        started: time.time() in the process that started this one.
    """

    backbone: str
    tokens: int
    batch: int
    precision: str
    device: str
    started: float
    train: list[dict[str, Any]] = field(repr=False)
    predict: list[dict[str, Any]] = field(repr=False)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls) -> "Job":
        """Return the job from the file and the JSON that the command line gives."""
        shared = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        return cls(**shared | json.loads(sys.argv[2]))


class SecondEpoch(TrainerCallback):
    """Time the second epoch of a transformers Trainer: its steps, not the checkpoint at its end.

    Attributes:
        ready: time.time() at the first step.
        begun: start of the second epoch.
        seconds: duration of the second epoch.
    """

    ready = 0.0
    begun = 0.0
    seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the end of the start-up, and the start of the second epoch."""
        self.ready = self.ready or time.time()
        if state.epoch and state.epoch >= 1 and not self.begun:
            wait_for(args.device.type)
            self.begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock at the last step."""
        if state.global_step == state.max_steps:
            wait_for(args.device.type)
            self.seconds = time.perf_counter() - self.begun


def length_batches(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Return places of rows of like length, a batch at a time, in random order."""
    order = np.argsort(-lengths, kind="stable")
    batches = [order[i : i + size].tolist() for i in range(0, len(order), size)]
    return [batches[number] for number in np.random.default_rng(0).permutation(len(batches))]


def wait_for(device: str) -> None:
    """Wait until a GPU has finished its work."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def report(job: Job, ready: float, train: float, predict: float, **more: Any) -> None:
    """Print rates from the seconds for all rows of the job, start-up, peak memory, and `more`."""
    import torch

    cuda = {"GPU MiB": torch.cuda.max_memory_allocated() / 2**20} if job.device == "cuda" else {}
    figures = {
        "train rows/s": len(job.train) / train,
        "predict rows/s": len(job.predict) / predict,
        "start-up s": ready - job.started,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(figures | cuda | more))
