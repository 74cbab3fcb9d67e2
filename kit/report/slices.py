"""Where a model is good and where it is not: its log loss by answer length, number of turns, and script."""

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
from kit.report.inputs import ReportInputs
from kit.task import PROMPT, RESPONSES, TEXTS

LENGTHS = (250, 500, 1000, 2000, 4000)  # characters at which a slice ends
TURNS = (1, 2, 4)  # the most turns of a slice
WRITTEN = tuple(name for name in SCRIPTS if name not in ("emoji", "symbol"))
FEWEST_ROWS = 10  # a rarer script counts as another
FEWEST_GROUPS = 6  # of fewer prompts an interval says nothing


@dataclass(frozen=True)
class SliceLoss:
    """The mean log loss of some rows with its 95% interval, None of too few prompts."""

    log_loss: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Slice:
    """Rows that are alike in one respect, and every model's loss on them."""

    by: str
    name: str
    rows: int
    prompts: int
    losses: dict[str, SliceLoss]


def score_slices(evidence: ReportInputs, split: str) -> tuple[Slice, ...]:
    """The models' losses on each slice of the split's rows that is not empty."""
    rows, models = evidence.rows[split], evidence.having(split)
    losses = np.stack([row_losses(model.predictions[split], rows.labels) for model in models])
    found = []
    for by, (names, place) in _kinds(evidence.texts(split)).items():
        for number, name in enumerate(names):
            of = np.flatnonzero(place == number)
            if not len(of):
                continue
            groups, each = rows.groups[of], losses[:, of]
            prompts = len(np.unique(groups))
            bounds = (
                loss_intervals(each, groups)
                if prompts >= FEWEST_GROUPS
                else [(None, None)] * len(models)
            )
            losses_of = {
                m.name: SliceLoss(float(mean), *b)
                for m, mean, b in zip(models, each.mean(1), bounds, strict=True)
            }
            found.append(Slice(by, name, len(of), prompts, losses_of))
    return tuple(found)


def _kinds(texts: pa.Table) -> dict[str, tuple[list[str], np.ndarray]]:
    """For each respect the names of its slices, and the slice's number of each row (N,)."""
    blocks = zip(
        *(_measured(texts.slice(start, ROWS)) for start in range(0, texts.num_rows, ROWS)),
        strict=True,
    )
    length, letters = map(np.concatenate, blocks)
    turns = pc.list_value_length(texts[PROMPT]).to_numpy()
    return {
        "answer length": (_ranges(LENGTHS), np.searchsorted(LENGTHS, length, "right")),
        "turns": (["1", "2", "3 to 4", "5 or more"], np.searchsorted(TURNS, turns, "left")),
        "script": _scripts(letters),
    }


def _measured(texts: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """The mean length of the two answers (N,), and the letters of each script in all three texts (N, S)."""
    bytes_of = {name: character_histogram(_joined(texts[name])) for name in TEXTS}
    length = sum(character_counts(bytes_of[name]) for name in RESPONSES) / len(RESPONSES)
    together = sum(bytes_of.values())
    return length, np.stack([count_characters(together, SCRIPTS[name]) for name in WRITTEN], axis=1)


def _joined(column: pa.ChunkedArray) -> pa.LargeStringArray:
    text = pc.binary_join(column, "\n").cast(pa.large_string())
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def _ranges(ends: tuple[int, ...]) -> list[str]:
    between = [f"{low:,} to {high - 1:,}" for low, high in pairwise(ends)]
    return [f"below {ends[0]:,}", *between, f"{ends[-1]:,} or more"]


def _scripts(counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The script with the most letters (N, S); frequent ones first, rare ones and texts without letters as others."""
    most = np.where(counts.any(axis=1), counts.argmax(axis=1), len(WRITTEN))
    rows = np.bincount(most, minlength=len(WRITTEN) + 1)[: len(WRITTEN)]
    shown = [place for place in np.argsort(-rows, kind="stable") if rows[place] >= FEWEST_ROWS]
    number = np.full(len(WRITTEN) + 1, len(shown))
    number[shown] = np.arange(len(shown))
    return [*(WRITTEN[place] for place in shown), "other"], number[most]
