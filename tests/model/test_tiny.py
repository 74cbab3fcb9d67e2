"""Check that toy tokenizers are reproducible, fit their architecture, and read any language."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import models

from kit.data.dataset import Dataset
from kit.errors import BackboneError
from kit.model import tiny
from kit.model.backbones import local_backbone
from kit.model.encoder import build_encoder, load_tokenizer
from kit.model.registry import BACKBONES
from kit.model.tiny import SPECIAL, train_tokenizer, write_tiny_backbone
from kit.task import TEXTS

TOYS = ["tiny-deberta", "tiny-roberta", "tiny-electra"]
MIXED = [
    "The quick brown fox jumps over the lazy dog, again and again.\n" * 3,
    "Привет, мир! Как у тебя дела сегодня? Всё хорошо, спасибо.",
    "日本語の文章です。漢字とひらがな。今日はいい天気ですね。",
    "Ça va très bien, merci : où est la bibliothèque ?",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # {'unit': \"m\"}\n",
    "🙂 👍 ∑ √2 ≈ 1.414 → ∞",
] * 20


@pytest.fixture(scope="module")
def texts(processed: Dataset) -> list[str]:
    """The texts of the embedded sample, in all its languages."""
    table = processed.train()
    return [turn for name in TEXTS for turns in table[name].to_pylist() for turn in turns]


def digest(name: str, texts: list[str]) -> str:
    return hashlib.sha256(train_tokenizer(BACKBONES[name], texts).to_str().encode()).hexdigest()


def test_the_same_texts_give_the_same_tokenizer_in_every_process():
    code = """
import hashlib, json, sys
from kit.model.registry import BACKBONES
from kit.model.tiny import train_tokenizer
names, texts = json.load(sys.stdin)
for name in names:
    print(hashlib.sha256(train_tokenizer(BACKBONES[name], texts).to_str().encode()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps([TOYS, MIXED]),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"RAYON_NUM_THREADS": "1"},
    )
    assert done.stdout.split() == [digest(name, MIXED) for name in TOYS]


@pytest.mark.parametrize("name", TOYS)
def test_other_texts_give_another_tokenizer(name: str):
    assert digest(name, MIXED[:6]) != digest(name, MIXED)


@pytest.mark.parametrize("name", TOYS)
def test_the_special_tokens_come_first_and_the_vocabulary_fits(name: str, texts: list[str]):
    tokenizer = train_tokenizer(BACKBONES[name], texts)
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[token] for token in SPECIAL] == [0, 1, 2, 3]
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert 1000 < len(vocabulary) <= BACKBONES[name].config["vocab_size"]


@pytest.mark.parametrize("name", TOYS)
def test_a_corpus_with_more_characters_than_the_vocabulary_fits(name: str):
    many = [
        "".join(map(chr, range(start, start + 60))) + " and words"
        for start in range(0x4E00, 0x6E00, 60)
    ]
    tokenizer = train_tokenizer(BACKBONES[name], many * 2)
    assert tokenizer.get_vocab_size() <= BACKBONES[name].config["vocab_size"]
    assert max(tokenizer.encode(" ".join(many)).ids) < BACKBONES[name].config["vocab_size"]


@pytest.mark.parametrize("name", TOYS)
def test_every_language_and_code_can_be_read(name: str):
    tokenizer = train_tokenizer(BACKBONES[name], MIXED)
    for text in MIXED[:7]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert SPECIAL.index("[UNK]") not in ids
        assert 0 < len(ids) <= len(text.encode())


@pytest.mark.parametrize("name", TOYS)
def test_the_sample_needs_few_tokens_and_hardly_any_unknown_ones(name: str, texts: list[str]):
    tokenizer = train_tokenizer(BACKBONES[name], texts)
    ids = [
        i
        for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)
        for i in encoded.ids
    ]
    assert ids.count(SPECIAL.index("[UNK]")) / len(ids) < 0.002
    assert sum(map(len, texts)) / len(ids) > 2  # characters a token


@pytest.mark.parametrize("name", TOYS)
def test_unseen_ascii_can_be_read(name: str):
    tokenizer = train_tokenizer(BACKBONES[name], ["abc abc"])
    ids = tokenizer.encode("{x} = Z9 ~ q@w;", add_special_tokens=False).ids
    assert SPECIAL.index("[UNK]") not in ids


@pytest.mark.parametrize("name", TOYS)
def test_special_tokens_in_a_text_are_ordinary_text(name: str, tmp_path: Path):
    write_tiny_backbone(BACKBONES[name], MIXED, tmp_path / name)
    vocabulary = load_tokenizer(local_backbone(tmp_path / name))
    ids = vocabulary.backend.encode("a [SEP] b[CLS] [PAD]", add_special_tokens=False).ids
    assert not {vocabulary.cls, vocabulary.sep, vocabulary.pad} & set(ids)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny-deberta", models.Unigram),
        ("tiny-roberta", models.BPE),
        ("tiny-electra", models.WordPiece),
    ],
)
def test_each_family_has_its_kind_of_tokenizer(name: str, kind: type):
    assert isinstance(train_tokenizer(BACKBONES[name], MIXED).model, kind)


@pytest.mark.parametrize("name", TOYS)
def test_a_written_toy_is_a_backbone_folder(name: str, tmp_path: Path):
    write_tiny_backbone(BACKBONES[name], iter(MIXED), tmp_path / "one")
    write_tiny_backbone(BACKBONES[name], MIXED, tmp_path / "two")
    vocabulary = load_tokenizer(local_backbone(tmp_path / "one"))
    assert (vocabulary.pad, vocabulary.cls, vocabulary.sep) == (0, 1, 2)
    assert vocabulary.digest == load_tokenizer(local_backbone(tmp_path / "two")).digest
    trained = train_tokenizer(BACKBONES[name], MIXED)
    for text in MIXED[:7]:
        ids = vocabulary.backend.encode(text, add_special_tokens=False).ids
        assert ids == trained.encode(text, add_special_tokens=False).ids
    config = local_backbone(tmp_path / "one").config
    assert {key: config[key] for key in BACKBONES[name].config} == BACKBONES[name].config
    assert build_encoder(config).get_input_embeddings().num_embeddings >= len(vocabulary.pretrained)


def test_only_the_beginning_of_a_large_corpus_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiny, "MAX_CHARACTERS", 5000)
    seen = []

    def endless():
        while True:
            seen.append("x" * 3000)
            yield seen[-1]

    read = list(tiny._first_texts(endless()))
    assert len(seen) < 6
    assert {len(text) for text in read} == {2000}


def test_a_family_without_a_toy_is_refused():
    with pytest.raises(BackboneError, match="no toy tokenizer for the family modernbert"):
        train_tokenizer(BACKBONES["modernbert-base"], MIXED)
