"""Check what training leaves in a run directory, that keys and options act, and its errors."""

import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file

from kit.costs.steps import EVALUATED_ROWS
from kit.data.dataset import Dataset
from kit.data.preprocess import preprocess_files
from kit.errors import BackboneError, DeviceError, RecipeError, RunError
from kit.evaluation.metrics import log_loss
from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth
from kit.fold_dir import FoldDir
from kit.model.backbones import resolve_backbone
from kit.model.device import choose_device
from kit.model.encoder import build_encoder
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.predict import predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import EncodeSpec, Recipe, TrainSpec
from kit.run import Run
from kit.task import CLASSES, HOLDOUT, ID, LABEL
from kit.training import fold, setup, trainer
from kit.training.arguments import training_arguments
from kit.training.callbacks import TrainingProgress
from kit.training.fold import TrainingOptions
from kit.training.optim import parameter_groups
from kit.training.setup import new_model
from kit.training.train import _tell_of_fold, train_recipe
from kit.training.trainer import choose_evaluated


@pytest.fixture
def holdout(trained_run: Run) -> FoldDir:
    return trained_run.fold(HOLDOUT)


def train_holdout(recipe: Recipe, data: Path, runs: Path, **options: Any) -> dict[str, Any]:
    """Train the holdout, and return its metrics."""
    return train_recipe(recipe, data, runs, **options)["parts"]["holdout"]


def read_eval_losses(holdout: FoldDir) -> dict[int, float]:
    """Return the validation losses by step."""
    history = json.loads(holdout.history_path.read_text())["log_history"]
    return {entry["step"]: entry["eval_log_loss"] for entry in history if "eval_log_loss" in entry}


# --- what a run directory holds


def test_a_run_directory_holds_model_history_predictions_and_metrics(
    trained_run: Run, holdout: FoldDir, quick: Recipe, processed: Dataset
):
    names = {path.name for path in holdout.path.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "trainer_state.json",
        "valid.csv",
        "metrics.json",
    } <= names
    assert "checkpoints" not in names
    assert trained_run.recipe == quick
    assert trained_run.origin["data"] == processed.digest("train")


def test_the_metrics_are_those_of_the_validation_predictions(
    holdout: FoldDir, data: Path, processed: Dataset
):
    predictions = holdout.predictions
    rows = processed.fold_rows(HOLDOUT)[1]
    assert predictions[ID].tolist() == processed.train()[ID].to_numpy()[rows].tolist()

    truth = restrict_truth(read_truth(data / "train.parquet"), predictions)
    expected = log_loss(*align_to_truth(predictions, truth, "valid"))
    metrics = holdout.metrics
    assert metrics["log_loss"] == pytest.approx(expected, abs=1e-12)
    assert metrics["valid_rows"] == len(rows)
    assert 0 <= metrics["padding_waste"] < 0.2


def test_the_swap_gap_is_recorded_and_is_0_with_a_symmetric_head(
    holdout: FoldDir, processed: Dataset, tmp_path: Path
):
    fusion = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2", "model.head=fusion"))
    result = train_recipe(fusion, processed.folder, tmp_path)
    both, given = (
        predict_split(result["run"], "valid", processed.folder, swap=swap)[list(CLASSES)]
        for swap in (True, False)
    )

    # The mean of both orders is half as far from the given order as the swapped one is.
    expected = 2 * np.abs(both - given).to_numpy().mean()
    recorded = result["parts"]["holdout"]["swap_gap"]
    assert recorded == pytest.approx(expected, rel=1e-3)
    assert recorded > 0
    assert holdout.metrics["swap_gap"] == pytest.approx(0, abs=1e-7)


def test_the_weights_kept_are_those_of_the_best_evaluation(holdout: FoldDir):
    losses = read_eval_losses(holdout)
    assert len(losses) == 8
    assert holdout.metrics["best_step"] == min(losses, key=losses.get)
    assert holdout.metrics["log_loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_training_twice_gives_the_same_weights(
    holdout: FoldDir, quick: Recipe, data: Path, tmp_path: Path
):
    again = Run.open(train_recipe(quick, data, tmp_path)["run"]).fold(HOLDOUT)
    first, second = (each.path / "model.safetensors" for each in (holdout, again))
    assert first.read_bytes() == second.read_bytes()


