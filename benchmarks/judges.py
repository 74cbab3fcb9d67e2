"""Compare kit's judges with transformers' sequence classifier and with pairjudge.

    python benchmarks/judges.py --backbone FOLDER [--raw data/raw] [--tokens 384] [--rows 32]
    [--only NAME] [--json]

All train adapters of the same rank on the same decoder and rows, both orders of the answers in an
epoch, and predict both orders. Each runs in a process of its own and in turn, several times; the
table has medians. pairjudge computes in float32 on a CPU, and has an environment of its own. kit's
targets: against the classifier 2 times the rows a second in training and 1.8 times in prediction,
at no more than 0.7 of the peak memory; against pairjudge 2 times both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import draw_rows, install_peers

HERE = Path(__file__).parent
RANK = 16
KIT = {
    "recipe": "judge",
    "set": [f"train.lora_rank={RANK}", f"train.lora_alpha={RANK / 2}", "train.lora_dropout=0.0"],
}
CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "kit": ("ours", KIT),
    "classifier": ("classifier", {"rank": RANK, "dropout": 0.0}),
    "pairjudge": ("library", {"rank": RANK}),
}

# How many times the other's rows a second, and how much of its memory.
RATES = ("train rows/s", "predict rows/s")
TARGETS = {
    "classifier": {"train rows/s": 2.0, "predict rows/s": 1.8, "peak MiB": 0.7},
    "pairjudge": {"train rows/s": 2.0, "predict rows/s": 2.0},
}


def run_contender(name: str, job: Path, device: str, precision: str) -> dict[str, Any]:
    """Run a contender once, and return its report."""
    script, options = CONTENDERS[name]
    if "set" in options:
        options = options | {"set": [*options["set"], f"train.precision={precision}"]}
    run = {"precision": precision, "options": options, "device": device, "started": time.time()}
    contender = HERE / "contenders" / f"{script}.py"
    python = install_peers() if name == "pairjudge" else sys.executable
    command = [str(python), str(contender), str(job), json.dumps(run)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the table or JSON; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", type=Path, required=True, help="a decoder's folder")
    parser.add_argument("--raw", type=Path, help="a folder of Kaggle's files (default: a sample)")
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=32, help="rows of an epoch (default: 32)")
    parser.add_argument("--predict", type=int, default=32, help="rows to predict (default: 32)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="beside kit; repeat")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        train, predict = draw_rows(options.raw, options.rows, options.predict, Path(folder))
        job = Path(folder) / "job.json"
        content = {
            "backbone": str(options.backbone.resolve()),
            "tokens": options.tokens,
            "batch": options.batch,
            "train": train,
            "predict": predict,
        }
        job.write_text(json.dumps(content), encoding="utf-8")
        others = options.only or list(TARGETS)
        names = ["kit", *(name for name in others if name != "kit")]
        bouts: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(options.repeats):
            for name in names:
                found = run_contender(name, job, options.device, options.precision)
                bouts[name].append(found)
                print(f"{number + 1}/{options.repeats} {name}: {found}", file=sys.stderr)

    keys = (*RATES, "peak MiB", "log loss")
    medians = {
        name: {key: statistics.median(bout[key] for bout in reports) for key in keys}
        for name, reports in bouts.items()
    }
    ours = medians["kit"]
    ratios = {
        name: {key: ours[key] / medians[name][key] for key in (*RATES, "peak MiB")}
        for name in names[1:]
    }
    met = all(
        ratios[name][key] >= target if key in RATES else ratios[name][key] <= target
        for name in ratios
        for key, target in TARGETS[name].items()
    )
    if options.json:
        print(json.dumps({"medians": medians, "ratios": ratios, "met": met}, indent=1))
    else:
        print("| | " + " | ".join(keys) + " |\n|" + " --- |" * (len(keys) + 1))
        for name, found in medians.items():
            print(f"| {name} | " + " | ".join(f"{found[key]:.3g}" for key in keys) + " |")
        for name, found in ratios.items():
            print(f"\nkit to {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
