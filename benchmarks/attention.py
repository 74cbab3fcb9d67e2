"""Measure a training step of DeBERTa's attention: kit's against transformers' own module.

    python benchmarks/attention.py [--tokens 256 512] [--batch 8] [--hidden 384 --heads 6]
    [--repeats 5] [--json]

Weights are random, of DeBERTa-v3-xsmall's size by default, with dropout as in training. Steps of
the two alternate. Each is timed by the processor time that it took, which other programs disturb
less than the clock, and on a GPU by the clock.

Memory is of one step. `kept` is what autograd holds after the forward pass, each storage counted
once, without weights and input, which are there anyway. `peak` is the most that was allocated at a
time in both passes, beyond what was there before, by the profiler's record of every allocation.
Targets: 1.3 times the speed, and 0.6 of the peak.
"""

import argparse
import json
import platform
import statistics
import sys
import time

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from kit.model.encoder import build_encoder
from kit.model.registry import BACKBONES

SPEED = 1.3
MEMORY = 0.6
SIDES = ("transformers", "kit")


class Step:
    """One forward and backward pass of an encoder's first attention."""

    def __init__(
        self, encoder: nn.Module, batch: int, tokens: int, dtype: torch.dtype, device: str
    ):
        encoder.to(device)
        self.attention = encoder.encoder.layer[0].attention.self.train()
        self.dtype = dtype
        self.device = device

        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(batch, tokens, encoder.config.hidden_size, generator=generator)
        self.hidden = hidden.to(device).requires_grad_()

        # Length buckets leave about this much padding.
        lengths = torch.linspace(tokens, tokens * 0.9, batch).long()
        mask = (torch.arange(tokens) < lengths[:, None]).long()
        self.mask = encoder.encoder.get_attention_mask(mask.to(device))
        self.distances = encoder.encoder.get_rel_pos(self.hidden)
        self.embeddings = encoder.encoder.get_rel_embedding().detach().requires_grad_()

    def forward(self) -> Tensor:
        """Return mixed values, after gradients of an earlier step are cleared."""
        self.attention.zero_grad()
        self.hidden.grad = self.embeddings.grad = None
        half = torch.bfloat16 if self.dtype == torch.float32 else self.dtype
        with torch.autocast(self.device, dtype=half, enabled=self.dtype == half):
            return self.attention(
                self.hidden, self.mask, relative_pos=self.distances, rel_embeddings=self.embeddings
            )[0]

    def __call__(self) -> None:
        self.forward().sum().backward()

    def seconds(self) -> float:
        """Return a step's processor time over all threads; on a GPU the time until it is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            start = time.perf_counter()
            self()
            torch.cuda.synchronize()
            return time.perf_counter() - start
        start = time.process_time()
        self()
        return time.process_time() - start

    def kept(self) -> int:
        """Return the bytes that autograd holds between the passes."""
        known = {
            x.untyped_storage().data_ptr()
            for x in (*self.attention.parameters(), self.hidden, self.embeddings)
        }
        seen: dict[int, int] = {}

        def keep(x: Tensor) -> Tensor:
            if x.untyped_storage().data_ptr() not in known:
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            result = self.forward()
        del result
        return sum(seen.values())

    def peak(self) -> int:
        """Return the most bytes allocated at a time in a step, beyond those before it."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self()
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            self()
        allocated = peak = 0
        for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                allocated += event.nbytes()
                peak = max(peak, allocated)
        return peak


def precisions(device: str) -> tuple[torch.dtype, torch.dtype]:
    """Return float32 and the half precision in which kit computes on this device.

    GPUs before capability 8.0, such as a T4, only emulate bf16.
    """
    old = device == "cuda" and torch.cuda.get_device_capability()[0] < 8
    return torch.float32, torch.float16 if old else torch.bfloat16


def measure(options: argparse.Namespace, tokens: int, dtype: torch.dtype) -> dict[str, object]:
    """Return one line of the table."""
    size = {
        "hidden_size": options.hidden,
        "num_attention_heads": options.heads,
        "num_hidden_layers": 1,
    }
    config = BACKBONES["deberta"].config | size | {"vocab_size": 10}
    batch = max(1, options.batch * 256 // tokens)
    torch.manual_seed(0)
    steps = {
        side: Step(
            build_encoder(config, fast_attention=side == "kit"),
            batch,
            tokens,
            dtype,
            options.device,
        )
        for side in SIDES
    }

    # The first step of each is a warm-up and does not count.
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for counted in [False] + [True] * options.repeats:
        for side, step in steps.items():
            elapsed = step.seconds()
            if counted:
                times[side].append(elapsed)
    medians = {side: statistics.median(values) for side, values in times.items()}
    kept = {side: step.kept() for side, step in steps.items()}
    peak = {side: step.peak() for side, step in steps.items()}

    line = {"precision": str(dtype).removeprefix("torch."), "tokens": tokens, "batch": batch}
    line |= {f"{side} s": medians[side] for side in SIDES}
    line |= {f"{side} kept MiB": kept[side] / 2**20 for side in SIDES}
    line |= {f"{side} peak MiB": peak[side] / 2**20 for side in SIDES}
    line["speed"] = medians["transformers"] / medians["kit"]
    line["kept"] = kept["kit"] / kept["transformers"]
    line["peak"] = peak["kit"] / peak["transformers"]
    line["met"] = line["speed"] >= SPEED and line["peak"] <= MEMORY
    return line


def main() -> int:
    """Print a table or JSON; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512])
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="sequences of 256 tokens; as many tokens at other lengths",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5, help="counted steps of each (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here")
    lines = [
        measure(options, tokens, dtype)
        for dtype in precisions(options.device)
        for tokens in options.tokens
    ]
    setting = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    if options.json:
        print(
            json.dumps(
                setting | {"target speed": SPEED, "target peak": MEMORY, "results": lines}, indent=1
            )
        )
    else:
        print(", ".join(f"{name} {value}" for name, value in setting.items()))
        print(f"{'':22}{'seconds a step':>22}{'peak MiB':>22}{'speed':>8}{'peak':>7}{'kept':>7}")
        for line in lines:
            shape = f"{line['precision']} {line['batch']} x {line['tokens']}"
            seconds = " / ".join(f"{line[f'{side} s']:.3f}" for side in SIDES)
            peaks = " / ".join(f"{line[f'{side} peak MiB']:.0f}" for side in SIDES)
            ratios = f"{line['speed']:>8.2f}{line['peak']:>7.2f}{line['kept']:>7.2f}"
            met = "met" if line["met"] else "missed"
            print(f"{shape:22}{seconds:>22}{peaks:>22}{ratios}  {met}")
        print(f"transformers / kit; targets: speed at least {SPEED:g}, peak at most {MEMORY:g}")
    return 0 if all(line["met"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
