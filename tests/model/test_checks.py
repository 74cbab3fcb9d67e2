"""Check that files, weights, tokenizers and encoders that are not what they seem are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from kit.attention.families import FAMILIES, find_family
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError, RunError
from kit.model.backbones import local_backbone
from kit.model.checks import (
    check_spelling,
    check_vocabulary,
    find_padding_reader,
    reads_padding,
)
from kit.model.encoder import build_encoder, load_encoder, load_tokenizer
from kit.model.pair_model import PairModel
from kit.recipe.spec import ModelSpec

WEIGHTS = "model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 440473133\n"
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"

TINY = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "max_position_embeddings": 130,
}
DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2}
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
EXTRA = {
    "albert": {"embedding_size": 16},
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA | {"conv_kernel_size": 3},
    "distilbert": DISTIL,
    "longformer": {"attention_window": [8, 8]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 8},
    "modernbert": {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "convbert": {"embedding_size": 32},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 64},
    "squeezebert": {"embedding_size": 32},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "attention_head_size": 16,
        "feed_forward_size": 48,
        "num_buckets": 4,
        "is_decoder": False,
    },
}


@pytest.fixture
def folder(fixed_backbone: Path, tmp_path: Path) -> Path:
    """Return a backbone folder that a test may damage."""
    return Path(shutil.copytree(fixed_backbone, tmp_path / "backbone"))


@pytest.fixture
def tokenizer(fixed_backbone: Path) -> PairTokenizer:
    return load_tokenizer(local_backbone(fixed_backbone))


def change_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Write the weights again, each changed."""
    # Loaded weights are views of the file, which is written over.
    weights = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
    changed = {name: change(name, value).contiguous() for name, value in weights.items()}
    save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})


def test_an_undamaged_folder_is_used(folder: Path):
    load_encoder(local_backbone(folder))


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "Git LFS pointer"),
        (PAGE, "web page"),
        (b"", "empty"),
        (b"\0" * 4096, "zeros"),
    ],
)
def test_a_file_that_is_something_else_is_named_for_what_it_is(
    name: str, content: bytes, words: str, folder: Path
):
    (folder / name).write_bytes(content)
    with pytest.raises(BackboneError, match=rf"{name} .*{words}"):
        load_encoder(local_backbone(folder))


def test_a_shard_that_is_a_pointer_is_noticed(folder: Path):
    config = AutoConfig.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    AutoModel.from_config(config).save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_encoder(local_backbone(folder))
    shards[-1].write_bytes(POINTER)
    with pytest.raises(BackboneError, match="Git LFS"):
        load_encoder(local_backbone(folder))


def test_files_that_are_not_read_may_be_anything(folder: Path):
    (folder / "pytorch_model.bin").write_bytes(POINTER)
    (folder / "requirements.txt").touch()
    load_encoder(local_backbone(folder))


def test_incomplete_weights_say_how_much_is_missing(folder: Path):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-1234])
    with pytest.raises(BackboneError, match="1,234 bytes are missing"):
        load_encoder(local_backbone(folder))


def test_weights_of_torch_under_another_name_say_so(folder: Path):
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").replace(folder / WEIGHTS)
    with pytest.raises(BackboneError, match=r"torch\.save"):
        load_encoder(local_backbone(folder))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, folder: Path):
    def spoil(name: str, weight: torch.Tensor) -> torch.Tensor:
        if "layer.1.attention.self.query.weight" in name:
            weight[3, 2] = value
        return weight

    change_weights(folder, spoil)
    with pytest.raises(BackboneError, match=r"not finite.*query.weight"):
        load_encoder(local_backbone(folder))


def test_weights_of_zeros_are_refused(folder: Path):
    change_weights(folder, lambda _, weight: torch.zeros_like(weight))
    with pytest.raises(BackboneError, match="all zeros"):
        load_encoder(local_backbone(folder))


