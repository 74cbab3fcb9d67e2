"""Measure what more rows cost: time per row and peak memory, from 1,000 rows to half a million.

    python benchmarks/growth.py --figure docs/growth.svg

Each step is a process of its own: `kit sample`, `kit preprocess`, tokens and features of the
training rows, and `kit predict --input test.csv` by a tiny encoder at 32 tokens a side, trained on
the smallest sample for a few steps.

Targets: under 8 GiB at any size. From the last size but one to the largest, memory grows by at
most twice the text that the step reads, and CPU time per row, without start-up, at most by half.
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
STEPS = ("sample", "preprocess", "encode", "predict")
OVERRIDES = ("encode.max_tokens=32", "train.max_steps=8", "train.evals_per_epoch=1")
TRAIN_TINY = (
    *("train", "--backbone", "tiny-electra"),
    *(word for override in OVERRIDES for word in ("--set", override)),
)
MIB = 1024**2

# The targets: peak memory, memory per byte of text, and CPU time per row of the largest size
# relative to the size before it.
MAX_PEAK_MIB = 8192
MAX_MIB_PER_MIB_OF_TEXT = 2.0
MAX_SLOWDOWN = 1.5


def encode_rows(data: Path, part: Path) -> None:
    """Make tokens and features of the training rows in this process, as a training does."""
    from kit.data.dataset import open_dataset
    from kit.data.feature_cache import features_cached
    from kit.data.tokenize import tokenize_cached
    from kit.model.backbones import local_backbone
    from kit.model.encoder import load_tokenizer
    from kit.run import Run

    processed = open_dataset(data)
    rows = processed.train()
    content = processed.digest("train")
    spec = Run.open(part.parent).recipe.encode

    encoded = tokenize_cached(
        rows, content, load_tokenizer(local_backbone(part)), spec, processed.cache
    )
    features_cached(rows, content, encoded, processed.cache)


def measure(*command: str | Path) -> dict[str, float]:
    """Run a fresh process; return seconds, CPU seconds and peak resident memory in MiB."""
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    # kit waits until its files are on disk, and would also wait for those of the step before.
    os.sync()

    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-P", *map(str, command)], env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            log.seek(0)
            words = " ".join(map(str, command))
            raise SystemExit(f"{words} ended with {child.returncode}:\n{log.read()[-2000:]}")

    # macOS counts bytes, Linux KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss * unit / MIB,
    }


def measure_all(sizes: list[int], folder: Path) -> list[dict]:
    """Return a record for each size and step: what `measure` returns, rows, MiB of text read."""
    records: list[dict] = []
    part = None
    for size in sizes:
        raw = folder / f"raw{size}"
        data = folder / f"data{size}"
        # As many test rows as a sample has.
        tested = max(3, size // 4)

        def record(
            step: str, rows: int, text_mib: float, figures: dict[str, float], sample: int = size
        ) -> None:
            records.append(
                {"sample": sample, "step": step, "rows": rows, "text_mib": text_mib, **figures}
            )
            print(json.dumps(records[-1]), file=sys.stderr, flush=True)

        figures = measure("-m", "kit", "sample", "--rows", str(size), "--out", raw)
        record("sample", size + tested, 0.0, figures)
        train_mib = (raw / "train.csv").stat().st_size / MIB
        test_mib = (raw / "test.csv").stat().st_size / MIB

        figures = measure("-m", "kit", "preprocess", "--raw", raw, "--out", data)
        record("preprocess", size + tested, train_mib + test_mib, figures)

        # Every size is predicted by the encoder that was trained on the smallest.
        if part is None:
            measure("-m", "kit", *TRAIN_TINY, "--data", data, "--runs", folder / "runs")
            part = next((folder / "runs").glob("*/holdout"))

        figures = measure(__file__, "--child", "encode", "--data", data, "--part", part)
        record("encode", size, train_mib, figures)

        out = folder / f"predictions{size}.csv"
        figures = measure(
            "-m", "kit", "predict", part.parent, "--input", raw / "test.csv", "-o", out
        )
        record("predict", tested, test_mib, figures)

        shutil.rmtree(raw)
        shutil.rmtree(data)
    return records


def compute_growth(records: list[dict]) -> dict:
    """Return by how much memory and CPU time per row of one step grow, from its records by size.

    Start-up, which is what the smallest size costs, is subtracted. CPU seconds, since others may
    use the machine. Memory is compared between the two largest sizes, because up to some thousand
    rows it grows with the batches that are worked on at a time.
    """
    smallest, *_, second, largest = records
    text = largest["text_mib"] - second["text_mib"]
    memory = largest["peak_mib"] - second["peak_mib"]

    def seconds_per_row(record: dict) -> float:
        seconds = record["cpu_seconds"] - smallest["cpu_seconds"]
        return seconds / (record["rows"] - smallest["rows"])

    return {
        "mib_per_mib_of_text": memory / text if text else 0.0,
        "cpu_microseconds_per_row": seconds_per_row(largest) * 1e6,
        "slower": seconds_per_row(largest) / seconds_per_row(second),
        "peak_mib": max(record["peak_mib"] for record in records),
    }


def check_targets(growth: dict) -> dict[str, bool]:
    """Return which targets one step meets."""
    return {
        "peak": growth["peak_mib"] < MAX_PEAK_MIB,
        "memory": growth["mib_per_mib_of_text"] <= MAX_MIB_PER_MIB_OF_TEXT,
        "time": growth["slower"] <= MAX_SLOWDOWN,
    }


def draw_figure(records: list[dict], path: Path) -> None:
    """Draw CPU time per row and peak memory against rows, a line for each step, as SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "growth",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with rc_context(style):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        canvas = FigureCanvasSVG(figure)
        cost, memory = figure.subplots(1, 2)

        for step in STEPS:
            of_step = [record for record in records if record["step"] == step]
            rows = [record["rows"] for record in of_step]
            milliseconds = [1000 * record["cpu_seconds"] / record["rows"] for record in of_step]
            cost.plot(rows, milliseconds, marker="o", label=step)
            memory.plot(rows, [record["peak_mib"] / 1024 for record in of_step], marker="o")

        memory.axhline(MAX_PEAK_MIB / 1024, color="0.6", linestyle="--", linewidth=1)
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


