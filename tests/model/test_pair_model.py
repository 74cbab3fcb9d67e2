"""Check the pair model: symmetry, independence of packing, saving and loading."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tabular_rows import exchanged, tabular_rows
from token_rows import PAD, swapped, token_rows
from torch import Tensor

from kit.data.feature_cache import SIDE_NAMES, FeatureTable
from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.errors import RunError
from kit.model.backbones import local_backbone
from kit.model.collator import Collator
from kit.model.encoder import build_encoder, load_tokenizer
from kit.model.pair_model import FEATURES_FORMAT, FORMAT, PairModel
from kit.model.registry import BACKBONES
from kit.model.tiny import write_tiny_backbone
from kit.recipe.spec import ModelSpec
from kit.task import SWAP

SMALL = {"vocab_size": 300, "pad_token_id": 0, "intermediate_size": 32}
CONFIGS = {
    "deberta": BACKBONES["tiny-deberta"].config,
    "roberta": BACKBONES["tiny-roberta"].config,
    "electra": BACKBONES["tiny-electra"].config,
    "modernbert": BACKBONES["modernbert-base"].config
    | SMALL
    | {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    | {"cls_token_id": 1, "sep_token_id": 2},
    "distilbert": {"model_type": "distilbert", "vocab_size": 300, "dim": 16, "hidden_dim": 32}
    | {"n_layers": 2, "n_heads": 2, "pad_token_id": 0},
}
ROWS = token_rows(np.array([[9, 30], [12, 12], [40, 5], [3, 3], [31, 8], [17, 22]]))


def pair(
    family: str = "electra", head: str = "symmetric", pooling: str = "mean", shape: str = "siamese"
) -> PairModel:
    torch.manual_seed(1)
    config = CONFIGS[family]
    return PairModel(
        build_encoder(config), config, ModelSpec(shape, pooling=pooling, head=head, head_hidden=8)
    ).eval()


def batch(
    model: PairModel, rows: TokenizedRows = ROWS, places: list[int] | None = None, overhead: int = 0
) -> dict:
    segments = model.encoder_config.get("type_vocab_size", 0) > 1
    return Collator(rows, PAD, segments=segments, pack_overhead=overhead)(
        places or list(range(len(rows)))
    )


def logits(model: PairModel, *args: object) -> Tensor:
    with torch.no_grad():
        return model(**batch(model, *args))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_row_has_three_float32_logits(family: str):
    found = logits(pair(family))
    assert found.shape == (len(ROWS), 3)
    assert found.dtype == torch.float32
    # Logits depend on the input.
    assert found.std(0).min() > 0


@pytest.mark.parametrize("family", CONFIGS)
def test_each_side_is_pooled_as_if_it_were_alone(family: str):
    model = pair(family)
    segments = model.encoder_config.get("type_vocab_size", 0) > 1
    with torch.no_grad():
        pooled = model.encode(**batch(model))
        for side in range(2 * len(ROWS)):
            tokens = torch.from_numpy(
                ROWS.tokens[ROWS.starts[side] : ROWS.starts[side + 1]].astype(np.int64)
            )[None]
            alone = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            if segments:
                alone["token_type_ids"] = (
                    torch.arange(tokens.numel()) >= ROWS.first_lengths[side]
                ).long()[None]
            close(pooled[side // 2, side % 2], model.encoder(**alone).last_hidden_state[0].mean(0))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_packing_and_other_rows_change_nothing(family: str, head: str):
    model = pair(family, head)
    whole = logits(model)
    # With so large an overhead all sequences are in one pack.
    close(logits(model, ROWS, None, 10**6), whole)
    close(logits(model, ROWS, [5, 2, 0]), whole[[5, 2, 0]])
    close(logits(model, ROWS, [3]), whole[[3]])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
@pytest.mark.parametrize("shape", ["siamese", "cross"])
def test_swapping_the_answers_permutes_the_logits(family: str, pooling: str, shape: str):
    model = pair(family, "symmetric", pooling, shape)
    straight, exchanged = logits(model), logits(model, swapped(ROWS), None, 10**6)
    close(exchanged[:, list(SWAP)], straight)


@pytest.mark.parametrize("head", ["symmetric", "fusion"])
@pytest.mark.parametrize("shape", ["siamese", "cross"])
def test_both_orders_is_what_running_the_swapped_rows_gives(head: str, shape: str):
    model = pair("electra", head, shape=shape)
    with torch.no_grad():
        both = model(**batch(model), augment=True)
    assert both.shape == (len(ROWS), 2, 3)
    close(both[:, 0], logits(model))
    close(both[:, 1], logits(model, swapped(ROWS))[:, list(SWAP)])
    assert torch.allclose(both[:, 0], both[:, 1], atol=1e-5) == (head == "symmetric")


def test_the_fusion_model_sees_which_answer_comes_first():
    model = pair("roberta", "fusion")
    assert not torch.allclose(logits(model, swapped(ROWS))[:, list(SWAP)], logits(model), atol=1e-3)


def test_the_plain_cross_head_judges_a_row_as_it_stands():
    model = pair("roberta", "fusion", shape="cross")
    vectors = torch.randn(4, 2, model.encoder.config.hidden_size)
    other = vectors.clone()
    other[:, 1] = 0
    with torch.no_grad():
        assert torch.equal(model.classify(vectors), model.classify(other))
        assert not torch.allclose(model.classify(vectors), model.classify(vectors.flip(1)))


def test_segments_distinguish_prompt_and_response():
    model = pair("electra")
    straight = batch(model)
    close(logits(model), model(**straight).detach())
    for pack in straight["packs"]:
        pack["token_type_ids"].zero_()
    assert not torch.allclose(model(**straight), logits(model), atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_pooling_and_head_stay_in_float32_under_autocast(family: str):
    model = pair(family, pooling="attention")
    seen = []
    for part in (model.pooling.score, model.head.pair.dense):
        part.register_forward_hook(
            lambda _module, inputs, output: seen.extend([inputs[0].dtype, output.dtype])
        )
    with torch.autocast("cpu", torch.bfloat16):
        found = model(**batch(model))
    assert seen
    assert set(seen) == {found.dtype} == {torch.float32}
    torch.testing.assert_close(found.detach(), logits(model), rtol=0.2, atol=0.05)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("shape", ["siamese", "cross"])
def test_every_parameter_learns(family: str, shape: str):
    model = pair(family, pooling="attention", shape=shape).train()
    model(**batch(model)).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    # An unused parameter would break distributed training.
    assert not unused


TABLE = tabular_rows(len(ROWS))


def pair_with_features(head: str = "symmetric", shape: str = "siamese") -> PairModel:
    torch.manual_seed(1)
    config = CONFIGS["electra"]
    model = PairModel(
        build_encoder(config),
        config,
        ModelSpec(shape, pooling="mean", head=head, head_hidden=8, features=True),
    )
    model.fit_features(TABLE, np.arange(4))
    for parameter in model.head.parameters():
        # As if it had been trained: the features' shortcut starts at zero.
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch_with_features(
    rows: TokenizedRows = ROWS, tabular: FeatureTable = TABLE, overhead: int = 0
) -> dict:
    return Collator(rows, PAD, segments=True, pack_overhead=overhead, tabular=tabular)(
        range(len(rows))
    )


@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_features_move_the_logits(head: str):
    model = pair_with_features(head)
    with torch.no_grad():
        straight = model(**batch_with_features())
        other = model(**batch_with_features(tabular=tabular_rows(len(ROWS), seed=1)))
    assert ((straight - other).abs().max(1).values > 1e-3).all()


@pytest.mark.parametrize("shape", ["siamese", "cross"])
def test_swapping_the_answers_permutes_the_logits_with_features_too(shape: str):
    model = pair_with_features(shape=shape)
    with torch.no_grad():
        straight = model(**batch_with_features())
        turned = model(**batch_with_features(swapped(ROWS), exchanged(TABLE), 10**6))
        sides, features = (
            torch.randn(len(ROWS), 2, model.encoder.config.hidden_size),
            batch_with_features()["features"],
        )
        one = model.classify(sides, features)
        other = model.classify(sides.flip(1), features | {"sides": features["sides"].flip(1)})
    close(turned[:, list(SWAP)], straight)
    # Equal vectors give equal logits, to the bit.
    assert torch.equal(other[:, list(SWAP)], one)


@pytest.mark.parametrize("shape", ["siamese", "cross"])
@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_both_orders_swap_the_features_as_well(head: str, shape: str):
    model = pair_with_features(head, shape)
    with torch.no_grad():
        both = model(**batch_with_features(), augment=True)
        close(both[:, 0], model(**batch_with_features()))
        close(
            both[:, 1], model(**batch_with_features(swapped(ROWS), exchanged(TABLE)))[:, list(SWAP)]
        )


@pytest.mark.parametrize("head", ["symmetric", "fusion"])
def test_every_parameter_learns_with_features_too(head: str):
    model = pair_with_features(head).train()
    model(**batch_with_features()).square().sum().backward()
    assert not {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_a_model_without_features_reads_none():
    model = pair()
    model.fit_features(TABLE, np.arange(4))
    assert model.feature_names is None
    assert not [name for name in model.state_dict() if "features" in name or "beside" in name]


def test_the_scale_of_features_is_saved_with_the_model(tmp_path: Path, tokenizer: PairTokenizer):
    model = pair_with_features()
    model.save_pretrained(tmp_path / "model", tokenizer)
    again, _ = PairModel.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(**batch_with_features()), model(**batch_with_features()))
    assert "head.pair.features.side_mean" in load_file(tmp_path / "model" / "model.safetensors")


def test_a_saved_model_finds_its_features_by_name(tmp_path: Path, tokenizer: PairTokenizer):
    """A kit that computes more features, or in another order, gives the model the same numbers."""
    model = pair_with_features()
    model.save_pretrained(tmp_path / "model", tokenizer)
    again, _ = PairModel.from_pretrained(tmp_path / "model")
    later = TABLE.add_side_feature("charm", np.ones((len(ROWS), 2))).select(
        ("charm", *SIDE_NAMES[::-1]), TABLE.pair_names[::-1]
    )
    with torch.no_grad():
        found = again(**batch_with_features(tabular=later.select(*again.feature_names)))
        assert torch.equal(found, model(**batch_with_features()))


def test_a_model_saved_before_there_were_features_still_loads(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    del config["model"]["features"]
    (saved / "config.json").write_text(json.dumps(config))
    again, _ = PairModel.from_pretrained(saved)
    assert not again.spec.features
    assert torch.equal(logits(again), logits(pair()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PairTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "tiny"
    write_tiny_backbone(BACKBONES["tiny-electra"], ["hello world, this is a text"] * 3, folder)
    return load_tokenizer(local_backbone(folder))


@pytest.fixture
def saved(tmp_path: Path, tokenizer: PairTokenizer) -> Path:
    pair().save_pretrained(tmp_path / "model", tokenizer)
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    ("head", "pooling", "shape"),
    [
        ("symmetric", "mean", "siamese"),
        ("fusion", "attention", "siamese"),
        ("symmetric", "cls", "cross"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_a_saved_model_comes_back_to_the_bit(
    family: str, head: str, pooling: str, shape: str, tmp_path: Path, tokenizer: PairTokenizer
):
    model = pair(family, head, pooling, shape)
    model.save_pretrained(tmp_path / "deep" / "model", tokenizer)
    again, loaded_tokenizer = PairModel.from_pretrained(tmp_path / "deep" / "model")
    assert torch.equal(logits(again), logits(model))
    assert not again.training
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert loaded_tokenizer.digest == tokenizer.digest
    assert (loaded_tokenizer.cls, loaded_tokenizer.sep, loaded_tokenizer.pad) == (1, 2, 0)
    assert again.spec == model.spec


def test_only_safetensors_config_and_tokenizer_are_written(saved: Path):
    assert sorted(path.name for path in saved.iterdir()) == [
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    ]
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == FORMAT
    assert set(load_file(saved / "model.safetensors")) == set(pair().state_dict())


def test_saving_over_an_older_model_replaces_it(saved: Path, tokenizer: PairTokenizer):
    model = pair("roberta", "fusion")
    model.save_pretrained(saved, tokenizer)
    assert torch.equal(logits(PairModel.from_pretrained(saved)[0]), logits(model))


def test_half_precision_weights_come_back_in_float32(saved: Path):
    weights = {name: value.half() for name, value in load_file(saved / "model.safetensors").items()}
    save_file(weights, saved / "model.safetensors")
    assert {p.dtype for p in PairModel.from_pretrained(saved)[0].parameters()} == {torch.float32}


def test_a_folder_that_was_moved_still_works(saved: Path, tmp_path: Path):
    assert str(tmp_path) not in (saved / "config.json").read_text()
    expected = logits(PairModel.from_pretrained(saved)[0])
    shutil.move(saved, tmp_path / "elsewhere")
    assert torch.equal(logits(PairModel.from_pretrained(tmp_path / "elsewhere")[0]), expected)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_a_run_error(saved: Path, file: str):
    (saved / file).unlink()
    with pytest.raises(RunError, match="model: ") as caught:
        PairModel.from_pretrained(saved)
    assert "copy the folder whole" in caught.value.hint


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_a_run_error(saved: Path, file: str, keep: float):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(RunError, match="model: "):
        PairModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "one"},
        {"format": None},
        {"model": {"pooling": "max"}},
        {"model": {"head": "siamese"}},
        {"model": {"heads": 2}},
        {"model": None},
        {"encoder": {"model_type": "electra", "hidden_size": "wide"}},
        {"encoder": {"model_type": "none-such"}},
        {"encoder": {}},
        {"encoder": []},
    ],
    ids=str,
)
def test_an_unusable_configuration_is_a_run_error(saved: Path, change: dict):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(RunError, match="not a trained model of kit"):
        PairModel.from_pretrained(saved)


def test_the_config_of_a_plain_encoder_is_a_run_error(saved: Path):
    (saved / "config.json").write_text(json.dumps(CONFIGS["electra"]))
    with pytest.raises(RunError, match="not a trained model of kit"):
        PairModel.from_pretrained(saved)


def test_an_older_format_loads_unless_it_reads_features(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"format": FEATURES_FORMAT - 1}))
    PairModel.from_pretrained(saved)
    reading = {"model": config["model"] | {"features": True}}
    (saved / "config.json").write_text(
        json.dumps(config | {"format": FEATURES_FORMAT - 1} | reading)
    )
    with pytest.raises(RunError, match="an older kit computed in another way"):
        PairModel.from_pretrained(saved)


def test_a_newer_format_asks_for_a_newer_kit(saved: Path):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"format": FORMAT + 1}))
    with pytest.raises(RunError, match=f"newer kit .format {FORMAT + 1}") as caught:
        PairModel.from_pretrained(saved)
    assert "Upgrade" in caught.value.hint


def test_weights_of_another_model_are_named(saved: Path, tmp_path: Path, tokenizer: PairTokenizer):
    for other in (pair("roberta"), pair("electra", "fusion"), pair("electra", pooling="attention")):
        other.save_pretrained(tmp_path / "other", tokenizer)
        shutil.copy(tmp_path / "other" / "model.safetensors", saved)
        with pytest.raises(RunError, match=r"does not belong to config\.json: .*\w"):
            PairModel.from_pretrained(saved)


def test_weights_of_another_size_are_named(saved: Path):
    weights = load_file(saved / "model.safetensors")
    weights["head.pair.out.weight"] = torch.zeros(4, 8)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(RunError, match=r"head\.pair\.out\.weight"):
        PairModel.from_pretrained(saved)
