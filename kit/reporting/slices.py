"""Score models on parts of the rows: by answer length, number of turns, and script.

Use `score_slices`.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.features import (
    ROWS,
    SCRIPTS,
    character_counts,
    character_histogram,
    count_characters,
)
from kit.evaluation.bootstrap import loss_intervals
from kit.evaluation.metrics import row_losses
from kit.reporting.inputs import ReportInputs
from kit.task import PROMPT, RESPONSES, TEXTS

# Slices by answer length end below each of these numbers of characters.
LENGTH_LIMITS = (250, 500, 1000, 2000, 4000)

# Slices by turns end with each of these numbers of turns.
TURN_LIMITS = (1, 2, 4)
TURN_NAMES = ["1", "2", "3 to 4", "5 or more"]

# Emoji and symbols occur in texts of any script.
LETTER_SCRIPTS = tuple(name for name in SCRIPTS if name not in ("emoji", "symbol"))

# A script with fewer rows is counted as "other".
MIN_SCRIPT_ROWS = 10

# A bootstrap over fewer prompts cannot show a difference (see `loss_difference`).
MIN_PROMPTS = 6


@dataclass(frozen=True)
class SliceLoss:
    """A mean log loss with its 95% bootstrap interval, None for a slice of too few prompts."""

    log_loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Slice:
    """Rows that share a property, with every model's loss on them.

    Attributes:
        by: the property: "answer length", "turns" or "script".
        name: its value.
        rows: the number of rows.
        prompts: the number of different prompts.
        losses: by the model's name.
    """

    by: str
    name: str
    rows: int
    prompts: int
    losses: dict[str, SliceLoss]


def score_slices(inputs: ReportInputs, split: str) -> tuple[Slice, ...]:
    """Score the models on each slice of the split's rows that is not empty.

    Without a data folder there are no texts, and no slices.
    """
    texts = inputs.read_texts(split)
    if texts is None:
        return ()
    rows = inputs.rows[split]
    models = inputs.models_with(split)
    losses = np.stack([row_losses(model.predictions[split], rows.known_labels) for model in models])

    # All properties are measured in one pass over the texts.
    slices = []
    for by, (names, numbers) in _assign_slices(texts).items():
        for number, name in enumerate(names):
            members = np.flatnonzero(numbers == number)
            if not len(members):
                continue

            groups = rows.groups[members]
            slice_losses = losses[:, members]
            prompts = len(np.unique(groups))
            intervals: list[tuple[float, float]] | list[tuple[None, None]]
            if prompts >= MIN_PROMPTS:
                intervals = loss_intervals(slice_losses, groups)
            else:
                intervals = [(None, None)] * len(models)

            means = slice_losses.mean(axis=1).tolist()
            by_model = {
                model.name: SliceLoss(mean, low, high)
                for model, mean, (low, high) in zip(models, means, intervals, strict=True)
            }
            slices.append(Slice(by, name, len(members), prompts, by_model))
    return tuple(slices)


def _assign_slices(texts: pa.Table) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return, by property, the names of its slices and each row's slice number (N,)."""
    # Block by block, since byte histograms of all rows together would need more memory than the
    # texts.
    blocks = [_measure_texts(texts.slice(start, ROWS)) for start in range(0, texts.num_rows, ROWS)]
    lengths = np.concatenate([length for length, _ in blocks])
    letters = np.concatenate([letter_counts for _, letter_counts in blocks])
    turns = pc.list_value_length(texts[PROMPT]).to_numpy()  # ty: ignore[missing-attribute]: made at run time

    # A length of exactly a limit belongs to the slice above it, since the names say "below 250"; a
    # number of turns of exactly a limit belongs to the slice below it.
    return {
        "answer length": (_range_names(), np.searchsorted(LENGTH_LIMITS, lengths, "right")),
        "turns": (TURN_NAMES, np.searchsorted(TURN_LIMITS, turns, "left")),
        "script": _assign_scripts(letters),
    }


def _measure_texts(texts: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the answers' mean length (N,) and the letters of each script in all texts (N, S)."""
    histograms = {name: character_histogram(_join_turns(texts[name])) for name in TEXTS}
    lengths = np.mean([character_counts(histograms[name]) for name in RESPONSES], axis=0)
    together = np.sum([histograms[name] for name in TEXTS], axis=0)
    letters = [count_characters(together, SCRIPTS[name]) for name in LETTER_SCRIPTS]
    return lengths, np.stack(letters, axis=1)


def _join_turns(column: pa.ChunkedArray) -> pa.LargeStringArray:
    joined = pc.binary_join(column, "\n")  # ty: ignore[missing-attribute]: made at run time
    # A histogram needs 64-bit offsets and one block of bytes.
    text = joined.cast(pa.large_string())
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def _range_names() -> list[str]:
    between = [f"{low:,} to {high - 1:,}" for low, high in pairwise(LENGTH_LIMITS)]
    return [f"below {LENGTH_LIMITS[0]:,}", *between, f"{LENGTH_LIMITS[-1]:,} or more"]


def _assign_scripts(counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Assign each row to the script with the most letters, from counts (N, S).

    Returns:
        The scripts' names, frequent ones first, and each row's number (N,). Rare scripts and rows
        without letters are the last one, "other".
    """
    no_letters = len(LETTER_SCRIPTS)
    main_script = np.where(counts.any(axis=1), counts.argmax(axis=1), no_letters)
    rows = np.bincount(main_script, minlength=no_letters + 1)[:no_letters]
    by_frequency = np.argsort(-rows, kind="stable")
    shown = [script for script in by_frequency if rows[script] >= MIN_SCRIPT_ROWS]

    number_of_script = np.full(no_letters + 1, len(shown))
    number_of_script[shown] = np.arange(len(shown))
    names = [LETTER_SCRIPTS[script] for script in shown]
    return [*names, "other"], number_of_script[main_script]
