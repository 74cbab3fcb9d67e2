# ty: ignore[missing-attribute]  # pyarrow.compute creates its functions when it is imported
"""Compute further features of an answer for trees. Use `compute_style_features`.

They add phrases, style, repetition and likeness to the prompt to `data.features`, which a network's
head reads too. A network learns most of this from the text itself.
"""

import math
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.data.features import PATTERNS
from kit.task import PROMPT, RESPONSES

# Rows computed at a time: sets of words of all rows at once would be larger than the texts.
ROWS = 4096

# Occurrences in an answer, as ln(1 + n).
PHRASES = {
    "hedges": r"(?i)\b(?:however|although|may|might|could|perhaps|possibly|generally|typically"
    r"|usually|often|likely|depends?|it(?:'s| is) important to)\b",
    "first_person": r"(?i)\b(?:i|me|my|mine|i'm|i've)\b",
    "second_person": r"(?i)\b(?:you|your|yours)\b",
    "reasons": r"(?i)\b(?:because|since|therefore|thus|hence|so that|due to|as a result"
    r"|for example|for instance|such as)\b",
    "steps": r"(?i)\b(?:first(?:ly)?|second(?:ly)?|third(?:ly)?|then|next|finally|step)\b",
    "negations": r"(?i)\b(?:not|no|never|cannot|can't|don't|doesn't|isn't|won't)\b",
    "apologies": r"(?i)\b(?:sorry|apologi[sz]e|unfortunately|unable to|can(?:no|')t provide)\b",
    "stopwords": r"(?i)\b(?:the|of|and|to|in|is|that|for|with|as|are)\b",
    "numbers": r"\d+(?:[.,]\d+)*",
    "latex": r"\\\(|\\\[|\\frac|\\text|\$[^$\n]+\$",
    "tags": r"</?[a-zA-Z][^>\n]*>",
    "quotes": r"[\"“«]",
    "parentheses": r"\(",
    "introductions": r"(?m):[ \t]*$",
    "commas": r",",
    "long_words": r"[A-Za-z]{9,}",
    "capitalised": r"\b[A-Z][a-z]+",
    "acronyms": r"\b[A-Z]{3,}\b",
    "operators": r"[=+*/<>{}\[\];|]",
}

# 1 where an answer begins or ends so.
MARKS = {
    "opens_willing": r"(?i)\A\s*(?:sure|certainly|of course|absolutely|yes|okay|great)\b",
    "opens_refusing": r"(?i)\A\s*(?:as an? (?:ai|language|large)|i(?:'| a)m sorry|i apologi|sorry)",
    "opens_here": r"(?i)\A\s*(?:here (?:is|are)|here's|the following|below)",
    "opens_i": r"(?i)\A\s*i\b",
    "opens_list": r"\A\s*(?:[-*•#]|1[.)])",
    "opens_lower": r"\A\s*[a-z]",
    "closes_offering": r"(?i)(?:let me know|feel free|hope (?:this|that|it)|happy to|glad to"
    r"|good luck|thank(?:s| you)|any (?:other|more|further) questions)[^\n]*\s*\z",
    "closes_summing": r"(?i)(?:in (?:conclusion|summary)|overall|to (?:sum up|summari[sz]e)"
    r"|ultimately)[^\n]*\s*\z",
    "closes_question": r"[?？]\s*\z",
    "closes_exclamation": r"[!！]\s*\z",
    "closes_code": r"```\s*\z",
}

SHARES = ("stopword_share", "long_word_share", "number_share")  # of the words

# What a loop over the texts finds.
MEASURES = (
    "sentence_length",  # ln(1 + words per sentence)
    "line_length",  # ln(1 + characters per line that is not blank)
    "longest_line",  # ln(1 + characters)
    "first_line",  # ln(1 + characters)
    "last_line",  # ln(1 + characters)
    "repeated_lines",  # share of the lines that occurred before
    "repeated_pairs",  # share of the pairs of neighbouring words that occurred before
    "compression",  # bytes when compressed by bytes
    "cosine",  # of the counts of words, to the prompt's
    "rare_of_prompt",  # share of the prompt's rare words that the answer has
    "rare_from_prompt",  # share of the answer's rare words that the prompt has
    "pairs_of_prompt",  # share of the prompt's pairs of neighbouring words that the answer has
    "new_words",  # ln(1 + distinct words that the prompt lacks)
)
STYLE_FEATURES: tuple[str, ...] = (*PHRASES, *MARKS, *SHARES, *MEASURES)