def test_a_finished_fold_is_left_alone(trained_run: Run, quick: Recipe, data: Path):
    metrics_path = trained_run.fold(HOLDOUT).metrics_path
    before = metrics_path.stat().st_mtime_ns
    messages: list[str] = []
    train_recipe(quick, data, trained_run.path.parent, say=messages.append)
    assert any("is already finished" in message for message in messages)
    assert metrics_path.stat().st_mtime_ns == before


def test_all_folds_give_out_of_fold_predictions_of_every_row(
    data: Path, processed: Dataset, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2"))
    single = train_recipe(recipe, data, tmp_path, "1")
    assert "oof" not in single
    assert set(single["parts"]) == {"fold1"}

    said: list[str] = []
    result = train_recipe(recipe, data, tmp_path, "all", say=said.append)
    # What is the same for all folds is said once.
    for message in (result["parts"]["fold0"]["device"], "rows encoded"):
        assert sum(message in line for line in said) == 1
    oof = read_predictions(Run.open(result["run"]).oof_path)
    assert sorted(oof[ID]) == sorted(processed.train()[ID].to_pylist())

    truth = read_truth(data / "train.parquet")
    expected = log_loss(*align_to_truth(oof, truth, "oof"))
    assert result["oof"]["log_loss"] == pytest.approx(expected, abs=1e-12)


# --- keys and options


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_batches_take_the_same_steps(
    weighted: bool,
    fixed_backbone: Path,
    data: Path,
    processed: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without dropout it makes no difference how the 16 rows of a step are split into passes."""
    if weighted:
        rng = np.random.default_rng(0)
        rows = processed.train().num_rows
        targets = rng.dirichlet([1, 1, 1], rows) * rng.exponential(1, (rows, 1))
        monkeypatch.setattr(Dataset, "targets", lambda _: targets.astype(np.float32))

    overrides = (*QUICK, "train.max_steps=6", "model.head_dropout=0.0")
    results = []
    for micro in ("micro_batch_size=0", "micro_batch_size=4", "micro_tokens=300", "micro_tokens=1"):
        settings = (*overrides, f"train.{micro}")
        recipe = load_recipe("tiny-roberta", settings, backbone=str(fixed_backbone))
        results.append(train_holdout(recipe, data, tmp_path / micro))

    assert {result["steps"] for result in results} == {6}
    for result in results[1:]:
        assert result["log_loss"] == pytest.approx(results[0]["log_loss"], abs=2e-5)


def test_gradient_checkpointing_changes_memory_and_not_results(
    fixed_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    models: list[PairModel] = []

    def record_model(*args: Any) -> Any:
        model, tokenizer = new_model(*args)
        models.append(model)
        return model, tokenizer

    monkeypatch.setattr(setup, "new_model", record_model)
    losses = []
    for flag in ("true", "false"):
        overrides = (*QUICK, "train.max_steps=4", f"train.gradient_checkpointing={flag}")
        recipe = load_recipe("tiny-roberta", overrides, backbone=str(fixed_backbone))
        losses.append(train_holdout(recipe, data, tmp_path / flag)["log_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)

    is_used = [
        any(getattr(module, "gradient_checkpointing", False) for module in model.encoder.modules())
        for model in models
    ]
    assert is_used == [True, False]


def test_early_stopping_and_the_plateau_act(data: Path, tmp_path: Path):
    """At rates that are far too high the loss does not improve, and training stops early."""
    overrides = (
        *QUICK,
        "train.epochs=50",
        "train.lr=0.2",
        "train.head_lr=0.2",
        "train.warmup=0.0",
        "train.patience=2",
        "train.schedule=plateau",
        "train.plateau_patience=0",
    )
    events: list[TrainingProgress] = []
    recipe = load_recipe("tiny-electra", overrides)
    said: list[str] = []
    metrics = train_holdout(recipe, data, tmp_path, listen=events.append, say=said.append)
    assert metrics["steps"] < 12 * 50
    (line,) = (line for line in said if line.startswith("stopped early"))
    assert f"at step {metrics['steps']} of 600: " in line
    assert f"{metrics['log_loss']:.4f}, of step {metrics['best_step']}, after 2 more" in line

    assert [event.best for event in events if event.log_loss is not None][-2:] == [False, False]

    rates = [event.lr for event in events if event.lr is not None]
    assert max(rates) == pytest.approx(0.2)
    assert min(rates) < 0.2 / 1.9


@pytest.mark.parametrize(("head", "expected"), [("fusion", True), ("symmetric", False)])
def test_swap_augmentation_acts_just_on_heads_that_are_not_symmetric(
    head: str, expected: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dimensions: set[int] = set()
    loss = trainer.summed_cross_entropy

    def record_shape(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        dimensions.add(logits.ndim)
        return loss(logits, *args, **kwargs)

    monkeypatch.setattr(trainer, "summed_cross_entropy", record_shape)
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2", f"model.head={head}"))
    assert recipe.train.swap_augmentation
    train_recipe(recipe, data, tmp_path)

    # Logits of both orders have three dimensions.
    assert (3 in dimensions) == expected


def test_label_smoothing_acts_in_training_only(holdout: FoldDir, processed: Dataset):
    """The recipe smooths labels, and the validation losses in the history are plain log losses."""
    labels = processed.train()[LABEL].to_numpy()[processed.fold_rows(HOLDOUT)[1]]
    plain = log_loss(holdout.predictions[list(CLASSES)].to_numpy(), labels)
    losses = read_eval_losses(holdout)
    assert min(losses.values()) == pytest.approx(plain, abs=1e-6)


def test_features_of_validation_rows_do_not_affect_the_weights(
    data: Path, processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither the features' statistics nor the weights may change by a bit."""
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=3", "train.evals_per_epoch=1"))
    valid_rows = processed.fold_rows(HOLDOUT)[1]
    features_cached = setup.features_cached

    def scrambled(*args: Any) -> Any:
        features = features_cached(*args)
        features.sides[valid_rows] = 1e3 * features.sides[valid_rows] - 7
        features.pair[valid_rows] = 1e6
        return features

    unchanged = train_recipe(recipe, data, tmp_path / "unchanged")["run"]
    monkeypatch.setattr(setup, "features_cached", scrambled)
    changed = train_recipe(recipe, data, tmp_path / "changed")["run"]
    weights, other = (
        load_file(Run.open(path).fold(HOLDOUT).path / "model.safetensors")
        for path in (unchanged, changed)
    )
    assert "head.pair.features.side_mean" in weights
    assert all(torch.equal(tensor, other[name]) for name, tensor in weights.items())


def test_progress_reaches_the_last_step(data: Path, tmp_path: Path):
    events: list[TrainingProgress] = []
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=5"))
    train_recipe(recipe, data, tmp_path, listen=events.append)
    assert events[-1].step == events[-1].steps == 5
    assert {(event.fold, event.part, event.parts) for event in events} == {("holdout", 1, 1)}
    assert all(event.memory > 1e7 and event.rows_per_second > 0 for event in events)
    losses = [event.log_loss for event in events if event.log_loss is not None]
    assert events[-1].best_loss == min(losses)
    assert events[-1].seconds_left_in_all == 0
    assert all(math.isfinite(event.loss) for event in events if event.loss is not None)
    assert all(math.isfinite(event.log_loss) for event in events if event.log_loss is not None)


def test_a_time_limit_ends_training_with_the_best_checkpoint(data: Path, tmp_path: Path):
    """Eight seconds are not enough for 600 epochs: training says so early, and ends in time."""
    messages: list[str] = []
    recipe = load_recipe("tiny-electra", (*QUICK, "train.epochs=600"))
    result = train_recipe(recipe, data, tmp_path, max_hours=8 / 3600, say=messages.append)
    metrics = result["parts"]["holdout"]
    assert metrics["out_of_time"]
    assert 20 < metrics["steps"] < 600 * 11
    assert any("train.max_steps=" in message for message in messages)
    assert any("time limit reached at step" in message for message in messages)

    losses = read_eval_losses(Run.open(result["run"]).fold(HOLDOUT))
    assert metrics["log_loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_a_fold_that_would_not_finish_in_time_is_not_started(
    quick: Recipe, data: Path, tmp_path: Path
):
    messages: list[str] = []
    result = train_recipe(quick, data, tmp_path, "all", max_hours=1e-7, say=messages.append)
    assert not result["parts"]
    assert any("remaining folds: 0, 1, 2" in message for message in messages)


# --- errors


@pytest.mark.parametrize(
    ("override", "missing_package", "problem"),
    [
        ("encode.max_tokens=2048", "", "positions"),
        ("train.head_only=0.9", "", "more than all steps"),
        ("train.lora_rank=2", "peft", "peft"),
        ("train.micro_batch_size=5", "", "not a multiple"),
    ],
)
def test_a_recipe_that_cannot_be_trained_leaves_no_run_behind(
    override: str,
    missing_package: str,
    problem: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, missing_package, None)
    recipe = load_recipe("tiny-electra", (*QUICK, "train.warmup=0.2", override))
    with pytest.raises(RecipeError, match=problem):
        train_recipe(recipe, data, tmp_path / "runs")
    assert not list(tmp_path.iterdir())


def test_an_unknown_backbone_leaves_no_run_behind(data: Path, tmp_path: Path):
    with pytest.raises(BackboneError, match="debreta"):
        train_recipe(load_recipe("default", QUICK, backbone="debreta"), data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_numbered_layers_learns_at_one_rate(
    fixed_backbone: Path, processed: Dataset, tmp_path: Path
):
    """ALBERT's layers share their weights, so keys that work on single layers are refused."""
    config = {
        "model_type": "albert",
        "vocab_size": BACKBONES["tiny-roberta"].config["vocab_size"],
        "embedding_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    build_encoder(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((fixed_backbone / name).read_bytes())

    recipe = load_recipe("default", ("train.layer_decay=0.5",), backbone=str(tmp_path))
    model, _ = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    rates = {group["lr"] for group in parameter_groups(model, recipe.train)}
    assert rates == {recipe.train.lr, recipe.train.head_lr}

    for override in ("train.lora_rank=2", "train.reinit_layers=1"):
        recipe = load_recipe("default", (override,), backbone=str(tmp_path))
        with pytest.raises(RecipeError, match="named as part of one"):
            train_recipe(recipe, processed.folder, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("text", "is_warned"), [("ascii", True), ("unicode", False)])
def test_a_multilingual_backbone_on_ascii_rows_gives_a_warning(
    text: str, is_warned: bool, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    preprocess_files(raw, tmp_path / "data", text=text)
    multilingual = dataclasses.replace(BACKBONES["tiny-electra"], multilingual=True)
    monkeypatch.setitem(BACKBONES, "tiny-electra", multilingual)

    # The recipe is refused right after the warning, which saves the training.
    recipe = load_recipe("tiny-electra", ("train.micro_batch_size=5",))
    messages: list[str] = []
    with pytest.raises(RecipeError, match="not a multiple"):
        train_recipe(recipe, tmp_path / "data", tmp_path / "runs", say=messages.append)
    assert any("--text unicode" in message for message in messages) is is_warned


def test_an_unknown_fold_lists_the_folds(quick: Recipe, data: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="folds 0 to 2"):
        train_recipe(quick, data, tmp_path, "7")


def test_different_data_is_refused(trained_run: Run, quick: Recipe, raw: Path, tmp_path: Path):
    preprocess_files(raw, tmp_path / "other", seed=9)
    with pytest.raises(RunError, match="trained on different data"):
        train_recipe(quick, tmp_path / "other", trained_run.path.parent)


def test_an_edited_recipe_is_refused(trained_run: Run, quick: Recipe, data: Path, tmp_path: Path):
    copy = Run(shutil.copytree(trained_run.path, tmp_path / trained_run.name))
    text = copy.recipe_path.read_text()
    copy.recipe_path.write_text(text.replace("batch_size = 16", "batch_size = 8"))
    with pytest.raises(RunError, match="edited"):
        train_recipe(quick, data, tmp_path)


def test_a_training_that_diverges_is_an_error(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_grad_norm=1e6", "train.warmup=0.0"))

    # Higher rates than a recipe allows.
    spec = dataclasses.replace(recipe.train, lr=1e30, head_lr=1e30)
    with pytest.raises(RunError, match="diverged"):
        train_recipe(dataclasses.replace(recipe, train=spec), data, tmp_path)


def test_running_out_of_memory_gives_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raise_in_prediction(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), monkeypatch
    )
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=1"))
    with pytest.raises(DeviceError, match=r"1,024 tokens[\s\S]*micro_tokens=512"):
        train_recipe(recipe, data, tmp_path)


def test_other_errors_are_not_taken_for_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raise_in_prediction(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), monkeypatch)
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=1"))
    with pytest.raises(RuntimeError, match="mat1"):
        train_recipe(recipe, data, tmp_path)


def raise_in_prediction(error: Exception, patch: pytest.MonkeyPatch) -> None:
    """Let the prediction after the last training step fail."""

    def fail(*_: object, **__: object) -> None:
        raise error

    patch.setattr(fold, "predict_logits", fail)


@pytest.mark.parametrize(
    ("rows", "problem", "hint"),
    [
        (4, "4,096 tokens", "micro_tokens=2048 "),
        (1, "1,024 tokens", "Try a smaller encode.max_tokens."),
    ],
)
def test_advice_on_memory_leaves_out_what_cannot_help(rows: int, problem: str, hint: str):
    """A pass of one row cannot be split, and gradient checkpointing is on already."""
    spec = TrainSpec(gradient_checkpointing=True, micro_tokens=100_000)
    recipe = Recipe("x", "deberta", encode=EncodeSpec(max_tokens=512), train=spec)
    with (
        pytest.raises(DeviceError, match=problem) as caught,
        fold._explain_out_of_memory(recipe, rows, sequences=2),
    ):
        raise torch.OutOfMemoryError
    assert hint in caught.value.hint
    assert "checkpointing" not in caught.value.hint


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("train.evals_per_epoch=4",), 3),
        (("train.evals_per_epoch=4", "train.max_steps=8"), 3),
        (("train.evals_per_epoch=1", "train.max_steps=8"), 12),
        (("train.evals_per_epoch=100",), 1),
    ],
)
def test_evaluations_are_counted_per_epoch_however_few_steps_there_are(
    overrides: tuple[str, ...], expected: int, tmp_path: Path
):
    """192 rows in batches of 16 are 12 steps an epoch; the last step is always evaluated."""
    spec = load_recipe("tiny-electra", (*QUICK, *overrides)).train
    compute = choose_device("fp32")
    assert training_arguments(spec, 192, compute, tmp_path).eval_steps == expected


def test_the_time_left_counts_the_folds_to_come(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("kit.training.train.time.monotonic", lambda: now[0])
    events: list[TrainingProgress] = []
    options = TrainingOptions(on_progress=events.append)
    place = {"fold": "fold1", "part": 2, "parts": 4}
    report = TrainingProgress(step=1, steps=4, epoch=0.1, seconds_left=30)

    # This fold takes 10 + 30 seconds, and so do two more; one before it has taken 50.
    for longest, deadline, expected in ((0, math.inf, 110), (50, math.inf, 130), (0, 60, 50)):
        now[0] = 0.0
        watched = _tell_of_fold(dataclasses.replace(options, deadline=deadline), place, 2, longest)
        now[0] = 10.0
        watched.on_progress(report)
        assert events[-1].seconds_left_in_all == expected
        assert (events[-1].fold, events[-1].part, events[-1].parts) == ("fold1", 2, 4)


def test_a_validation_during_training_reads_a_fixed_sample_of_many_rows():
    few = np.arange(EVALUATED_ROWS)
    assert choose_evaluated(few) is few
    many = np.arange(100, 20_100)
    chosen = choose_evaluated(many)
    assert len(np.unique(chosen)) == len(chosen) == EVALUATED_ROWS
    assert np.isin(chosen, many).all()
    np.testing.assert_array_equal(chosen, choose_evaluated(many))
