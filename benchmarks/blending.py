"""Are scoring, calibrating and blending a whole training set quick enough to be done again and again?

Measures whole processes on as many generated rows as the competition has: `kit score`, `kit validate` and
`kit calibrate` against importing pandas and scikit-learn, `kit ensemble --method fit` of ten members with its
bootstrap, and, as it takes minutes, only with --tfidf: `kit baseline tfidf` on every fold of the embedded sample, with
the most memory it had. Run: python benchmarks/blending.py
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scoring import KIT, seconds  # the benchmark beside this one

from kit import task
from kit.evaluation.softmax import softmax
from kit.predictions import make_predictions, write_predictions

IMPORTS = [sys.executable, "-c", "import pandas, sklearn"]
MEMBERS = 10
GIB = 2**20  # in the kilobytes that Linux counts memory in


@dataclass(frozen=True)
class Measured:
    """One command: what it took, in the unit of its limit, and whether that is within it."""

    command: str
    taken: float
    limit: float
    unit: str
    met: bool


def generate(folder: Path, rows: int, seed: int = 0) -> tuple[list[str], str]:
    """Writes prediction files of ten members, each a noisy view of one truth drawn from what they share."""
    generator = np.random.default_rng(seed)
    shared, ids = (
        generator.normal(size=(3, rows)) * 0.7,
        generator.choice(2**32, rows, replace=False),
    )
    files = []
    for member in range(MEMBERS):
        files.append(str(folder / f"member{member}.csv"))
        own = shared + generator.normal(size=(3, rows)) * (0.3 + 0.05 * member)
        write_predictions(make_predictions(ids, softmax(own).T), files[-1])
    labels = (generator.random(rows) > softmax(shared).cumsum(axis=0)[:2]).sum(axis=0)
    truth = pd.DataFrame(np.eye(3, dtype=int)[labels], columns=list(task.CLASSES))
    truth.insert(0, task.ID, ids)
    truth.sample(frac=1, random_state=seed).to_csv(folder / "truth.csv", index=False)
    return files, str(folder / "truth.csv")


def measure(rows: int, repeats: int) -> list[Measured]:
    """Runs every command `repeats` times in turn, so that a busy moment hits all alike; the first is not counted."""
    with tempfile.TemporaryDirectory() as name:
        files, truth = generate(Path(name), rows)
        out = ["--force", "-o", str(Path(name) / "out.csv")]
        commands = {
            "import pandas, sklearn": IMPORTS,
            "kit score": [*KIT, "score", files[0], "--truth", truth],
            "kit validate": [*KIT, "validate", files[0], "--sample", truth],
            "kit calibrate": [*KIT, "calibrate", files[0], "--truth", truth, *out],
            "kit ensemble --method fit": [
                *KIT,
                "ensemble",
                *files,
                "--method",
                "fit",
                "--truth",
                truth,
                *out,
            ],
        }
        for file in files:
            commands["kit ensemble --method fit"] += ["--fit", file]
        times: dict[str, list[float]] = {one: [] for one in commands}
        for counted in [False] + [True] * repeats:
            for one, command in commands.items():
                elapsed = seconds(command)
                if counted:
                    times[one].append(elapsed)
    taken = {one: statistics.median(several) for one, several in times.items()}
    libraries = taken.pop("import pandas, sklearn")
    limits = {one: 20.0 if "ensemble" in one else 3 * libraries for one in taken}
    return [
        Measured(one, time, limits[one], "s", time <= limits[one]) for one, time in taken.items()
    ]


def measure_tfidf(rows: int) -> list[Measured]:
    """Time and memory of the TF-IDF baseline over all folds of a sample, reading it included."""
    with tempfile.TemporaryDirectory() as name:
        raw, data, runs = (str(Path(name) / part) for part in ("raw", "processed", "runs"))
        seconds([*KIT, "sample", "--rows", str(rows), "--out", raw])
        seconds([*KIT, "preprocess", "--raw", raw, "--out", data])
        minutes = (
            seconds([*KIT, "baseline", "tfidf", "--fold", "all", "--data", data, "--runs", runs])
            / 60
        )
    memory = (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / GIB
    )  # of the largest process so far
    return [
        Measured("kit baseline tfidf", minutes, 10, "min", minutes <= 10),
        Measured("kit baseline tfidf", memory, 6, "GiB", memory <= 6),
    ]


def main() -> None:
    """Prints a table, or JSON with --json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=57_477, help="rows of the generated files (default: 57477)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="counted runs of each command (default: 3)"
    )
    parser.add_argument("--tfidf", action="store_true", help="measure the TF-IDF baseline too")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    if options.rows < 1 or options.repeats < 1:
        parser.error("--rows and --repeats must be 1 or more")
    results = (measure_tfidf(options.rows) if options.tfidf else []) + measure(
        options.rows, options.repeats
    )
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
    for one in results:
        verdict = "met" if one.met else "missed"
        print(
            f"{one.command:<28}{one.taken:>8.2f} {one.unit:<4} limit {one.limit:>6.2f}  {verdict}"
        )


if __name__ == "__main__":
    main()
