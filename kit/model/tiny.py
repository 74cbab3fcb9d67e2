"""Train toy backbones' tokenizers on the user's rows. Use `write_tiny_backbone`.

With them all of kit runs without a network. Each toy backbone is the architecture of a real one
with the kind of tokenizer that comes with it: SentencePiece-style unigram (DeBERTa-v3), byte-level
BPE (RoBERTa), WordPiece (ELECTRA). Training takes seconds.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kit.attention.families import find_family
from kit.errors import BackboneError
from kit.model.registry import Backbone
from kit.storage.atomic import atomic_folder, write_text

# Ids 0 to 3, as in the shipped configurations.
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]

# Enough text for a vocabulary of two thousand; more would only take longer.
MAX_CHARACTERS = 3_000_000
MAX_TEXT = 2000

# Unigram score of special tokens, so low that no text is ever split into one.
_NEVER = -1e6


def write_tiny_backbone(record: Backbone, texts: Iterable[str], folder: Path) -> None:
    """Write `record`'s configuration and a tokenizer trained on `texts` to `folder`, atomically."""
    tokenizer = train_tokenizer(record, _first_texts(texts))
    from transformers import PreTrainedTokenizerFast

    pretrained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    with atomic_folder(folder) as temporary:
        pretrained.save_pretrained(temporary)
        config = json.dumps(record.config, indent=1, sort_keys=True)
        write_text(temporary / "config.json", f"{config}\n")


def train_tokenizer(record: Backbone, texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of the family's kind with at most the configuration's vocabulary.

    Equal texts give equal tokenizers. All but the most frequent characters are [UNK] (byte-level
    BPE has none), so that a corpus in many scripts fits, too.

    Raises:
        BackboneError: the record's family has no toy tokenizer.
    """
    family = record.config["model_type"]
    kind = find_family(family).toy_tokenizer
    if kind is None:
        raise BackboneError(
            f"{record.name}: no toy tokenizer for the family {family}", "Use a tiny-… backbone."
        )
    trainers_by_kind = {
        "byte-level": _train_byte_level,
        "unigram": _train_unigram,
        "wordpiece": _train_wordpiece,
    }
    return trainers_by_kind[kind](list(texts), record.config["vocab_size"])


def _train_byte_level(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer, texts, size, SPECIAL, alphabet)
    return tokenizer


def _train_unigram(texts: list[str], size: int) -> Tokenizer:
    """Take the pieces of a BPE tokenizer and score each by the logarithm of its share of the texts.

    The library's own unigram trainer sums in a random order: its scores differ from process to
    process.
    """
    scratch = Tokenizer(models.BPE())
    scratch.normalizer = normalizers.NFC()
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = ["▁", *_alphabet(texts, scratch.normalizer, size // 4)]
    _train(scratch, trainers.BpeTrainer, texts, size, SPECIAL, alphabet)

    encodings = scratch.encode_batch_fast(texts)
    counts = Counter(chain.from_iterable(encoding.ids for encoding in encodings))
    pieces = sorted(scratch.get_vocab().items(), key=lambda item: item[1])
    total = counts.total() + len(pieces)
    scores = [
        (piece, _NEVER if piece in SPECIAL else math.log((counts[number] + 1) / total))
        for piece, number in pieces
    ]

    tokenizer = Tokenizer(models.Unigram(scores, unk_id=SPECIAL.index("[UNK]")))
    tokenizer.normalizer = scratch.normalizer
    tokenizer.pre_tokenizer = scratch.pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _train_wordpiece(texts: list[str], size: int) -> Tokenizer:
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer = normalizers.BertNormalizer()
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(texts, scratch.normalizer, size // 8)

    # Continuation characters are given as special tokens, or the trainer would number them in a
    # random order.
    continuations = [f"##{character}" for character in alphabet]
    special = SPECIAL + continuations
    _train(scratch, trainers.WordPieceTrainer, texts, size, special, alphabet)

    # A new tokenizer of the same vocabulary, in which they are ordinary pieces.
    vocabulary = scratch.get_vocab(with_added_tokens=False)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = scratch.normalizer
    tokenizer.pre_tokenizer = scratch.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _train(
    tokenizer: Tokenizer,
    trainer: type,
    texts: list[str],
    size: int,
    special: list[str],
    alphabet: list[str],
) -> None:
    settings = {
        "vocab_size": size,
        "special_tokens": special,
        "show_progress": False,
        "initial_alphabet": alphabet,
        "limit_alphabet": len(alphabet),
    }
    tokenizer.train_from_iterator(texts, trainer(**settings))


def _alphabet(texts: list[str], normalizer: normalizers.Normalizer, limit: int) -> list[str]:
    """Return ASCII and the `limit` most frequent characters of the texts, sorted."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:limit]
    return sorted({*map(chr, range(33, 127)), *frequent} - {" "})


def _first_texts(texts: Iterable[str]) -> Iterator[str]:
    """Yield the beginning of each text, until there are enough characters."""
    left = MAX_CHARACTERS
    for text in texts:
        if left <= 0:
            return
        start = text[:MAX_TEXT]
        yield start
        left -= len(start)
