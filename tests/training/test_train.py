"""Training: what a run directory holds, what an interruption costs, and that options do what they say."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from quick_recipe import QUICK
from safetensors.torch import load_file
from transformers import TrainingArguments

from kit.data.dataset import Dataset
from kit.errors import BackboneError, DeviceError, RecipeError, RunError
from kit.evaluation.metrics import log_loss
from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth
from kit.model.backbones import BACKBONES, resolve_backbone
from kit.model.collator import Collator
from kit.model.encoder import build_encoder
from kit.model.pair_model import PairModel
from kit.predict import predict_split
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import ModelSpec, Recipe, TrainSpec
from kit.run import Run
from kit.task import CLASSES, HOLDOUT, ID, LABEL, SOFT_LABELS, SWAP, WEIGHT
from kit.training import fold as training
from kit.training import setup, trainer
from kit.training.callbacks import TrainingProgress
from kit.training.checkpoints import last_checkpoint
from kit.training.loss import summed_cross_entropy
from kit.training.optim import parameter_groups
from kit.training.setup import new_model
from kit.training.train import train_recipe

# rates at which the loss soon rises
STOPS_EARLY = (
    "train.epochs=50",
    "train.lr=0.2",
    "train.head_lr=0.2",
    "train.patience=2",
    "train.warmup=0.0",
)


@pytest.fixture(scope="module")
def run(quick: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The holdout of the quick recipe, trained without interruption."""
    return Run.open(train_recipe(quick, data, tmp_path_factory.mktemp("runs"))["run"])


def test_a_run_directory_holds_what_it_promises(run: Run, quick: Recipe, processed: Dataset):
    part = run.fold(HOLDOUT).path
    names = {path.name for path in part.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "trainer_state.json",
        "valid.csv",
        "metrics.json",
    } <= names
    assert not (part / "checkpoints").exists()
    assert run.recipe == quick
    assert run.origin["data"] == processed.digest("train")


def test_the_swap_gap_is_recorded_and_a_symmetric_head_has_none(
    run: Run, processed: Dataset, tmp_path: Path
):
    fusion = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2", "model.head=fusion"))
    result = train_recipe(fusion, processed.folder, tmp_path)
    both, one = (
        predict_split(result["run"], "valid", processed.folder, swap=swap) for swap in (True, False)
    )
    classes, recorded = list(CLASSES), result["parts"]["holdout"]["swap_gap"]
    assert recorded == pytest.approx(
        2 * np.abs(both[classes] - one[classes]).to_numpy().mean(), rel=1e-3
    )
    assert recorded > 0
    assert run.fold(HOLDOUT).metrics["swap_gap"] == pytest.approx(0, abs=1e-7)


def test_the_metrics_are_those_of_the_validation_predictions(
    run: Run, data: Path, processed: Dataset
):
    valid = read_predictions(run.fold(HOLDOUT).predictions_path)
    rows = processed.fold_rows("holdout")[1]
    assert valid[ID].tolist() == processed.train()[ID].to_numpy()[rows].tolist()
    truth = restrict_truth(read_truth(data / "train.parquet"), valid)
    metrics = run.fold(HOLDOUT).metrics
    assert metrics["log_loss"] == pytest.approx(
        log_loss(*align_to_truth(valid, truth, "valid")), abs=1e-12
    )
    assert metrics["valid_rows"] == len(rows)
    assert 0 <= metrics["padding_waste"] < 0.2


def test_the_kept_weights_are_the_best_evaluation(run: Run):
    history = json.loads((run.fold(HOLDOUT).history_path).read_text())["log_history"]
    losses = {
        entry["step"]: entry["eval_log_loss"] for entry in history if "eval_log_loss" in entry
    }
    assert len(losses) == 8
    metrics = run.fold(HOLDOUT).metrics
    assert metrics["best_step"] == min(losses, key=losses.get)
    assert metrics["log_loss"] == pytest.approx(min(losses.values()), abs=1e-6)


