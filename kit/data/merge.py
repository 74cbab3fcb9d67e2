"""Which rows are the same: exact duplicates, swapped copies, prompt groups; and how extra rows join the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from kit.data import clean
from kit.data.clean import prompt_keys
from kit.data.rows import Rows
from kit.schema import LABEL, PROMPT, RESPONSES, SWAP, TEXTS


@dataclass(frozen=True)
class Merged:
    """The training rows that stay, competition rows first, in the order of their files.

    Attributes:
        ids, labels, groups, extra: (N,) each; `extra` is True for rows of extra files.
        texts: the three texts in unicode form, N rows.
        test_groups: (M,) the groups of the test rows, numbered together with `groups`.
        counts: what was read, dropped and kept.
    """

    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    extra: np.ndarray
    texts: pa.Table
    test_groups: np.ndarray
    counts: dict[str, int]


def merge(train: Rows, test: Rows, extras: Sequence[Rows], allow_test_prompts: bool) -> Merged:
    """Puts the competition's rows and the extra ones together.

    Dropped are exact duplicates (prompt, responses and label) after the first; and of the extra rows also those that
    say what an earlier row says with the answers swapped, and, unless allowed, those whose prompt is in the test file.
    Swapped copies and conflicting labels among the competition's own rows are data, and stay.
    """
    own, asked, *others = keys([train.texts, test.texts, *(e.texts for e in extras)])
    rows = pd.concat([own, *others], ignore_index=True)
    rows[LABEL] = np.concatenate([train.labels, *(e.labels for e in extras)])
    extra = np.arange(len(rows)) >= len(own)
    in_test = rows["group"].isin(asked["group"]).to_numpy()
    leaks = extra & in_test & (not allow_test_prompts)
    repeats = np.where(extra, copies(rows), duplicates(rows)) & ~leaks
    keep = ~leaks & ~repeats
    kept = rows[keep]
    texts = pa.concat_tables([train.texts, *(e.texts for e in extras)])
    fresh, renumbered = fresh_ids(
        np.concatenate([np.empty(0, np.int64), *(e.ids for e in extras)])[keep[len(own) :]],
        np.concatenate([train.ids, test.ids]),
    )
    counts = {
        "train_rows_read": len(own),
        "duplicates_dropped": int(repeats[~extra].sum()),
        "extra_rows_read": int(extra.sum()),
        "extra_test_prompts_dropped": int(leaks.sum()),
        "extra_duplicates_dropped": int(repeats[extra].sum()),
        "extra_ids_renumbered": renumbered,
        "train_rows": len(kept),
        "competition_rows": int(keep[~extra].sum()),
        "extra_rows": int(keep[extra].sum()),
        "test_rows": len(asked),
        "prompt_groups": int(kept["group"].nunique()),
        "competition_rows_with_a_test_prompt": int((keep & in_test & ~extra).sum()),
        "rows_with_conflicting_labels": conflicts(kept),
        "rows_with_a_swapped_copy": swapped(kept),
    }
    return Merged(
        np.concatenate([train.ids[keep[: len(own)]], fresh]),
        kept[LABEL].to_numpy(np.int8),
        kept["group"].to_numpy(),
        extra[keep],
        texts if keep.all() else texts.filter(pa.array(keep)),
        asked["group"].to_numpy(),
        counts,
    )


def keys(tables: list[pa.Table]) -> list[pd.DataFrame]:
    """Numbers that stand for texts, equal where the texts are equal, over all tables.

    Args:
        tables: the three texts in unicode form, M tables.
    Returns:
        For each table a frame of prompt, response_a, response_b (same number: same turns, the two responses
        numbered together) and group (same number: same prompt but for case, width and white space). Responses are
        numbered only where the prompt occurs again, since rows are compared by both; elsewhere they are -1.
    """
    texts = pa.concat_tables(tables)
    prompt = _numbers(pc.binary_join(texts[PROMPT], "\0"))  # no turn holds a NUL any more
    group = _numbers(pa.chunked_array([prompt_keys(texts[PROMPT])], pa.large_string()))
    again = np.bincount(prompt)[prompt] > 1
    both = pa.chunked_array([c for r in RESPONSES for c in texts[r].filter(pa.array(again)).chunks], clean.TURNS)
    responses = np.full((len(RESPONSES), len(prompt)), -1)
    responses[:, again] = _numbers(pc.binary_join(both, "\0")).reshape(len(RESPONSES), -1)
    frame = pd.DataFrame({PROMPT: prompt, **dict(zip(RESPONSES, responses, strict=True)), "group": group})
    ends = np.cumsum([t.num_rows for t in tables])
    return [frame.iloc[end - t.num_rows : end].reset_index(drop=True) for end, t in zip(ends, tables, strict=True)]


def _numbers(texts: pa.ChunkedArray) -> np.ndarray:
    """The same number for the same text, counted from 0 in the order of first appearance."""
    encoded = texts.cast(pa.large_string()).dictionary_encode()
    return np.concatenate([np.empty(0, np.int64), *(chunk.indices.to_numpy() for chunk in encoded.chunks)])


def duplicates(rows: pd.DataFrame) -> np.ndarray:
    """True where prompt, both responses and label equal those of an earlier row (N,)."""
    return rows.duplicated([*TEXTS, LABEL]).to_numpy()


def copies(rows: pd.DataFrame) -> np.ndarray:
    """True where a row says what an earlier one says, as it stands or with the answers swapped (N,)."""
    a, b = (rows[c].to_numpy() for c in RESPONSES)
    label = rows[LABEL].to_numpy()
    mirrored = np.asarray(SWAP)[label]
    turned = np.where(a < b, label, np.where(a > b, mirrored, np.minimum(label, mirrored)))
    seen = {PROMPT: rows[PROMPT], "low": np.minimum(a, b), "high": np.maximum(a, b), LABEL: turned}
    return pd.DataFrame(seen).duplicated().to_numpy()


def conflicts(rows: pd.DataFrame) -> int:
    """How many rows share prompt and both responses with a row of another label; duplicates are gone already."""
    return int(rows.duplicated(list(TEXTS), keep=False).sum())


def swapped(rows: pd.DataFrame) -> int:
    """How many rows stand there with the two (different) responses swapped as well."""
    a, b = RESPONSES
    straight = pd.MultiIndex.from_frame(rows[[PROMPT, a, b]])
    return int((straight.isin(pd.MultiIndex.from_frame(rows[[PROMPT, b, a]])) & (rows[a] != rows[b])).sum())


def fresh_ids(ids: np.ndarray, taken: np.ndarray) -> tuple[np.ndarray, int]:
    """Ids (N,) that are all different and none of `taken`, colliding ones renumbered above the maximum; how many."""
    clash = np.isin(ids, taken) | pd.Series(ids).duplicated().to_numpy()
    first = max(int(taken.max(initial=0)), int(ids.max(initial=0))) + 1
    ids = ids.copy()
    ids[clash] = first + np.arange(clash.sum())
    return ids, int(clash.sum())


def inherit(groups: np.ndarray, values: np.ndarray, of: np.ndarray, otherwise: object) -> np.ndarray:
    """For each group number in `of` (M,) the value of the first row (N,) with that group, else `otherwise` (M,)."""
    if not len(of):
        return np.empty(0, values.dtype)
    known, first = np.unique(groups, return_index=True)
    at = np.searchsorted(known, of).clip(max=len(known) - 1)
    return np.where(known[at] == of, values[first[at]], otherwise).astype(values.dtype)
