"""Check that encoders load whole and in float32, or fail with an error that names the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)
from transformers.utils import logging

from kit.errors import BackboneError
from kit.model.backbones import ResolvedBackbone, local_backbone, resolve_backbone
from kit.model.encoder import (
    build_encoder,
    count_parameters,
    load_encoder,
    load_tokenizer,
    retry_busy_hub,
)

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": (BertModel, BertConfig(**SMALL, intermediate_size=32)),
    "roberta": (RobertaModel, RobertaConfig(**SMALL, intermediate_size=32)),
    "electra": (ElectraModel, ElectraConfig(**SMALL, intermediate_size=32, embedding_size=8)),
    "deberta": (
        DebertaV2Model,
        DebertaV2Config(
            **SMALL, intermediate_size=32, relative_attention=True, pos_att_type=["p2c", "c2p"]
        ),
    ),
    "modernbert": (
        ModernBertModel,
        ModernBertConfig(
            **SMALL,
            intermediate_size=32,
            bos_token_id=1,
            cls_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
        ),
    ),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig(vocab_size=40, dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    ),
}


def load_config(backbone: ResolvedBackbone) -> dict:
    return backbone.config


def load_config_and_encoder(backbone: ResolvedBackbone) -> None:
    # transformers 5.0 to 5.3 find some faults of a configuration only when the encoder is loaded.
    load_config(backbone)
    load_encoder(backbone)


KEY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each family."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, (kind, config) in FAMILIES.items():
        kind(config).save_pretrained(folder / name)
    return folder


@pytest.fixture
def bert(checkpoints: Path, tmp_path: Path) -> Path:
    """A BERT folder that a test may damage."""
    return Path(shutil.copytree(checkpoints / "bert", tmp_path / "bert"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_comes_back_as_it_was_saved_without_its_pooler(checkpoints: Path, family: str):
    encoder = load_encoder(local_backbone(checkpoints / family))
    saved = load_file(checkpoints / family / "model.safetensors")
    assert {name for name in saved if "pooler" not in name} == set(encoder.state_dict())
    assert all(torch.equal(value, saved[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_from_a_folder_builds_the_same_architecture(checkpoints: Path, family: str):
    config = local_backbone(checkpoints / family).config
    again = json.loads(json.dumps(config))  # as a trained model's config.json keeps it
    assert set(build_encoder(again).state_dict()) == set(
        load_encoder(local_backbone(checkpoints / family)).state_dict()
    )
    assert str(checkpoints) not in json.dumps(config)
    assert count_parameters(config)["embedding"] >= 40 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_checkpoint_is_trained_in_float32(bert: Path, dtype: torch.dtype):
    BertModel.from_pretrained(bert).to(dtype).save_pretrained(bert)
    saved = load_file(bert / "model.safetensors")
    assert saved[KEY].dtype == dtype
    loaded = load_encoder(local_backbone(bert))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.state_dict()[KEY], saved[KEY].float())
    assert {p.dtype for p in build_encoder(local_backbone(bert).config).parameters()} == {
        torch.float32
    }


def test_a_missing_weight_is_an_error_that_names_it(bert: Path):
    rewrite(bert, lambda weights: weights.pop(KEY))
    with pytest.raises(BackboneError, match=f"encoder weights .*: 1, .*{KEY}"):
        load_encoder(local_backbone(bert))


def test_missing_layers_are_an_error(bert: Path):
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BackboneError, match=r"encoder weights .*: 16, .*encoder\.layer\.2"):
        load_encoder(local_backbone(bert))


def test_a_weight_of_another_shape_is_an_error_that_names_it(bert: Path):
    rewrite(bert, lambda weights: weights.update({KEY: torch.zeros(16, 15)}))
    with pytest.raises(BackboneError, match=f"encoder weights .*: 1, .*{KEY}"):
        load_encoder(local_backbone(bert))


def test_a_missing_pooler_is_no_loss(bert: Path):
    rewrite(bert, lambda weights: [weights.pop(key) for key in list(weights) if "pooler" in key])
    assert not [*load_encoder(local_backbone(bert)).pooler.parameters()]


def test_the_head_of_another_task_is_not_loaded(tmp_path: Path):
    model = BertForSequenceClassification(FAMILIES["bert"][1])
    model.save_pretrained(tmp_path)
    loaded = load_encoder(local_backbone(tmp_path))
    assert torch.equal(loaded.state_dict()[KEY], model.bert.state_dict()[KEY])


def test_a_folder_without_weights_says_what_it_looked_for(bert: Path):
    (bert / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"no weights in it.*model\.safetensors"):
        load_encoder(local_backbone(bert))


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_corrupt_weights_are_one_error(bert: Path, keep: int):
    (bert / "model.safetensors").write_bytes((bert / "model.safetensors").read_bytes()[:keep])
    words = r"model\.safetensors (is empty|is incomplete|does not begin)"
    with pytest.raises(BackboneError, match=words) as caught:
        load_encoder(local_backbone(bert))
    assert "again" in caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "bert-of-tomorrow"}',
        '{"hidden_size": 16}',
        '{"model_type": "bert", "hidden_size": "wide"}',
        "{",
        "[]",
        "",
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_error(bert: Path, config: str):
    (bert / "config.json").write_text(config)
    words = r"bert: (its config\.json (cannot be used|is)|cannot be loaded)"
    with pytest.raises(BackboneError, match=words):
        load_config_and_encoder(local_backbone(bert))
    with pytest.raises(BackboneError, match=words):
        load_encoder(local_backbone(bert))


def test_a_configuration_that_is_a_pointer_is_named_for_what_it_is(bert: Path):
    (bert / "config.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BackboneError, match=r"config\.json is a Git LFS pointer"):
        load_config(local_backbone(bert))


def test_code_in_a_folder_is_never_run(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    # A user who is asked whether to run the code might say yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    marker = tmp_path / "was-run"
    (bert / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    own = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": "evil.Tok"}
    (bert / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    for load in (load_config, load_encoder, load_tokenizer):
        with pytest.raises(BackboneError):
            load(local_backbone(bert))
    assert not marker.exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("load", [load_encoder, load_tokenizer])
def test_an_offline_error_explains_the_download(
    load: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        BackboneError, match=r"deberta \(microsoft/deberta-v3-xsmall\): no connection"
    ) as caught:
        load(resolve_backbone("deberta"))
    assert "hf download microsoft/deberta-v3-xsmall --local-dir models/deberta" in caught.value.hint


def test_a_backbone_downloaded_to_models_is_used_from_there(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert resolve_backbone("deberta").source == "microsoft/deberta-v3-xsmall"
    shutil.copytree(checkpoints / "deberta", tmp_path / "models" / "deberta")
    backbone = resolve_backbone("deberta")
    assert backbone.source == Path("models/deberta")
    assert backbone.config["hidden_size"] == 16
    with pytest.raises(BackboneError):
        resolve_backbone("bert")


def fast_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", "hello"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        **special,
    )


def test_a_tokenizer_has_the_ids_that_frame_a_sequence(tmp_path: Path):
    fast_tokenizer(cls_token="<s>", sep_token="</s>", pad_token="<pad>").save_pretrained(tmp_path)
    vocabulary = load_tokenizer(local_backbone(tmp_path))
    assert (vocabulary.cls, vocabulary.sep, vocabulary.pad) == (1, 2, 0)
    assert vocabulary.backend.encode("hello").ids == [4]


def test_a_tokenizer_that_cannot_frame_a_sequence_is_refused(tmp_path: Path):
    fast_tokenizer(cls_token="<s>", pad_token="<pad>").save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="CLS, SEP and PAD"):
        load_tokenizer(local_backbone(tmp_path))


@pytest.mark.parametrize("content", [None, "{", '{"model": 3}'])
def test_a_tokenizer_that_is_missing_or_broken_is_one_error(tmp_path: Path, content: str | None):
    if content is not None:
        fast_tokenizer(cls_token="<s>", sep_token="</s>", pad_token="<pad>").save_pretrained(
            tmp_path
        )
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_tokenizer(local_backbone(tmp_path))


def test_loading_prints_nothing_and_restores_the_log_level(
    bert: Path, capfd: pytest.CaptureFixture
):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    rewrite(bert, lambda weights: [weights.pop(key) for key in list(weights) if "pooler" in key])
    load_encoder(local_backbone(bert))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def hub_error(status: int, **headers: str) -> OSError:
    """Return what transformers raises for an answer of the hub."""
    response = SimpleNamespace(status_code=status, headers=headers)
    error = OSError("There was a specific connection error when trying to load the model")
    error.__cause__ = ConnectionError()
    error.__cause__.__cause__ = type("HfHubHTTPError", (OSError,), {"response": response})()
    return error


@pytest.mark.parametrize(
    ("error", "pauses"),
    [
        (hub_error(429, **{"Retry-After": "7"}), [7.0]),
        (hub_error(503), [10.0]),
        (hub_error(429, **{"Retry-After": "3600"}), None),
        (hub_error(404), None),
        (OSError("no such file"), None),
    ],
)
def test_a_busy_hub_is_asked_again(
    error: OSError, pauses: list[float] | None, monkeypatch: pytest.MonkeyPatch
):
    slept: list[float] = []
    monkeypatch.setattr("kit.model.encoder.time.sleep", slept.append)
    answers = iter([error, "tokenizer"])

    def load() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    if pauses is None:
        with pytest.raises(OSError, match=str(error)):
            retry_busy_hub(load)
        assert slept == []
    else:
        assert retry_busy_hub(load) == "tokenizer"
        assert slept == pauses


def test_a_hub_that_stays_busy_is_an_error(monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr("kit.model.encoder.time.sleep", slept.append)

    def refuse(*_: object, **__: object) -> None:
        raise hub_error(429)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load_tokenizer(local_backbone(Path("anything")))
    assert slept == [10.0, 20.0, 40.0, 80.0]
