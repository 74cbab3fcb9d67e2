"""What more rows cost: seconds per row and peak memory of each step, from a thousand rows to half a million.

    python benchmarks/growth.py --figure docs/growth.svg

Each step is a process of its own: `kit sample`, `kit preprocess`, tokens and features of the training rows, and
`kit predict --input test.csv` by a tiny encoder at 32 tokens a side, trained on the smallest sample for a few steps.
Targets: under 8 GiB at any size; from the last size but one to the largest, memory grows by at most twice the text
that the step reads, and the largest costs at most 1.5 times as much CPU time a row, start-up aside.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROWS = (1_000, 8_000, 57_477, 500_000)
PEAK_MIB, TEXTS, SLOWER = 8192, 2.0, 1.5
STEPS = ("sample", "preprocess", "encode", "predict")
OVERRIDES = ("encode.max_tokens=32", "train.max_steps=8", "train.evals_per_epoch=1")
TINY = (
    "train",
    "--backbone",
    "tiny-electra",
    *(each for override in OVERRIDES for each in ("--set", override)),
)
MIB = 1024**2


def encode(data: Path, part: Path) -> None:
    """Tokens and features of the training rows, as a training makes them; in this process."""
    from kit.data.dataset import open_dataset
    from kit.data.feature_cache import features_cached
    from kit.data.tokenize import tokenize_cached
    from kit.model.backbones import local_backbone
    from kit.model.encoder import load_tokenizer
    from kit.run import Run

    processed = open_dataset(data)
    rows, content, spec = (
        processed.train(),
        processed.digest("train"),
        Run.open(part.parent).recipe.encode,
    )
    tokenizer = load_tokenizer(local_backbone(part))
    encoded = tokenize_cached(rows, content, tokenizer, spec, processed.cache)
    features_cached(rows, content, encoded, processed.cache)


def measure(*command: str | Path) -> dict[str, float]:
    """A fresh process from start to end: seconds, seconds of CPU, and peak resident memory in MiB."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    os.sync()  # kit waits for its files to be on disk, and would wait for those of the step before
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-P", *map(str, command)], env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if child.returncode:
            raise SystemExit(
                f"{' '.join(map(str, command))} ended with {child.returncode}:\n{log.read()[-2000:]}"
            )
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss
        * (1 if sys.platform == "darwin" else 1024)
        / MIB,  # macOS counts bytes, Linux KiB
    }


