# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Merge the competition's rows with extra ones, without duplicates. Use `merge_rows`.

Texts are replaced by numbers first (`row_keys`); duplicates, swapped copies and prompt groups are
then found on the numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.clean import TURNS, normalise_prompt
from kit.data.labels import UNLABELLED, Targets, concatenate_targets
from kit.data.raw_csv import NO_NUMBER
from kit.data.rows import RawRows
from kit.task import PROMPT, RESPONSES, SWAP

# The label of a row whose answers change places.
SWAPPED_LABELS = np.array([*SWAP, UNLABELLED])


@dataclass(frozen=True)
class MergedRows:
    """The N training rows that stay, competition rows first, in the order of their files.

    Attributes:
        ids, groups: (N,) int64; rows with the same normalised prompt are a group.
        targets: of the N rows.
        extra: (N,), True for rows of extra files.
        texts: the three texts in unicode form, of all rows that were read.
        keep: a mask of the rows of `texts`, True for the N that stay.
        test_groups: (M,) the groups of the test rows, numbered together with `groups`.
        counts: what was read, dropped and kept.
    """

    ids: np.ndarray
    groups: np.ndarray
    targets: Targets
    extra: np.ndarray
    texts: pa.Table
    keep: np.ndarray
    test_groups: np.ndarray
    counts: dict[str, int]


def merge_rows(
    train: RawRows,
    test: RawRows,
    extras: Sequence[RawRows],
    allow_test_prompts: bool,
    targets: Targets | None = None,
) -> MergedRows:
    """Merge the competition's training rows and extra rows, and drop duplicates.

    Exact duplicates (prompt, responses, label and soft labels) are dropped after the first. Extra
    rows are also dropped if they repeat an earlier row with the answers swapped, or if their prompt
    is in the test file and that is not allowed. Swapped copies and conflicting labels among the
    competition's own rows are real data and stay. Equal votes on one pair of answers are duplicates
    and count once: to keep their number, give the pair soft labels or a weight.

    Args:
        targets: the targets of all rows read, if they differ from those in the files
            (`kit.data.soft_labels`). Duplicates are still found by the files' targets, so a student
            that learns from predictions gets the rows and folds of its teacher.
    """
    own = len(train.ids)
    file_targets = concatenate_targets([rows.targets for rows in (train, *extras)])
    targets = targets or file_targets

    texts = pa.concat_tables([train.texts, *(rows.texts for rows in extras)])
    rows, test_rows = row_keys(texts, test.texts)

    # Competition rows come first.
    extra = np.arange(len(file_targets.labels)) >= own
    in_test = np.isin(rows.group, test_rows.group)
    leaks = extra & in_test & (not allow_test_prompts)
    duplicates = find_duplicates(rows, file_targets.labels, file_targets.soft)
    copies = find_copies(rows, file_targets.labels, file_targets.soft)
    repeats = np.where(extra, copies, duplicates) & ~leaks

    keep = ~leaks & ~repeats
    kept = rows.select(keep)

    extra_ids = np.concatenate([np.empty(0, np.int64), *(rows.ids for rows in extras)])
    taken = np.concatenate([train.ids, test.ids])
    new_ids, renumbered = renumber_ids(extra_ids[keep[own:]], taken)

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
        "test_rows": len(test_rows.group),
        "prompt_groups": len(np.unique(kept.group)),
        "competition_rows_with_a_test_prompt": int((keep & in_test & ~extra).sum()),
        "rows_with_conflicting_labels": count_conflicts(kept, targets.labels[keep]),
        "rows_with_a_swapped_copy": count_swapped_copies(kept),
    }
    return MergedRows(
        ids=np.concatenate([train.ids[keep[:own]], new_ids]),
        groups=kept.group,
        targets=Targets(
            targets.labels[keep],
            None if targets.soft is None else targets.soft[keep],
            None if targets.weights is None else targets.weights[keep],
        ),
        extra=extra[keep],
        texts=texts,
        keep=keep,
        test_groups=test_rows.group,
        counts=counts,
    )


@dataclass(frozen=True)
class RowKeys:
    """Numbers (N,) in place of texts, equal where the texts are equal.

    Attributes:
        prompt: equal for equal turns.
        a, b: equal for equal responses on either side, among rows that may be copies: those with
            the same prompt and responses of the same two lengths. Every other row has a number of
            its own, the same for both responses.
        group: equal for prompts that differ only in case, width and white space.
    """

    prompt: np.ndarray
    a: np.ndarray
    b: np.ndarray
    group: np.ndarray

    def select(self, chosen: np.ndarray | slice) -> "RowKeys":
        """Return the keys of the chosen rows."""
        return RowKeys(self.prompt[chosen], self.a[chosen], self.b[chosen], self.group[chosen])


def row_keys(train: pa.Table, test: pa.Table) -> tuple[RowKeys, RowKeys]:
    """Return the keys of two tables of texts in unicode form, numbered together."""
    texts = pa.concat_tables([train, test])
    # No turn has a NUL any more, so it separates turns without ambiguity.
    prompts = pc.binary_join(texts[PROMPT], "\0").to_pylist()
    prompt = number_texts(prompts)
    group = number_texts(normalise_prompt(text.replace("\0", "\n")) for text in prompts)

    # Comparing lengths first saves Python strings of nearly all responses.
    sizes = np.stack([_text_sizes(texts[column]) for column in RESPONSES])
    alike = _number_tuples(prompt, sizes.min(axis=0), sizes.max(axis=0))
    may_repeat = np.bincount(alike)[alike] > 1
    mask = pa.array(may_repeat)
    responses = pa.chunked_array(
        [chunk for column in RESPONSES for chunk in texts[column].filter(mask).chunks], TURNS
    )

    # Numbers that no text has yet, the same for both responses of a row.
    a, b = np.tile(2 * len(prompt) + np.arange(len(prompt)), (2, 1))
    numbers = number_texts(pc.binary_join(responses, "\0").to_pylist())
    a[may_repeat], b[may_repeat] = np.split(numbers, 2)

    keys = RowKeys(prompt, a, b, group)
    return keys.select(slice(train.num_rows)), keys.select(slice(train.num_rows, None))


