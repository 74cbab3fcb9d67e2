"""Time the commands that only compute with numbers against the import of their libraries.

Measures whole processes, as a user waits for them: `kit validate` and `kit score` on 25,000
generated rows against importing pandas and scikit-learn's metrics, and `kit --help` against
importing click. Run: python benchmarks/scoring.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit import task
from kit.predictions import make_predictions, write_predictions
from kit.storage import atomic

ROOT = Path(__file__).resolve().parent.parent
KIT = [sys.executable, "-m", "kit"]

# The yardsticks: processes that only import.
LIBRARIES = "import pandas, sklearn.metrics"
CLICK = "import click"


@dataclass(frozen=True)
class RelativeTiming:
    """The median seconds of a command and of its yardstick, their ratio, and the target ratio."""

    command: str
    seconds: float
    yardstick: str
    yardstick_seconds: float
    ratio: float
    target: float
    met: bool


def write_random_files(folder: Path, rows: int, seed: int = 0) -> tuple[Path, Path]:
    """Write a prediction file and its truth in another order, which is the sample too."""
    generator = np.random.default_rng(seed)
    ids = generator.choice(2**32, rows, replace=False)
    probabilities = generator.dirichlet([2, 2, 2], rows)
    write_predictions(make_predictions(ids, probabilities), folder / "predictions.csv")

    labels = generator.integers(0, len(task.CLASSES), rows)
    one_hot = np.eye(len(task.CLASSES), dtype=int)[labels]
    truth = pd.DataFrame(one_hot, columns=list(task.CLASSES))
    truth.insert(0, task.ID, ids)
    shuffled = truth.sample(frac=1, random_state=seed)
    atomic.write_text(folder / "truth.csv", shuffled.to_csv(index=False, lineterminator="\n"))
    return folder / "predictions.csv", folder / "truth.csv"


def time_command(command: list[str]) -> float:
    """Return the wall time of one process in seconds, run from the repository's root.

    Raises:
        SystemExit: the process failed; with the end of its output.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
    )
    elapsed = time.perf_counter() - start
    if done.returncode:
        output = (done.stderr or done.stdout)[-2000:]
        sys.exit(f"{' '.join(command)}\nfailed with {done.returncode}:\n{output}")
    return elapsed


def median_seconds(commands: Mapping[str, Sequence[str]], repeats: int) -> dict[str, float]:
    """Return the median wall time of each command over `repeats` runs.

    Commands take turns, so that a busy moment of the machine slows all of them alike. A first round
    fills the caches and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in commands}
    for counted in [False] + [True] * repeats:
        for name, command in commands.items():
            elapsed = time_command([*command])
            if counted:
                times[name].append(elapsed)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def run_benchmark(rows: int, repeats: int) -> list[RelativeTiming]:
    """Return the timing of every command against its yardstick."""
    with tempfile.TemporaryDirectory() as name:
        file, truth = (str(path) for path in write_random_files(Path(name), rows))
        commands = {
            LIBRARIES: [sys.executable, "-c", LIBRARIES],
            CLICK: [sys.executable, "-c", CLICK],
            "kit validate": [*KIT, "validate", file, "--sample", truth],
            "kit score": [*KIT, "score", file, "--truth", truth],
            "kit --help": [*KIT, "--help"],
        }
        median = median_seconds(commands, repeats)

    def against(command: str, yardstick: str, target: float) -> RelativeTiming:
        ratio = median[command] / median[yardstick]
        return RelativeTiming(
            command, median[command], yardstick, median[yardstick], ratio, target, ratio <= target
        )

    return [
        against("kit validate", LIBRARIES, 2),
        against("kit score", LIBRARIES, 2),
        against("kit --help", CLICK, 3),
    ]


def make_parser(description: str | None, rows: int, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of --rows, --repeats and --json, with these defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=rows, help=f"rows of the generated files (default: {rows})"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=repeats,
        help=f"counted runs of each command (default: {repeats})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command line's options, after checking the counts."""
    options = parser.parse_args()
    if options.rows < 1 or options.repeats < 1:
        parser.error("--rows and --repeats must be 1 or more")
    return options


def describe_setting(options: argparse.Namespace) -> dict[str, object]:
    """Return what the figures depend on: sizes, cores and versions."""
    return {
        "rows": options.rows,
        "repeats": options.repeats,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "pandas": pd.__version__,
        "numpy": np.__version__,
    }


def main() -> None:
    """Print a table, or JSON with --json."""
    options = parse_options(make_parser(__doc__, rows=25_000, repeats=7))
    results = run_benchmark(options.rows, options.repeats)
    setting = describe_setting(options)
    if options.json:
        print(json.dumps(setting | {"results": [asdict(result) for result in results]}, indent=1))
        return

    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(
        f"{'command':<14}{'median s':>9}  {'against':<32}{'median s':>9}{'ratio':>7}{'target':>8}"
    )
    for result in results:
        verdict = "met" if result.met else "missed"
        print(
            f"{result.command:<14}{result.seconds:>9.3f}  {result.yardstick:<32}"
            f"{result.yardstick_seconds:>9.3f}{result.ratio:>7.2f}{result.target:>7g}x  {verdict}"
        )


if __name__ == "__main__":
    main()
