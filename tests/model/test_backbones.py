"""Check the registry's published sizes, and how a backbone is found by name or folder."""

import json
import re
from pathlib import Path

import pytest
import torch

from kit.attention.families import find_family
from kit.errors import BackboneError
from kit.model import registry
from kit.model.backbones import has_backbone, resolve_backbone
from kit.model.encoder import build_encoder, count_parameters
from kit.model.registry import BACKBONES, Backbone, max_positions
from kit.recipe.load import shipped_recipes

# As the reference study publishes them: layers, hidden, heads, FFN, vocabulary, max tokens; then
# millions of parameters.
REFERENCE = {
    "deberta": ((12, 384, 6, 1536, 128_000, 512), (22, 48, 70)),
    "roberta": ((12, 768, 12, 3072, 50_265, 512), (86, 39, 125)),
    "electra": ((24, 1024, 16, 4096, 30_522, 512), (303, 31, 335)),
}


# Parameters of the decoders as their pages and other libraries publish them, without the output
# layer, which a judge leaves out and most of them share with the embeddings.
JUDGES = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "skywork-0.6b": 596_049_920,
    "skywork-1.7b": 1_720_574_976,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "phi-3-mini": 3_821_079_552 - 32_064 * 3072,
}

# Billions without embeddings, from their pages.
WITHOUT_EMBEDDINGS = {
    "qwen2.5-0.5b": 0.36,
    "qwen2.5-1.5b": 1.31,
    "qwen2.5-3b": 2.77,
    "qwen3-0.6b": 0.44,
    "qwen3-1.7b": 1.4,
    "qwen3-4b": 3.6,
    "gemma-3-270m": 0.10,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_backbones_have_the_published_sizes(name: str):
    sizes, millions = REFERENCE[name]
    found = BACKBONES[name].sizes
    assert list(found) == ["layers", "hidden", "heads", "ffn", "vocabulary", "max_tokens"]
    for value, published in zip(found.values(), sizes, strict=True):
        # The published vocabulary of DeBERTa leaves out 100 unused rows.
        assert value == pytest.approx(published, rel=1e-3)

    counted = count_parameters(BACKBONES[name].config)
    assert list(counted) == ["backbone", "embedding", "total"]
    for value, published in zip(counted.values(), millions, strict=True):
        # Published numbers are rounded to a million, some with a pooler or a pretraining head.
        assert value / 1e6 == pytest.approx(published, rel=0.03)


def test_the_shipped_parameter_counts_are_those_of_the_architectures(
    pytestconfig: pytest.Config,
):
    counted = {name: count_parameters(record.config) for name, record in BACKBONES.items()}
    if pytestconfig.getoption("update"):
        pairs = {name: [c["backbone"], c["embedding"]] for name, c in counted.items()}
        lines = [f" {json.dumps(name)}: {json.dumps(pair)}" for name, pair in pairs.items()]
        file = Path(registry.__file__).with_name("parameters.json")
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        registry._parameter_counts.cache_clear()
    assert {name: record.parameters for name, record in BACKBONES.items()} == counted


@pytest.mark.parametrize("name", JUDGES)
def test_decoders_have_the_published_parameters(name: str):
    counted = count_parameters(BACKBONES[name].config)
    assert counted["total"] == JUDGES[name]
    if name in WITHOUT_EMBEDDINGS:
        assert counted["backbone"] / 1e9 == pytest.approx(WITHOUT_EMBEDDINGS[name], rel=0.02)


def test_every_decoder_is_checked():
    real = {record.name for record in BACKBONES.values() if record.judge and record.hub_id}
    assert real == set(JUDGES)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in JUDGES])
