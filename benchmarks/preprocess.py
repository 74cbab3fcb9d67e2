"""Compare `kit preprocess` with the row-by-row way of most notebooks, in fresh processes.

    python benchmarks/preprocess.py --rows 57477

Targets: at least 2.5 times as fast, and under 2 GiB of memory at its peak.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

MIN_RATIO = 2.5
MAX_PEAK_MIB = 2048
WAYS = ("kit", "rows")
CLASSES = ["winner_model_a", "winner_model_b", "winner_tie"]
TEXTS = ["prompt", "response_a", "response_b"]


def preprocess_row_by_row(raw: Path, out: Path, text: str) -> None:
    """Preprocess with `df.apply(axis=1)`, json.loads, regular expressions and a stratified split.

    The grouped split of scikit-learn, StratifiedGroupKFold, would add half a minute, which should
    not decide the ratio.
    """
    import pandas as pd
    from sklearn.model_selection import StratifiedKFold, train_test_split

    def repair(turn: str | None) -> str:
        turn = re.sub(r"\r\n?", "\n", re.sub("\0", "", turn or ""))
        return re.sub("[\ud800-\udfff]", "\ufffd", turn)

    def strip(turn: str) -> str:
        turn = re.sub(r"[^\x00-\x7f]+", "", re.sub(r"\s+", " ", turn))
        return re.sub(" +", " ", turn).strip()

    def key(prompt: list[str]) -> str:
        normalised = unicodedata.normalize("NFKC", "\n".join(prompt)).casefold()
        return re.sub(r"\s+", " ", normalised).strip()

    numbers: dict[str, int] = {}
    for name in ("train", "test"):
        frame = pd.read_csv(raw / f"{name}.csv")
        for column in TEXTS:
            frame[column] = frame.apply(
                lambda row, c=column: [repair(t) for t in json.loads(row[c]) or [""]], axis=1
            )

        frame["group"] = frame.apply(
            lambda row: numbers.setdefault(key(row["prompt"]), len(numbers)), axis=1
        )

        if name == "train":
            frame["label"] = frame.apply(
                lambda row: CLASSES.index(max(CLASSES, key=lambda c: row[c])), axis=1
            )
            contents = frame.apply(
                lambda row: json.dumps([row["label"], *(row[c] for c in TEXTS)]), axis=1
            )
            frame = frame[~contents.duplicated()].reset_index(drop=True)

            _, valid = train_test_split(
                frame.index, test_size=0.1, stratify=frame["label"], random_state=0
            )
            frame["valid"] = frame.index.isin(valid)
            splitter = StratifiedKFold(5, shuffle=True, random_state=0)
            for fold, (_, rows) in enumerate(splitter.split(frame, frame["label"])):
                frame.loc[rows, "fold"] = fold

        if text == "ascii":
            for column in TEXTS:
                frame[column] = frame.apply(
                    lambda row, c=column: [strip(turn) for turn in row[c]], axis=1
                )

        out.mkdir(parents=True, exist_ok=True)
        frame = frame.drop(columns=["model_a", "model_b", *CLASSES], errors="ignore")
        frame.to_parquet(out / f"{name}.parquet")


def preprocess_in_this_process(arguments: argparse.Namespace) -> None:
    """Preprocess in one of the two ways."""
    if arguments.child == "rows":
        preprocess_row_by_row(arguments.raw, arguments.out, arguments.text)
    else:
        from kit.data.preprocess import preprocess_files

        preprocess_files(arguments.raw, arguments.out, text=arguments.text, split=arguments.split)


def measure(way: str, raw: Path, out: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run a fresh process; return seconds, CPU seconds and peak resident memory in MiB."""
    command = [sys.executable, __file__, "--child", way, "--raw", raw, "--out", out]
    command += ["--text", arguments.text, "--split", arguments.split]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}

    # kit waits until its files are on disk, and would also wait for those of the other way.
    os.sync()
    start = time.perf_counter()
    child = subprocess.Popen(list(map(str, command)), env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{way} failed with exit code {child.returncode}")

    # macOS counts bytes, Linux KiB.
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / unit,
    }


