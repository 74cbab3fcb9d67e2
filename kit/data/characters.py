"""What characters texts are made of, counted for all of them at once: a histogram of UTF-8 bytes tells it.

The first byte of a character gives its script nearly always, so that one pass over the bytes serves every count.
"""

import numpy as np
import pyarrow as pa

CHUNK = 1 << 22  # bytes counted at once: 32 MB of keys
ASCII = {
    "upper": b"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "digit": b"0123456789",
    "space": b" \t\n\r\v\f",
    "punctuation": b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
}
# Leading bytes of two or more; by RFC 3629 and the block table of Unicode.
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


def character_histogram(texts: pa.LargeStringArray) -> np.ndarray:
    """How often each byte occurs in each text, (N, 256) int32."""
    data, ends = text_content(texts)
    counts = np.zeros((len(texts), 256), np.int32)
    first = 0
    while first < len(texts):
        last = max(first + 1, int(np.searchsorted(ends, ends[first] + CHUNK, side="right")) - 1)
        keys = np.repeat(np.arange(last - first) << 8, np.diff(ends[first : last + 1]))
        keys |= data[ends[first] : ends[last]]
        counts[first:last] = np.bincount(keys, minlength=(last - first) << 8).reshape(-1, 256)
        first = last
    return counts


def text_content(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts, uint8 (B,), and where each begins and the last one ends, int64 (N + 1,)."""
    _, offsets, data = texts.buffers()
    ends = (
        np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        if len(texts)
        else np.zeros(1, np.int64)
    )
    return np.frombuffer(data or b"", np.uint8), ends


def count_characters(histograms: np.ndarray, members: bytes | tuple[int, ...]) -> np.ndarray:
    """How many bytes of each text (N,) are among `members`; of characters, if they are leading bytes."""
    return histograms[:, list(members)].sum(axis=1)


def character_counts(histograms: np.ndarray) -> np.ndarray:
    """How many characters each text has, (N,): bytes that do not continue one."""
    return histograms[:, :0x80].sum(axis=1) + histograms[:, 0xC0:].sum(axis=1)
