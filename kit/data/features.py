# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Compute features of two answers without a model: length, format, language, overlap of words.

Use `compute_features`. Length alone predicts about as well as a small network, and these features
improve a large one too.

Characters are counted on UTF-8 bytes: the first byte of a character nearly always identifies its
script, so one histogram of bytes serves every count (`character_histogram`).
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.task import PROMPT, RESPONSES

# Rows computed at a time: histograms of all rows at once would be larger than the texts.
ROWS = 4096

# Bytes counted at a time: 32 MB of keys.
CHUNK = 1 << 22

ASCII = {
    "upper": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digit": b"0123456789",
    "space": b" \t\n\r\v\f",
    "punctuation": b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
}

# Leading bytes of the characters of a script, by RFC 3629 and the block table of Unicode.
SCRIPTS = {
    "latin": (*range(0x41, 0x5B), *range(0x61, 0x7B), *range(0xC3, 0xCA), 0xE1),  # E1: Vietnamese
    "greek": (0xCD, 0xCE, 0xCF),
    "cyrillic": tuple(range(0xD0, 0xD4)),
    "semitic": tuple(range(0xD6, 0xDC)),  # Hebrew, Arabic, Syriac
    "indic": (0xE0,),  # South and South-East Asia
    "kana": (0xE3,),  # with the punctuation of Chinese and Japanese
    "han": tuple(range(0xE4, 0xEA)),
    "hangul": tuple(range(0xEA, 0xEE)),
    "emoji": (0xF0,),
    "symbol": (0xC2, 0xE2, 0xEF),  # typographic quotes and dashes, mathematics, full-width forms
}

# Occurrences in a text, as ln(1 + n). After a match, Arrow searches the rest as a text of its own,
# in which ^ matches at once. Therefore a pattern that begins a line consumes the whole line.
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
    "refusals": r"(?i)\b(?:i(?:[’']m| am) (?:sorry|unable|not able)|i apologi[sz]e"
    r"|i can(?:[’']t|not)\b|as an ai\b|as a (?:large )?language model)",
}
FINISHED = r"[.!?。！？…)\]}\"'”’`|*:;>]\s*\z"

# As ln(1 + n); the last turn's in characters.
LENGTHS = ("characters", "words", "lines", "turns", "last_turn")

# Of the characters, 0 to 1.
SHARES = (*ASCII, *SCRIPTS)

LEXICAL = (
    "word_length",  # ln(1 + characters per word)
    "distinct_words",  # share of the words that are new in the text
    "from_prompt",  # share of the text's distinct words that the prompt has too
    "of_prompt",  # share of the prompt's distinct words that the text has too
)

# Overlap of scripts with those of the prompt; no mark at the end; no text.
OTHER = ("script_match", "unfinished", "empty")

FEATURES: tuple[str, ...] = (*LENGTHS, *PATTERNS, *SHARES, *LEXICAL, *OTHER)
PROMPT_FEATURES = (*LENGTHS[:4], "questions", "code_fences", *SHARES)
PAIR_FEATURES: tuple[str, ...] = (
    *(f"prompt_{name}" for name in PROMPT_FEATURES),
    "common_words",  # share of the distinct words of either answer that are in both (Jaccard)
    "length_ratio",  # shorter by longer, in characters
    "same",  # 1 if the answers are equal
)

# Above this many bytes a word, a script has no spaces, and its characters count as words.
UNSPACED = 20

# Lower case of ASCII letters; punctuation becomes a space.
_FOLD = bytes(
    32 if chr(b) in string.punctuation else ord(chr(b).lower()) if b < 0x80 else b
    for b in range(256)
)


