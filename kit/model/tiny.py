"""Toy backbones whose tokenizers are trained on the user's rows in seconds, so that everything runs with no network.

Each is the architecture class of a real one with the kind of tokenizer it comes with: SentencePiece-style unigram
(DeBERTa-v3), byte-level BPE (RoBERTa), WordPiece (ELECTRA).
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kit.attention.families import find_family
from kit.errors import BackboneError
from kit.model.backbones import Backbone
from kit.storage.atomic import atomic_folder, write_text

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]  # ids 0 to 3, as the shipped configurations say
MAX_CHARACTERS = (
    3_000_000  # enough text for a vocabulary of two thousand; more would only take longer
)
NEVER = -1e6  # a piece's score: only the framing writes these, never a text that spells one out


def write_tiny_backbone(record: Backbone, texts: Iterable[str], folder: Path) -> None:
    """Writes `record`'s configuration and a tokenizer trained on `texts` to `folder`, whole or not at all."""
    tokenizer = train_tokenizer(record, _head(texts))
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
        write_text(
            temporary / "config.json", json.dumps(record.config, indent=1, sort_keys=True) + "\n"
        )


def train_tokenizer(record: Backbone, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of the family's kind with at most the configuration's vocabulary, the same for the same texts.

    Characters beyond the most frequent ones are [UNK] (byte-level BPE has none), so that a corpus in many scripts
    fits too.
    """
    family = record.config["model_type"]
    kind = find_family(family).toy_tokenizer
    if kind is None:
        raise BackboneError(
            f"{record.name}: no toy tokenizer for the family {family}", "Use a tiny-… backbone."
        )
    train = {"unigram": _unigram, "byte-level": _byte_level, "wordpiece": _wordpiece}[kind]
    return train(list(texts), record.config["vocab_size"])


def _byte_level(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(
        tokenizer, trainers.BpeTrainer, texts, size, SPECIAL, pre_tokenizers.ByteLevel.alphabet()
    )
    return tokenizer


def _unigram(texts: list[str], size: int) -> Tokenizer:
    """Pieces by merges, then each with the logarithm of its share of the texts.

    The library's own unigram trainer sums in a random order: its scores differ from process to process.
    """
    scratch = Tokenizer(models.BPE())
    scratch.normalizer, scratch.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Metaspace()
    _train(
        scratch,
        trainers.BpeTrainer,
        texts,
        size,
        SPECIAL,
        ["▁", *_alphabet(texts, scratch.normalizer, size // 4)],
    )
    counts = Counter(
        chain.from_iterable(encoded.ids for encoded in scratch.encode_batch_fast(texts))
    )
    pieces = sorted(scratch.get_vocab().items(), key=lambda item: item[1])
    total = counts.total() + len(pieces)
    scores = [
        (piece, NEVER if piece in SPECIAL else math.log((counts[i] + 1) / total))
        for piece, i in pieces
    ]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=SPECIAL.index("[UNK]")))
    tokenizer.normalizer, tokenizer.pre_tokenizer = scratch.normalizer, scratch.pre_tokenizer
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def _wordpiece(texts: list[str], size: int) -> Tokenizer:
    scratch = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    scratch.normalizer, scratch.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    alphabet = _alphabet(texts, scratch.normalizer, size // 8)
    inner = [
        f"##{character}" for character in alphabet
    ]  # named here, or the trainer numbers them in a random order
    _train(scratch, trainers.WordPieceTrainer, texts, size, SPECIAL + inner, alphabet)
    tokenizer = Tokenizer(
        models.WordPiece(scratch.get_vocab(with_added_tokens=False), unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = scratch.normalizer, scratch.pre_tokenizer
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
    settings = {"vocab_size": size, "special_tokens": special, "show_progress": False}
    settings |= {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}
    tokenizer.train_from_iterator(texts, trainer(**settings))


def _alphabet(texts: list[str], normalizer: normalizers.Normalizer, most: int) -> list[str]:
    """ASCII and the `most` frequent characters of the texts, in order."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    frequent = sorted(counts, key=lambda character: (-counts[character], character))[:most]
    return sorted({*map(chr, range(33, 127)), *frequent} - {" "})


def _head(texts: Iterable[str]) -> Iterable[str]:
    room = MAX_CHARACTERS
    for text in texts:
        if room <= 0:
            return
        yield text[:2000]
        room -= min(len(text), 2000)
