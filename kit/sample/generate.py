"""Rows to learn and to test on where the competition's files are not at hand: its format, its mess, its ties.

The judge is planted: a documented rule on the text alone, with honest noise. So the lowest log loss that any model
can expect on these rows is known, and stored beside them.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from kit import task
from kit.errors import DataError
from kit.predictions import make_predictions, write_predictions
from kit.sample import text
from kit.sample.labels import (
    LENGTH,
    QUALITY,
    RULE,
    TIES,
    Turns,
    davidson_probabilities,
    quality_difference,
)
from kit.storage import atomic

SUMMARY_FILE = "sample.json"
FILES = (
    task.TRAIN_FILE,
    task.TEST_FILE,
    task.SAMPLE_FILE,
    task.TRUTH_FILE,
    task.BAYES_FILE,
    SUMMARY_FILE,
)

# --- the rows

NAMES = (
    "alder-7b-chat", "alder-13b-chat", "alder-70b-chat", "birch-instruct-v1", "birch-instruct-v2", "cedar-large",
    "cedar-small-2", "elm-6b", "elm-mix-8x7b", "hazel-turbo-0613", "hazel-turbo-1106", "juniper-34b", "larch-2.1",
    "maple-pro", "oak-40b-instruct", "pine-3b-sft", "rowan-12b", "willow-13b", "yew-7b-beta",
)  # invented, and they say nothing about who wins  # fmt: skip
TURNS = {
    2: 0.08,
    3: 0.025,
    4: 0.012,
    5: 0.008,
    6: 0.004,
    8: 0.003,
    10: 0.002,
    12: 0.002,
}  # of the prompts; rest: 1
CODE, FOREIGN, PASTED, CUT_PROMPT = 0.08, 0.10, 0.02, 0.004  # of the prompts
REPEATS, POPULAR = 0.11, 0.09  # of the rows repeat one of the first 9% of the prompts
IDENTICAL, EMPTY, NULL, LONG, CUT_ANSWER = 0.005, 0.002, 0.003, 0.01, 0.006  # of the rows
DUPLICATE, JUDGED_AGAIN = (
    0.0025,
    0.0006,
)  # of the rows are exact duplicates with the same label, with another label
ALL_AT = 200  # rows from which each of these occurs at least once
LINES = np.array(
    [3, 5, 7, 9, 11, 14, 18, 24, 32]
)  # of the answers in a row; times one of SPREAD for each of the two
SPREAD = np.array([0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.8, 2.5])
LONG_CHARACTERS = np.array([6_000, 8_000, 11_000, 15_000, 20_000, 27_000, 36_000, 46_000])  # about


def _distinct(rng: np.random.Generator, count: int, high: int) -> np.ndarray:
    """(count,) distinct integers in 0 .. high - 1, in random order."""
    values = np.empty(0, np.int64)
    while len(values) < count:
        values = np.unique(np.concatenate([values, rng.integers(high, size=count)]))
    return rng.permutation(values)[:count]


def _deal(rng: np.random.Generator, total: int, least: int, *shares: float) -> list[np.ndarray]:
    """Disjoint random sets of row numbers below `total`, one for each share of them, of `least` rows at least."""
    ends = np.cumsum([max(least, round(total * share)) for share in shares])
    return np.split(rng.permutation(total), ends)[:-1]


def _conversations(rng: np.random.Generator, numbers: np.ndarray, least: int) -> pd.DataFrame:
    """What each distinct prompt follows from: one line for each of the distinct `numbers`."""
    voice, turns, pasted, cut_prompt = np.zeros((4, len(numbers)), np.int64)
    code, foreign = _deal(rng, len(numbers), least * len(text.FOREIGN), CODE, FOREIGN)
    voice[code] = text.VOICES.index(text.CODER)
    voice[foreign] = len(text.VOICES) - 1 - np.arange(len(foreign)) % len(text.FOREIGN)
    turns += 1
    for count, chosen in zip(TURNS, _deal(rng, len(numbers), least, *TURNS.values()), strict=True):
        turns[chosen] = count
    for column, chosen in zip(
        (pasted, cut_prompt), _deal(rng, len(numbers), least, PASTED, CUT_PROMPT), strict=True
    ):
        column[chosen] = 1
    return pd.DataFrame(
        {
            "voice": voice,
            "number": numbers,
            "turns": turns,
            "pasted": pasted,
            "cut_prompt": cut_prompt,
        }
    )


def _plan(rng: np.random.Generator, numbers: np.ndarray) -> pd.DataFrame:
    """One line for each row, with all that its texts and its label follow from: equal lines make equal rows.

    Args:
        numbers: a distinct one for each row; where a row repeats another's prompt, its own stays unused.
    """
    rows, least = len(numbers), int(len(numbers) >= ALL_AT)
    own = rows - round(
        rows * REPEATS
    )  # these rows come first and have a prompt each; only they get the rarer mess,
    which = np.concatenate(
        [np.arange(own), rng.integers(max(1, round(own * POPULAR)), size=rows - own)]
    )
    plan = _conversations(rng, numbers[:own], least).iloc[which].reset_index(drop=True)

    name = rng.integers(len(NAMES), size=rows)
    plan["model_a"], plan["model_b"] = (
        name,
        (name + rng.integers(1, len(NAMES), size=rows)) % len(NAMES),
    )
    base = LINES[rng.integers(len(LINES), size=rows)] * ((plan["turns"] + 1) // 2)
    for side in "ab":
        plan[f"lines_{side}"] = np.rint(base * SPREAD[rng.integers(len(SPREAD), size=rows)]).astype(
            np.int64
        )
        plan[f"quality_{side}"] = rng.integers(text.QUALITIES, size=rows)
        plan[f"key_{side}"] = rng.integers(2**62, size=rows)
    plan["side"] = rng.integers(
        2, size=rows
    )  # of a null turn, a very long answer, a lone surrogate
    plan["luck"], plan["luck_again"] = rng.random((2, rows))  # what the label is drawn with
    identical, empty, null, long, cut, same, again = _deal(
        rng, own, least, IDENTICAL, EMPTY, NULL, LONG, CUT_ANSWER, DUPLICATE, JUDGED_AGAIN
    )
    for column in ("lines", "quality", "key"):
        plan.loc[identical, f"{column}_b"] = plan.loc[identical, f"{column}_a"]
    plan.loc[empty, ["lines_a", "lines_b"]] = 0
    widths = np.array([voice.width for voice in text.VOICES])[plan["voice"][long]]
    lines = LONG_CHARACTERS[rng.integers(len(LONG_CHARACTERS), size=len(long))] // widths
    for side, column in enumerate(("lines_a", "lines_b")):
        plan.loc[long, column] = np.where(plan["side"][long] == side, lines, plan[column][long])
    for column, chosen in (("null", null), ("cut", cut)):
        plan[column] = np.isin(np.arange(rows), chosen)

    source, copies = (
        np.arange(rows),
        own + np.arange(len(same) + len(again)),
    )  # so that no copy falls on one of them
    source[copies] = np.concatenate([same, again])
    plan = plan.iloc[source]
    plan["again"] = np.isin(np.arange(rows), copies[len(same) :])
    return plan.iloc[rng.permutation(rows)]


class SampleRow(NamedTuple):
    """A judged row: its texts (a turn may be null), the judge's probabilities and the label drawn from them."""

    models: tuple[str, str]
    texts: tuple[Turns, Turns, Turns]  # prompt, answer A, answer B
    probabilities: tuple[float, float, float]
    label: int