def same_rows(one: Path, other: Path, split: str) -> bool:
    """Return whether both ways wrote the same rows, and the same split if it is stratified."""
    from pyarrow import parquet as pq

    columns = ["id", *TEXTS, "label", "group"]
    if split == "stratified":
        columns += ["valid", "fold"]
    a, b = (pq.read_table(folder / "train.parquet", columns=columns) for folder in (one, other))
    return all(a[c].to_pylist() == b[c].to_pylist() for c in columns)


def compare_ways(raw: Path, arguments: argparse.Namespace) -> dict:
    """Measure both ways several times, in alternating order, and return the figures."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(arguments.repeat):
            outs = {way: Path(folder, f"{way}{repetition}") for way in WAYS}
            for way in sorted(WAYS, reverse=repetition % 2 == 1):
                runs[way].append(measure(way, raw, outs[way], arguments))
        same = same_rows(*outs.values(), arguments.split)

    def per_way(key: str, summary: Callable[[list[float]], float]) -> dict[str, float]:
        return {way: summary([run[key] for run in runs[way]]) for way in WAYS}

    # Ratios within a repetition: what else the machine does then slows both ways alike.
    pairs = zip(runs["rows"], runs["kit"], strict=True)
    ratio = statistics.median(rows["seconds"] / kit["seconds"] for rows, kit in pairs)
    peak_mib = per_way("peak_mib", max)
    return {
        "train_bytes": (raw / "train.csv").stat().st_size,
        "text": arguments.text,
        "split": arguments.split,
        "repetitions": arguments.repeat,
        "same_rows": same,
        "seconds": per_way("seconds", statistics.median),
        "cpu_seconds": per_way("cpu_seconds", statistics.median),
        "peak_mib": peak_mib,
        "ratio": ratio,
        "met": {
            "ratio": ratio >= MIN_RATIO,
            "peak": peak_mib["kit"] < MAX_PEAK_MIB,
            "same_rows": same,
        },
    }


def print_result(result: dict) -> None:
    """Print the figures as a table, and which targets are met."""
    megabytes = result["train_bytes"] / 1e6
    met = {name: "met" if met else "MISSED" for name, met in result["met"].items()}
    print(
        f"train.csv of {megabytes:.0f} MB, --text {result['text']} --split {result['split']}\n"
        f"median of {result['repetitions']} fresh processes each, imports included\n"
        f"{'way':12}{'seconds':>9}{'CPU s':>9}{'peak MiB':>10}"
    )
    for way, name in (("kit", "kit"), ("rows", "row by row")):
        values = (result[key][way] for key in ("seconds", "cpu_seconds", "peak_mib"))
        print("{:12}{:9.2f}{:9.2f}{:10.0f}".format(name, *values))
    print(f"{result['ratio']:.2f} times as fast (target {MIN_RATIO}): {met['ratio']}")
    print(f"peak under {MAX_PEAK_MIB} MiB: {met['peak']}")
    print(f"both wrote the same rows: {'yes' if result['same_rows'] else 'NO'}")


def main() -> None:
    """Compare the two ways and print the result; exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=57_477, help="size of the sample that is made")
    parser.add_argument("--raw", type=Path, help="use this raw folder instead of a sample")
    parser.add_argument("--text", default="unicode", choices=["unicode", "ascii"])
    parser.add_argument("--split", default="grouped", choices=["grouped", "stratified"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    if arguments.child:
        preprocess_in_this_process(arguments)
        sys.exit()

    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or Path(folder, "raw")
        if not arguments.raw:
            from kit.sample.generate import write_sample

            write_sample(raw, rows=arguments.rows)
        result = compare_ways(raw, arguments)

    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        print_result(result)
    sys.exit(0 if all(result["met"].values()) else 1)


if __name__ == "__main__":
    main()
