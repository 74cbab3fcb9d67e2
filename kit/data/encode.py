"""Rows to tokens, once: each side within its budget, tokenised in batches by Rust, kept on disk and memory-mapped.

One side is `[CLS] prompt [SEP] response [SEP]`; the turns of a conversation are joined by `[SEP]` too. What does not
fit is cut where it hurts least: early turns first, then the middle of a turn that is too long by itself.
"""

import array
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kit.atomic import writing_folder
from kit.errors import DataError
from kit.recipe import EncodeSpec
from kit.schema import PROMPT, RESPONSES

FORMAT = 2  # part of the cache key: raised when the same rows would become other tokens
CHUNK = 1024  # rows tokenised at a time; bounds memory whatever the number of rows
FRAME = 3  # CLS and two SEP around a side
_REMAKE = "Delete the folder and run the command again: it is only a cache."


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as kit needs it: a fast transformers tokenizer and the ids that frame a sequence."""

    pretrained: Any
    cls: int
    sep: int
    pad: int

    @property
    def backend(self) -> Any:
        """The Rust tokenizer, which encodes a list of texts on all cores."""
        backend = self.pretrained.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # an answer that spells out [SEP] or </s> is text, not structure
        return backend

    @property
    def digest(self) -> str:
        """Identifies everything that decides which tokens a text becomes."""
        content = f"{self.backend.to_str()}|{self.cls}|{self.sep}|{self.pad}"
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files in Hugging Face layout."""
        self.pretrained.save_pretrained(folder)


@dataclass(frozen=True)
class Encoded:
    """The tokens of N rows with S sides each, memory-mapped from disk.

    tokens: int32, all sequences one after another, framing included. starts: int64 (N·S + 1), where each begins.
    prompt_lengths: int32 (N·S), how many tokens of a sequence belong to its first segment (CLS, prompt, SEP).
    whole_lengths: int32 (N·S), how many tokens a sequence would have without a budget.
    cut: how many sequences lost tokens to the budget.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray
    whole_lengths: np.ndarray
    sides: int
    cut: int

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.sides

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each side: (N, S)."""
        return np.diff(self.starts).reshape(-1, self.sides)

    @classmethod
    def open(cls, folder: Path) -> "Encoded":
        """Maps what `encode` wrote.

        Raises:
            DataError: a file of it is missing or not whole.
        """
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            starts, *lengths = (
                np.load(folder / f"{name}.npy") for name in ("starts", "prompt_lengths", "whole_lengths")
            )
            tokens = np.memmap(folder / "tokens.int32", np.int32, "r")
            encoded = cls(tokens, starts, *lengths, meta["sides"], meta["cut"])
            whole = (len(tokens), len(encoded)) == (starts[-1], meta["rows"])
            whole = whole and all(len(starts) == len(each) + 1 for each in lengths)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{folder}: these tokens cannot be read: {error}", _REMAKE) from error
        if not whole:
            raise DataError(f"{folder}: tokens are missing from it", _REMAKE)
        return encoded


def encode_cached(table: pa.Table, content: str, vocabulary: Vocabulary, spec: EncodeSpec, cache: Path) -> Encoded:
    """`encode`, unless the same `content` (a hash of the table) was encoded the same way before."""
    identity = [FORMAT, content, vocabulary.digest, dataclasses.asdict(spec)]
    folder = cache / f"tokens-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    if not (folder / "meta.json").exists():
        encode(table, vocabulary, spec, folder)
    return Encoded.open(folder)


def encode(table: pa.Table, vocabulary: Vocabulary, spec: EncodeSpec, folder: Path) -> None:
    """Encodes every row's two sides into `folder`, whole or not at all; memory does not grow with the rows."""
    backend, sides, cut, total = vocabulary.backend, len(RESPONSES), 0, 0
    lengths, prompt_lengths, whole_lengths = array.array("q"), array.array("i"), array.array("i")
    with writing_folder(folder) as temporary:
        with (temporary / "tokens.int32").open("wb") as file:
            for chunk in range(0, table.num_rows, CHUNK):
                rows = table.slice(chunk, CHUNK)
                prompts = _tokenise(rows[PROMPT], backend)
                responses = [_tokenise(rows[name], backend) for name in RESPONSES]
                tokens = array.array("i")
                for prompt, *answers in zip(prompts, *responses, strict=True):
                    for answer in answers:
                        before = len(tokens)
                        first, second, lost = budget(prompt, answer, spec, vocabulary.sep)
                        tokens.append(vocabulary.cls)
                        tokens.extend(first)
                        tokens.append(vocabulary.sep)
                        prompt_lengths.append(len(tokens) - before)
                        tokens.extend(second)
                        tokens.append(vocabulary.sep)
                        lengths.append(len(tokens) - before)
                        whole_lengths.append(_length(prompt) + _length(answer) + FRAME)
                        cut += lost
                total += len(tokens)
                np.frombuffer(tokens, np.int32).tofile(file)
        starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))])
        np.save(temporary / "starts.npy", starts)
        np.save(temporary / "prompt_lengths.npy", np.frombuffer(prompt_lengths, np.int32))
        np.save(temporary / "whole_lengths.npy", np.frombuffer(whole_lengths, np.int32))
        meta = {"format": FORMAT, "rows": table.num_rows, "sides": sides, "cut": cut, "tokens": total}
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")


def budget(
    prompt: Sequence[list[int]], response: Sequence[list[int]], spec: EncodeSpec, sep: int
) -> tuple[list[int], list[int], bool]:
    """The prompt's and the response's tokens within `spec.max_tokens` (framing excluded), and whether any were lost.

    When both do not fit, the prompt keeps what the response leaves free, and at least its share of the budget.
    """
    room = spec.max_tokens - FRAME
    need_prompt, need_response = _length(prompt), _length(response)
    if need_prompt + need_response <= room:
        return _join(prompt, sep), _join(response, sep), False
    for_response = min(need_response, max(room - need_prompt, room - int(room * spec.prompt_share)))
    for_prompt = min(need_prompt, room - for_response)
    return _fit(prompt, for_prompt, spec, sep), _fit(response, for_response, spec, sep), True


def _fit(turns: Sequence[list[int]], room: int, spec: EncodeSpec, sep: int) -> list[int]:
    """The last turns that fit in `room`; the first of these that does not keeps its head and its tail."""
    kept: list[list[int]] = []
    for turn in reversed(turns):
        free = room - bool(kept)  # one SEP joins it to what follows
        if len(turn) > free:
            if free > 0:
                head = round(free * spec.head_share)
                kept.append(turn[:head] + turn[len(turn) - (free - head) :])
            break
        kept.append(turn)
        room = free - len(turn)
    return _join(kept[::-1], sep)


def _length(turns: Sequence[list[int]]) -> int:
    return sum(map(len, turns)) + max(0, len(turns) - 1)


def _join(turns: Sequence[list[int]], sep: int) -> list[int]:
    joined = list(turns[0]) if turns else []
    for turn in turns[1:]:
        joined.append(sep)
        joined += turn
    return joined


def _tokenise(column: pa.ChunkedArray, backend: Any) -> list[list[list[int]]]:
    """A list<string> column as token ids: rows of turns of tokens."""
    lists = column.combine_chunks()
    turns = lists.flatten().to_pylist()
    encoded = [e.ids for e in backend.encode_batch_fast(turns, add_special_tokens=False)]
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
    return [encoded[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