def _draw(probabilities: Sequence[float], luck: float) -> int:
    """The class at `luck` (0 .. 1) of the cumulated weights."""
    win, lose, tie = probabilities
    point = luck * (win + lose + tie)
    return 0 if point < win else 1 if point < win + lose else 2


def _rows(plan: pd.DataFrame) -> Iterator[SampleRow]:
    for line in plan.itertuples(index=False):
        voice = text.VOICES[line.voice]
        topic = text.topic_of(voice, line.number)
        prompt = text.write_prompt(voice, line.number, line.turns, line.pasted)
        a = text.write_answer(voice, topic, line.turns, line.lines_a, line.quality_a, line.key_a)
        b = text.write_answer(voice, topic, line.turns, line.lines_b, line.quality_b, line.key_b)
        chosen = (a, b)[line.side]
        if line.null:
            chosen[line.key_a % line.turns] = None
        if line.cut:
            chosen[-1] = text.cut_text(chosen[-1], line.key_a)
        if line.cut_prompt:
            prompt[-1] = text.cut_text(prompt[-1], line.number)
        probabilities = davidson_probabilities(quality_difference(a, b, (voice,)))
        label = _draw(probabilities, line.luck)
        if line.again:
            label = _draw([p * (c != label) for c, p in enumerate(probabilities)], line.luck_again)
        yield SampleRow(
            (NAMES[line.model_a], NAMES[line.model_b]), (prompt, a, b), probabilities, label
        )


