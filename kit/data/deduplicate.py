"""Which rows are the same: exact duplicates, swapped copies, prompt groups; and how extra rows join the others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data import clean
from kit.data import labels as targets
from kit.data.labels import Targets
from kit.data.rows import RawRows
from kit.task import PROMPT, RESPONSES, SWAP

MIRRORED = np.array(
    [*SWAP, targets.UNLABELLED]
)  # what a label becomes when the answers change places


@dataclass(frozen=True)
class MergedRows:
    """The training rows that stay, competition rows first, in the order of their files.

    Attributes:
        ids, labels, groups, extra: (N,) each; `extra` is True for rows of extra files.
        soft, weights: (N, 3) and (N,), or None (see `kit.data.labels`).
        texts, keep: the three texts in unicode form of all rows read, and which of these (True, N times) stay.
        test_groups: (M,) the groups of the test rows, numbered together with `groups`.
        counts: what was read, dropped and kept.
    """

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    extra: np.ndarray
    soft: np.ndarray | None
    weights: np.ndarray | None
    texts: pa.Table
    keep: np.ndarray
    test_groups: np.ndarray
    counts: dict[str, int]


def merge_rows(
    train: RawRows,
    test: RawRows,
    extras: Sequence[RawRows],
    allow_test_prompts: bool,
    lessons: Targets | None = None,
) -> MergedRows:
    """Puts the competition's rows and the extra ones together.

    Dropped are exact duplicates (prompt, responses, label and soft labels) after the first; and of the extra rows also
    those that say what an earlier row says with the answers swapped, and, unless allowed, those whose prompt is in the
    test file. Swapped copies and conflicting labels among the competition's own rows are data, and stay. Equal votes
    on one pair are such duplicates and count once: to keep their numbers give the pair soft labels or a weight.

    Args:
        lessons: what all rows read teach, where that is not what their files say (`kit.data.soft_labels`). Duplicates are
            judged by the files: of the same files a student gets the rows, and so the folds, of its teacher.
    """
    own = len(train.ids)
    texts = pa.concat_tables([train.texts, *(e.texts for e in extras)])
    rows, asked = row_keys(texts, test.texts)
    said = targets.concatenate_targets([each.targets for each in (train, *extras)])
    taught = said if lessons is None else lessons
    labels, soft, weights = taught.labels, taught.soft, taught.weights
    extra = np.arange(len(labels)) >= own
    in_test = np.isin(rows.group, asked.group)
    leaks = extra & in_test & (not allow_test_prompts)
    repeats = (
        np.where(
            extra,
            find_copies(rows, said.labels, said.soft),
            find_duplicates(rows, said.labels, said.soft),
        )
        & ~leaks
    )
    keep = ~leaks & ~repeats
    kept = rows.only(keep)
    fresh, renumbered = fresh_ids(
        np.concatenate([np.empty(0, np.int64), *(e.ids for e in extras)])[keep[own:]],
        np.concatenate([train.ids, test.ids]),
    )
    counts = {
        "train_rows_read": own,
        "duplicates_dropped": int(repeats[~extra].sum()),
        "extra_rows_read": int(extra.sum()),
        "extra_test_prompts_dropped": int(leaks.sum()),
        "extra_duplicates_dropped": int(repeats[extra].sum()),
        "extra_ids_renumbered": renumbered,
        "train_rows": int(keep.sum()),
        "competition_rows": int(keep[~extra].sum()),
        "extra_rows": int(keep[extra].sum()),
        "test_rows": len(asked.group),
        "prompt_groups": len(np.unique(kept.group)),
        "competition_rows_with_a_test_prompt": int((keep & in_test & ~extra).sum()),
        "rows_with_conflicting_labels": find_conflicts(kept, labels[keep]),
        "rows_with_a_swapped_copy": swap_answers(kept),
    }
    return MergedRows(
        np.concatenate([train.ids[keep[:own]], fresh]),
        labels[keep],
        kept.group,
        extra[keep],
        None if soft is None else soft[keep],
        None if weights is None else weights[keep],
        texts,
        keep,
        asked.group,
        counts,
    )


@dataclass(frozen=True)
class RowKeys:
    """Numbers (N,) that stand for texts, equal where the texts are equal.

    Attributes:
        prompt: same number, same turns.
        a, b: same number, same response on either side, among rows that may be copies: same prompt, and responses of
            the same two lengths. Any other row has a number of its own, twice.
        group: same number, same prompt but for case, width and white space.
    """

    prompt: np.ndarray
    a: np.ndarray
    b: np.ndarray
    group: np.ndarray

    def only(self, chosen: np.ndarray | slice) -> "RowKeys":
        """The same of some rows."""
        return RowKeys(self.prompt[chosen], self.a[chosen], self.b[chosen], self.group[chosen])


def row_keys(train: pa.Table, test: pa.Table) -> tuple[RowKeys, RowKeys]:
    """The keys of two tables of texts in unicode form, numbered together."""
    texts = pa.concat_tables([train, test])
    prompts = pc.binary_join(texts[PROMPT], "\0").to_pylist()  # no turn holds a NUL any more
    prompt = numbers(prompts)
    sizes = np.stack([_bytes(texts[c]) for c in RESPONSES])
    alike = _tuples(prompt, sizes.min(axis=0), sizes.max(axis=0))
    again = np.bincount(alike)[alike] > 1
    both = pa.chunked_array(
        [c for r in RESPONSES for c in texts[r].filter(pa.array(again)).chunks], clean.TURNS
    )
    a, b = np.tile(2 * len(prompt) + np.arange(len(prompt)), (2, 1))
    a[again], b[again] = np.split(numbers(pc.binary_join(both, "\0").to_pylist()), 2)
    group = numbers(clean.prompt_key(text.replace("\0", "\n")) for text in prompts)
    every = RowKeys(prompt, a, b, group)
    return every.only(slice(train.num_rows)), every.only(slice(train.num_rows, None))


def numbers(texts: Iterable[str]) -> np.ndarray:
    """The same number for the same text (N,), counted from 0 in the order of first appearance."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], np.int64)