def walk(sizes: list[int], folder: Path) -> list[dict]:
    """One record for each sample and step: rows and MiB of text that the step reads, and what `measure` says."""
    records: list[dict] = []
    part = None
    for rows in sizes:
        raw, data = folder / f"raw{rows}", folder / f"data{rows}"
        figures = measure("-m", "kit", "sample", "--rows", str(rows), "--out", raw)
        train, test = ((raw / name).stat().st_size / MIB for name in ("train.csv", "test.csv"))
        tested = max(3, rows // 4)  # as many as a sample has

        def note(
            step: str, rows: int, text_mib: float, figures: dict[str, float], sample: int = rows
        ) -> None:
            records.append(
                {"sample": sample, "step": step, "rows": rows, "text_mib": text_mib, **figures}
            )
            print(json.dumps(records[-1]), file=sys.stderr, flush=True)

        note("sample", rows + tested, 0.0, figures)
        figures = measure("-m", "kit", "preprocess", "--raw", raw, "--out", data)
        note("preprocess", rows + tested, train + test, figures)
        if part is None:
            measure("-m", "kit", *TINY, "--data", data, "--runs", folder / "runs")
            part = next((folder / "runs").glob("*/holdout"))
        note(
            "encode",
            rows,
            train,
            measure(__file__, "--child", "encode", "--data", data, "--part", part),
        )
        out = folder / f"predictions{rows}.csv"
        figures = measure(
            "-m", "kit", "predict", part.parent, "--input", raw / "test.csv", "-o", out
        )
        note("predict", tested, test, figures)
        shutil.rmtree(raw)
        shutil.rmtree(data)
    return records


def growth(records: list[dict]) -> dict:
    """Of one step, by size: what memory grows by for each byte of text, and how much dearer the last rows are.

    Start-up, which is what the smallest size costs, is taken off; CPU seconds, since others may use the machine. Up
    to some thousand rows memory grows with the pieces that are worked on at a time, so the smallest is no measure.
    """
    least, *_, before, most = records
    text = most["text_mib"] - before["text_mib"]
    each = [
        (r["cpu_seconds"] - least["cpu_seconds"]) / (r["rows"] - least["rows"])
        for r in (before, most)
    ]
    return {
        "mib_per_mib_of_text": (most["peak_mib"] - before["peak_mib"]) / text if text else 0.0,
        "cpu_microseconds_per_row": each[1] * 1e6,
        "slower": each[1] / each[0],
        "peak_mib": max(r["peak_mib"] for r in records),
    }


def draw(records: list[dict], path: Path) -> None:
    """CPU time per row and peak memory against rows, a line for each step."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(
        {
            "svg.hashsalt": "growth",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        cost, memory = figure.subplots(1, 2)
        for step in STEPS:
            of = [r for r in records if r["step"] == step]
            rows = [r["rows"] for r in of]
            cost.plot(
                rows, [1000 * r["cpu_seconds"] / r["rows"] for r in of], marker="o", label=step
            )
            memory.plot(rows, [r["peak_mib"] / 1024 for r in of], marker="o", label=step)
        memory.axhline(PEAK_MIB / 1024, color="0.6", linestyle="--", linewidth=1)
        cost.set(
            xscale="log",
            yscale="log",
            xlabel="rows of the step",
            title="CPU milliseconds a row, start-up included",
        )
        memory.set(
            xscale="log",
            ylim=(0, None),
            xlabel="rows of the step",
            title="peak memory in GiB (dashed: the target)",
        )
        cost.legend(frameon=False)
        figure.get_layout_engine().set(w_pad=0.1)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.print_svg(path, metadata={"Date": None})


def show(result: dict) -> None:
    columns = ("rows", "step", "seconds", "CPU s", "ms a row", "peak MiB", "text MiB")
    print("{:>9} {:12}{:>9}{:>9}{:>10}{:>10}{:>10}".format(*columns))
    for r in result["records"]:
        each = 1000 * r["cpu_seconds"] / r["rows"]
        print(
            f"{r['rows']:>9,} {r['step']:12}{r['seconds']:9.1f}{r['cpu_seconds']:9.1f}{each:10.2f}"
            f"{r['peak_mib']:10.0f}{r['text_mib']:10.0f}"
        )
    for step, found in result["growth"].items():
        met = result["met"][step]
        words = {"peak": f"{found['peak_mib'] / 1024:.1f} GiB (target under {PEAK_MIB / 1024:g})"}
        words["memory"] = f"{found['mib_per_mib_of_text']:.2f} times its text (at most {TEXTS:g})"
        words["time"] = f"{found['slower']:.2f} times as dear a row (at most {SLOWER})"
        print(
            f"{step}: "
            + "; ".join(
                f"{words[name]}: {'met' if good else 'MISSED'}" for name, good in met.items()
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=ROWS, help="three sizes or more, ascending"
    )
    parser.add_argument("--figure", type=Path, help="draw the result into this SVG file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--child", choices=["encode"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        encode(arguments.data, arguments.part)
        sys.exit()
    if len(arguments.rows) < 3 or sorted(set(arguments.rows)) != list(arguments.rows):
        parser.error("--rows needs three sizes or more, ascending")
    with tempfile.TemporaryDirectory() as folder:
        records = walk(arguments.rows, Path(folder))
    found = {step: growth([r for r in records if r["step"] == step]) for step in STEPS}
    met = {
        step: {
            "peak": each["peak_mib"] < PEAK_MIB,
            "memory": each["mib_per_mib_of_text"] <= TEXTS,
            "time": each["slower"] <= SLOWER,
        }
        for step, each in found.items()
    }
    result = {"date": date.today().isoformat(), "records": records, "growth": found, "met": met}
    if arguments.figure:
        draw(records, arguments.figure)
    print(json.dumps(result, indent=1)) if arguments.json else show(result)
    sys.exit(0 if all(all(each.values()) for each in met.values()) else 1)


if __name__ == "__main__":
    main()
