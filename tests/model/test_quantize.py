"""Check bases in 8 and 4 bits: what a run of them holds, that predictions repeat, and refusals."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.data.dataset import Dataset
from kit.errors import RecipeError
from kit.export import export_run
from kit.model.backbones import local_backbone
from kit.model.encoder import load_encoder
from kit.model.pair_model import PairModel
from kit.predict import predict_split
from kit.recipe.load import choose_recipe, load_recipe
from kit.recipe.spec import Quantize
from kit.run import Run
from kit.task import CLASSES, HOLDOUT
from kit.training.setup import new_model
from kit.training.train import train_recipe

pytest.importorskip("bitsandbytes", reason="bitsandbytes, the extra [quant], is not installed")

JUDGE = (
    *QUICK,
    "encode.max_tokens=128",
    "train.max_steps=4",
    "train.lora_rank=4",
    "train.lr=0.01",
    "train.batch_size=8",
)
STORED = {"8bit": torch.int8, "4bit": torch.uint8}


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(kind: str, judge_base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train the holdout of a judge with adapters on a quantised base."""
    recipe = choose_recipe(str(judge_base), None, (*JUDGE, f"model.quantize={kind}"))
    return Run.open(train_recipe(recipe, data, tmp_path_factory.mktemp("runs"))["run"])


def test_a_run_holds_no_quantised_weight_and_predicts_as_in_training(
    run: Run, kind: str, data: Path
):
    folder = run.fold(HOLDOUT).path
    weights = load_file(folder / "model.safetensors")
    assert all("lora_" in name or not name.startswith("encoder.") for name in weights)
    assert {weight.dtype for weight in weights.values()} == {torch.float32}

    model, _ = PairModel.from_pretrained(folder)
    base = model.encoder.layers[0].mlp.up_proj.base_layer.weight
    assert base.dtype == STORED[kind]
    again = predict_split(run.path, "valid", data)
    pd.testing.assert_frame_equal(again, run.fold(HOLDOUT).predictions, rtol=0, atol=1e-5)


def test_an_export_adds_adapters_to_the_whole_base(run: Run, tmp_path: Path):
    (folder,) = export_run(run.path, tmp_path / "out", "fp32")
    exported = load_encoder(local_backbone(folder))
    model, _ = PairModel.from_pretrained(run.fold(HOLDOUT).path, dequantize=True)
    ids = torch.arange(10, 40)[None]
    with torch.inference_mode():
        states = model.encoder(input_ids=ids).last_hidden_state
        found = exported(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "most"), [("8bit", 0.1), ("4bit", 1.0)], indirect=["kind"])
def test_only_matrices_of_the_layers_are_rounded(judge_base: Path, kind: Quantize, most: float):
    whole = load_encoder(local_backbone(judge_base))
    rounded = load_encoder(local_backbone(judge_base), True, torch.bfloat16, kind)
    kinds = {name: parameter.dtype for name, parameter in rounded.named_parameters()}
    for name, dtype in kinds.items():
        assert dtype == (STORED[kind] if "proj.weight" in name else torch.bfloat16), name

    ids = torch.arange(10, 40)[None]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = rounded(input_ids=ids).last_hidden_state.float()
        expected = whole(input_ids=ids).last_hidden_state.float()
    assert 0 < (found - expected).abs().max() < most


def test_adapters_beside_quantised_weights_are_float32_and_learn(
    judge_base: Path, processed: Dataset, kind: str
):
    overrides = (*JUDGE, f"model.quantize={kind}", "train.lora_dropout=0.0")
    recipe = choose_recipe(str(judge_base), None, overrides)
    model, _ = new_model(recipe, local_backbone(judge_base), processed)
    trained = [p for p in model.encoder.parameters() if p.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}

    ids = torch.arange(10, 40)[None]
    gradients = []
    for _ in range(2):
        model.train()
        model.encoder(input_ids=ids).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad for parameter in trained])
        model.zero_grad()

        # An evaluation in between changes nothing.
        model.eval()
        with torch.inference_mode():
            model.encoder(input_ids=ids)
    assert any(gradient.any() for gradient in gradients[0])
    assert all(map(torch.equal, *gradients))


def test_a_frozen_base_may_be_quantised(judge_base: Path, data: Path, tmp_path: Path):
    settings = ("train.lora_rank=0", "train.frozen=true", "train.lr=0", "model.quantize=8bit")
    recipe = choose_recipe(str(judge_base), None, (*JUDGE, *settings))
    run = Run.open(train_recipe(recipe, data, tmp_path)["run"])
    weights = load_file(run.fold(HOLDOUT).path / "model.safetensors")
    assert all(name.startswith("head.") for name in weights)

    # Rows are read with others than in the training, which decide what LLM.int8() rounds.
    again = predict_split(run.path, "valid", data)
    found, expected = (frame[list(CLASSES)] for frame in (again, run.fold(HOLDOUT).predictions))
    assert (found - expected).abs().max(axis=None) < 0.01


def test_what_cannot_be_quantised_is_refused(
    judge_base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(RecipeError, match=r"whole weights cannot be trained in 8 bits"):
        choose_recipe(str(judge_base), None, ("model.quantize=8bit", "train.lora_rank=0"))
    with pytest.raises(RecipeError, match=r"torch\.compile does not know"):
        choose_recipe(str(judge_base), None, ("model.quantize=8bit", "train.compile=true"))

    adapted = ("model.quantize=4bit", "train.lora_rank=4")
    with pytest.raises(RecipeError, match="tiny-roberta is an encoder"):
        train_recipe(load_recipe("tiny-roberta", adapted), data, tmp_path)
    with pytest.raises(RecipeError, match="tiny-qwen starts from random weights"):
        train_recipe(load_recipe("tiny-qwen", adapted), data, tmp_path)

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match="needs bitsandbytes, which cannot be imported") as caught:
        train_recipe(choose_recipe(str(judge_base), None, adapted), data, tmp_path)
    assert "pip install 'bitsandbytes" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