def _bytes(column: pa.ChunkedArray) -> np.ndarray:
    """The length of each text (N,), its turns together, in bytes of UTF-8; every text has a turn."""
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    starts = [(chunk.offsets.to_numpy() - chunk.offsets[0].as_py())[:-1] for chunk in chunks]
    turns = [pc.binary_length(chunk.flatten()).to_numpy() for chunk in chunks]
    return np.concatenate(
        [np.add.reduceat(*pair, dtype=np.int64) for pair in zip(turns, starts, strict=True)]
    )


def _tuples(*columns: np.ndarray) -> np.ndarray:
    """One number for each combination of integers from 0 on, (N,) each."""
    number = columns[0]
    for column in columns[1:]:
        _, number = np.unique(number * (int(column.max()) + 1) + column, return_inverse=True)
    return number


def _seen(numbers: np.ndarray) -> np.ndarray:
    """True where the number stands in an earlier place (N,)."""
    seen = np.ones(len(numbers), bool)
    seen[np.unique(numbers, return_index=True)[1]] = False
    return seen


def find_duplicates(
    rows: RowKeys, labels: np.ndarray, soft: np.ndarray | None = None
) -> np.ndarray:
    """True where prompt, both responses, label and soft labels (N, 3) equal those of an earlier row (N,)."""
    return _seen(_tuples(rows.prompt, rows.a, rows.b, labels, _kinds(soft, len(labels))))


def find_copies(rows: RowKeys, labels: np.ndarray, soft: np.ndarray | None = None) -> np.ndarray:
    """True where a row says what an earlier one says, as it stands or with the answers swapped (N,)."""
    mirrored = MIRRORED[labels]
    turned = np.where(
        rows.a < rows.b, labels, np.where(rows.a > rows.b, mirrored, np.minimum(labels, mirrored))
    )
    if soft is not None:
        back, alike = (rows.a > rows.b)[:, None], (rows.a == rows.b)[:, None]
        ordered = np.sort(
            soft[:, :2], 1
        )  # of two answers that are the same, either may have been the first
        soft = np.where(
            back, soft[:, SWAP], np.where(alike, np.column_stack([ordered, soft[:, 2]]), soft)
        )
    answers = np.minimum(rows.a, rows.b), np.maximum(rows.a, rows.b)
    return _seen(_tuples(rows.prompt, *answers, turned, _kinds(soft, len(labels))))


def _kinds(soft: np.ndarray | None, rows: int) -> np.ndarray:
    """The same number (N,) for the same soft labels."""
    return (
        np.zeros(rows, np.int64)
        if soft is None
        else np.unique(soft, axis=0, return_inverse=True)[1].ravel()
    )


def find_conflicts(rows: RowKeys, labels: np.ndarray) -> int:
    """How many rows share prompt and both responses with a row of another label (N,)."""
    number = _tuples(rows.prompt, rows.a, rows.b)
    return int(
        (
            np.bincount(number)[number]
            > np.bincount(_tuples(number, labels))[_tuples(number, labels)]
        ).sum()
    )


def swap_answers(rows: RowKeys) -> int:
    """How many rows stand there with the two (different) responses swapped as well."""
    responses = np.stack([rows.a, rows.b])
    straight, mirrored = np.split(
        _tuples(np.tile(rows.prompt, 2), responses.ravel(), responses[::-1].ravel()), 2
    )
    return int((np.isin(straight, mirrored) & (rows.a != rows.b)).sum())


def fresh_ids(ids: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids (N,) that are all different and none of `taken`, colliding ones renumbered above the maximum; how many."""
    clash = np.isin(ids, taken) | _seen(ids)
    first = max(int(taken.max(initial=0)), int(ids.max(initial=0))) + 1
    ids = ids.copy()
    ids[clash] = first + np.arange(clash.sum())
    return ids, int(clash.sum())


def inherit_split(
    groups: np.ndarray, values: np.ndarray, of: np.ndarray, otherwise: object
) -> np.ndarray:
    """For each group number in `of` (M,) the value of the first row (N,) with that group, else `otherwise` (M,)."""
    if not len(of):
        return np.empty(0, values.dtype)
    known, first = np.unique(groups, return_index=True)
    at = np.searchsorted(known, of).clip(max=len(known) - 1)
    return np.where(known[at] == of, values[first[at]], otherwise).astype(values.dtype)
