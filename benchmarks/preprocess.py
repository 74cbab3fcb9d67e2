"""`kit preprocess` against the row-by-row way of most notebooks: the same rows and texts, in fresh processes.

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
from pathlib import Path

RATIO, PEAK_MIB = 2.5, 2048
CLASSES = ["winner_model_a", "winner_model_b", "winner_tie"]
TEXTS = ["prompt", "response_a", "response_b"]


def row_by_row(raw: Path, out: Path, text: str) -> None:
    """pandas, `df.apply(axis=1)`, json.loads and regular expressions, and the reference's stratified split.

    The grouped split of scikit-learn, StratifiedGroupKFold, would add half a minute; the ratio shall not live on that.
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
        return re.sub(
            r"\s+", " ", unicodedata.normalize("NFKC", "\n".join(prompt)).casefold()
        ).strip()

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
            same = frame.apply(
                lambda row: json.dumps([row["label"], *(row[c] for c in TEXTS)]), axis=1
            ).duplicated()
            frame = frame[~same].reset_index(drop=True)
            held = train_test_split(
                frame.index, test_size=0.1, stratify=frame["label"], random_state=0
            )[1]
            frame["valid"] = frame.index.isin(held)
            for k, (_, rows) in enumerate(
                StratifiedKFold(5, shuffle=True, random_state=0).split(frame, frame["label"])
            ):
                frame.loc[rows, "fold"] = k
        if text == "ascii":
            for column in TEXTS:
                frame[column] = frame.apply(
                    lambda row, c=column: [strip(turn) for turn in row[c]], axis=1
                )
        out.mkdir(parents=True, exist_ok=True)
        frame.drop(columns=["model_a", "model_b", *CLASSES], errors="ignore").to_parquet(
            out / f"{name}.parquet"
        )


def run(arguments: argparse.Namespace) -> None:
    """One of the two ways, in this process."""
    if arguments.child == "rows":
        row_by_row(arguments.raw, arguments.out, arguments.text)
    else:
        from kit.data.preprocess import preprocess_files

        preprocess_files(arguments.raw, arguments.out, text=arguments.text, split=arguments.split)


WAYS = ("kit", "rows")


def measure(way: str, raw: Path, out: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """A fresh process from start to end: seconds, seconds of CPU, and peak resident memory in MiB."""
    command = [sys.executable, __file__, "--child", way, "--raw", raw, "--out", out]
    command += ["--text", arguments.text, "--split", arguments.split]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    os.sync()  # kit waits for its files to be on disk, and would wait for the other way's too
    start = time.perf_counter()
    child = subprocess.Popen(list(map(str, command)), env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{way} failed with exit code {child.returncode}")
    unit = 1024**2 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mib": usage.ru_maxrss / unit,
    }


def same_rows(one: Path, other: Path, split: str) -> bool:
    """Whether both ways wrote the same ids, texts, labels and groups, and the same split if kit made that one."""
    from pyarrow import parquet as pq

    columns = [
        "id",
        *TEXTS,
        "label",
        "group",
        *(["valid", "fold"] if split == "stratified" else []),
    ]
    a, b = (pq.read_table(folder / "train.parquet", columns=columns) for folder in (one, other))
    return all(a[c].to_pylist() == b[c].to_pylist() for c in columns)


def compare(raw: Path, arguments: argparse.Namespace) -> dict:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(arguments.repeat):
            outs = {way: Path(folder, f"{way}{repetition}") for way in WAYS}
            for way in sorted(WAYS, reverse=repetition % 2 == 1):
                runs[way].append(measure(way, raw, outs[way], arguments))
        same = same_rows(*outs.values(), arguments.split)
    result = {
        "train_bytes": (raw / "train.csv").stat().st_size,
        "text": arguments.text,
        "split": arguments.split,
        "repetitions": arguments.repeat,
        "same_rows": same,
    } | {
        key: {way: whole(run[key] for run in taken) for way, taken in runs.items()}
        for key, whole in (
            ("seconds", statistics.median),
            ("cpu_seconds", statistics.median),
            ("peak_mib", max),
        )
    }
    pairs = zip(
        runs["rows"], runs["kit"], strict=True
    )  # of one repetition: what else the machine does hits both alike
    result["ratio"] = statistics.median(rows["seconds"] / kit["seconds"] for rows, kit in pairs)
    result["met"] = {
        "ratio": result["ratio"] >= RATIO,
        "peak": result["peak_mib"]["kit"] < PEAK_MIB,
        "same_rows": same,
    }
    return result


def show(result: dict) -> None:
    print(
        f"train.csv of {result['train_bytes'] / 1e6:.0f} MB, --text {result['text']} --split {result['split']}"
    )
    print(f"median of {result['repetitions']} fresh processes each, imports included")
    print(f"{'way':12}{'seconds':>9}{'CPU s':>9}{'peak MiB':>10}")
    for way, name in (("kit", "kit"), ("rows", "row by row")):
        values = (result[key][way] for key in ("seconds", "cpu_seconds", "peak_mib"))
        print("{:12}{:9.2f}{:9.2f}{:10.0f}".format(name, *values))
    print(
        f"{result['ratio']:.2f} times as fast (target {RATIO}): {'met' if result['met']['ratio'] else 'MISSED'}"
    )
    print(f"peak under {PEAK_MIB} MiB: {'met' if result['met']['peak'] else 'MISSED'}")
    print(f"both wrote the same rows: {'yes' if result['same_rows'] else 'NO'}")


def main() -> None:
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
        run(arguments)
        sys.exit()
    with tempfile.TemporaryDirectory() as folder:
        raw = arguments.raw or Path(folder, "raw")
        if not arguments.raw:
            from kit.sample.generate import write_sample

            write_sample(raw, rows=arguments.rows)
        result = compare(raw, arguments)
    print(json.dumps(result, indent=1)) if arguments.json else show(result)
    sys.exit(0 if all(result["met"].values()) else 1)


if __name__ == "__main__":
    main()