# --- the files

_JSON = json.JSONEncoder(separators=(",", ":"))


def _cell(turns: Turns) -> str:
    """A JSON list as Kaggle writes it: no spaces, ASCII only, and the slash escaped too."""
    return _JSON.encode(turns).replace("/", "\\/")


def _write_rows(
    path: Path, rows: Iterator[SampleRow], ids: np.ndarray, labelled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Writes each row as it is made; returns the probabilities (N, 3) and the labels (N,)."""
    probabilities, labels = np.empty((len(ids), 3)), np.empty(len(ids), np.int64)
    with path.open("w", encoding="ascii", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(task.TRAIN_COLUMNS if labelled else task.TEST_COLUMNS)
        for i, row in enumerate(rows):
            probabilities[i], labels[i] = row.probabilities, row.label
            cells = [_cell(turns) for turns in row.texts]
            winner = [int(row.label == c) for c in range(len(task.CLASSES))]
            table.writerow((ids[i], *row.models, *cells, *winner) if labelled else (ids[i], *cells))
    return probabilities, labels


def _summary(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Rows, rows of each class, and the judge's own log loss: expected (its mean entropy) and on these labels."""
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1)
    realised = -np.log(probabilities[np.arange(len(labels)), labels])
    return {
        "rows": len(labels),
        "classes": dict(zip(task.CLASSES, np.bincount(labels, minlength=3).tolist(), strict=True)),
        "bayes_log_loss": {
            "expected": round(float(entropy.mean()), 6),
            "realised": round(float(realised.mean()), 6),
        },
    }


def write_sample(out: Path, rows: int = 2400, seed: int = 0, force: bool = False) -> dict:
    """Writes the sample's FILES into the folder `out`; the same rows and seed give the same bytes everywhere.

    Args:
        out: made if it is not there.
        rows: of train.csv; test.csv has a quarter as many, at least 3.
        force: overwrite.

    Returns:
        What sample.json says: seed, rule, constants, and for train and test the rows, classes and Bayes log loss.

    Raises:
        KitError: a file is there already and `force` is not set, or `out`, `rows` or `seed` cannot be used.
    """
    out = Path(out)
    if rows < 1 or seed < 0:
        raise DataError(
            f"a sample of {rows} rows with seed {seed} cannot be made",
            "Ask for --rows 1 --seed 0 or more.",
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; the sample needs a folder", "Choose another --out.")
    for name in FILES:
        atomic.refuse_overwrite(out / name, force)

    rng = np.random.Generator(np.random.PCG64(seed))
    total = rows + max(3, rows // 4)
    ids, numbers = _distinct(rng, total, 2**32), _distinct(rng, total, 20 * total)
    train, test = _plan(rng, numbers[:rows]), _plan(rng, numbers[rows:])
    # train.csv gets its name last: where it is, the rest of the sample is too
    with (
        atomic.atomic_file(out / task.TRAIN_FILE) as train_file,
        atomic.atomic_file(out / task.TEST_FILE) as test_file,
    ):
        judged = [_write_rows(train_file, _rows(train), ids[:rows], labelled=True)]
        judged += [_write_rows(test_file, _rows(test), ids[rows:], labelled=False)]
        write_predictions(
            make_predictions(ids[rows:], np.ones((total - rows, 3))), out / task.SAMPLE_FILE
        )
        with atomic.atomic_file(out / task.TRUTH_FILE) as file:
            winners = pd.DataFrame(
                np.eye(3, dtype=np.int64)[judged[1][1]], ids[rows:], task.CLASSES
            )
            winners.to_csv(file, index_label=task.ID, lineterminator="\n")
        write_predictions(
            make_predictions(ids, np.concatenate([p for p, _ in judged])), out / task.BAYES_FILE
        )
        summary = {
            "seed": seed,
            "rule": RULE,
            "constants": {"quality": QUALITY, "length": LENGTH, "ties": TIES},
        }
        summary |= {
            part: _summary(*found) for part, found in zip(("train", "test"), judged, strict=True)
        }
        atomic.write_json(out / SUMMARY_FILE, summary)
    return summary
