"""Toy backbones whose tokenizers are trained on the user's rows in seconds, so that everything runs with no network.

Each is the architecture class of a real one with the kind of tokenizer it comes with: SentencePiece-style unigram
(DeBERTa-v3), byte-level BPE (RoBERTa), WordPiece (ELECTRA).
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from kit.atomic import write_text, writing_folder
from kit.errors import BackboneError
from kit.model.backbones import Backbone

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]  # ids 0 to 3, as the shipped configurations say
MAX_CHARACTERS = 3_000_000  # enough text for a vocabulary of two thousand; more would only take longer


def write(record: Backbone, texts: Iterable[str], folder: Path) -> None:
    """Writes `record`'s configuration and a tokenizer trained on `texts` to `folder`, whole or not at all."""
    tokenizer = train_tokenizer(record, _head(texts))
    from transformers import PreTrainedTokenizerFast

    pretrained = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )
    with writing_folder(folder) as temporary:
        pretrained.save_pretrained(temporary)
        write_text(temporary / "config.json", json.dumps(record.config, indent=1, sort_keys=True) + "\n")


def train_tokenizer(record: Backbone, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of the family's kind with at most the configuration's vocabulary."""
    size, family = record.config["vocab_size"], record.config["model_type"]
    common = {"vocab_size": size, "special_tokens": SPECIAL, "show_progress": False}
    if family == "deberta-v2":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **common)
    elif family == "roberta":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)
    elif family == "electra":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**common)
    else:
        raise BackboneError(f"{record.name}: no toy tokenizer for the family {family}", "Use a tiny-… backbone.")
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _head(texts: Iterable[str]) -> Iterable[str]:
    room = MAX_CHARACTERS
    for text in texts:
        if room <= 0:
            return
        yield text[:2000]
        room -= min(len(text), 2000)
