"""Do the commands that touch only numbers start and finish in about the time their libraries take to import?

Measures whole processes, as a user waits for them: `kit validate` and `kit score` on 25,000 generated rows against
importing pandas and scikit-learn's metrics, and `kit --help` against importing click. Run: python benchmarks/scoring.py
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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kit import task
from kit.predictions import make_predictions, write_predictions
from kit.storage import atomic

ROOT = Path(__file__).resolve().parent.parent
KIT = [sys.executable, "-m", "kit"]
LIBRARIES = [sys.executable, "-c", "import pandas, sklearn.metrics"]
CLICK = [sys.executable, "-c", "import click"]


@dataclass(frozen=True)
class Measured:
    """One command against its yardstick: median seconds of whole processes, their ratio, and the ratio aimed at."""

    command: str
    seconds: float
    yardstick: str
    yardstick_seconds: float
    ratio: float
    target: float
    met: bool


def generate(folder: Path, rows: int, seed: int = 0) -> tuple[Path, Path]:
    """Writes a prediction file and its truth, rows in another order; the truth serves as the sample too."""
    generator = np.random.default_rng(seed)
    ids, probabilities = (
        generator.choice(2**32, rows, replace=False),
        generator.dirichlet([2, 2, 2], rows),
    )
    write_predictions(make_predictions(ids, probabilities), folder / "predictions.csv")
    one_hot = np.eye(len(task.CLASSES), dtype=int)[generator.integers(0, len(task.CLASSES), rows)]
    truth = pd.DataFrame(one_hot, columns=list(task.CLASSES))
    truth.insert(0, task.ID, ids)
    shuffled = truth.sample(frac=1, random_state=seed)
    atomic.write_text(folder / "truth.csv", shuffled.to_csv(index=False, lineterminator="\n"))
    return folder / "predictions.csv", folder / "truth.csv"


def seconds(command: list[str]) -> float:
    """Wall time of one process, from the repository's root; raises SystemExit with its message if it fails."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}
    )
    elapsed = time.perf_counter() - start
    if done.returncode:
        sys.exit(
            f"{' '.join(command)}\nfailed with {done.returncode}:\n{(done.stderr or done.stdout)[-2000:]}"
        )
    return elapsed


def measure(rows: int, repeats: int) -> list[Measured]:
    """Runs every command `repeats` times in turn, so that a busy moment hits all alike; the first is not counted."""
    with tempfile.TemporaryDirectory() as name:
        file, truth = (str(path) for path in generate(Path(name), rows))
        commands = {
            "import pandas, sklearn.metrics": LIBRARIES,
            "import click": CLICK,
            "kit validate": [*KIT, "validate", file, "--sample", truth],
            "kit score": [*KIT, "score", file, "--truth", truth],
            "kit --help": [*KIT, "--help"],
        }
        times: dict[str, list[float]] = {one: [] for one in commands}
        for counted in [False] + [True] * repeats:
            for one, command in commands.items():
                elapsed = seconds(command)
                if counted:
                    times[one].append(elapsed)
    median = {one: statistics.median(several) for one, several in times.items()}

    def against(command: str, yardstick: str, target: float) -> Measured:
        ratio = median[command] / median[yardstick]
        return Measured(
            command, median[command], yardstick, median[yardstick], ratio, target, ratio <= target
        )

    return [
        against("kit validate", "import pandas, sklearn.metrics", 2),
        against("kit score", "import pandas, sklearn.metrics", 2),
        against("kit --help", "import click", 3),
    ]


def main() -> None:
    """Prints a table, or JSON with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=25_000, help="rows of the generated files (default: 25000)"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="counted runs of each command (default: 7)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.rows < 1 or options.repeats < 1:
        parser.error("--rows and --repeats must be 1 or more")
    results = measure(options.rows, options.repeats)
    setting = {"rows": options.rows, "repeats": options.repeats, "cores": os.cpu_count()}
    setting |= {
        "python": platform.python_version(),
        "pandas": pd.__version__,
        "numpy": np.__version__,
    }
    if options.json:
        print(json.dumps(setting | {"results": [asdict(one) for one in results]}, indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(
        f"{'command':<14}{'median s':>9}  {'against':<32}{'median s':>9}{'ratio':>7}{'target':>8}"
    )
    for one in results:
        verdict = "met" if one.met else "missed"
        print(
            f"{one.command:<14}{one.seconds:>9.3f}  {one.yardstick:<32}{one.yardstick_seconds:>9.3f}"
            f"{one.ratio:>7.2f}{one.target:>7g}x  {verdict}"
        )


if __name__ == "__main__":
    main()
