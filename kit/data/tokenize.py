"""Tokenise rows once and keep the tokens on disk, memory-mapped. Use `tokenize_cached`.

The Rust tokenizer encodes batches on all cores; `kit.data.truncation` lays out the sequences.
"""

import array
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kit.data.frame import FRAMED_LAYOUTS, Frame
from kit.data.truncation import LAYOUTS, Retention, TruncatedSequence, Turns
from kit.errors import DataError, RecipeError
from kit.recipe.spec import EncodeSpec, Shape
from kit.storage.atomic import atomic_files, atomic_folder, save_array
from kit.storage.lock import make_once
from kit.storage.seal import DELETE_HINT, check_seal, is_sealed, seal_folder
from kit.task import PROMPT, RESPONSES
from kit.wording import counted

# Part of the cache key: raise it when the same rows would become other tokens.
FORMAT = 3

# Rows tokenised at a time. It bounds the memory for any number of rows.
CHUNK = 1024

# The share of answers that may be cut to nothing: odd rows, and not a budget that is too small.
MAX_EMPTIED = 0.01


@dataclass(frozen=True)
class PairTokenizer:
    """A fast transformers tokenizer and the ids of the tokens that frame a sequence.

    An encoder's has `cls` and `sep`; a decoder's has a `frame` instead.
    """

    pretrained: Any
    cls: int | None
    sep: int | None
    pad: int
    frame: Frame | None = None

    @property
    def backend(self) -> Any:
        """Return the Rust tokenizer, set to encode texts without truncation and padding."""
        backend = self.pretrained.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        # An answer that spells out [SEP] or </s> is text, not structure.
        backend.encode_special_tokens = True
        return backend

    @property
    def digest(self) -> str:
        """Return a hash of everything that decides the tokens of a text."""
        content = f"{self.backend.to_str()}|{self.cls}|{self.sep}|{self.pad}"
        if self.frame:
            content += self.frame.digest
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def frame_tokens(self) -> list[int]:
        """Return the tokens that are in every sequence of a judge; none for an encoder."""
        frame = self.frame
        return [token for part in frame.parts for token in part] if frame else []

    def layout(
        self, shape: Shape
    ) -> Callable[[Turns, Sequence[Turns], EncodeSpec], Iterator[TruncatedSequence]]:
        """Return what lays a row out as sequences of the shape: prompt, answers, keys."""
        if self.frame:
            return partial(FRAMED_LAYOUTS[shape], frame=self.frame)
        return partial(LAYOUTS[shape], cls=self.cls, sep=self.sep)

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files in Hugging Face layout."""
        with atomic_files(folder) as temporary:
            self.pretrained.save_pretrained(temporary)


@dataclass(frozen=True)
class TokenizedRows:
    """The tokens of N rows with S sequences each, memory-mapped from disk.

    The sequences of a row are its two sides, or under the shapes "cross" and "judge" the row in
    both orders of its answers.

    Attributes:
        tokens: int32, all sequences one after another, with framing.
        starts: int64 (N·S + 1), where each sequence begins.
        first_lengths: int32 (N·S), tokens of a sequence in the first of its two segments.
        whole_lengths: int32 (N·S), tokens that the row's sides would have without a budget.
        sides: S.
        cut: number of sequences that lost tokens to the budget.
        retention: tokens of all prompts and answers, and how many are kept.
    """

    tokens: np.ndarray
    starts: np.ndarray
    first_lengths: np.ndarray
    whole_lengths: np.ndarray
    sides: int
    cut: int
    retention: Retention | None = None

    def __len__(self) -> int:
        return (len(self.starts) - 1) // self.sides

    @property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sequence, (N, S)."""
        return np.diff(self.starts).reshape(-1, self.sides)

    @classmethod
    def open(cls, folder: Path) -> "TokenizedRows":
        """Map the files that `tokenize_rows` wrote.

        Raises:
            DataError: a file is missing or has changed.
        """
        check_seal(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            starts, first_lengths, whole_lengths = (
                np.load(folder / f"{name}.npy")
                for name in ("starts", "first_lengths", "whole_lengths")
            )
            tokens = np.memmap(folder / "tokens.int32", np.int32, "r")
            rows = cls(
                tokens,
                starts,
                first_lengths,
                whole_lengths,
                meta["sides"],
                meta["cut"],
                Retention(*meta["retention"]),
            )
            complete = (
                (len(tokens), len(rows)) == (starts[-1], meta["rows"])
                and len(first_lengths) == len(starts) - 1
                and len(whole_lengths) == len(starts) - 1
            )
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(
                f"{folder}: cannot read the cached tokens: {error}", DELETE_HINT
            ) from error

        if not complete:
            raise DataError(f"{folder}: the cached tokens are incomplete", DELETE_HINT)
        return rows


def tokenize_cached(
    table: pa.Table,
    digest: str,
    tokenizer: PairTokenizer,
    spec: EncodeSpec,
    cache: Path,
    shape: Shape = "siamese",
) -> TokenizedRows:
    """Return the tokens of a table, from `cache` if the same table was tokenised the same way.

    Args:
        digest: a hash of the table.
    """
    identity = [FORMAT, digest, tokenizer.digest, dataclasses.asdict(spec), shape]
    folder = cache / f"tokens-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]}"
    make_once(
        cache,
        folder.name,
        lambda: is_sealed(folder),
        lambda: tokenize_rows(table, tokenizer, spec, folder, shape),
    )

    return TokenizedRows.open(folder)


def tokenize_rows(
    table: pa.Table,
    tokenizer: PairTokenizer,
    spec: EncodeSpec,
    folder: Path,
    shape: Shape = "siamese",
) -> None:
    """Write the tokens of every row to `folder`, all or nothing; see `TokenizedRows.open`.

    Only three numbers for each sequence are kept in memory, so any number of rows can be tokenised.

    Raises:
        RecipeError: the token budget leaves nothing of many answers.
    """
    backend = tokenizer.backend
    layout = tokenizer.layout(shape)
    lengths = array.array("q")
    first_lengths = array.array("i")
    whole_lengths = array.array("i")
    cut = 0
    emptied = 0
    retention = np.zeros(len(Retention._fields), np.int64)

    with atomic_folder(folder) as temporary:
        with (temporary / "tokens.int32").open("wb") as file:
            for start in range(0, table.num_rows, CHUNK):
                chunk = table.slice(start, CHUNK)
                prompts = _encode_turns(chunk[PROMPT], backend)
                responses = [_encode_turns(chunk[name], backend) for name in RESPONSES]

                tokens = array.array("i")
                kept_counts: list[Retention] = []
                for prompt, *answers in zip(prompts, *responses, strict=True):
                    for first, second, whole, lost, kept in layout(prompt, answers, spec):
                        tokens.extend(first)
                        tokens.extend(second)
                        lengths.append(len(first) + len(second))
                        first_lengths.append(len(first))
                        whole_lengths.append(whole)
                        cut += lost
                        kept_counts.append(kept)

                counts = np.array(kept_counts, np.int64).reshape(-1, len(Retention._fields))
                retention += counts.sum(0)
                emptied += int(((counts[:, 2] > 0) & (counts[:, 3] == 0)).sum())

                # numpy's tofile would not report a disk that is full at its very end.
                file.write(tokens)

        if emptied > MAX_EMPTIED * len(lengths):
            raise RecipeError(
                f"encode.max_tokens = {spec.max_tokens} with encode.prompt_share = "
                f"{spec.prompt_share:g} leaves nothing of {counted(emptied, 'answer')}",
                "Raise encode.max_tokens, or lower encode.prompt_share.",
            )
        starts = np.concatenate([[0], np.cumsum(np.frombuffer(lengths, np.int64))])
        save_array(temporary / "starts.npy", starts)
        save_array(temporary / "first_lengths.npy", np.frombuffer(first_lengths, np.int32))
        save_array(temporary / "whole_lengths.npy", np.frombuffer(whole_lengths, np.int32))

        meta = {
            "format": FORMAT,
            "rows": table.num_rows,
            "sides": len(RESPONSES),
            "cut": cut,
            "retention": retention.tolist(),
            "tokens": int(starts[-1]),
        }
        (temporary / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
        seal_folder(temporary)


def _encode_turns(column: pa.ChunkedArray, backend: Any) -> list[list[list[int]]]:
    """Return a list<string> column as token ids: rows of turns of tokens."""
    lists = column.combine_chunks()
    turns = lists.flatten().to_pylist()

    encoded = [e.ids for e in backend.encode_batch_fast(turns, add_special_tokens=False)]
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False)).tolist()
    return [encoded[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