def test_every_backbone_builds_and_its_parameters_add_up(name: str):
    config = BACKBONES[name].config
    with torch.device("meta"):
        encoder = build_encoder(config)
    counted = count_parameters(config)
    assert counted["backbone"] + counted["embedding"] == counted["total"]
    assert counted["total"] == sum(p.numel() for p in encoder.parameters())
    table = config["vocab_size"] * config.get("embedding_size", config["hidden_size"])
    assert table <= counted["embedding"] < counted["total"]
    assert not [name for name, _ in encoder.named_parameters() if "pooler" in name]
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("record", BACKBONES.values(), ids=BACKBONES)
def test_every_record_is_complete(record: Backbone):
    assert record.pooling in ("mean", "cls", "last")
    assert record.pretraining
    family = find_family(record.config["model_type"])
    assert (record.judge is not None) == family.causal == (record.pooling == "last")
    if record.judge is None:
        assert record.licence in ("MIT", "Apache-2.0")
    else:
        assert record.licence
        assert record.precision.startswith("bf16 only") == family.bf16_only

        # Kaggle has every gated model, and a session has no token for the hub.
        handle = record.judge.kaggle_model
        assert handle or not record.judge.gated
        assert handle is None or re.fullmatch(r"[\w.-]+/[\w.-]+/transformers/[\w.-]+/\d", handle)
    assert record.precision
    assert (record.hub_id is None) == record.name.startswith("tiny-")
    assert record.name in shipped_recipes()
    assert json.loads(json.dumps(record.config)) == record.config


def test_multilingual_backbones_have_large_vocabularies():
    multilingual = [record for record in BACKBONES.values() if record.multilingual]
    assert {record.name for record in multilingual} == {"mdeberta", "xlm-roberta"}
    assert all(record.sizes["vocabulary"] >= 250_000 for record in multilingual)


def test_hub_ids_are_unique():
    ids = [record.hub_id for record in BACKBONES.values() if record.hub_id]
    assert len(set(ids)) == len(ids)


def test_a_toy_has_the_architecture_of_a_real_backbone_and_few_parameters():
    for family in ("deberta", "roberta", "electra"):
        toy, real = BACKBONES[f"tiny-{family}"], BACKBONES[family]
        assert toy.config["model_type"] == real.config["model_type"]
        assert toy.max_tokens == real.max_tokens
        assert count_parameters(toy.config)["total"] < 300_000


@pytest.mark.parametrize("name", ["Deberta", "deberta-", "tiny", "a/b/c", "./mine", "up/../x", ""])
def test_names_are_exact(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackboneError):
        resolve_backbone(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tiny-debrta", "Did you mean tiny-deberta? "),
        ("debreta-base", "Did you mean deberta-base or mdeberta-base? "),
        ("nope", ""),
    ],
)
def test_an_unknown_name_has_the_nearest_ones_proposed(name: str, near: str):
    with pytest.raises(BackboneError, match=f"no backbone '{name}'") as caught:
        resolve_backbone(name)
    assert caught.value.hint.startswith(f"{near}`kit backbones` lists all; or name a folder")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("deberta-xsmall", "deberta"),
        ("roberta-base", "roberta"),
        ("electra-large", "electra"),
        ("microsoft/deberta-v3-xsmall", "deberta"),
        ("deberta-base", "deberta-base"),
    ],
)
def test_full_names_and_hub_ids_are_those_of_the_registry(name: str, short: str):
    assert resolve_backbone(name).record is BACKBONES[short]


def test_every_full_name_says_the_size():
    sizes = {"xsmall", "small", "base", "large", "tiny", "mini"}
    for record in BACKBONES.values():
        # Decoders are called by their billions or millions of parameters.
        counted = re.search(r"-[\d.]+[bm]$", record.full_name)
        assert counted or sizes & set(record.full_name.split("-")), record.full_name


def test_another_encoder_of_the_hub_is_found_by_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert resolve_backbone("microsoft/deberta-v3-small").source == "microsoft/deberta-v3-small"
    folder = tmp_path / "models/microsoft/deberta-v3-small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    found = resolve_backbone("microsoft/deberta-v3-small")
    assert found.source == Path("models/microsoft/deberta-v3-small")

    # With a folder of the owner's name, the user means a path.
    with pytest.raises(BackboneError):
        resolve_backbone("models/deberta")


