"""Check that trainings that learn nothing or diverge stop, give advice, and can be restarted."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
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
from kit.tracking.listing import list_runs
from kit.training.callbacks import TrainingProgress
from kit.training.guard import CollapseGuard, GradientGuard, suggest_changes
from kit.training.optim import Schedule, make_optimizer
from kit.training.train import attempt_recipe, train_recipe

# Log loss of the class shares.
PRIOR_LOSS = 1.0972

SHORT = (*QUICK, "train.max_steps=8", "train.evals_per_epoch=3")


@pytest.fixture(autouse=True)
def single_process() -> None:
    """Let the guard ask this process alone."""
    PartialState(cpu=True)


def evaluate(
    guard: CollapseGuard,
    step: int,
    loss: float,
    spread: float,
    best: float | None = None,
    steps: int = 1000,
) -> TrainerControl:
    """Let the guard judge an evaluation, and return its instructions to Trainer."""
    state = TrainerState(global_step=step, max_steps=steps, best_metric=best)
    control = TrainerControl()
    metrics = {"eval_log_loss": loss, "eval_spread": spread}
    guard.on_evaluate(None, state, control, metrics=metrics)
    return control


@pytest.mark.parametrize(
    ("step", "loss", "spread"),
    [(499, 1.0975, 0.001), (1000, 1.0930, 0.001), (1000, 1.0975, 0.030)],
    ids=["first half", "better than the class shares", "predictions differ"],
)
def test_a_training_that_may_yet_learn_or_has_learned_continues(
    step: int, loss: float, spread: float
):
    guard = CollapseGuard(PRIOR_LOSS, 100, TrainSpec())
    assert not evaluate(guard, step, loss, spread).should_training_stop


@pytest.mark.parametrize("loss", [1.0975, 1.0943, 1.3])
def test_class_shares_for_every_row_are_a_collapse_from_half_of_the_steps_on(loss: float):
    guard = CollapseGuard(PRIOR_LOSS, 100, TrainSpec())
    problem = r"step 500 of 1000 .* 1\.0972 for the class shares"
    with pytest.raises(CollapseError, match=problem) as caught:
        evaluate(guard, 500, loss, 0.001, 1.0971)
    assert "--set train.lr=1e-05" in caught.value.hint
    assert "--restart" in caught.value.hint


def test_warm_up_and_short_trials_are_not_judged():
    evaluate(CollapseGuard(PRIOR_LOSS, 700, TrainSpec()), 600, 1.0975, 0.001)
    evaluate(CollapseGuard(PRIOR_LOSS, 0, TrainSpec()), 99, 1.0975, 0.001, steps=99)
    with pytest.raises(CollapseError):
        evaluate(CollapseGuard(PRIOR_LOSS, 0, TrainSpec()), 100, 1.0975, 0.001, steps=100)


def test_a_model_that_had_learned_keeps_its_best_checkpoint():
    messages: list[str] = []
    guard = CollapseGuard(PRIOR_LOSS, 100, TrainSpec(), messages.append)
    assert not evaluate(guard, 300, 1.0975, 0.001, best=1.05).should_training_stop
    assert evaluate(guard, 600, 1.0975, 0.001, best=1.05).should_training_stop
    assert "ending with the best checkpoint, log loss 1.0500" in messages[0]


def test_a_collapse_at_the_time_limit_is_no_error():
    messages: list[str] = []
    guard = CollapseGuard(PRIOR_LOSS, 100, TrainSpec(), messages.append, out_of_time=lambda: True)

    # Trainer has recorded no best metric yet.
    assert evaluate(guard, 600, 1.0975, 0.001).should_training_stop
    assert messages[0].endswith("ending with the best checkpoint")


@pytest.mark.parametrize("out_of_time", [False, True])
def test_early_stopping_at_the_class_shares_is_a_collapse_but_not_at_the_time_limit(
    out_of_time: bool,
):
    guard = CollapseGuard(PRIOR_LOSS, 100, TrainSpec(), out_of_time=lambda: out_of_time)
    evaluate(guard, 300, 1.0975, 0.001)
    if out_of_time:
        guard.on_train_end(None, TrainerState(), TrainerControl())
        return
    with pytest.raises(CollapseError, match="step 300"):
        guard.on_train_end(None, TrainerState(), TrainerControl())


def test_advice_leaves_out_what_the_recipe_already_has():
    advice = suggest_changes(TrainSpec(lr=5e-5, head_lr=5e-5, warmup=0.0))
    remedies = (
        "train.lr=2.5e-05",
        "train.head_lr=0.00025",
        "train.warmup=",
        "train.layer_decay=",
        "train.head_only=",
        "train.reinit_layers=",
    )
    assert all(remedy in advice for remedy in remedies)

    careful = TrainSpec(lr=1e-5, warmup=0.15, layer_decay=0.9, head_only=0.1, reinit_layers=1)
    assert "train." not in suggest_changes(careful)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_nearly_constant_predictions_cannot_gain_the_margin(seed: int, share: float):
    """The predictions are as good as they can be: labels are drawn from them."""
    rng = np.random.default_rng(seed)
    rows = 100_000
    signs = np.sign(rng.standard_normal((rows, 3))) * share
    predictions = 1 / 3 + CollapseGuard.SPREAD * (signs - signs.mean(1, keepdims=True))
    labels = (rng.random(rows)[:, None] > predictions.cumsum(1)).sum(1).clip(max=2)
    assert predictions.std(0).max() < CollapseGuard.SPREAD

    prior_loss = log_loss(np.tile(class_prior(labels), (rows, 1)), labels)
    assert prior_loss - log_loss(predictions, labels) < CollapseGuard.MARGIN


def check_gradient(
    guard: GradientGuard,
    layer: nn.Module,
    gradient: float,
    fp16: bool = False,
    schedule: Schedule | None = None,
) -> None:
    """Show the guard a gradient before an optimizer step."""
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    args = TrainingArguments(use_cpu=True)
    args.fp16 = fp16
    schedule = schedule or Schedule(make_optimizer(layer, TrainSpec()), TrainSpec(), 100)
    guard.on_pre_optimizer_step(
        args, TrainerState(), TrainerControl(), model=layer, lr_scheduler=schedule
    )


def test_a_step_whose_gradient_is_not_finite_leaves_weights_and_moments_alone():
    layer = nn.Linear(3, 2)
    guard = GradientGuard(1e-3)
    optimizer = make_optimizer(layer, TrainSpec(head_lr=1e-2))
    check_gradient(guard, layer, 0.5)
    optimizer.step()

    def copy_all() -> list[torch.Tensor]:
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return [tensor.detach().clone() for tensor in (*layer.parameters(), *moments)]

    before = copy_all()
    for gradient in (float("nan"), float("inf")):
        check_gradient(guard, layer, gradient)
        optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, copy_all(), strict=True))
    assert guard.skipped == guard.streak == 2

    check_gradient(guard, layer, 0.5)
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
        check_gradient(guard, layer, float("inf") if skipped else 0.5, fp16=True, schedule=schedule)
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
def test_too_many_skipped_steps_in_a_row_are_a_divergence(fp16: bool, limit: int):
    guard = GradientGuard(1e-3)
    layer = nn.Linear(2, 2)
    for _ in range(limit - 1):
        check_gradient(guard, layer, float("inf"), fp16)

        # In fp16 the scaler has to see the gradient.
        assert (layer.weight.grad is None) != fp16
    with pytest.raises(CollapseError, match="diverged"):
        check_gradient(guard, layer, float("inf"), fp16)


def test_the_count_of_skipped_steps_survives_a_checkpoint():
    guard = GradientGuard(1e-3)
    check_gradient(guard, nn.Linear(2, 2), float("nan"))
    again = GradientGuard.from_state(json.loads(json.dumps(guard.state())))
    assert vars(again) == vars(guard)


def test_a_checkpoint_that_does_not_name_the_guard_can_be_resumed():
    """Checkpoints of older kits do not."""
    guard = GradientGuard(1e-3)
    state = TrainerState()
    state.stateful_callbacks = {"TrainerControl": {}}
    guard.on_train_begin(None, state, TrainerControl())
    assert state.stateful_callbacks["GradientGuard"] == guard.state()


def test_attempts_halve_the_rates_and_change_the_seed():
    recipe = load_recipe("tiny-electra", ["train.seed=4294967295"])
    assert attempt_recipe(recipe, 0) == recipe
    second = attempt_recipe(recipe, 1).train
    third = attempt_recipe(recipe, 2).train
    assert (second.lr, second.head_lr) == (recipe.train.lr / 2, recipe.train.head_lr / 2)
    assert third.lr == recipe.train.lr / 4
    assert len({recipe.train.seed, second.seed, third.seed}) == 3


@pytest.fixture
def collapses_above_4e_4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let higher rates collapse at the last step: the recipe's 1e-3, and half of it."""

    def judge(self: CollapseGuard, _: Any, state: TrainerState, *__: Any, **___: Any) -> None:
        if state.global_step == 8 and self.spec.lr > 4e-4:
            raise CollapseError(f"collapsed at {self.spec.lr:g}")

    monkeypatch.setattr(CollapseGuard, "on_evaluate", judge)


