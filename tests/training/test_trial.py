"""Check that what would fail late in a training is one message before its run begins."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quick_recipe import QUICK
from torch import nn

from kit.data.dataset import Dataset
from kit.errors import BackboneError, RecipeError
from kit.model.encoder import build_encoder
from kit.predict import PredictionRows, RunPredictor
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.training import train, trial
from kit.training.train import train_recipe
from kit.training.trial import check_gradients

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
SHORT = (*QUICK, "train.max_steps=4", "train.evals_per_epoch=2", "train.precision='fp32'")


def make_backbone(family: str, fixed_backbone: Path, folder: Path, **settings: object) -> Path:
    """Write a backbone folder of a family, with the toy tokenizer."""
    vocabulary = json.loads((fixed_backbone / "config.json").read_text())["vocab_size"]
    torch.manual_seed(0)
    config = {"model_type": family, "vocab_size": vocabulary, **TINY, **settings}
    build_encoder(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(fixed_backbone / name, folder / name)
    return folder


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("bart", BART, "are one weight"),
        ("t5", {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}, "T5Model"),
        ("nystromformer", {"num_landmarks": 4, "segment_means_seq_len": 64}, "Nystromformer"),
    ],
)
def test_a_family_that_cannot_be_trained_leaves_no_run_behind(
    family: str, settings: dict, words: str, fixed_backbone: Path, data: Path, tmp_path: Path
):
    folder = make_backbone(family, fixed_backbone, tmp_path / family, **settings)
    with pytest.raises(BackboneError, match=words):
        train_recipe(load_recipe("default", SHORT, str(folder)), data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_an_encoder_too_short_for_the_longest_row_leaves_no_run_behind(
    fixed_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # No limit can be read from its configuration, but its table of positions has one.
    folder = make_backbone("distilbert", fixed_backbone, tmp_path / "x", dim=32, hidden_dim=48)
    monkeypatch.setattr("kit.model.backbones.max_positions", lambda config: None)
    recipe = load_recipe("default", (*SHORT, "encode.max_tokens=200"), str(folder))
    with pytest.raises(BackboneError, match="DistilBertModel cannot be used"):
        train_recipe(recipe, data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("family", ["fnet", "albert", "squeezebert"])
def test_predictions_do_not_depend_on_the_other_rows_of_a_batch(
    family: str, fixed_backbone: Path, processed: Dataset, tmp_path: Path
):
    folder = make_backbone(family, fixed_backbone, tmp_path / family, embedding_size=32)
    recipe = load_recipe("default", SHORT, str(folder))
    run = train_recipe(recipe, processed.folder, tmp_path / "runs", guard=False)["run"]
    predictor = RunPredictor(Run.open(run)).load()
    rows = PredictionRows.of_split(processed, "test")
    together = predictor.predict(rows)
    alone = [predictor.predict(rows, np.array([number])) for number in range(6)]
    np.testing.assert_allclose(np.concatenate(alone), together[:6], atol=1e-5)


def test_an_encoder_that_reads_its_padding_is_not_compiled(
    fixed_backbone: Path, data: Path, tmp_path: Path
):
    folder = make_backbone("fnet", fixed_backbone, tmp_path / "fnet")
    recipe = load_recipe("default", (*SHORT, "train.compile=true"), str(folder))
    with pytest.raises(RecipeError, match="reads its padding"):
        train_recipe(recipe, data, tmp_path / "runs")


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.features=true",),
        ("model.shape='cross'",),
        ("model.head='symmetric'",),
        ("train.lora_rank=2",),
        ("train.gradient_checkpointing=true",),
    ],
)
def test_every_kind_of_recipe_passes_the_trial(
    overrides: tuple[str, ...], data: Path, tmp_path: Path
):
    if "lora" in overrides[0]:
        pytest.importorskip("peft")
    recipe = load_recipe("tiny-deberta", (*SHORT, "train.max_steps=1", *overrides))
    train_recipe(recipe, data, tmp_path, guard=False)


def test_a_run_that_has_begun_is_not_tried_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tries: list[object] = []
    original = trial.try_recipe
    monkeypatch.setattr(train, "try_recipe", lambda *args: tries.append(args) or original(*args))
    recipe = load_recipe("tiny-electra", SHORT)
    for _ in range(2):
        train_recipe(recipe, data, tmp_path, guard=False)
    assert len(tries) == 1


def test_a_download_that_fails_leaves_no_run_behind(data: Path, tmp_path: Path):
    # The tests have no network.
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(BackboneError, match="no connection to the Hugging Face hub"):
        train_recipe(load_recipe("electra", QUICK), data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_weights_without_a_gradient_are_refused_for_several_processes():
    model = nn.Module()
    model.encoder = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model.encoder["used"](torch.ones(1, 2)).sum().backward()
    check_gradients(model, "x", 1)
    with pytest.raises(BackboneError, match="unused"):
        check_gradients(model, "x", 2)
    model.encoder["used"].requires_grad_(False)
    with pytest.raises(BackboneError, match="no weight of the encoder"):
        check_gradients(model, "x", 1)


def test_a_tokenizer_of_another_language_is_refused_before_a_run(
    fixed_backbone: Path, data: Path, tmp_path: Path
):
    folder = make_backbone("bert", fixed_backbone, tmp_path / "bert")
    content = json.loads((folder / "tokenizer.json").read_text())
    special = {piece: number for piece, number in content["model"]["vocab"].items() if number < 4}
    content["model"] |= {"vocab": special, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BackboneError, match="its tokenizer"):
        train_recipe(load_recipe("default", SHORT, str(folder)), data, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