def test_a_folder_in_hugging_face_layout_is_a_backbone(tmp_path: Path):
    with pytest.raises(BackboneError, match=r"no config\.json"):
        resolve_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert resolve_backbone(str(tmp_path)).source == tmp_path


def test_the_registry_comes_before_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deberta").mkdir()
    (tmp_path / "deberta" / "config.json").write_text("{}")
    assert resolve_backbone("deberta").record is BACKBONES["deberta"]
    assert resolve_backbone("./deberta").source == Path("deberta")


def test_a_downloaded_backbone_keeps_its_default_pooling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert resolve_backbone("reward-deberta").default_pooling == "cls"
    folder = tmp_path / "models" / "reward-deberta"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert resolve_backbone("reward-deberta").default_pooling == "cls"
    assert resolve_backbone(str(folder)).default_pooling == "mean"


def test_only_a_folder_has_a_digest_and_it_is_read_once(tmp_path: Path):
    assert resolve_backbone("deberta").digest is None
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    backbone = resolve_backbone(str(tmp_path))
    digest = backbone.digest
    assert digest is not None
    (tmp_path / "model.safetensors").write_text("Weights")
    assert backbone.digest == digest
    assert resolve_backbone(str(tmp_path)).digest != digest


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        (
            {
                "model_type": "deberta-v2",
                "max_position_embeddings": 512,
                "position_biased_input": False,
            },
            None,
        ),
        (
            {
                "model_type": "deberta-v2",
                "max_position_embeddings": 512,
                "position_biased_input": True,
            },
            512,
        ),
        ({"model_type": "xlnet"}, None),
    ],
)
def test_the_limit_on_tokens_is_that_of_the_position_table(config: dict, limit: int | None):
    assert max_positions(config) == limit


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-electra"])
def test_a_sequence_of_exactly_the_limit_runs_and_a_longer_one_does_not(name: str):
    config = BACKBONES[name].config
    encoder, limit = build_encoder(config).eval(), max_positions(config)

    def run(length: int) -> torch.Tensor:
        with torch.no_grad():
            tokens = torch.full((1, length), 7)
            return encoder(
                input_ids=tokens, attention_mask=torch.ones_like(tokens)
            ).last_hidden_state

    assert run(limit).shape == (1, limit, config["hidden_size"])
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        run(limit + 1)


def test_relative_positions_have_no_limit_on_tokens():
    config = BACKBONES["tiny-deberta"].config
    assert max_positions(config) is None
    tokens = torch.full((1, 700), 7)
    with torch.no_grad():
        states = (
            build_encoder(config)
            .eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            .last_hidden_state
        )
    assert states.isfinite().all()


@pytest.mark.parametrize(
    ("name", "changes", "fits"),
    [
        ("deberta-large", {}, True),
        ("reward-deberta", {}, True),
        ("deberta-large", {"torch_dtype": "float16", "architectures": ["DebertaV2Model"]}, True),
        ("deberta-large", {"architectures": ["DebertaV2ForSequenceClassification"]}, False),
        ("deberta-large", {"num_hidden_layers": 12}, False),
        ("mdeberta", {"vocab_size": 128100}, False),
    ],
)
def test_a_folder_is_compared_with_the_registry(
    name: str, changes: dict, fits: bool, tmp_path: Path
):
    (tmp_path / "config.json").write_text(json.dumps(BACKBONES[name].config | changes))
    assert not has_backbone(tmp_path, BACKBONES[name])
    (tmp_path / "model.safetensors").write_text("")
    assert has_backbone(tmp_path, BACKBONES[name]) is fits

    # A trained fold is no pretrained encoder.
    (tmp_path / "metrics.json").write_text("{}")
    assert not has_backbone(tmp_path, BACKBONES[name])
