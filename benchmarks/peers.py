"""kit against what its users would otherwise take: a padded notebook, transformers' Trainer, sentence-transformers.

    python benchmarks/peers.py [--raw data/raw] --backbone FOLDER [--tokens 256] [--batch 16] [--rows 64] [--json]

All train and predict the same rows with the same backbone, lengths and batch size, each run in a process of its own and
the contenders in turn, several times; the table has medians. Prediction begins with texts, training with tokens where
a contender makes them beforehand (all but sentence-transformers). The peers have an environment of their own,
`.venv-bench` (extra `[bench]`). Without --raw the rows are a sample, without --backbone it is a small BERT with random
weights. Targets, kit's rows a second against the padded notebook's and the best of sentence-transformers': 3 and 2
times in training, 2.5 and 1.4 times in prediction; useful operations at half of the rate of plain matrix products.
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
CONTENDERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # the script, the precision, options
    "kit": ("ours", "auto", {}),
    "kit, float32": ("ours", "fp32", {"set": ["train.precision=fp32"]}),
    "padded notebook, float32": ("notebook", "fp32", {}),
    "Trainer, collator with padding": ("collator", "half", {}),
    "sentence-transformers, float32": ("sentences", "fp32", {}),
    "sentence-transformers, half precision": ("sentences", "half", {}),
}
TARGETS = {
    "train rows/s": (3.0, 2.0),
    "predict rows/s": (2.5, 1.4),
}  # against the notebook, sentence-transformers
SHARE = 0.5


def environment() -> Path:
    """The peers' Python, installed on the first call."""
    python = PEERS / "bin/python"
    wanted = "".join(
        (HERE.parent / name).read_text(encoding="utf-8") for name in ("constraints.txt", "pyproject.toml")
    )
    wanted, installed = hashlib.sha256(wanted.encode()).hexdigest(), PEERS / "installed"
    if not installed.exists() or installed.read_text(encoding="utf-8") != wanted:
        print(f"installing the peers in {PEERS.name} …", file=sys.stderr)
        venv.create(PEERS, with_pip=True, clear=True)
        constraints = ["-c", str(HERE.parent / "constraints.txt")]
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *constraints, f"{HERE.parent}[bench]"],
            check=True,
        )
        installed.write_text(wanted, encoding="utf-8")
    return python


def rows_of(
    raw: Path | None, count: int, predicted: int, scratch: Path
) -> tuple[list[dict], list[dict]]:
    """Rows to train on and rows to predict, drawn from the training rows of a raw folder, or of a sample."""
    if raw is None:
        raw = scratch / "raw"
        write_sample(raw, rows=max(4000, count + predicted), seed=0)
    preprocess_files(raw, scratch / "processed")
    table = open_dataset(scratch / "processed").train([PROMPT, *RESPONSES, LABEL])
    chosen = np.random.default_rng(0).permutation(table.num_rows)[: count + predicted]
    rows = [
        {"label": row[LABEL]}
        | {
            key: "\n".join(row[name])
            for key, name in zip(("prompt", "a", "b"), (PROMPT, *RESPONSES), strict=True)
        }
        for row in table.take(chosen).to_pylist()
    ]
    return rows[:count], rows[count:]


