"""Compare kit with what its users would otherwise use.

The others are a padded notebook, transformers' Trainer and sentence-transformers.

    python benchmarks/peers.py [--raw data/raw] --backbone FOLDER [--tokens 256] [--batch 16]
    [--rows 64] [--json]

All train and predict the same rows with the same backbone, lengths and batch size, each run in a
process of its own and the contenders in turn, several times; the table has medians. Prediction
begins with texts, training with tokens where a contender makes them beforehand (all but
sentence-transformers). The peers have an environment of their own, `.venv-bench` (extra `[bench]`).
Without --raw the rows are a sample, without --backbone it is a small BERT with random weights.
Targets, kit's rows a second against the padded notebook's and the best of sentence-transformers': 3
and 2 times in training, 2.5 and 1.4 times in prediction; useful operations at half of the rate of
plain matrix products.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.sample.generate import write_sample
from kit.task import LABEL, PROMPT, RESPONSES

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-bench"
OURS = Path(sys.executable)

# For each contender its script, its precision and its options.
CONTENDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "kit": ("ours", "auto", {}),
    "kit, float32": ("ours", "fp32", {"set": ["train.precision=fp32"]}),
    "padded notebook, float32": ("notebook", "fp32", {}),
    "Trainer, collator with padding": ("collator", "half", {}),
    "sentence-transformers, float32": ("sentences", "fp32", {}),
    "sentence-transformers, half precision": ("sentences", "half", {}),
}

# How many times faster than the notebook, and than sentence-transformers.
TARGETS = {"train rows/s": (3.0, 2.0), "predict rows/s": (2.5, 1.4)}

# Useful operations, as a share of the rate of plain matrix products.
SHARE = 0.5


def install_peers() -> Path:
    """Return the peers' Python; they are installed on the first call."""
    python = PEERS / "bin/python"
    root = HERE.parent
    content = b"".join((root / name).read_bytes() for name in ("constraints.txt", "pyproject.toml"))
    wanted = hashlib.sha256(content).hexdigest()
    installed = PEERS / "installed"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing the peers in {PEERS.name} …", file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, "-c", root / "constraints.txt", f"{root}[bench]"], check=True)
        installed.write_text(wanted, encoding="utf-8")
    return python


def draw_rows(
    raw: Path | None, count: int, predicted: int, scratch: Path
) -> tuple[list[dict], list[dict]]:
    """Draw rows to train on and to predict, from a raw folder's or a sample's training rows."""
    if raw is None:
        raw = scratch / "raw"
        write_sample(raw, rows=max(4000, count + predicted), seed=0)
    preprocess_files(raw, scratch / "processed")
    table = open_dataset(scratch / "processed").train([PROMPT, *RESPONSES, LABEL])
    chosen = np.random.default_rng(0).permutation(table.num_rows)[: count + predicted]
    columns = dict(zip(("prompt", "a", "b"), (PROMPT, *RESPONSES), strict=True))
    rows = [
        {"label": row[LABEL]} | {key: "\n".join(row[name]) for key, name in columns.items()}
        for row in table.take(chosen).to_pylist()
    ]
    return rows[:count], rows[count:]


