"""A training that learns nothing or loses its numbers stops, says what to do, and can be tried again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_recipe import QUICK
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from kit.cli.main import main
from kit.errors import CollapseError, RunError
from kit.evaluation.metrics import class_prior, log_loss
from kit.recipe.load import load_recipe
from kit.recipe.spec import TrainSpec
from kit.training.callbacks import TrainingProgress
from kit.training.guard import CollapseGuard, GradientGuard, suggest_changes
from kit.training.optim import Schedule, make_optimizer
from kit.training.train import attempt_recipe, train_recipe

REFERENCE = 1.0972
SHORT = (*QUICK, "train.max_steps=8", "train.evals_per_epoch=2")


@pytest.fixture(autouse=True)
def alone() -> None:
    PartialState(cpu=True)


def evaluate(
    guard: CollapseGuard,
    step: int,
    loss: float,
    spread: float,
    best: float | None = None,
    steps: int = 1000,
) -> TrainerControl:
    state, control = (
        TrainerState(global_step=step, max_steps=steps, best_metric=best),
        TrainerControl(),
    )
    metrics = {"eval_log_loss": loss, "eval_spread": spread}
    guard.on_evaluate(None, state, control, metrics=metrics)
    return control


@pytest.mark.parametrize(
    ("step", "loss", "spread", "best"),
    [
        (499, 1.0975, 0.001, None),  # in the first half
        (1000, 1.0930, 0.001, None),  # better than the class shares
        (1000, 1.0975, 0.030, None),  # predictions differ
    ],
)
def test_a_training_that_may_yet_learn_or_has_learned_goes_on(
    step: int, loss: float, spread: float, best: float | None
):
    assert not evaluate(
        CollapseGuard(REFERENCE, 100, TrainSpec()), step, loss, spread, best
    ).should_training_stop


@pytest.mark.parametrize("loss", [1.0975, 1.0943, 1.3])
def test_class_shares_for_every_row_are_a_collapse_from_half_of_the_steps_on(loss: float):
    with pytest.raises(
        CollapseError, match=r"step 500 of 1000 .* 1\.0972 for the class shares"
    ) as caught:
        evaluate(CollapseGuard(REFERENCE, 100, TrainSpec()), 500, loss, 0.001, 1.0971)
    assert "--set train.lr=1e-05" in caught.value.hint
    assert "--restart" in caught.value.hint


def test_nothing_is_concluded_during_warm_up_or_from_a_short_trial():
    evaluate(CollapseGuard(REFERENCE, 700, TrainSpec()), 600, 1.0975, 0.001)
    evaluate(CollapseGuard(REFERENCE, 0, TrainSpec()), 99, 1.0975, 0.001, steps=99)
    with pytest.raises(CollapseError):
        evaluate(CollapseGuard(REFERENCE, 0, TrainSpec()), 100, 1.0975, 0.001, steps=100)


def test_a_model_that_had_learned_keeps_its_best_checkpoint():
    said: list[str] = []
    guard = CollapseGuard(REFERENCE, 100, TrainSpec(), said.append)
    assert not evaluate(guard, 300, 1.0975, 0.001, best=1.05).should_training_stop
    assert evaluate(guard, 600, 1.0975, 0.001, best=1.05).should_training_stop
    assert "ending with the best checkpoint, log loss 1.0500" in said[0]


def test_the_end_of_the_time_before_anything_was_learned_is_an_end_as_any_other():
    said: list[str] = []
    guard = CollapseGuard(REFERENCE, 100, TrainSpec(), said.append, out_of_time=lambda: True)
    assert evaluate(
        guard, 600, 1.0975, 0.001
    ).should_training_stop  # before Trainer has noted any best
    assert said[0].endswith("ending with the best checkpoint")


@pytest.mark.parametrize("expired", [False, True])
def test_early_stopping_at_the_class_shares_is_a_collapse_and_the_end_of_the_time_is_none(
    expired: bool,
):
    guard = CollapseGuard(REFERENCE, 100, TrainSpec(), out_of_time=lambda: expired)
    evaluate(guard, 300, 1.0975, 0.001)
    if expired:
        guard.on_train_end(None, TrainerState(), TrainerControl())
        return
    with pytest.raises(CollapseError, match="step 300"):
        guard.on_train_end(None, TrainerState(), TrainerControl())


def test_what_the_recipe_has_already_is_no_advice():
    flat = suggest_changes(TrainSpec(lr=5e-5, head_lr=5e-5, warmup=0.0))
    cures = (
        "train.lr=2.5e-05",
        "train.head_lr=0.00025",
        "train.warmup=",
        "train.layer_decay=",
        "train.head_only=",
    )
    assert all(cure in flat for cure in cures)
    assert "train.reinit_layers=" in flat
    cured = suggest_changes(
        TrainSpec(lr=1e-5, warmup=0.15, layer_decay=0.9, head_only=0.1, reinit_layers=1)
    )
    assert "train." not in cured


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_nearly_constant_predictions_cannot_gain_the_margin(seed: int, share: float):
    """However good they are: the labels are drawn from the very predictions."""
    rng = np.random.default_rng(seed)
    rows = 100_000
    wave = np.sign(rng.standard_normal((rows, 3))) * share
    each = 1 / 3 + CollapseGuard.SPREAD * (wave - wave.mean(1, keepdims=True))
    labels = (rng.random(rows)[:, None] > each.cumsum(1)).sum(1).clip(max=2)
    assert each.std(0).max() < CollapseGuard.SPREAD
    gain = log_loss(np.tile(class_prior(labels), (rows, 1)), labels) - log_loss(each, labels)
    assert gain < CollapseGuard.MARGIN


def step(
    guard: GradientGuard,
    layer: nn.Module,
    gradient: float,
    fp16: bool = False,
    schedule: Schedule | None = None,
) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    arguments = TrainingArguments(use_cpu=True)
    arguments.fp16 = fp16
    schedule = schedule or Schedule(make_optimizer(layer, TrainSpec()), TrainSpec(), 100)
    guard.on_pre_optimizer_step(
        arguments, TrainerState(), TrainerControl(), model=layer, lr_scheduler=schedule
    )


def test_a_step_whose_gradient_is_not_finite_leaves_weights_and_moments_alone():
    layer, guard = nn.Linear(3, 2), GradientGuard(1e-3)
    optim = make_optimizer(layer, TrainSpec(head_lr=1e-2))
    step(guard, layer, 0.5)
    optim.step()
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    moments = [value.clone() for state in optim.state.values() for value in state.values()]
    for bad in (float("nan"), float("inf")):
        step(guard, layer, bad)
        optim.step()
    assert all(torch.equal(p, before[name]) for name, p in layer.named_parameters())
    after = [value for state in optim.state.values() for value in state.values()]
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))
    assert guard.skipped == guard.streak == 2
    step(guard, layer, 0.5)
    assert (guard.skipped, guard.streak) == (2, 0)


@pytest.mark.parametrize("accelerate_sees_it", [False, True])
def test_the_schedule_stands_still_on_a_skipped_step_and_still_ends_at_zero(
    accelerate_sees_it: bool,
):
    """Only an accelerate that sees the skipped step keeps Trainer from moving the schedule."""
    layer, guard = nn.Linear(3, 2), GradientGuard(1e-3)
    optim = make_optimizer(layer, TrainSpec(head_lr=1.0))
    schedule = Schedule(optim, TrainSpec(warmup=0.2), 20)
    rates = []
    for number in range(20):
        skipped = number in (0, 1, 7, 12)
        step(guard, layer, float("inf") if skipped else 0.5, fp16=True, schedule=schedule)
        rates.append(optim.param_groups[0]["lr"])
        if not skipped:
            optim.step()
        if not (skipped and accelerate_sees_it):
            schedule.step()
    assert rates[:7] == [0.25, 0.25, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == rates[8]
    assert rates[12] == rates[13]
    assert 0 < rates[19] < rates[18]
    assert optim.param_groups[0]["lr"] == 0


@pytest.mark.parametrize(("fp16", "limit"), [(False, 5), (True, 40)])
def test_only_steps_that_are_not_finite_end_the_training(fp16: bool, limit: int):
    guard, layer = GradientGuard(1e-3), nn.Linear(2, 2)
    for _ in range(limit - 1):
        step(guard, layer, float("inf"), fp16)
        assert (layer.weight.grad is None) != fp16  # in fp16 the scaler has to see it
    with pytest.raises(CollapseError, match="diverged"):
        step(guard, layer, float("inf"), fp16)


def test_the_count_of_skipped_steps_survives_a_checkpoint():
    guard = GradientGuard(1e-3)
    step(guard, nn.Linear(2, 2), float("nan"))
    again = GradientGuard.from_state(json.loads(json.dumps(guard.state())))
    assert vars(again) == vars(guard)


def test_a_checkpoint_of_an_older_kit_is_taken_up():
    guard, state = GradientGuard(1e-3), TrainerState()
    state.stateful_callbacks = {"TrainerControl": {}}
    guard.on_train_begin(None, state, TrainerControl())
    assert state.stateful_callbacks["GradientGuard"] == guard.state()


def test_attempts_halve_the_rates_and_change_the_seed():
    recipe = load_recipe("tiny-electra", ["train.seed=4294967295"])
    assert attempt_recipe(recipe, 0) == recipe
    second, third = attempt_recipe(recipe, 1).train, attempt_recipe(recipe, 2).train
    assert (second.lr, second.head_lr) == (recipe.train.lr / 2, recipe.train.head_lr / 2)
    assert third.lr == recipe.train.lr / 4
    assert len({recipe.train.seed, second.seed, third.seed}) == 3


@pytest.fixture
def fussy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rate above 4e-4 collapses at the last step: the recipe's, and half of it."""

    def judge(self: CollapseGuard, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        if state.global_step == 8 and self.spec.lr > 4e-4:
            raise CollapseError(f"collapsed at {self.spec.lr:g}")

    monkeypatch.setattr(CollapseGuard, "on_evaluate", judge)


@pytest.mark.usefixtures("fussy")
def test_a_collapse_is_an_error_that_loses_nothing(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    with pytest.raises(CollapseError):
        train_recipe(recipe, data, tmp_path)
    assert [p.name for p in (tmp_path / recipe.run_name / "holdout/checkpoints").iterdir()]
    with pytest.raises(RunError, match="unfinished"):
        train_recipe(recipe, data, tmp_path, restarts=2)
    with pytest.raises(CollapseError):  # a resume does not slip past the guard
        train_recipe(recipe, data, tmp_path, resume=True)
    part = train_recipe(recipe, data, tmp_path, resume=True, guard=False)["parts"]["holdout"]
    assert (part["steps"], part["restarts"], part["lr"]) == (8, [], recipe.train.lr)


@pytest.mark.usefixtures("fussy")
def test_restarts_are_made_recorded_and_survive_an_interruption(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    with pytest.raises(CollapseError, match=r"0\.0005"):
        train_recipe(recipe, data, tmp_path / "one", restarts=1)
    said: list[str] = []
    whole = train_recipe(recipe, data, tmp_path / "whole", restarts=2, say=said.append)
    part = whole["parts"]["holdout"]
    assert Path(whole["run"]).name == recipe.run_name
    assert [(each["lr"], each["seed"]) for each in part["restarts"]] == [(1e-3, 0), (5e-4, 1000)]
    assert all("collapsed at" in each["why"] for each in part["restarts"])
    assert (part["lr"], part["seed"]) == (2.5e-4, 2000)
    assert sum("attempt" in line for line in said) == 2

    def interrupt(event: TrainingProgress) -> None:
        tried = next((tmp_path / "cut").rglob("tried.json"), None)
        if event.step == 8 and tried and len(json.loads(tried.read_text())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", restarts=2, listen=interrupt)
    resumed = train_recipe(recipe, data, tmp_path / "cut", resume=True)
    assert resumed["parts"]["holdout"]["restarts"] == part["restarts"]
    assert not list(Path(resumed["run"]).rglob("tried.json"))
    assert _weights(resumed) == _weights(whole)


def _weights(result: dict[str, Any]) -> dict[str, bytes]:
    tensors = load_file(Path(result["run"]) / "holdout/model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_gradients_that_are_not_finite_end_the_training(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", (*SHORT, "train.warmup=0.0"))
    monster = dataclasses.replace(
        recipe, train=dataclasses.replace(recipe.train, lr=1e30, head_lr=1e30)
    )
    with pytest.raises(CollapseError, match="diverged") as caught:
        train_recipe(monster, data, tmp_path)
    assert "--restart" in caught.value.hint


@pytest.mark.parametrize(("words", "times"), [(["--restart"], 2), (["--restart", "1"], 1), ([], 0)])
def test_restart_may_name_how_often(words: list[str], times: int, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {}

    def listen(*_: Any, **options: Any) -> dict[str, Any]:
        asked.update(options)
        return {"run": "runs/x", "parts": {}}

    monkeypatch.setattr("kit.training.train.train_recipe", listen)
    result = CliRunner().invoke(
        main, ["train", "--backbone", "tiny-electra", *words, "--resume", "--no-guard"]
    )
    assert result.exit_code == 0, result.output
    assert (asked["restarts"], asked["guard"], asked["resume"]) == (times, False, True)