def small_bert(rows: list[dict], folder: Path) -> Path:
    """MiniLM's size (6 layers of 384) with random weights, and a WordPiece vocabulary of these rows."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    from kit.model.encoder import build_encoder

    words = BertWordPieceTokenizer()
    words.train_from_iterator(
        (row[key] for row in rows for key in ("prompt", "a", "b")), vocab_size=30522
    )
    words.save_model(str(folder))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    size = {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    build_encoder(
        {"model_type": "bert", "vocab_size": 30522} | size, fast_attention=False
    ).save_pretrained(folder)
    return folder


def run(name: str, job: Path, device: str, half: str) -> dict[str, Any]:
    """One bout of a contender: what it reports."""
    script, precision, options = CONTENDERS[name]
    python = OURS if script == "ours" else environment()
    said = {"precision": half if precision == "half" else precision, "options": options}
    said |= {"device": device, "started": time.time()}
    command = [str(python), str(HERE / "contenders" / f"{script}.py"), str(job), json.dumps(said)]
    settings = {"TOKENIZERS_PARALLELISM": "true"} | (
        {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    )
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Prints the table, or JSON; exits with 1 when a target is missed."""
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
        "--half", choices=["bf16", "fp16"], default="bf16", help="the peers' half precision"
    )
    parser.add_argument("--only", action="append", choices=list(CONTENDERS))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    names = options.only or list(CONTENDERS)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        train, predict = rows_of(options.raw, options.rows, options.predict, scratch)
        if options.backbone is None:
            (scratch / "bert").mkdir()
            options.backbone = small_bert(train + predict, scratch / "bert")
        job = scratch / "job.json"
        sizes = {
            "backbone": str(options.backbone.resolve()),
            "tokens": options.tokens,
            "batch": options.batch,
        }
        job.write_text(json.dumps(sizes | {"train": train, "predict": predict}), encoding="utf-8")
        bouts: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(options.repeats):
            for name in names if number % 2 == 0 else names[::-1]:
                bouts[name].append(run(name, job, options.device, options.half))
                print(f"{number + 1}/{options.repeats} {name}: {bouts[name][-1]}", file=sys.stderr)
    medians = {
        name: {key: _median([bout[key] for bout in each]) for key in each[0]}
        for name, each in bouts.items()
    }
    checks = judge(medians) if set(names) == set(CONTENDERS) else {}
    if options.json:
        print(json.dumps({"medians": medians, "checks": checks, "bouts": bouts}, indent=1))
    else:
        print_table(medians, checks)
    return 0 if all(check["met"] for check in checks.values()) else 1


def judge(medians: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each target, what was reached, and whether that is enough."""
    ours, notebook = medians["kit"], medians["padded notebook, float32"]
    sentences = [each for name, each in medians.items() if name.startswith("sentence-transformers")]
    checks = {}
    for key, (over_notebook, over_sentences) in TARGETS.items():
        best = max(each[key] for each in sentences)
        checks[f"{key} / padded notebook"] = _check(ours[key] / notebook[key], over_notebook)
        checks[f"{key} / sentence-transformers at its best"] = _check(
            ours[key] / best, over_sentences
        )
    for name in ("kit", "kit, float32"):
        each = medians[name]
        checks[f"{name}: useful operations / matrix products in {each['precision']}"] = _check(
            each["GFLOP/s"] / each["GEMM GFLOP/s"], SHARE
        )
    return checks


def _check(found: float, least: float) -> dict[str, Any]:
    return {"found": found, "at least": least, "met": found >= least}


def _median(values: list[Any]) -> Any:
    return values[0] if isinstance(values[0], str) else statistics.median(values)


def print_table(medians: dict[str, dict[str, Any]], checks: dict[str, dict[str, Any]]) -> None:
    """As Markdown."""
    keys = [
        "train rows/s",
        "predict rows/s",
        "tokenise rows/s",
        "padding",
        "start-up s",
        "peak MiB",
    ]
    keys += ["GPU MiB"] if any("GPU MiB" in each for each in medians.values()) else []
    print("| | " + " | ".join(keys) + " |\n|" + " --- |" * (len(keys) + 1))
    for name, each in medians.items():
        cells = (
            f"{each[key]:.{3 if key == 'padding' else 1}f}" if key in each else "" for key in keys
        )
        print(f"| {name} | " + " | ".join(cells) + " |")
    for name in (name for name in ("kit", "kit, float32") if name in medians):
        each = medians[name]
        said = f"{each['precision']}, {each['threads']:.0f} threads, {each['useful tokens/s']:.0f} useful tokens/s"
        print(f"\n{name}: {said}, {each['GFLOP/s']:.0f} of {each['GEMM GFLOP/s']:.0f} GFLOP/s")
    if checks:
        print("\n| target | reached | at least | |\n| --- | --- | --- | --- |")
    for name, check in checks.items():
        print(
            f"| {name} | {check['found']:.2f} | {check['at least']:g} | {'met' if check['met'] else 'missed'} |"
        )


if __name__ == "__main__":
    sys.exit(main())