def number_texts(texts: Iterable[str]) -> np.ndarray:
    """Return a number for each text (N,), from 0 in the order of first appearance."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(text, len(known)) for text in texts], np.int64)


def _text_sizes(column: pa.ChunkedArray) -> np.ndarray:
    """Return the bytes of UTF-8 of each text (N,), its turns together; every text has a turn."""
    sizes = []
    for chunk in column.chunks:
        if len(chunk):
            starts = (chunk.offsets.to_numpy() - chunk.offsets[0].as_py())[:-1]
            turns = pc.binary_length(chunk.flatten()).to_numpy()
            sizes.append(np.add.reduceat(turns, starts, dtype=np.int64))
    return np.concatenate(sizes)


def _number_tuples(*columns: np.ndarray) -> np.ndarray:
    """Return a number for each row (N,), equal for equal rows of the columns (N,).

    The columns hold integers of at least 0.
    """
    number = columns[0]
    for column in columns[1:]:
        _, number = np.unique(number * (int(column.max()) + 1) + column, return_inverse=True)
    return number


def _number_soft_labels(soft: np.ndarray | None, rows: int) -> np.ndarray:
    """Return a number for each row (N,), equal for equal soft labels (N, 3)."""
    if soft is None:
        return np.zeros(rows, np.int64)

    return np.unique(soft, axis=0, return_inverse=True)[1].ravel()


def _is_repeated(numbers: np.ndarray) -> np.ndarray:
    """Return a mask (N,), True for a number that occurs earlier."""
    repeated = np.ones(len(numbers), bool)
    repeated[np.unique(numbers, return_index=True)[1]] = False
    return repeated


def find_duplicates(
    rows: RowKeys, labels: np.ndarray, soft: np.ndarray | None = None
) -> np.ndarray:
    """Return a mask (N,), True for rows whose texts, label and soft labels occurred earlier."""
    kinds = _number_soft_labels(soft, len(labels))
    return _is_repeated(_number_tuples(rows.prompt, rows.a, rows.b, labels, kinds))


def find_copies(rows: RowKeys, labels: np.ndarray, soft: np.ndarray | None = None) -> np.ndarray:
    """Return a mask (N,), True for rows that repeat an earlier one, also with answers swapped."""
    # Bring every row into the order in which answer A has the smaller number.
    swapped = SWAPPED_LABELS[labels]
    is_swapped = rows.a > rows.b
    is_equal = rows.a == rows.b
    ordered_labels = np.where(
        is_equal, np.minimum(labels, swapped), np.where(is_swapped, swapped, labels)
    )
    if soft is not None:
        # Of two equal answers either may have been the first.
        sorted_soft = np.column_stack([np.sort(soft[:, :2], 1), soft[:, 2]])
        ordered = np.where(is_swapped[:, None], soft[:, SWAP], soft)
        soft = np.where(is_equal[:, None], sorted_soft, ordered)

    kinds = _number_soft_labels(soft, len(labels))
    smaller = np.minimum(rows.a, rows.b)
    larger = np.maximum(rows.a, rows.b)
    return _is_repeated(_number_tuples(rows.prompt, smaller, larger, ordered_labels, kinds))


def count_conflicts(rows: RowKeys, labels: np.ndarray) -> int:
    """Return the number of rows whose texts also occur with another label (N,)."""
    texts = _number_tuples(rows.prompt, rows.a, rows.b)
    with_label = _number_tuples(texts, labels)
    return int((np.bincount(texts)[texts] > np.bincount(with_label)[with_label]).sum())


def count_swapped_copies(rows: RowKeys) -> int:
    """Return the number of rows that also occur with their two (different) responses swapped."""
    responses = np.stack([rows.a, rows.b])
    numbers = _number_tuples(np.tile(rows.prompt, 2), responses.ravel(), responses[::-1].ravel())
    straight, swapped = np.split(numbers, 2)

    return int((np.isin(straight, swapped) & (rows.a != rows.b)).sum())


def renumber_ids(ids: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, int]:
    """Return ids (N,) that are all different and not in `taken`, and how many had to change.

    Repeated and taken ids, and those that are no numbers, are replaced by numbers above the
    maximum.
    """
    clash = np.isin(ids, taken) | _is_repeated(ids) | (ids == NO_NUMBER)
    first = max(int(taken.max(initial=0)), int(ids.max(initial=0))) + 1

    renumbered = ids.copy()
    renumbered[clash] = first + np.arange(clash.sum())
    return renumbered, int(clash.sum())


def inherit_split(
    groups: np.ndarray, values: np.ndarray, extra_groups: np.ndarray, default: bool | int
) -> np.ndarray:
    """Return the value (M,) of each of the `extra_groups` (M,).

    It is the value of the first row (N,) of that group, or `default` if there is none.
    """
    if not len(extra_groups):
        return np.empty(0, values.dtype)

    known, first = np.unique(groups, return_index=True)
    at = np.searchsorted(known, extra_groups).clip(max=len(known) - 1)
    found = known[at] == extra_groups
    return np.where(found, values[first[at]], default).astype(values.dtype)