def print_result(result: dict) -> None:
    """Print the records as a table, and each step's growth against the targets."""
    columns = ("rows", "step", "seconds", "CPU s", "ms a row", "peak MiB", "text MiB")
    print("{:>9} {:12}{:>9}{:>9}{:>10}{:>10}{:>10}".format(*columns))
    for record in result["records"]:
        print(
            f"{record['rows']:>9,} {record['step']:12}"
            f"{record['seconds']:9.1f}{record['cpu_seconds']:9.1f}"
            f"{1000 * record['cpu_seconds'] / record['rows']:10.2f}"
            f"{record['peak_mib']:10.0f}{record['text_mib']:10.0f}"
        )

    for step, growth in result["growth"].items():
        words = {
            "peak": f"{growth['peak_mib'] / 1024:.1f} GiB (target under {MAX_PEAK_MIB / 1024:g})",
            "memory": f"{growth['mib_per_mib_of_text']:.2f} times its text "
            f"(at most {MAX_MIB_PER_MIB_OF_TEXT:g})",
            "time": f"{growth['slower']:.2f} times the CPU time per row (at most {MAX_SLOWDOWN})",
        }
        verdicts = (
            f"{words[name]}: {'met' if met else 'MISSED'}"
            for name, met in result["met"][step].items()
        )
        print(f"{step}: " + "; ".join(verdicts))


def main() -> None:
    """Measure all sizes and print the result; exit with 1 if a target is missed."""
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
        encode_rows(arguments.data, arguments.part)
        sys.exit()
    if len(arguments.rows) < 3 or sorted(set(arguments.rows)) != list(arguments.rows):
        parser.error("--rows needs three sizes or more, ascending")

    with tempfile.TemporaryDirectory() as folder:
        records = measure_all(arguments.rows, Path(folder))
    growth = {
        step: compute_growth([record for record in records if record["step"] == step])
        for step in STEPS
    }
    met = {step: check_targets(growth[step]) for step in STEPS}
    result = {"date": date.today().isoformat(), "records": records, "growth": growth, "met": met}

    if arguments.figure:
        draw_figure(records, arguments.figure)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    sys.exit(0 if all(all(verdicts.values()) for verdicts in met.values()) else 1)


if __name__ == "__main__":
    main()
