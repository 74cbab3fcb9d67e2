"""Rows to tokens, once: tokenised in batches by Rust, laid out (see `data.truncation`), kept on disk and memory-mapped."""

import array
import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kit.data.truncation import LAYOUTS
from kit.errors import DataError
from kit.recipe.spec import EncodeSpec, Shape
from kit.storage.atomic import atomic_files, atomic_folder, save_array
from kit.storage.lock import make_once
from kit.task import PROMPT, RESPONSES

FORMAT = 2  # part of the cache key: raised when the same rows would become other tokens
CHUNK = 1024  # rows tokenised at a time; bounds memory whatever the number of rows
_REMAKE = "Delete the folder and run the command again: it is only a cache."


@dataclass(frozen=True)
class PairTokenizer:
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
        backend.encode_special_tokens = (
            True  # an answer that spells out [SEP] or </s> is text, not structure
        )
        return backend

    @property
    def digest(self) -> str:
        """Identifies everything that decides which tokens a text becomes."""
        content = f"{self.backend.to_str()}|{self.cls}|{self.sep}|{self.pad}"
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files in Hugging Face layout."""
        with atomic_files(folder) as temporary:
            self.pretrained.save_pretrained(temporary)


@dataclass(frozen=True)
class TokenizedRows:
    """The tokens of N rows with S sequences each, memory-mapped from disk.

    The sequences of a row are its two sides, or under the shape "cross" the row in both orders of its answers.

    tokens: int32, all sequences one after another, framing included. starts: int64 (N·S + 1), where each begins.
    first_lengths: int32 (N·S), how many tokens of a sequence belong to the first of its two segments.
    whole_lengths: int32 (N·S), how many tokens the row's sides would have without a budget.
    cut: how many sequences lost tokens to the budget.
    """

    tokens: np.ndarray
    starts: np.ndarray
    first_lengths: np.ndarray
    whole_lengths: np.ndarray
    sides: int
    cut: int

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.sides

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence: (N, S)."""
        return np.diff(self.starts).reshape(-1, self.sides)

    @classmethod
    def open(cls, folder: Path) -> "TokenizedRows":
        """Maps what `encode` wrote.

        Raises:
            DataError: a file of it is missing or not whole.
        """
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            starts, *lengths = (
                np.load(folder / f"{name}.npy")
                for name in ("starts", "first_lengths", "whole_lengths")
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


def tokenize_cached(
    table: pa.Table,
    content: str,
    vocabulary: PairTokenizer,
    spec: EncodeSpec,
    cache: Path,
    shape: Shape = "siamese",
) -> TokenizedRows:
    """`encode`, unless the same `content` (a hash of the table) was encoded the same way before."""
    identity = [FORMAT, content, vocabulary.digest, dataclasses.asdict(spec), shape]
    folder = cache / f"tokens-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    done = (folder / "meta.json").exists
    make_once(
        cache, folder.name, done, lambda: tokenize_rows(table, vocabulary, spec, folder, shape)
    )
    return TokenizedRows.open(folder)


def tokenize_rows(
    table: pa.Table,
    vocabulary: PairTokenizer,
    spec: EncodeSpec,
    folder: Path,
    shape: Shape = "siamese",
) -> None:
    """Encodes every row's two sequences into `folder`, whole or not at all; memory does not grow with the rows."""
    backend, layout, sides, cut, total = vocabulary.backend, LAYOUTS[shape], len(RESPONSES), 0, 0
    lengths, first_lengths, whole_lengths = array.array("q"), array.array("i"), array.array("i")
    with atomic_folder(folder) as temporary:
        with (temporary / "tokens.int32").open("wb") as file:
            for chunk in range(0, table.num_rows, CHUNK):
                rows = table.slice(chunk, CHUNK)
                prompts = _tokenise(rows[PROMPT], backend)
                responses = [_tokenise(rows[name], backend) for name in RESPONSES]
                tokens = array.array("i")
                for prompt, *answers in zip(prompts, *responses, strict=True):
                    for first, second, whole, lost in layout(
                        prompt, answers, spec, vocabulary.cls, vocabulary.sep
                    ):
                        tokens.extend(first)
                        tokens.extend(second)
                        first_lengths.append(len(first))
                        whole_lengths.append(whole)
                        lengths.append(len(first) + len(second))
                        cut += lost
                total += len(tokens)
                file.write(
                    tokens
                )  # numpy's tofile says nothing where the disk is full at its very end
        starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))])
        save_array(temporary / "starts.npy", starts)
        save_array(temporary / "first_lengths.npy", np.frombuffer(first_lengths, np.int32))
        save_array(temporary / "whole_lengths.npy", np.frombuffer(whole_lengths, np.int32))
        meta = {
            "format": FORMAT,
            "rows": table.num_rows,
            "sides": sides,
            "cut": cut,
            "tokens": total,
        }
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _tokenise(column: pa.ChunkedArray, backend: Any) -> list[list[list[int]]]:
    """A list<string> column as token ids: rows of turns of tokens."""
    lists = column.combine_chunks()
    turns = lists.flatten().to_pylist()
    encoded = [e.ids for e in backend.encode_batch_fast(turns, add_special_tokens=False)]
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
    return [encoded[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
