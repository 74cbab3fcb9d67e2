"""What a judge sees of two answers at a glance: length, format, language, likeness. Numbers that need no model.

Length alone tells about as much as a small network learns, and these features help beside a large one too.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.characters import (
    ASCII,
    SCRIPTS,
    character_counts,
    character_histogram,
    count_characters,
    text_content,
)
from kit.task import PROMPT, RESPONSES

ROWS = 4096  # computed at a time: a histogram of each text's bytes, for all rows at once, would outweigh the texts
# Occurrences in a text, as ln(1 + n). Arrow searches what follows a match as a text of its own, where ^ holds at once:
# what is counted at the beginning of lines takes the rest of its line with it.
PATTERNS = {
    "list_items": r"(?m)^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t].*",
    "numbered_items": r"(?m)^[ \t]*\d{1,3}[.)][ \t].*",
    "headings": r"(?m)^#{1,6} .*",
    "code_fences": r"(?m)^[ \t]*```.*",
    "inline_code": r"`[^`\n]+`",
    "bold": r"\*\*[^*\n]+\*\*",
    "table_rows": r"(?m)^[ \t]*\|.*\|.*",
    "links": r"https?://",
    "questions": r"[?？]",
    "exclamations": r"[!！]",
    "sentences": r"[.!?](?:\s|\z)|[。！？]",
    "paragraphs": r"\n[ \t]*\n",
    "refusals": r"(?i)\b(?:i(?:[’']m| am) (?:sorry|unable|not able)|i apologi[sz]e|i can(?:[’']t|not)\b"
    r"|as an ai\b|as a (?:large )?language model)",
}
FINISHED = r"[.!?。！？…)\]}\"'”’`|*:;>]\s*\z"
LENGTHS = (
    "characters",
    "words",
    "lines",
    "turns",
    "last_turn",
)  # as ln(1 + n); the last turn's in characters
SHARES = (*ASCII, *SCRIPTS)  # of the characters, 0 to 1
LEXICAL = (
    "word_length",  # ln(1 + characters per word)
    "distinct_words",  # of its words, the share that is new
    "from_prompt",  # of its distinct words, the share that the prompt has too
    "of_prompt",  # of the prompt's distinct words, the share that it takes up
)
OTHER = (
    "script_match",
    "unfinished",
    "empty",
)  # overlap of scripts with the prompt's; no mark at its end; no text

FEATURES: tuple[str, ...] = (*LENGTHS, *PATTERNS, *SHARES, *LEXICAL, *OTHER)
PROMPT_FEATURES = (*LENGTHS[:4], "questions", "code_fences", *SHARES)
PAIR_FEATURES: tuple[str, ...] = (
    *(f"prompt_{name}" for name in PROMPT_FEATURES),
    "common_words",  # of the distinct words of either answer, the share in both (Jaccard)
    "length_ratio",  # shorter by longer, in characters
    "same",  # 1 where the answers are one text
)
UNSPACED = (
    20  # bytes per word beyond which a script has no spaces, and its characters are its words
)
_FOLD = bytes(
    32 if chr(b) in string.punctuation else ord(chr(b).lower()) if b < 0x80 else b
    for b in range(256)
)


def compute_features(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of processed rows, float32: of answer A (N, F), of answer B (N, F), and of the pair (N, P).

    Their names are `FEATURES` and `PAIR_FEATURES`. Swapping the answers' columns swaps the first two and leaves the
    third as it is, to the last bit. Nothing is learnt from the rows: a row's features depend on that row alone.

    Args:
        table: prompt, response_a and response_b as list<string>, one item a turn, none null.
    """
    starts = range(0, max(1, table.num_rows), ROWS)
    blocks = zip(*(_features(table.slice(start, ROWS)) for start in starts), strict=True)
    a, b, pair = (np.concatenate(block) for block in blocks)
    return a, b, pair