# Words of at least so many characters count as rare.
RARE = 7
_PUNCTUATION = ".,:;!?\"'()*`"


def compute_style_features(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of answer A and of answer B, (N, len(STYLE_FEATURES)) float32 each.

    Swapping the answers swaps the arrays. A row's features depend on that row alone.

    Args:
        table: prompt, response_a and response_b as list<string>, one item a turn, without nulls.
    """
    # A table without rows still has one block, so that the arrays have their columns.
    starts = range(0, max(1, table.num_rows), ROWS)
    blocks = [_compute_block(table.slice(start, ROWS)) for start in starts]
    a, b = (np.concatenate(sides) for sides in zip(*blocks, strict=True))
    return a, b


def _compute_block(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    prompt, a, b = (
        pc.binary_join(table[column], "\n").cast(pa.large_string()).combine_chunks()
        for column in (PROMPT, *RESPONSES)
    )
    prompts = [_Words(text) for text in prompt.to_pylist()]
    return _measure_side(a, prompts), _measure_side(b, prompts)


class _Words:
    """The words of one text, in lower case."""

    def __init__(self, text: str):
        words = text.lower().split()
        self.total = len(words)
        self.counts = Counter(words)
        self.norm = math.sqrt(sum(count * count for count in self.counts.values()))
        self.pairs = set(pairwise(words))
        self.rare = {word.strip(_PUNCTUATION) for word in self.counts if len(word) >= RARE}


def _measure_side(texts: pa.LargeStringArray, prompts: list[_Words]) -> np.ndarray:
    """Return the features of one answer of each row, (N, len(STYLE_FEATURES))."""
    counts = {
        name: pc.count_substring_regex(texts, pattern).to_numpy()
        for name, pattern in PHRASES.items()
    }
    values = {name: np.log1p(count) for name, count in counts.items()}
    for name, pattern in MARKS.items():
        values[name] = pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False)

    cells = texts.to_pylist()
    answers = [_Words(cell) for cell in cells]
    total = np.array([max(answer.total, 1) for answer in answers])
    for name, counted in zip(SHARES, ("stopwords", "long_words", "numbers"), strict=True):
        values[name] = counts[counted] / total

    sentences = pc.count_substring_regex(texts, PATTERNS["sentences"]).to_pylist()
    rows = zip(cells, answers, prompts, sentences, strict=True)
    measures = np.array([_measure_answer(*row) for row in rows]).reshape(-1, len(MEASURES))
    values |= dict(zip(MEASURES, measures.T, strict=True))
    return np.column_stack([values[name] for name in STYLE_FEATURES]).astype(np.float32)


def _measure_answer(text: str, answer: _Words, prompt: _Words, sentences: int) -> tuple[float, ...]:
    """Return the values of `MEASURES`."""
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    data = text.encode()
    product = sum(count * answer.counts[word] for word, count in prompt.counts.items())
    common_rare = len(answer.rare & prompt.rare)
    return (
        math.log1p(answer.total / max(sentences, 1)),
        math.log1p(len(text) / len(lines)),
        math.log1p(max(map(len, lines))),
        math.log1p(len(lines[0])),
        math.log1p(len(lines[-1])),
        1 - len(set(lines)) / len(lines),
        1 - len(answer.pairs) / (answer.total - 1) if answer.total > 1 else 0.0,
        len(zlib.compress(data, 1)) / max(len(data), 1),
        product / max(prompt.norm * answer.norm, 1.0),
        common_rare / max(len(prompt.rare), 1),
        common_rare / max(len(answer.rare), 1),
        len(answer.pairs & prompt.pairs) / max(len(prompt.pairs), 1),
        math.log1p(len(answer.counts.keys() - prompt.counts.keys())),
    )