def quantised(weight: torch.Tensor) -> torch.Tensor:
    """Return whole numbers from -127 to 127, as int8 has them without their scale."""
    return (weight / weight.abs().max().clamp(min=1e-6) * 127).round()


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float16])
def test_quantised_values_without_their_scales_are_refused(dtype: torch.dtype, folder: Path):
    def spoil(_: str, weight: torch.Tensor) -> torch.Tensor:
        return quantised(weight).to(dtype) if weight.ndim == 2 else weight

    change_weights(folder, spoil)
    with pytest.raises(BackboneError, match="quantised"):
        load_encoder(local_backbone(folder))


def test_quantised_values_in_a_file_of_torch_are_refused(folder: Path):
    weights = load_file(folder / WEIGHTS)
    changed = {n: quantised(w).to(torch.int8) if w.ndim == 2 else w for n, w in weights.items()}
    torch.save(changed, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    with pytest.raises(BackboneError, match="quantised"):
        load_encoder(local_backbone(folder))


def test_eight_bit_floats_are_refused(folder: Path):
    def spoil(_: str, weight: torch.Tensor) -> torch.Tensor:
        return (weight * 448).to(torch.float8_e4m3fn) if weight.ndim == 2 else weight

    change_weights(folder, spoil)
    with pytest.raises(BackboneError, match="quantised"):
        load_encoder(local_backbone(folder))


def test_a_configuration_that_tells_of_quantisation_is_refused(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match="gptq"):
        load_encoder(local_backbone(folder))


def test_adapters_next_to_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    peft = pytest.importorskip("peft")
    # Where torchao is old, as in Kaggle's images, peft would raise.
    monkeypatch.setattr("peft.tuners.lora.torchao.is_torchao_available", lambda: False)
    encoder = AutoModel.from_pretrained(folder)
    adapted = peft.get_peft_model(encoder, peft.LoraConfig(r=2, target_modules=["query"]))
    adapted.save_pretrained(folder)
    with pytest.raises(BackboneError, match=r"adapter_config\.json"):
        load_encoder(local_backbone(folder))


def word_tokenizer(words: list[str], unknown: bool = True) -> PairTokenizer:
    """Return a tokenizer of whole words; without `unknown`, other words leave no token."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *words])}
    model = models.BPE(vocab=vocabulary, merges=[])
    if unknown:
        vocabulary |= {"<unk>": len(vocabulary)}
        model = models.WordLevel(vocabulary, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    if unknown:
        special["unk_token"] = "<unk>"
    return PairTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **special), 1, 2, 0)


@pytest.mark.parametrize("unknown", [True, False])
def test_a_tokenizer_that_cannot_spell_english_is_refused(unknown: bool):
    with pytest.raises(BackboneError, match="cannot spell"):
        check_vocabulary(word_tokenizer(["hello"], unknown), 7, "x")


def test_a_tokenizer_of_far_fewer_tokens_than_embeddings_is_refused(tokenizer: PairTokenizer):
    tokens = len(tokenizer.pretrained)
    check_vocabulary(tokenizer, tokens, "x")
    check_vocabulary(tokenizer, tokens + 128, "x")
    with pytest.raises(BackboneError, match="has only"):
        check_vocabulary(tokenizer, 30_000, "x")
    with pytest.raises(BackboneError, match="encoder embeddings for"):
        check_vocabulary(tokenizer, tokens - 1, "x")


def test_a_token_beyond_the_embeddings_is_noticed_though_their_number_fits():
    tokenizer = word_tokenizer(["hello"])
    tokenizer.pretrained.backend_tokenizer.model = models.WordLevel(
        {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "hello": 90}, unk_token="<unk>"
    )
    with pytest.raises(BackboneError, match="91 tokens"):
        check_vocabulary(tokenizer, 10, "x")


def test_rows_in_letters_that_the_tokenizer_lacks_are_refused():
    tokenizer = word_tokenizer(["hello", "world"])
    assert check_spelling(tokenizer, ["hello world"], "x") == 0
    assert check_spelling(tokenizer, ["hello world hello world you"], "x") == pytest.approx(0.2)
    with pytest.raises(BackboneError, match="100% of the tokens"):
        check_spelling(tokenizer, ["guten Tag allerseits"], "x")


def test_a_byte_level_tokenizer_without_its_merges_is_refused():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{number}" for number in range(2000)]
    vocabulary = {piece: number for number, piece in enumerate(["<pad>", *letters, *words])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PairTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), 1, 2, 0)
    with pytest.raises(BackboneError, match="single letters"):
        check_spelling(tokenizer, ["The quick brown foxes jumped over those lazy dogs"], "x")


def pair_model(family: str) -> PairModel:
    torch.manual_seed(0)
    config = {"model_type": family, **TINY, **EXTRA.get(family, {})}
    if find_family(family).causal:
        config |= {"num_key_value_heads": 1, "head_dim": 16}
    return PairModel(build_encoder(config), config, ModelSpec(pooling="mean")).eval()


@pytest.mark.parametrize(
    "family", sorted(name for name, family in FAMILIES.items() if family.masks_padding)
)
def test_a_family_that_is_known_to_keep_to_the_mask_does(family: str, tokenizer: PairTokenizer):
    assert not reads_padding(pair_model(family), tokenizer)


@pytest.mark.parametrize("family", ["fnet", "convbert"])
def test_a_family_that_reads_its_padding_is_noticed(family: str, tokenizer: PairTokenizer):
    assert reads_padding(pair_model(family), tokenizer)


def test_a_family_whose_answers_depend_on_chance_is_refused(tokenizer: PairTokenizer):
    with pytest.raises(BackboneError, match="depends on chance"):
        reads_padding(pair_model("reformer"), tokenizer)


def test_a_family_that_does_not_run_is_refused(tokenizer: PairTokenizer):
    with pytest.raises(BackboneError, match=r"NystromformerModel cannot be used"):
        reads_padding(pair_model("nystromformer"), tokenizer)


@pytest.mark.parametrize("family", ["layoutlm", "squeezebert"])
def test_a_family_that_always_calls_its_pooler_runs_without_one(
    family: str, tokenizer: PairTokenizer
):
    model = pair_model(family)
    assert not reads_padding(model, tokenizer)
    assert not [name for name in model.state_dict() if "pooler" in name]


def test_whether_padding_is_read_is_tried_once_and_kept(
    tokenizer: PairTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = pair_model("fnet")
    find_padding_reader(model, tokenizer)
    model.save_pretrained(tmp_path, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("kit.model.checks.reads_padding", lambda *_: pytest.fail("tried again"))
        assert PairModel.from_pretrained(tmp_path)[0].reads_padding is True

    # A model of an older kit does not tell.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["reads_padding"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert PairModel.from_pretrained(tmp_path)[0].reads_padding is True


def test_a_trained_model_without_finite_weights_is_refused(
    fixed_backbone: Path, tokenizer: PairTokenizer, tmp_path: Path
):
    backbone = local_backbone(fixed_backbone)
    model = PairModel(load_encoder(backbone), backbone.config, ModelSpec(pooling="mean"))
    model.save_pretrained(tmp_path, tokenizer)
    PairModel.from_pretrained(tmp_path)
    change_weights(tmp_path, lambda name, w: w.fill_(float("nan")) if "head" in name else w)
    with pytest.raises(RunError, match="not finite"):
        PairModel.from_pretrained(tmp_path)


def test_byte_order_marks_in_a_backbone_folder_are_read_over(folder: Path):
    plain = load_tokenizer(local_backbone(folder)).pretrained.get_vocab()
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    backbone = local_backbone(folder)
    load_encoder(backbone)
    assert load_tokenizer(backbone).pretrained.get_vocab() == plain
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_vocabulary_with_a_byte_order_mark_keeps_its_first_token(tmp_path: Path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8-sig")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 6}))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(local_backbone(tmp_path))
    assert tokenizer.pretrained.get_vocab() == {word: n for n, word in enumerate(words)}
