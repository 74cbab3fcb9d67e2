"""Measure how near prompt and answers are in meaning, by a frozen encoder. Use `Embedder`.

A small encoder that was trained to embed sentences reads prompt and answers, each by itself. The
cosines of their vectors are features for classical models, to which two texts of other words are
otherwise unlike (Reimers and Gurevych, "Sentence-BERT", 2019).
"""

import array
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kit.baselines.rows import Similarities
from kit.data.prediction_rows import PredictionRows
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.errors import BackboneError, RunError
from kit.model.backbones import ResolvedBackbone, local_backbone, resolve_backbone
from kit.model.base import BaseReference, fetch_backbone, find_base, refer_to_base
from kit.model.checks import check_backbone_files
from kit.model.device import choose_device, prepare_device
from kit.model.encoder import load_encoder, load_tokenizer
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.model.states import vectors_cached
from kit.recipe.spec import ModelSpec
from kit.storage.atomic import read_text_file
from kit.task import TEXTS

# Rows tokenised at a time, to bound the memory.
CHUNK = 1024

# Tokens of a text that are read: about as many as encoders of sentences were trained on.
MAX_TOKENS = 256


@dataclass(frozen=True)
class Embedder:
    """A frozen encoder, by reference, and its tokenizer; it is loaded when there are rows to read.

    It computes in float32 on every device, so that the same trees see the same numbers.
    """

    reference: BaseReference
    tokenizer: PairTokenizer

    @classmethod
    def of_backbone(cls, name: str) -> "Embedder":
        """Return the embedder of a backbone: a registry name, a folder or a hub id.

        Raises:
            BackboneError: it is a decoder, or cannot be found or downloaded.
        """
        backbone = resolve_backbone(name)
        if backbone.is_decoder:
            raise BackboneError(
                f"{name} is a decoder, whose tokens see only those before them",
                "Name an encoder of sentences, such as sentence-transformers/all-MiniLM-L6-v2.",
            )
        backbone = fetch_backbone(backbone)
        assert isinstance(backbone.source, Path), "fetched backbones are folders"
        check_backbone_files(backbone.source)
        return cls(refer_to_base(backbone, backbone.source), load_tokenizer(backbone))

    @classmethod
    def load(cls, folder: Path) -> "Embedder":
        """Return the embedder that `save` wrote.

        Raises:
            RunError: its reference is damaged.
            BackboneError: its tokenizer is.
        """
        try:
            reference = BaseReference(**json.loads(read_text_file(folder / "config.json"))["base"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder}: which encoder it reads is lost: {error}") from error
        return cls(reference, load_tokenizer(local_backbone(folder)))

    def measure(
        self, source: PredictionRows, log: Callable[[str], None] = lambda _: None
    ) -> Similarities:
        """Return the similarities of all rows; arguments and errors as of `embed`."""
        return cosines(self.embed(source, log))

    def embed(
        self, source: PredictionRows, log: Callable[[str], None] = lambda _: None
    ) -> np.ndarray:
        """Return the mean states of prompt, answer A and answer B of all rows, (N, 3, H) float32.

        They are kept in the source's cache.

        Args:
            log: called when the encoder begins to read, and about once a minute.

        Raises:
            BackboneError: the encoder is not here, or has other weights.
            DataError: the cached vectors are damaged.
        """
        backbone = find_base(self.reference)
        compute = choose_device("fp32")
        prepare_device(compute)
        model = _pooling_model(backbone).to(compute.device)
        encoded = self._tokenize(source.table, _longest(model))
        return vectors_cached(
            model,
            make_collator(model, encoded, self.tokenizer),
            compute,
            ["similarity", source.digest, self.reference.digest, self.tokenizer.digest, MAX_TOKENS],
            source.cache,
            begin=lambda: log(f"{backbone.name} reads {len(encoded):,} prompts and their answers"),
            log=log,
        )

    def _tokenize(self, table: pa.Table, longest: int) -> TokenizedRows:
        """Return the rows as three sequences each: prompt, answer A and answer B."""
        backend = self.tokenizer.backend
        begin, end = self.tokenizer.cls, self.tokenizer.sep
        assert begin is not None, "decoders are refused"
        assert end is not None, "decoders are refused"

        tokens = array.array("i")
        starts = array.array("q", [0])
        for first in range(0, table.num_rows, CHUNK):
            columns = []
            for name in TEXTS:
                # pyarrow makes its compute functions at import, where a type checker cannot see
                # them.
                column = table[name].slice(first, CHUNK)
                texts = pc.binary_join(column, "\n").to_pylist()  # ty: ignore[missing-attribute]
                found = backend.encode_batch_fast(texts, add_special_tokens=False)
                columns.append([encoding.ids[: longest - 2] for encoding in found])

            for text in itertools.chain.from_iterable(zip(*columns, strict=True)):
                tokens.extend([begin, *text, end])
                starts.append(len(tokens))

        lengths = np.diff(starts).astype(np.int32)
        return TokenizedRows(
            tokens=np.array(tokens, np.int32),
            starts=np.array(starts, np.int64),
            first_lengths=lengths,
            whole_lengths=lengths,
            sides=len(TEXTS),
            cut=0,
        )


def cosines(vectors: np.ndarray) -> Similarities:
    """Return the cosines between the vectors (N, 3, H) of prompt, answer A and answer B."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    prompt, a, b = np.moveaxis(vectors / np.maximum(norms, 1e-12), 1, 0)
    to_prompt_a, to_prompt_b, to_each_other = (
        (x * y).sum(axis=-1, keepdims=True, dtype=np.float32)
        for x, y in ((a, prompt), (b, prompt), (a, b))
    )
    return Similarities(to_prompt_a, to_prompt_b, to_each_other)


def _pooling_model(backbone: ResolvedBackbone) -> PairModel:
    """Return a model of which only the encoder and the mean of its states are used."""
    spec = ModelSpec(shape="siamese", pooling="mean", features=False)
    return PairModel(load_encoder(backbone), backbone.config, spec).eval()


def _longest(model: PairModel) -> int:
    """Return how many tokens of a text the encoder reads."""
    config: Any = model.encoder.config
    # RoBERTa counts its positions from behind the padding token's.
    positions = getattr(config, "max_position_embeddings", None) or MAX_TOKENS
    return min(MAX_TOKENS, positions - 2)
