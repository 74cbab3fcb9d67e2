"""Time scoring, calibrating and blending of a whole training set.

Measures whole processes on as many generated rows as the competition has: `kit score`,
`kit validate` and `kit calibrate` against importing pandas and scikit-learn, and
`kit ensemble --method fit` of ten members with its bootstrap. With --tfidf, which takes minutes,
also `kit baseline tfidf` on every fold of the embedded sample, with its peak memory.
Run: python benchmarks/blending.py
"""

import json
import resource
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax
from scoring import (  # the benchmark in this folder
    KIT,
    describe_setting,
    make_parser,
    median_seconds,
    parse_options,
    time_command,
)

from kit import task
from kit.predictions import make_predictions, write_predictions

LIBRARIES = "import pandas, sklearn"
MEMBERS = 10
KIB_PER_GIB = 2**20  # Linux counts memory in KiB


@dataclass(frozen=True)
class LimitedFigure:
    """One figure of a command, in the unit of its limit, and whether it is within the limit."""

    command: str
    taken: float
    limit: float
    unit: str
    met: bool


def write_random_members(folder: Path, rows: int, seed: int = 0) -> tuple[list[str], str]:
    """Write prediction files of ten noisy views of shared logits, and a truth drawn from these."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(3, rows)) * 0.7
    ids = generator.choice(2**32, rows, replace=False)
    files = []
    for member in range(MEMBERS):
        noise = generator.normal(size=(3, rows)) * (0.3 + 0.05 * member)
        probabilities = softmax(shared + noise, axis=0).T
        files.append(str(folder / f"member{member}.csv"))
        write_predictions(make_predictions(ids, probabilities), files[-1])

    cumulative = softmax(shared, axis=0).cumsum(axis=0)
    labels = (generator.random(rows) > cumulative[:2]).sum(axis=0)
    truth = pd.DataFrame(np.eye(3, dtype=int)[labels], columns=list(task.CLASSES))
    truth.insert(0, task.ID, ids)
    truth.sample(frac=1, random_state=seed).to_csv(folder / "truth.csv", index=False)
    return files, str(folder / "truth.csv")


def time_blending(rows: int, repeats: int) -> list[LimitedFigure]:
    """Return the median seconds of every command."""
    with tempfile.TemporaryDirectory() as name:
        files, truth = write_random_members(Path(name), rows)
        out = ["--force", "-o", str(Path(name) / "out.csv")]
        fit = ["--method", "fit", "--truth", truth]
        for file in files:
            fit += ["--fit", file]
        commands = {
            LIBRARIES: [sys.executable, "-c", LIBRARIES],
            "kit score": [*KIT, "score", files[0], "--truth", truth],
            "kit validate": [*KIT, "validate", files[0], "--sample", truth],
            "kit calibrate": [*KIT, "calibrate", files[0], "--truth", truth, *out],
            "kit ensemble --method fit": [*KIT, "ensemble", *files, *fit, *out],
        }
        medians = median_seconds(commands, repeats)

    import_seconds = medians.pop(LIBRARIES)
    results = []
    for command, seconds in medians.items():
        limit = 20.0 if "ensemble" in command else 3 * import_seconds
        results.append(LimitedFigure(command, seconds, limit, "s", seconds <= limit))
    return results


def measure_tfidf(rows: int) -> list[LimitedFigure]:
    """Return time and peak memory of the TF-IDF baseline over all folds of a sample."""
    with tempfile.TemporaryDirectory() as name:
        raw, data, runs = (str(Path(name) / part) for part in ("raw", "processed", "runs"))
        time_command([*KIT, "sample", "--rows", str(rows), "--out", raw])
        time_command([*KIT, "preprocess", "--raw", raw, "--out", data])
        baseline = [*KIT, "baseline", "tfidf", "--fold", "all", "--data", data, "--runs", runs]
        minutes = time_command(baseline) / 60

    # The peak is that of the largest child process, which is the baseline.
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / KIB_PER_GIB
    return [
        LimitedFigure("kit baseline tfidf", minutes, 10, "min", minutes <= 10),
        LimitedFigure("kit baseline tfidf", memory, 6, "GiB", memory <= 6),
    ]


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = make_parser(__doc__, rows=57_477, repeats=3)
    parser.add_argument("--tfidf", action="store_true", help="measure the TF-IDF baseline too")
    options = parse_options(parser)

    results = measure_tfidf(options.rows) if options.tfidf else []
    results += time_blending(options.rows, options.repeats)
    setting = describe_setting(options)
    if options.json:
        print(json.dumps(setting | {"results": [asdict(result) for result in results]}, indent=1))
        return

    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    for result in results:
        verdict = "met" if result.met else "missed"
        print(
            f"{result.command:<28}{result.taken:>8.2f} {result.unit:<4} "
            f"limit {result.limit:>6.2f}  {verdict}"
        )


if __name__ == "__main__":
    main()