@pytest.mark.usefixtures("collapses_above_4e_4")
def test_a_collapse_is_an_error_that_loses_nothing(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    with pytest.raises(CollapseError):
        train_recipe(recipe, data, tmp_path)
    assert list((tmp_path / recipe.run_name / "holdout/checkpoints").iterdir())
    assert list_runs(tmp_path)[0].state == "collapsed in holdout"
    with pytest.raises(RunError, match="unfinished"):
        train_recipe(recipe, data, tmp_path, restarts=2)

    # A resume does not slip past the guard, unless the guard is off.
    with pytest.raises(CollapseError):
        train_recipe(recipe, data, tmp_path, resume=True)
    assert list_runs(tmp_path)[0].state == "collapsed in holdout"

    # One that is interrupted afterwards is a training that was stopped.
    def interrupt(_: TrainingProgress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path, resume=True, guard=False, listen=interrupt)
    assert list_runs(tmp_path)[0].state == "stopped in holdout"

    metrics = train_recipe(recipe, data, tmp_path, resume=True, guard=False)["parts"]["holdout"]
    assert metrics["steps"] == 8
    assert list_runs(tmp_path)[0].state == "finished"
    assert metrics["restarts"] == []
    assert metrics["lr"] == recipe.train.lr


@pytest.mark.usefixtures("collapses_above_4e_4")
def test_restarts_are_recorded_and_survive_an_interruption(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", SHORT)
    with pytest.raises(CollapseError, match=r"0\.0005"):
        train_recipe(recipe, data, tmp_path / "one", restarts=1)

    messages: list[str] = []
    whole = train_recipe(recipe, data, tmp_path / "whole", restarts=2, say=messages.append)
    metrics = whole["parts"]["holdout"]
    attempts = metrics["restarts"]
    assert Path(whole["run"]).name == recipe.run_name
    assert [(attempt["lr"], attempt["seed"]) for attempt in attempts] == [(1e-3, 0), (5e-4, 1000)]
    assert all("collapsed at" in attempt["why"] for attempt in attempts)
    assert (metrics["lr"], metrics["seed"]) == (2.5e-4, 2000)
    assert sum("attempt" in message for message in messages) == 2

    def interrupt(event: TrainingProgress) -> None:
        """Interrupt the third attempt."""
        record = next((tmp_path / "cut").rglob("tried.json"), None)
        if event.step == 8 and record and len(json.loads(record.read_text())) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, data, tmp_path / "cut", restarts=2, listen=interrupt)

    # Which attempt the checkpoints are of is not guessed.
    record = next((tmp_path / "cut").rglob("tried.json"))
    content = record.read_bytes()
    for damaged in (b"", content[:-9], b"{}", b"[1]", b"[NaN]", b"\xff"):
        record.write_bytes(damaged)
        with pytest.raises(RunError, match=r"tried\.json"):
            train_recipe(recipe, data, tmp_path / "cut", resume=True)
    record.write_bytes(b"\xef\xbb\xbf" + content)
    resumed = train_recipe(recipe, data, tmp_path / "cut", resume=True)
    assert resumed["parts"]["holdout"]["restarts"] == attempts
    assert not list(Path(resumed["run"]).rglob("tried.json"))

    weights, expected = (
        load_file(Path(result["run"]) / "holdout/model.safetensors") for result in (resumed, whole)
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_gradients_that_are_not_finite_end_the_training(data: Path, tmp_path: Path):
    recipe = load_recipe("tiny-electra", (*SHORT, "train.warmup=0.0"))

    # Higher rates than a recipe allows.
    spec = dataclasses.replace(recipe.train, lr=1e30, head_lr=1e30)
    with pytest.raises(CollapseError, match="diverged") as caught:
        train_recipe(dataclasses.replace(recipe, train=spec), data, tmp_path)
    assert "--restart" in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "restarts"), [(["--restart"], 2), (["--restart", "1"], 1), ([], 0)]
)
def test_the_option_restart_takes_a_number_or_none(
    arguments: list[str], restarts: int, monkeypatch: pytest.MonkeyPatch
):
    received: dict[str, Any] = {}

    def record_options(*_: Any, **options: Any) -> SimpleNamespace:
        received.update(options)
        return SimpleNamespace(path=Path("runs/x"), metrics={"run": "runs/x", "parts": {}})

    monkeypatch.setattr("kit.api.train", record_options)
    command = ["train", "--backbone", "tiny-electra", *arguments, "--resume", "--no-guard"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert received["restarts"] == restarts
    assert received["resume"]
    assert not received["guard"]
