"""Check the shape "cross" through the commands: training, prediction, resuming, symmetry."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from interruption import interrupt_at
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.data.tokenize import tokenize_cached
from kit.model.backbones import resolve_backbone
from kit.model.inference import make_collator
from kit.model.pair_model import PairModel
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import CLASSES
from kit.training.setup import new_model

CROSS = (*QUICK, "encode.max_tokens=48", "model.shape=cross", "train.max_steps=8")


def kit(*arguments: object) -> None:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def command(data: Path, runs: Path, *overrides: str, backbone: str = "tiny-electra") -> list[str]:
    settings = [word for override in overrides for word in ("--set", override)]
    return ["train", "--backbone", backbone, *settings, "--data", str(data), "--runs", str(runs)]


def train(data: Path, runs: Path, *overrides: str, backbone: str = "tiny-electra") -> Path:
    kit(*command(data, runs, *CROSS, *overrides, backbone=backbone))
    return next(runs.iterdir())


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The symmetric cross model of the sample's holdout."""
    return train(data, tmp_path_factory.mktemp("runs"))


def predictions(run: Path, file: Path, out: Path, *options: str) -> np.ndarray:
    kit("predict", run, "--input", file, "-o", out, *options)
    return read_predictions(out)[list(CLASSES)].to_numpy()


@pytest.fixture(scope="module")
def exchanged(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test file with its answers swapped."""
    rows = pd.read_csv(raw / "test.csv", dtype=str)
    file = tmp_path_factory.mktemp("swapped") / "test.csv"
    rows.rename(columns={"response_a": "response_b", "response_b": "response_a"}).to_csv(
        file, index=False
    )
    return file


def test_cross_models_train_and_predict_through_the_same_commands(
    run: Path, data: Path, raw: Path, tmp_path: Path
):
    kit("predict", run, "--data", data)
    ours = read_predictions(run / "test.csv")
    assert len(ours) == len(pd.read_csv(raw / "test.csv"))
    np.testing.assert_allclose(
        predictions(run, raw / "test.csv", tmp_path / "again.csv"),
        ours[list(CLASSES)].to_numpy(),
        atol=1e-6,
    )
    # Predictions depend on the input.
    assert ours[list(CLASSES)].std().min() > 0
    assert Run.open(run).recipe.model.shape == "cross"


@pytest.mark.parametrize("backbone", ["tiny-deberta", "tiny-roberta"])
def test_every_family_trains(backbone: str, data: Path, tmp_path: Path):
    metrics = Run.open(train(data, tmp_path, backbone=backbone)).metrics["parts"]["holdout"]
    assert metrics["steps"] == 8
    assert metrics["log_loss"] < 1.2


def test_swapping_the_answers_permutes_the_symmetric_models_predictions(
    run: Path, raw: Path, exchanged: Path, tmp_path: Path
):
    straight = predictions(run, raw / "test.csv", tmp_path / "straight.csv", "--no-swap")
    other = predictions(run, exchanged, tmp_path / "other.csv", "--no-swap")
    np.testing.assert_allclose(other[:, [1, 0, 2]], straight, atol=1e-5)


def test_both_orders_make_the_fusion_model_symmetric(
    data: Path, raw: Path, exchanged: Path, tmp_path: Path
):
    run = train(data, tmp_path / "runs", "model.head=fusion")
    for option, equal in (("--swap", True), ("--no-swap", False)):
        straight = predictions(run, raw / "test.csv", tmp_path / f"straight{option}.csv", option)
        other = predictions(run, exchanged, tmp_path / f"other{option}.csv", option)
        assert np.allclose(other[:, [1, 0, 2]], straight, atol=1e-5) is equal


@pytest.mark.parametrize(("augment", "sequences"), [("false", 1), ("true", 2)])
def test_a_training_on_one_order_does_not_encode_the_other(
    augment: str, sequences: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[int, int]] = []
    encode = PairModel.encode

    def watched(self: PairModel, packs: list[dict], order: torch.Tensor) -> torch.Tensor:
        seen.append((sum(len(pack["lengths"]) for pack in packs), len(order)))
        return encode(self, packs, order)

    monkeypatch.setattr(PairModel, "encode", watched)
    train(data, tmp_path, "model.head=fusion", f"train.swap_augmentation={augment}")
    assert {count / rows for count, rows in seen} == {sequences}


def test_the_first_sequence_alone_gives_the_fusion_models_logits(processed: Dataset):
    recipe = load_recipe("tiny-electra", (*CROSS, "model.head=fusion", "model.features=false"))
    model, tokenizer = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    table, content = processed.train(), processed.digest("train")
    encoded = tokenize_cached(table, content, tokenizer, recipe.encode, processed.cache, "cross")
    rows = np.arange(7)
    one, both = (
        make_collator(model.eval(), encoded, tokenizer, first_only=first)(rows)
        for first in (True, False)
    )
    assert sum(len(pack["lengths"]) for pack in one["packs"]) == 7
    with torch.no_grad():
        torch.testing.assert_close(model(**one), model(**both), rtol=1e-4, atol=1e-5)


def test_an_interrupted_training_resumes_to_the_same_weights(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        assert CliRunner().invoke(main, command(data, tmp_path, *CROSS)).exit_code != 0
    assert (tmp_path / run.name / "holdout" / "checkpoints" / "checkpoint-3").exists()
    kit(*command(data, tmp_path, *CROSS), "--resume")
    expected = load_file(run / "holdout" / "model.safetensors")
    for name, weights in load_file(tmp_path / run.name / "holdout" / "model.safetensors").items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize(("shape", "pooling"), [("cross", "cls"), ("siamese", "mean")])
def test_automatic_pooling_under_cross_is_cls(shape: str, pooling: str, processed: Dataset):
    backbone = resolve_backbone("tiny-electra")
    recipe = load_recipe("tiny-electra", (*CROSS, f"model.shape={shape}"))
    automatic, _ = new_model(recipe, backbone, processed)
    assert automatic.spec.pooling == pooling
    recipe = load_recipe(
        "tiny-electra", (*CROSS, f"model.shape={shape}", "model.pooling=attention")
    )
    chosen, _ = new_model(recipe, backbone, processed)
    assert chosen.spec.pooling == "attention"


def test_the_two_shapes_share_no_cache(run: Path, data: Path):
    before = len(list((data / "cache").glob("tokens-*")))
    kit(*command(data, run.parent, *CROSS, "model.shape=siamese"))
    assert len(list((data / "cache").glob("tokens-*"))) == before + 1