def _features(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prompt, a, b = (_read(table[column]) for column in (PROMPT, *RESPONSES))
    asked, *answered, common = _lexical(prompt.text, a.text, b.text)
    blocks = []
    for answer, words in zip((a, b), answered, strict=True):
        match = np.minimum(prompt.scripts, answer.scripts).sum(axis=1)
        values = answer.values | words | {"script_match": match}
        blocks.append(np.column_stack([values[name] for name in FEATURES]).astype(np.float32))
    shorter, longer = np.minimum(a.length, b.length), np.maximum(a.length, b.length)
    same = pc.equal(a.text, b.text).to_numpy(zero_copy_only=False)
    pair = [(prompt.values | asked)[name] for name in PROMPT_FEATURES]
    pair += [common, np.where(longer, shorter / np.maximum(longer, 1), 1), same]
    return blocks[0], blocks[1], np.column_stack(pair).astype(np.float32)


@dataclass(frozen=True)
class _Text:
    """One column of N texts.

    Attributes:
        text: turns joined by line feeds.
        length: characters (N,).
        scripts: shares (N, len(SCRIPTS)) of the characters that have a script.
        values: the features (N,) that each text has by itself, by name.
    """

    text: pa.LargeStringArray
    length: np.ndarray
    scripts: np.ndarray
    values: dict[str, np.ndarray]


def _read(column: pa.ChunkedArray) -> _Text:
    text = pc.binary_join(column, "\n").cast(pa.large_string()).combine_chunks()
    bytes_of = character_histogram(text)
    length = character_counts(bytes_of)
    scripts = np.column_stack([count_characters(bytes_of, leading) for leading in SCRIPTS.values()])
    kinds = np.column_stack(
        [*(count_characters(bytes_of, members) for members in ASCII.values()), scripts]
    )
    turns = pc.list_value_length(column).to_numpy()
    each = pc.utf8_length(pc.list_flatten(column)).to_numpy()
    numbers = {
        name: pc.count_substring_regex(text, pattern).to_numpy()
        for name, pattern in PATTERNS.items()
    }
    numbers |= {"characters": length, "lines": bytes_of[:, ord("\n")] + 1, "turns": turns}
    numbers["last_turn"] = each[turns.cumsum() - 1]
    values = {name: np.log1p(number) for name, number in numbers.items()}
    values |= dict(zip(SHARES, (kinds / np.maximum(length, 1)[:, None]).T, strict=True))
    finished = pc.match_substring_regex(text, FINISHED).to_numpy(zero_copy_only=False)
    values |= {"unfinished": ~finished & (length > 0), "empty": length == 0}
    return _Text(text, length, scripts / np.maximum(scripts.sum(axis=1), 1)[:, None], values)


def _words(text: pa.LargeStringArray) -> Iterator[list[bytes] | list[str]]:
    """The words of each text, ASCII letters in lower case; of a script without spaces, the characters."""
    data, ends = text_content(text)
    folded = data.tobytes().translate(_FOLD)
    for start, end in pairwise(ends.tolist()):
        words = folded[start:end].split()
        yield (
            words if len(words) * UNSPACED >= end - start else list(b"".join(words).decode("utf-8"))
        )


def _lexical(*texts: pa.LargeStringArray) -> list[Any]:
    """What depends on words: of prompt, A and B by name; and the share of words (N,) that A and B have in common."""
    rows = len(texts[0])
    total, distinct, shared = (
        np.zeros((3, rows)) for _ in range(3)
    )  # words, distinct words, those in the prompt too
    both = np.zeros(rows)
    for row, words in enumerate(zip(*map(_words, texts), strict=True)):
        asked, a, b = sets = [set(each) for each in words]
        total[:, row] = [len(each) for each in words]
        distinct[:, row] = [len(each) for each in sets]
        shared[:, row] = [len(asked & each) for each in sets]
        both[row] = len(a & b)
    either = distinct[1] + distinct[2] - both
    values = [
        {
            "words": np.log1p(total[i]),
            "distinct_words": distinct[i] / np.maximum(total[i], 1),
            "from_prompt": shared[i] / np.maximum(distinct[i], 1),
            "of_prompt": shared[i] / np.maximum(distinct[0], 1),
            "word_length": np.log1p(pc.utf8_length(texts[i]).to_numpy() / np.maximum(total[i], 1)),
        }
        for i in range(3)
    ]
    return [*values, np.where(either, both / np.maximum(either, 1), 1)]