def test_training_twice_gives_the_same_weights(run: Run, quick: Recipe, data: Path, tmp_path: Path):
    again = Run.open(train_recipe(quick, data, tmp_path)["run"])
    assert (again.fold(HOLDOUT).path / "model.safetensors").read_bytes() == (
        run.fold(HOLDOUT).path / "model.safetensors"
    ).read_bytes()


def test_a_finished_part_is_left_alone(run: Run, quick: Recipe, data: Path):
    before = (run.fold(HOLDOUT).metrics_path).stat().st_mtime_ns
    said: list[str] = []
    train_recipe(quick, data, run.path.parent, say=said.append)
    assert any("is already finished" in line for line in said)
    assert (run.fold(HOLDOUT).metrics_path).stat().st_mtime_ns == before


def test_a_killed_training_resumes_to_the_same_result(run: Run, data: Path, tmp_path: Path):
    """SIGKILL in the middle of the second epoch, then --resume."""
    settings = [argument for override in QUICK for argument in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "kit",
        "train",
        "--backbone",
        "tiny-electra",
        "--data",
        str(data),
    ]
    command += ["--runs", str(tmp_path), *settings]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    part = tmp_path / run.name / "holdout"
    deadline = time.monotonic() + 120
    while (
        not list(part.glob("checkpoints/checkpoint-15/trainer_state.json"))
        and time.monotonic() < deadline
    ):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (part / "metrics.json").exists(), "it had finished before it could be killed"

    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1
    assert "--resume" in again.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step" in resumed.stderr
    ours = json.loads((part / "metrics.json").read_text())
    undisturbed = run.fold(HOLDOUT).metrics
    for name in ("log_loss", "accuracy", "best_step", "steps"):
        assert ours[name] == undisturbed[name]
    expected = load_file(run.fold(HOLDOUT).path / "model.safetensors")
    for name, weights in load_file(part / "model.safetensors").items():
        assert torch.equal(weights, expected[name]), name


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path):
    for step, state in ((4, "{}"), (8, "{}"), (12, '{"cut'), (16, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    assert not (tmp_path / "checkpoint-16").exists()


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulated_batches_take_the_same_steps(
    weighted: bool,
    still: Path,
    data: Path,
    processed: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Without dropout, 16 rows at once, 4 x 4 rows, and as many as have 300 tokens are one and the same step."""
    if weighted:
        rng = np.random.default_rng(0)
        rows = processed.train().num_rows
        targets = (rng.dirichlet([1, 1, 1], rows) * rng.exponential(1, (rows, 1))).astype(
            np.float32
        )
        monkeypatch.setattr(Dataset, "targets", lambda _: targets)
    overrides = (*QUICK, "train.max_steps=6", "model.head_dropout=0.0")
    finals = []
    for micro in ("micro_batch_size=0", "micro_batch_size=4", "micro_tokens=300", "micro_tokens=1"):
        recipe = load_recipe("tiny-roberta", (*overrides, f"train.{micro}"), backbone=str(still))
        finals.append(train_recipe(recipe, data, tmp_path / micro)["parts"]["holdout"])
    assert {final["steps"] for final in finals} == {6}
    for final in finals[1:]:
        assert final["log_loss"] == pytest.approx(finals[0]["log_loss"], abs=2e-5)


def test_gradient_checkpointing_changes_memory_not_results(
    still: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    overrides = (*QUICK, "train.max_steps=4")
    folder = str(still)
    made: list[PairModel] = []

    def keep(*arguments: Any) -> Any:
        model, vocabulary = new_model(*arguments)
        made.append(model)
        return model, vocabulary

    monkeypatch.setattr(setup, "new_model", keep)
    with_it, without = (
        train_recipe(
            load_recipe(
                "tiny-roberta",
                (*overrides, f"train.gradient_checkpointing={flag}"),
                backbone=folder,
            ),
            data,
            tmp_path / flag,
        )["parts"]["holdout"]["log_loss"]
        for flag in ("true", "false")
    )
    assert with_it == pytest.approx(without, abs=1e-6)
    assert [
        any(
            m.gradient_checkpointing
            for m in model.encoder.modules()
            if hasattr(m, "gradient_checkpointing")
        )
        for model in made
    ] == [True, False]


def test_a_run_that_was_moved_resumes_with_its_best_weights(
    run: Run, quick: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The checkpoint that was best stood in another folder when its name was written down."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_write_fold", stop)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(quick, data, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = train_recipe(quick, data, tmp_path / "after", resume=True)["parts"]["holdout"]
    assert moved["log_loss"] == run.fold(HOLDOUT).metrics["log_loss"]


def test_a_training_that_diverges_says_so(data: Path, tmp_path: Path):
    recipe = load_recipe(
        "tiny-electra",
        (*QUICK, "train.lr=1", "train.head_lr=1", "train.max_grad_norm=1e6", "train.warmup=0.0"),
    )
    monster = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, lr=1e30, head_lr=1e30)
    )
    with pytest.raises(RunError, match="diverged"):
        train_recipe(monster, data, tmp_path)


def test_every_fold_gives_out_of_fold_predictions_of_every_row(
    data: Path, processed: Dataset, tmp_path: Path
):
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2"))
    first = train_recipe(recipe, data, tmp_path, "1")
    assert "oof" not in first
    assert set(first["parts"]) == {"fold1"}
    result = train_recipe(recipe, data, tmp_path, "all")
    oof = read_predictions(Path(result["run"]) / "oof.csv")
    truth = read_truth(data / "train.parquet")
    assert sorted(oof[ID]) == sorted(processed.train()[ID].to_pylist())
    assert result["oof"]["log_loss"] == pytest.approx(
        log_loss(*align_to_truth(oof, truth, "oof")), abs=1e-12
    )


def test_early_stopping_and_the_plateau_act(data: Path, tmp_path: Path):
    """At a rate that is far too high the loss does not improve: training stops long before its last epoch."""
    overrides = (
        *QUICK,
        "train.epochs=50",
        "train.lr=0.2",
        "train.head_lr=0.2",
        "train.patience=2",
        "train.schedule=plateau",
    )
    events: list[TrainingProgress] = []
    recipe = load_recipe(
        "tiny-electra", (*overrides, "train.plateau_patience=0", "train.warmup=0.0")
    )
    result = train_recipe(recipe, data, tmp_path, listen=events.append)
    part = result["parts"]["holdout"]
    evaluations = [e for e in events if e.log_loss is not None]
    worse = [e.best for e in evaluations][-2:]
    assert part["steps"] < 12 * 50
    assert worse == [False, False]
    rates = {e.lr for e in events if e.lr is not None}
    assert max(rates) == pytest.approx(0.2)
    assert min(rates) < 0.2 / 1.9


def test_smoothed_cross_entropy_is_its_closed_form():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]), torch.tensor([0, 1])
    target = torch.full((2, 3), 0.1 / 3)
    target[torch.arange(2), labels] += 0.9
    expected = -(target * logits.log_softmax(-1)).sum() / 5
    assert summed_cross_entropy(logits, labels, 5, 0.1) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_orders_in_one_step_are_a_batch_with_swapped_copies(smoothing: float):
    """The gradients are those of the rows and their swapped copies, whose labels are swapped too."""
    from tabular_rows import exchanged, tabular_rows
    from token_rows import PAD, swapped, token_rows

    rows = token_rows(np.array([[9, 30], [12, 12], [40, 5], [17, 22]]))
    tabular, labels = tabular_rows(len(rows)), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    config = BACKBONES["tiny-electra"].config
    model = PairModel(
        build_encoder(config),
        config,
        ModelSpec(pooling="mean", head="fusion", head_hidden=8, features=True),
    ).eval()
    model.fit_features(tabular, np.arange(len(rows)))
    batches = [
        Collator(rows, PAD, segments=True, tabular=tabular)(range(len(rows))),
        Collator(swapped(rows), PAD, segments=True, tabular=exchanged(tabular))(range(len(rows))),
    ]
    passes: list[int] = []
    hook = model.encoder.register_forward_hook(lambda *_: passes.append(1))
    summed_cross_entropy(model(**batches[0], augment=True), labels, 4, smoothing).backward()
    assert len(passes) == len(batches[0]["packs"])
    hook.remove()
    augmented = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for batch, its in zip(batches, (labels, torch.tensor(SWAP)[labels]), strict=True):
        summed_cross_entropy(model(**batch), its, 8, smoothing).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(augmented[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("head", "expected"), [("fusion", True), ("symmetric", False)])
def test_swapped_copies_are_learnt_from_where_the_head_is_not_symmetric(
    head: str, expected: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shapes: set[int] = set()
    loss = trainer.summed_cross_entropy

    def watched(logits: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        shapes.add(logits.ndim)
        return loss(logits, *arguments, **named)

    monkeypatch.setattr(trainer, "summed_cross_entropy", watched)
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=2", f"model.head={head}"))
    assert recipe.train.swap_augmentation
    train_recipe(recipe, data, tmp_path)
    assert (3 in shapes) == expected


def test_two_processes_take_the_steps_of_one(still: Path, data: Path, tmp_path: Path):
    """Without dropout, 16 rows on one process and 8 on each of two are the same step; only the first one writes."""
    overrides = (*QUICK, "train.max_steps=8", "model.head_dropout=0.0")
    overrides += (
        "train.head_only=0.2",
        "train.ema=0.9",
        "train.r_drop=1.0",
        "train.micro_tokens=300",
    )
    folder = str(still)
    alone = train_recipe(
        load_recipe("tiny-roberta", overrides, backbone=folder), data, tmp_path / "one"
    )["parts"]["holdout"]
    together = _two_processes(folder, data, tmp_path / "two", overrides)
    assert together["steps"] == alone["steps"] == 8
    assert together["log_loss"] == pytest.approx(alone["log_loss"], abs=2e-5)


def test_two_processes_take_the_steps_of_one_with_weights_features_and_perturbed_weights(
    still: Path, raw: Path, tmp_path: Path
):
    """One process takes its 16 rows in two passes, since each pass of 8 rows has a perturbation of its own."""
    data = _weighed(raw, tmp_path)
    overrides = (*QUICK, "train.max_steps=8", "model.head_dropout=0.0", "train.micro_batch_size=8")
    overrides += ("model.features=true", "train.awp_start=0.25")
    folder, perturbed = str(still), (*overrides, "train.awp=0.05")

    def alone(name: str, *some: str) -> float:
        recipe = load_recipe("tiny-roberta", some, backbone=folder)
        return train_recipe(recipe, data, tmp_path / name)["parts"]["holdout"]["log_loss"]

    together = _two_processes(folder, data, tmp_path / "two", perturbed)
    assert together["steps"] == 8
    assert together["log_loss"] == pytest.approx(alone("one", *perturbed), abs=2e-5)
    for name, others in (("calm", overrides), ("bare", (*perturbed, "model.features=false"))):
        assert abs(alone(name, *others) - together["log_loss"]) > 1e-3, (
            "it makes no difference here"
        )


def _weighed(raw: Path, tmp_path: Path) -> Path:
    """The sample's rows, every second of them three times as heavy as the others, and every third with soft labels."""
    from kit.data.preprocess import preprocess_files

    table = pd.read_csv(raw / "train.csv", dtype=str, keep_default_na=False)
    table[WEIGHT] = ["3" if row % 2 else "1" for row in range(len(table))]
    for name, share in zip(SOFT_LABELS, ("0.2", "0.5", "0.3"), strict=True):
        table[name] = ["" if row % 3 else share for row in range(len(table))]
    (tmp_path / "raw").mkdir()
    table.to_csv(tmp_path / "raw" / "train.csv", index=False)
    (tmp_path / "raw" / "test.csv").write_bytes((raw / "test.csv").read_bytes())
    preprocess_files(tmp_path / "raw", tmp_path / "data", folds=3, valid=0.2)
    return tmp_path / "data"


def _two_processes(
    folder: str, data: Path, runs: Path, overrides: tuple[str, ...]
) -> dict[str, Any]:
    """The holdout's metrics of a toy RoBERTa that two processes train on the CPU."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "kit",
    ]
    command += [
        "train",
        "--recipe",
        "tiny-roberta",
        "--backbone",
        folder,
        "--data",
        str(data),
        "--json",
    ]
    command += [
        "--runs",
        str(runs),
        *(each for override in overrides for each in ("--set", override)),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    printed = done.stdout[done.stdout.index("{") :]  # torch 2.10's gloo prints there, too
    return json.loads(printed)["parts"]["holdout"]


@pytest.mark.parametrize(
    "overrides", [("train.max_steps=4",), STOPS_EARLY], ids=["last step", "early stopping"]
)
def test_a_training_killed_after_its_end_does_not_go_on(
    overrides: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From such a checkpoint Trainer would: to the epoch's next batch, or past its stop to the next evaluation."""
    recipe = load_recipe("tiny-electra", (*QUICK, *overrides))
    straight = train_recipe(recipe, data, tmp_path / "straight")["parts"]["holdout"]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict_logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe, data, tmp_path / "resumed")
    assert list((tmp_path / "resumed").rglob(f"checkpoint-{straight['steps']}"))
    resumed = train_recipe(recipe, data, tmp_path / "resumed", resume=True)["parts"]["holdout"]
    for name in ("steps", "best_step", "log_loss", "padding_waste"):
        assert resumed[name] == straight[name]


def test_a_resume_keeps_the_patience_that_was_left(data: Path, tmp_path: Path):
    """Interrupted between the first evaluation without gain and the second, it stops where it would have."""
    recipe = load_recipe("tiny-electra", (*QUICK, *STOPS_EARLY))
    straight = train_recipe(recipe, data, tmp_path / "straight")["parts"]["holdout"]
    every = straight["steps"] - straight["best_step"]  # two evaluations

    def interrupt(event: TrainingProgress) -> None:
        if (
            event.log_loss is not None
            and event.step == straight["best_step"] + every // 2 + every // 2
        ):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "resumed", listen=interrupt)
    resumed = train_recipe(recipe, data, tmp_path / "resumed", resume=True)["parts"]["holdout"]
    assert {name: resumed[name] for name in ("steps", "best_step", "log_loss")} == {
        name: straight[name] for name in ("steps", "best_step", "log_loss")
    }


def test_label_smoothing_touches_training_only(run: Run, processed: Dataset):
    """The evaluation loss in the log is the plain log loss, though the recipe smooths labels."""
    valid = read_predictions(run.fold(HOLDOUT).predictions_path)
    labels = processed.train()[LABEL].to_numpy()[processed.fold_rows("holdout")[1]]
    plain = log_loss(valid.iloc[:, 1:].to_numpy(), labels)
    history = json.loads((run.fold(HOLDOUT).history_path).read_text())["log_history"]
    assert min(e["eval_log_loss"] for e in history if "eval_log_loss" in e) == pytest.approx(
        plain, abs=1e-6
    )


@pytest.mark.parametrize(
    ("key", "missing", "part"),
    [
        ("encode.max_tokens=2048", "", "positions"),
        ("train.head_only=0.9", "", "more than all steps"),
        ("train.lora_rank=2", "peft", "peft"),
        ("train.micro_batch_size=5", "", "not a multiple"),
    ],
)
def test_a_recipe_that_cannot_run_leaves_no_run_behind(
    key: str, missing: str, part: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(RecipeError, match=part):
        train_recipe(
            load_recipe("tiny-electra", (*QUICK, "train.warmup=0.2", key)), data, tmp_path / "runs"
        )
    assert not list(tmp_path.iterdir())


def test_an_encoder_whose_layers_have_other_names_learns_at_one_rate(
    still: Path, processed: Dataset, tmp_path: Path
):
    """ALBERT's layers share their weights."""
    small = {
        "embedding_size": 16,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = {
        "model_type": "albert",
        "vocab_size": BACKBONES["tiny-roberta"].config["vocab_size"],
        **small,
    }
    build_encoder(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((still / name).read_bytes())
    recipe = load_recipe("default", ("train.layer_decay=0.5",), backbone=str(tmp_path))
    model, _ = new_model(recipe, resolve_backbone(recipe.backbone), processed)
    groups = parameter_groups(model, recipe.train)
    assert {group["lr"] for group in groups} == {recipe.train.lr, recipe.train.head_lr}
    for key in ("train.awp=0.01", "train.lora_rank=2", "train.reinit_layers=1"):
        with pytest.raises(RecipeError, match="named as part of one"):
            train_recipe(
                load_recipe("default", (key,), backbone=str(tmp_path)),
                processed.folder,
                tmp_path / "runs",
            )
    assert not (tmp_path / "runs").exists()


def test_a_backbone_that_does_not_exist_leaves_no_run_behind(data: Path, tmp_path: Path):
    with pytest.raises(BackboneError, match="debreta"):
        train_recipe(load_recipe("default", QUICK, backbone="debreta"), data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "warned"), [("ascii", True), ("unicode", False)])
def test_a_multilingual_backbone_is_not_fed_ascii_unawares(
    text: str, warned: bool, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from kit.data.preprocess import preprocess_files

    preprocess_files(raw, tmp_path / "data", text=text)
    monkeypatch.setitem(
        BACKBONES, "tiny-electra", dataclasses.replace(BACKBONES["tiny-electra"], multilingual=True)
    )
    said: list[str] = []
    with pytest.raises(RecipeError, match="not a multiple"):
        train_recipe(
            load_recipe("tiny-electra", ("train.micro_batch_size=5",)),
            tmp_path / "data",
            tmp_path / "runs",
            say=said.append,
        )
    assert any("--text unicode" in line for line in said) is warned


def test_an_unknown_fold_lists_the_folds(quick: Recipe, data: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="folds 0 to 2"):
        train_recipe(quick, data, tmp_path, "7")


def test_running_out_of_memory_gives_advice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def explode(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(training, "predict_logits", explode)
    with pytest.raises(DeviceError, match=r"1,024 tokens[\s\S]*micro_tokens=512"):
        train_recipe(load_recipe("tiny-electra", (*QUICK, "train.max_steps=1")), data, tmp_path)


def test_explain_out_of_memory_names_no_pass_that_cannot_be_smaller_and_nothing_that_is_there_already():
    spec = TrainSpec(gradient_checkpointing=True, micro_tokens=100_000)
    recipe = dataclasses.replace(load_recipe("deberta"), train=spec)
    row = 2 * recipe.encode.max_tokens
    for rows, words in ((4, f"micro_tokens={2 * row} "), (1, "Try a smaller encode.max_tokens.")):
        with (
            pytest.raises(DeviceError, match=f"{rows * row:,} tokens") as caught,
            training._explain_out_of_memory(recipe, rows, 2),
        ):
            raise torch.OutOfMemoryError
        assert words in caught.value.hint
        assert "checkpointing" not in caught.value.hint


def test_processes_do_not_drop_out_alike(
    still: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seeds, make = [], training.make_trainer

    def noting(*arguments: Any, **options: Any) -> Any:
        make(*arguments, **options)
        seeds.append(torch.initial_seed())
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "make_trainer", noting)
    for number in (0, 1):
        monkeypatch.setattr(TrainingArguments, "process_index", number)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(
                load_recipe("tiny-roberta", (*QUICK, "train.seed=5"), backbone=str(still)),
                data,
                tmp_path / str(number),
            )
    assert seeds == [5, 6]


def test_other_errors_are_not_taken_for_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(training, "predict_logits", explode)
    with pytest.raises(RuntimeError, match="mat1"):
        train_recipe(load_recipe("tiny-electra", (*QUICK, "train.max_steps=1")), data, tmp_path)


def test_a_run_refuses_other_data(run: Run, quick: Recipe, raw: Path, tmp_path: Path):
    from kit.data.preprocess import preprocess_files

    preprocess_files(raw, tmp_path / "other", seed=9)
    with pytest.raises(RunError, match="trained on different data"):
        train_recipe(quick, tmp_path / "other", run.path.parent)


def test_an_edited_recipe_is_noticed(run: Run, quick: Recipe, data: Path, tmp_path: Path):
    import shutil

    copied = shutil.copytree(run.path, tmp_path / run.name)
    text = (copied / "recipe.toml").read_text()
    (copied / "recipe.toml").write_text(text.replace("batch_size = 16", "batch_size = 8"))
    with pytest.raises(RunError, match="edited"):
        train_recipe(quick, data, tmp_path)


def test_progress_reaches_the_last_step(data: Path, tmp_path: Path):
    events: list[TrainingProgress] = []
    train_recipe(
        load_recipe("tiny-electra", (*QUICK, "train.max_steps=5")),
        data,
        tmp_path,
        listen=events.append,
    )
    assert events[-1].step == events[-1].steps == 5
    assert all(math.isfinite(e.loss) for e in events if e.loss is not None)
    assert np.isfinite([e.log_loss for e in events if e.log_loss is not None]).all()


def test_features_of_rows_that_are_validated_on_touch_nothing(
    data: Path, processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever they are, the statistics and the weights after training are the same to the bit."""
    recipe = load_recipe("tiny-electra", (*QUICK, "train.max_steps=3", "train.evals_per_epoch=1"))
    held = processed.fold_rows("holdout")[1]
    tabulate = setup.features_cached

    def scrambled(*arguments: Any) -> Any:
        tabular = tabulate(*arguments)
        tabular.sides[held], tabular.pair[held] = 1e3 * tabular.sides[held] - 7, 1e6
        return tabular

    runs = [train_recipe(recipe, data, tmp_path / "as they are")["run"]]
    monkeypatch.setattr(setup, "features_cached", scrambled)
    runs.append(train_recipe(recipe, data, tmp_path / "scrambled")["run"])
    one, other = (load_file(Path(run) / "holdout" / "model.safetensors") for run in runs)
    assert "head.pair.features.side_mean" in one
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_time_budget_ends_with_the_best_checkpoint(data: Path, tmp_path: Path):
    """Eight seconds are not enough for 600 epochs: training says so early and ends as a finished part."""
    said: list[str] = []
    recipe = load_recipe("tiny-electra", (*QUICK, "train.epochs=600"))
    result = train_recipe(recipe, data, tmp_path, max_hours=8 / 3600, say=said.append)
    part = result["parts"]["holdout"]
    assert part["out_of_time"]
    assert 20 < part["steps"] < 600 * 11
    assert any("train.max_steps=" in line for line in said)
    assert any("time limit reached at step" in line for line in said)
    history = json.loads((Path(result["run"]) / "holdout" / "trainer_state.json").read_text())[
        "log_history"
    ]
    losses = [entry["eval_log_loss"] for entry in history if "eval_log_loss" in entry]
    assert part["log_loss"] == pytest.approx(min(losses), abs=1e-6)


def test_a_fold_that_would_not_finish_is_not_begun(data: Path, tmp_path: Path):
    said: list[str] = []
    result = train_recipe(
        load_recipe("tiny-electra", QUICK), data, tmp_path, "all", max_hours=1e-7, say=said.append
    )
    assert not result["parts"]
    assert any("remaining folds: 0, 1, 2" in line for line in said)