def compute_features(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the features of answer A (N, F), of answer B (N, F) and of the pair (N, P), float32.

    Their names are `FEATURES` and `PAIR_FEATURES`. Swapping the answers swaps the first two arrays
    and leaves the third as it is, to the last bit. A row's features depend on that row alone.

    Args:
        table: prompt, response_a and response_b as list<string>, one item a turn, without nulls.
    """
    # A table without rows still has one block, so that the arrays have their columns.
    starts = range(0, max(1, table.num_rows), ROWS)
    blocks = zip(*(_compute_block(table.slice(start, ROWS)) for start in starts), strict=True)
    a, b, pair = (np.concatenate(block) for block in blocks)
    return a, b, pair


def _compute_block(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prompt, a, b = (_measure_texts(table[column]) for column in (PROMPT, *RESPONSES))
    (prompt_words, *answer_words), common_words = _compare_words(prompt.text, a.text, b.text)

    sides = []
    for answer, words in zip((a, b), answer_words, strict=True):
        match = np.minimum(prompt.scripts, answer.scripts).sum(axis=1)
        values = answer.values | words | {"script_match": match}
        sides.append(np.column_stack([values[name] for name in FEATURES]).astype(np.float32))

    shorter = np.minimum(a.length, b.length)
    longer = np.maximum(a.length, b.length)
    length_ratio = np.where(longer, shorter / np.maximum(longer, 1), 1)
    same = pc.equal(a.text, b.text).to_numpy(zero_copy_only=False)

    prompt_values = prompt.values | prompt_words
    pair = [prompt_values[name] for name in PROMPT_FEATURES]
    pair += [common_words, length_ratio, same]
    return sides[0], sides[1], np.column_stack(pair).astype(np.float32)


@dataclass(frozen=True)
class _TextColumn:
    """One column of N texts.

    Attributes:
        text: turns joined by line feeds.
        length: characters (N,).
        scripts: shares (N, len(SCRIPTS)) of the characters that have a script.
        values: the features (N,) that a text has by itself, by name.
    """

    text: pa.LargeStringArray
    length: np.ndarray
    scripts: np.ndarray
    values: dict[str, np.ndarray]


def _measure_texts(column: pa.ChunkedArray) -> _TextColumn:
    text = pc.binary_join(column, "\n").cast(pa.large_string()).combine_chunks()
    histogram = character_histogram(text)
    length = character_counts(histogram)

    ascii_counts = [count_characters(histogram, members) for members in ASCII.values()]
    scripts = np.column_stack([count_characters(histogram, lead) for lead in SCRIPTS.values()])
    kinds = np.column_stack([*ascii_counts, scripts])

    turns = pc.list_value_length(column).to_numpy()
    turn_lengths = pc.utf8_length(pc.list_flatten(column)).to_numpy()
    counts = {
        name: pc.count_substring_regex(text, pattern).to_numpy()
        for name, pattern in PATTERNS.items()
    }
    counts |= {"characters": length, "lines": histogram[:, ord("\n")] + 1, "turns": turns}
    counts["last_turn"] = turn_lengths[turns.cumsum() - 1]

    values = {name: np.log1p(count) for name, count in counts.items()}
    values |= dict(zip(SHARES, (kinds / np.maximum(length, 1)[:, None]).T, strict=True))

    finished = pc.match_substring_regex(text, FINISHED).to_numpy(zero_copy_only=False)
    values |= {"unfinished": ~finished & (length > 0), "empty": length == 0}
    return _TextColumn(text, length, scripts / np.maximum(scripts.sum(axis=1), 1)[:, None], values)


def _split_words(text: pa.LargeStringArray) -> Iterator[list[bytes] | list[str]]:
    """Yield the words of each text, ASCII letters in lower case.

    Of a script without spaces these are its characters.
    """
    data, ends = text_content(text)
    folded = data.tobytes().translate(_FOLD)

    for start, end in pairwise(ends.tolist()):
        words = folded[start:end].split()
        spaced = len(words) * UNSPACED >= end - start
        yield words if spaced else list(b"".join(words).decode("utf-8"))


def _compare_words(
    *texts: pa.LargeStringArray,
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Return what depends on words: of prompt, A and B by name, and the share common to A and B."""
    rows = len(texts[0])
    total = np.zeros((3, rows))
    distinct = np.zeros((3, rows))
    in_prompt = np.zeros((3, rows))
    in_both = np.zeros(rows)

    for row, words in enumerate(zip(*map(_split_words, texts), strict=True)):
        prompt, a, b = sets = [set(text) for text in words]
        total[:, row] = [len(text) for text in words]
        distinct[:, row] = [len(text) for text in sets]
        in_prompt[:, row] = [len(prompt & text) for text in sets]
        in_both[row] = len(a & b)

    in_either = distinct[1] + distinct[2] - in_both
    values = [
        {
            "words": np.log1p(total[i]),
            "distinct_words": distinct[i] / np.maximum(total[i], 1),
            "from_prompt": in_prompt[i] / np.maximum(distinct[i], 1),
            "of_prompt": in_prompt[i] / np.maximum(distinct[0], 1),
            "word_length": np.log1p(pc.utf8_length(texts[i]).to_numpy() / np.maximum(total[i], 1)),
        }
        for i in range(3)
    ]
    return values, np.where(in_either, in_both / np.maximum(in_either, 1), 1)


def character_histogram(texts: pa.LargeStringArray) -> np.ndarray:
    """Return how often each byte occurs in each text, (N, 256) int32."""
    data, ends = text_content(texts)
    counts = np.zeros((len(texts), 256), np.int32)

    first = 0
    while first < len(texts):
        # As many whole texts as CHUNK bytes hold, at least one.
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK, side="right")) - 1)

        # One key for each byte: the number of its text and its value.
        keys = np.repeat(np.arange(last - first) << 8, np.diff(ends[first : last + 1]))
        keys |= data[ends[first] : ends[last]]
        counts[first:last] = np.bincount(keys, minlength=(last - first) << 8).reshape(-1, 256)
        first = last
    return counts


def text_content(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of all texts, uint8 (B,), and the bounds of each text in them, (N + 1,)."""
    _, offsets, data = texts.buffers()
    bounds = np.zeros(1, np.int64)
    if len(texts):
        bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]

    return np.frombuffer(data or b"", np.uint8), bounds


def count_characters(histogram: np.ndarray, members: bytes | tuple[int, ...]) -> np.ndarray:
    """Return how many bytes of each text (N,) are in `members`.

    If these are leading bytes, it is the number of such characters.
    """
    return histogram[:, list(members)].sum(axis=1)


def character_counts(histogram: np.ndarray) -> np.ndarray:
    """Return the number of characters of each text (N,): bytes that do not continue a character."""
    return histogram[:, :0x80].sum(axis=1) + histogram[:, 0xC0:].sum(axis=1)
