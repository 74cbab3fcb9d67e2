"""Generate a labelled sample of any size in the competition's file format. Use `write_sample`.

The sample has the difficult cases of the real files: repeated prompts, nulls, lone surrogates (half
of an emoji), very long answers, duplicates, ties. Labels are drawn by a documented rule
(`kit.sample.labels`), so the lowest log loss that any model can expect is known and stored with the
rows.
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
    latent_difference,
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

# Invented names, which carry no information about the winner.
MODEL_NAMES = (
    "alder-7b-chat", "alder-13b-chat", "alder-70b-chat", "birch-instruct-v1", "birch-instruct-v2",
    "cedar-large", "cedar-small-2", "elm-6b", "elm-mix-8x7b", "hazel-turbo-0613",
    "hazel-turbo-1106", "juniper-34b", "larch-2.1", "maple-pro", "oak-40b-instruct", "pine-3b-sft",
    "rowan-12b", "willow-13b", "yew-7b-beta",
)  # fmt: skip

# Shares of the distinct prompts: conversations by number of turns (the others have one turn),
# prompts about code, in a foreign language, with a pasted text, or cut inside an emoji.
TURN_SHARES = {2: 0.08, 3: 0.025, 4: 0.012, 5: 0.008, 6: 0.004, 8: 0.003, 10: 0.002, 12: 0.002}
CODE = 0.08
FOREIGN = 0.10
PASTED = 0.02
CUT_PROMPT = 0.004

# Shares of the rows. REPEATS of them repeat one of the prompts of the first POPULAR rows. IDENTICAL
# have two equal answers, EMPTY two empty ones; NULL, LONG and CUT_ANSWER have one answer that has a
# null turn, is very long, or is cut inside an emoji. DUPLICATE are exact copies with the same
# label, JUDGED_AGAIN exact copies with another label.
REPEATS = 0.11
POPULAR = 0.09
IDENTICAL = 0.005
EMPTY = 0.002
NULL = 0.003
LONG = 0.01
CUT_ANSWER = 0.006
DUPLICATE = 0.0025
JUDGED_AGAIN = 0.0006

# From this number of rows on, each of these kinds occurs at least once.
ALL_KINDS_ROWS = 200

# Lines of the answers in a row, multiplied by one value of SPREAD for each of the two answers.
LINES = np.array([3, 5, 7, 9, 11, 14, 18, 24, 32])
SPREAD = np.array([0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.8, 2.5])
LONG_CHARACTERS = np.array([6_000, 8_000, 11_000, 15_000, 20_000, 27_000, 36_000, 46_000])

_JSON = json.JSONEncoder(separators=(",", ":"))


class SampleRow(NamedTuple):
    """A judged row; a turn may be null. The label is drawn from the probabilities."""

    models: tuple[str, str]
    texts: tuple[Turns, Turns, Turns]  # prompt, answer A, answer B
    probabilities: tuple[float, float, float]
    label: int


class _PlannedRow(NamedTuple):
    """Everything that decides the texts and the label of a row: equal plans make equal rows.

    `side` (0 or 1) is the answer that has the null turn, the great length or the lone surrogate.
    `luck` and `luck_again` (0 to 1) decide the draw of the label, and of the label of a row that is
    judged a second time (`again`).
    """

    voice: int
    number: int
    turns: int
    pasted: int
    cut_prompt: int
    model_a: int
    model_b: int
    lines_a: int
    lines_b: int
    quality_a: int
    quality_b: int
    key_a: int
    key_b: int
    side: int
    null: bool
    cut: bool
    again: bool
    luck: float
    luck_again: float


def write_sample(out: Path, rows: int = 2400, seed: int = 0, force: bool = False) -> dict:
    """Write the files of the sample (`FILES`) to a folder.

    The same rows and seed give the same bytes on every platform.

    Args:
        out: the folder, created if needed.
        rows: of train.csv; test.csv has a quarter as many, at least 3.
        force: overwrite existing files.

    Returns:
        The content of sample.json: seed, rule, constants, and for train and test the number of
        rows, the classes and the Bayes log loss.

    Raises:
        KitError: a file exists and `force` is not set, or `out`, `rows` or `seed` cannot be used.
    """
    out = Path(out)
    if rows < 1 or seed < 0:
        raise DataError(
            f"a sample of {rows} rows with seed {seed} cannot be made",
            "Choose --rows of at least 1 and --seed of at least 0.",
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; the sample needs a folder", "Choose another --out.")
    for name in FILES:
        atomic.refuse_overwrite(out / name, force)

    rng = np.random.Generator(np.random.PCG64(seed))
    total = rows + max(3, rows // 4)
    ids = _distinct_integers(rng, total, 2**32)
    numbers = _distinct_integers(rng, total, 20 * total)
    train = _plan_rows(rng, numbers[:rows])
    test = _plan_rows(rng, numbers[rows:])

    # The tables take their final names last: where train.csv exists, the whole sample does.
    with (
        atomic.atomic_file(out / task.TRAIN_FILE) as train_file,
        atomic.atomic_file(out / task.TEST_FILE) as test_file,
    ):
        train_probabilities, train_labels = _write_rows(
            train_file, _generate_rows(train), ids[:rows], labelled=True
        )
        test_probabilities, test_labels = _write_rows(
            test_file, _generate_rows(test), ids[rows:], labelled=False
        )

        uniform = make_predictions(ids[rows:], np.ones((total - rows, 3)))
        write_predictions(uniform, out / task.SAMPLE_FILE)
        with atomic.atomic_file(out / task.TRUTH_FILE) as file:
            winners = pd.DataFrame(np.eye(3, dtype=np.int64)[test_labels], ids[rows:], task.CLASSES)
            winners.to_csv(file, index_label=task.ID, lineterminator="\n")
        bayes = make_predictions(ids, np.concatenate([train_probabilities, test_probabilities]))
        write_predictions(bayes, out / task.BAYES_FILE)

        summary = {
            "seed": seed,
            "rule": RULE,
            "constants": {"quality": QUALITY, "length": LENGTH, "ties": TIES},
            "train": _summarise(train_probabilities, train_labels),
            "test": _summarise(test_probabilities, test_labels),
        }
        atomic.write_json(out / SUMMARY_FILE, summary)
    return summary


def _distinct_integers(rng: np.random.Generator, count: int, high: int) -> np.ndarray:
    """Return distinct integers (count,) from 0 to high - 1, in random order."""
    values = np.empty(0, np.int64)
    while len(values) < count:
        values = np.unique(np.concatenate([values, rng.integers(high, size=count)]))
    return rng.permutation(values)[:count]


def _disjoint_sets(
    rng: np.random.Generator, total: int, minimum: int, *shares: float
) -> list[np.ndarray]:
    """Return disjoint random sets of row numbers below `total`.

    There is one set for each share of the rows, and it has at least `minimum` members.
    """
    ends = np.cumsum([max(minimum, round(total * share)) for share in shares])
    return np.split(rng.permutation(total), ends)[:-1]


def _plan_conversations(
    rng: np.random.Generator, numbers: np.ndarray, minimum: int
) -> pd.DataFrame:
    """Return the columns of the plan that decide the prompts, a row for each of the `numbers`.

    Args:
        numbers: distinct numbers of conversations.
        minimum: the least number of prompts of each kind.
    """
    rows = len(numbers)
    voice, turns, pasted, cut_prompt = np.zeros((4, rows), np.int64)

    code, foreign = _disjoint_sets(rng, rows, minimum * len(text.FOREIGN), CODE, FOREIGN)
    voice[code] = text.VOICES.index(text.CODER)
    voice[foreign] = len(text.VOICES) - 1 - np.arange(len(foreign)) % len(text.FOREIGN)

    turns += 1
    chosen = _disjoint_sets(rng, rows, minimum, *TURN_SHARES.values())
    for count, subset in zip(TURN_SHARES, chosen, strict=True):
        turns[subset] = count

    with_paste, with_cut = _disjoint_sets(rng, rows, minimum, PASTED, CUT_PROMPT)
    pasted[with_paste] = 1
    cut_prompt[with_cut] = 1
    return pd.DataFrame(
        {
            "voice": voice,
            "number": numbers,
            "turns": turns,
            "pasted": pasted,
            "cut_prompt": cut_prompt,
        }
    )


def _plan_rows(rng: np.random.Generator, numbers: np.ndarray) -> pd.DataFrame:
    """Return the plan of all rows in random order, with the columns of `_PlannedRow`.

    Args:
        numbers: one distinct number a row; that of a row which repeats a prompt stays unused.
    """
    rows = len(numbers)
    minimum = int(rows >= ALL_KINDS_ROWS)

    # The first `own` rows have a prompt of their own, the others repeat one of these prompts.
    own = rows - round(rows * REPEATS)
    repeated = rng.integers(max(1, round(own * POPULAR)), size=rows - own)
    which = np.concatenate([np.arange(own), repeated])
    plan = _plan_conversations(rng, numbers[:own], minimum).iloc[which].reset_index(drop=True)

    model = rng.integers(len(MODEL_NAMES), size=rows)
    plan["model_a"] = model
    plan["model_b"] = (model + rng.integers(1, len(MODEL_NAMES), size=rows)) % len(MODEL_NAMES)
    base = LINES[rng.integers(len(LINES), size=rows)] * ((plan["turns"] + 1) // 2)
    for side in "ab":
        spread = SPREAD[rng.integers(len(SPREAD), size=rows)]
        plan[f"lines_{side}"] = np.rint(base * spread).astype(np.int64)
        plan[f"quality_{side}"] = rng.integers(text.QUALITIES, size=rows)
        plan[f"key_{side}"] = rng.integers(2**62, size=rows)
    plan["side"] = rng.integers(2, size=rows)
    plan["luck"], plan["luck_again"] = rng.random((2, rows))

    # Only rows with a prompt of their own become one of the rare kinds. Otherwise an exact copy,
    # which replaces a row that repeats a prompt, could remove them again.
    identical, empty, null, long, cut, same, again = _disjoint_sets(
        rng, own, minimum, IDENTICAL, EMPTY, NULL, LONG, CUT_ANSWER, DUPLICATE, JUDGED_AGAIN
    )
    for column in ("lines", "quality", "key"):
        plan.loc[identical, f"{column}_b"] = plan.loc[identical, f"{column}_a"]
    plan.loc[empty, ["lines_a", "lines_b"]] = 0
    widths = np.array([voice.width for voice in text.VOICES])[plan["voice"][long]]
    lines = LONG_CHARACTERS[rng.integers(len(LONG_CHARACTERS), size=len(long))] // widths
    for side, column in enumerate(("lines_a", "lines_b")):
        plan.loc[long, column] = np.where(plan["side"][long] == side, lines, plan[column][long])
    plan["null"] = np.isin(np.arange(rows), null)
    plan["cut"] = np.isin(np.arange(rows), cut)

    # Exact copies take the place of rows that repeat a prompt.
    source = np.arange(rows)
    copies = own + np.arange(len(same) + len(again))
    source[copies] = np.concatenate([same, again])
    plan = plan.iloc[source]
    plan["again"] = np.isin(np.arange(rows), copies[len(same) :])
    return plan.iloc[rng.permutation(rows)]


def _generate_rows(plan: pd.DataFrame) -> Iterator[SampleRow]:
    fields = plan[list(_PlannedRow._fields)].itertuples(index=False, name=None)
    for row in map(_PlannedRow._make, fields):
        voice = text.VOICES[row.voice]
        topic = text.topic_of(voice, row.number)
        prompt = text.compose_prompt(voice, row.number, row.turns, bool(row.pasted))
        a, b = (
            text.compose_answer(voice, topic, row.turns, lines, quality, key)
            for lines, quality, key in (
                (row.lines_a, row.quality_a, row.key_a),
                (row.lines_b, row.quality_b, row.key_b),
            )
        )

        answers: tuple[list[str | None], list[str | None]] = ([*a], [*b])
        messy = answers[row.side]
        if row.null:
            messy[row.key_a % row.turns] = None
        if row.cut:
            messy[-1] = text.add_lone_surrogate(messy[-1] or "", row.key_a)
        if row.cut_prompt:
            prompt[-1] = text.add_lone_surrogate(prompt[-1], row.number)

        probabilities = davidson_probabilities(latent_difference(*answers, voices=(voice,)))
        label = _draw_label(probabilities, row.luck)
        if row.again:
            others = [p * (k != label) for k, p in enumerate(probabilities)]
            label = _draw_label(others, row.luck_again)
        models = (MODEL_NAMES[row.model_a], MODEL_NAMES[row.model_b])
        yield SampleRow(models, (prompt, *answers), probabilities, label)


def _draw_label(weights: Sequence[float], luck: float) -> int:
    """Return the class at the point `luck` (0 to 1) of the cumulated weights."""
    win, lose, tie = weights
    point = luck * (win + lose + tie)
    return 0 if point < win else 1 if point < win + lose else 2


def _format_cell(turns: Turns) -> str:
    """Return a JSON list as Kaggle writes it: no spaces, ASCII only, the slash escaped too."""
    return _JSON.encode(turns).replace("/", "\\/")


def _write_rows(
    path: Path, rows: Iterator[SampleRow], ids: np.ndarray, labelled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Write each row as it is generated; return the probabilities (N, 3) and the labels (N,)."""
    probabilities = np.empty((len(ids), 3))
    labels = np.empty(len(ids), np.int64)
    with path.open("w", encoding="ascii", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(task.TRAIN_COLUMNS if labelled else task.TEST_COLUMNS)

        for i, row in enumerate(rows):
            probabilities[i] = row.probabilities
            labels[i] = row.label
            cells = [_format_cell(turns) for turns in row.texts]
            winner = [int(row.label == k) for k in range(len(task.CLASSES))]
            table.writerow((ids[i], *row.models, *cells, *winner) if labelled else (ids[i], *cells))
    return probabilities, labels


def _summarise(probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Return rows, rows of each class, and the log loss of the true probabilities.

    The expected log loss is their mean entropy, the realised one is that on the drawn labels.
    """
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