def write_small_bert(rows: list[dict], folder: Path) -> Path:
    """Write a BERT of MiniLM's size with random weights and a vocabulary of these rows."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    from kit.model.encoder import build_encoder

    words = BertWordPieceTokenizer()
    texts = (row[key] for row in rows for key in ("prompt", "a", "b"))
    words.train_from_iterator(texts, vocab_size=30522)
    words.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    build_encoder(config, fast_attention=False).save_pretrained(folder)
    return folder


def run_contender(name: str, job: Path, device: str, half: str) -> dict[str, Any]:
    """Run a contender once, and return its report."""
    script, precision, options = CONTENDERS[name]
    python = OURS if script == "ours" else install_peers()
    run = {"precision": half if precision == "half" else precision, "options": options}
    run |= {"device": device, "started": time.time()}
    command = [str(python), str(HERE / "contenders" / f"{script}.py"), str(job), json.dumps(run)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def choose_half(device: str) -> str:
    """Return the half precision that suits the device; before capability 8.0 bf16 is emulated."""
    if device == "cpu":
        return "bf16"
    from kit.model.device import choose_device

    return "fp16" if choose_device().precision == "fp16" else "bf16"


def main() -> int:
    """Print the table or JSON; return 1 when a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, help="a folder of Kaggle's files (default: a sample)")
    parser.add_argument(
        "--backbone", type=Path, help="a folder in Hugging Face layout (default: random weights)"
    )
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, default=64, help="rows of an epoch (default: 64)")
    parser.add_argument("--predict", type=int, default=128, help="rows to predict (default: 128)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--half",
        choices=["bf16", "fp16"],
        help="the peers' half precision (default: bf16, fp16 on a GPU that only emulates bf16)",
    )
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    options.half = options.half or choose_half(options.device)
    names = options.only or list(CONTENDERS)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        train, predict = draw_rows(options.raw, options.rows, options.predict, scratch)
        if options.backbone is None:
            (scratch / "bert").mkdir()
            options.backbone = write_small_bert(train + predict, scratch / "bert")
        job = scratch / "job.json"
        sizes = {
            "backbone": str(options.backbone.resolve()),
            "tokens": options.tokens,
            "batch": options.batch,
        }
        job.write_text(json.dumps(sizes | {"train": train, "predict": predict}), encoding="utf-8")

        # Every other round goes backwards, so that none always runs after the same one.
        bouts: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(options.repeats):
            for name in names if number % 2 == 0 else names[::-1]:
                bouts[name].append(run_contender(name, job, options.device, options.half))
                print(f"{number + 1}/{options.repeats} {name}: {bouts[name][-1]}", file=sys.stderr)
    medians = {
        name: {key: _median([bout[key] for bout in reports]) for key in reports[0]}
        for name, reports in bouts.items()
    }
    checks = check_targets(medians) if set(names) == set(CONTENDERS) else {}
    if options.json:
        print(json.dumps({"medians": medians, "checks": checks, "bouts": bouts}, indent=1))
    else:
        print_table(medians, checks)
    return 0 if all(check["met"] for check in checks.values()) else 1


def check_targets(medians: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return for each target what was reached, and whether that is enough."""
    ours = medians["kit"]
    notebook = medians["padded notebook, float32"]
    peers = [found for name, found in medians.items() if name.startswith("sentence-transformers")]
    checks = {}
    for key, (over_notebook, over_sentences) in TARGETS.items():
        best = max(found[key] for found in peers)
        checks[f"{key} / padded notebook"] = _check(ours[key] / notebook[key], over_notebook)
        checks[f"{key} / sentence-transformers at its best"] = _check(
            ours[key] / best, over_sentences
        )
    for name in ("kit", "kit, float32"):
        found = medians[name]
        check = _check(found["GFLOP/s"] / found["GEMM GFLOP/s"], SHARE)
        checks[f"{name}: useful operations / matrix products in {found['precision']}"] = check
    return checks


def _check(found: float, least: float) -> dict[str, Any]:
    return {"found": found, "at least": least, "met": found >= least}


def _median(values: list[Any]) -> Any:
    return values[0] if isinstance(values[0], str) else statistics.median(values)


def print_table(medians: dict[str, dict[str, Any]], checks: dict[str, dict[str, Any]]) -> None:
    """Print medians and targets as Markdown tables."""
    keys = [
        "train rows/s",
        "predict rows/s",
        "tokenise rows/s",
        "padding",
        "start-up s",
        "peak MiB",
    ]
    if any("GPU MiB" in found for found in medians.values()):
        keys.append("GPU MiB")
    print("| | " + " | ".join(keys) + " |\n|" + " --- |" * (len(keys) + 1))
    for name, found in medians.items():
        digits = {key: 3 if key == "padding" else 1 for key in keys}
        cells = [f"{found[key]:.{digits[key]}f}" if key in found else "" for key in keys]
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name in ("kit", "kit, float32"):
        if name not in medians:
            continue
        found = medians[name]
        setting = f"{found['precision']}, {found['threads']:.0f} threads"
        tokens = f"{found['useful tokens/s']:.0f} useful tokens/s"
        rates = f"{found['GFLOP/s']:.0f} of {found['GEMM GFLOP/s']:.0f} GFLOP/s"
        print(f"\n{name}: {setting}, {tokens}, {rates}")
    if checks:
        print("\n| target | reached | at least | |\n| --- | --- | --- | --- |")
    for name, check in checks.items():
        met = "met" if check["met"] else "missed"
        print(f"| {name} | {check['found']:.2f} | {check['at least']:g} | {met} |")


if __name__ == "__main__":
    sys.exit(main())
