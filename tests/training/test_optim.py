"""Check learning rates: by layer, along the schedule, on plateaus, and after a resume."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kit.model.encoder import build_encoder, layer_index
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec, TrainSpec
from kit.training.optim import Schedule, make_optimizer, parameter_groups

LAYERS = 4

# Parameters outside the layers, by the start of their names, and how many layers below the top they
# count as.
OUTSIDE = {
    "deberta": {
        "embeddings.": LAYERS,
        "encoder.rel_embeddings.": LAYERS,
        "encoder.LayerNorm.": LAYERS,
    },
    "roberta": {"embeddings.": LAYERS},
    "electra-small": {"embeddings.": LAYERS, "embeddings_project.": LAYERS},
    "modernbert-base": {"embeddings.": LAYERS, "final_norm.": 0},
    "distilbert": {"embeddings.": LAYERS},
}

# The start of the names inside the layers, where it is not "encoder.layer.".
INSIDE = {"modernbert-base": "layers.", "distilbert": "transformer.layer."}

SPEC = TrainSpec(lr=1e-4, head_lr=3e-3, layer_decay=0.5, weight_decay=0.02)


def build_model(family: str) -> PairModel:
    """Build a model with four layers on the meta device, which takes no memory."""
    if family == "distilbert":
        config = {"model_type": "distilbert", "n_layers": LAYERS}
    else:
        config = BACKBONES[family].config | {"num_hidden_layers": LAYERS}
    with torch.device("meta"):
        return PairModel(build_encoder(config), config, ModelSpec(pooling="attention"))


@pytest.fixture(scope="module", params=OUTSIDE)
def family(request: pytest.FixtureRequest) -> tuple[str, PairModel]:
    return request.param, build_model(request.param)


def distances_from_top(name: str, model: PairModel) -> dict[str, int]:
    """Return how many layers below the top each encoder parameter is, by the tables above."""
    inside = INSIDE.get(name, "encoder.layer.")
    distances = {}
    for parameter, _ in model.encoder.named_parameters():
        if parameter.startswith(inside):
            layer = int(parameter.removeprefix(inside).split(".")[0])
            distances[parameter] = LAYERS - 1 - layer
        else:
            matches = [d for start, d in OUTSIDE[name].items() if parameter.startswith(start)]
            (distances[parameter],) = matches
    return distances


def test_rates_decay_by_layer(family: tuple[str, PairModel]):
    name, model = family
    groups = parameter_groups(model, SPEC)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    distances = distances_from_top(name, model)
    assert set(distances.values()) == set(range(LAYERS + 1))
    for start in OUTSIDE[name]:
        assert any(parameter.startswith(start) for parameter in distances)

    for key, parameter in model.encoder.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-4 * 0.5 ** distances[key], rel=1e-12), key
    for module in (model.pooling, model.head):
        assert {rates[id(p)] for p in module.parameters()} == {3e-3}


def test_every_parameter_is_in_exactly_one_group(family: tuple[str, PairModel]):
    _, model = family
    groups = parameter_groups(model, SPEC)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())

    # With and without weight decay: the layers, the embeddings, and the head.
    assert len(groups) == 2 * (LAYERS + 2)


def test_weights_decay_but_norms_and_biases_do_not(family: tuple[str, PairModel]):
    _, model = family
    groups = parameter_groups(model, SPEC)
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        is_vector = name.endswith(".bias") or "norm" in name.lower()
        assert decays[id(parameter)] == (0.0 if is_vector else 0.02), name
        assert is_vector == (parameter.ndim == 1)


def test_without_layer_decay_the_encoder_has_one_rate():
    groups = parameter_groups(build_model("roberta"), replace(SPEC, layer_decay=1.0))
    found = sorted((group["lr"], group["weight_decay"]) for group in groups)
    assert found == [(1e-4, 0.0), (1e-4, 0.02), (3e-3, 0.0), (3e-3, 0.02)]

    one_rate = replace(SPEC, layer_decay=1.0, head_lr=1e-4)
    assert len(parameter_groups(build_model("roberta"), one_rate)) == 2


def test_groups_have_the_same_order_every_time(family: tuple[str, PairModel]):
    _, model = family
    first, second = (
        [[id(p) for p in group["params"]] for group in parameter_groups(model, SPEC)]
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.encoder.layer.11.output.dense.weight", 11),
        ("encoder.layers.0.attn.Wqkv.weight", 0),
        ("encoder.encoder.rel_embeddings.weight", None),
        ("head.pair.dense.weight", None),
        ("encoder.embeddings.word_embeddings.weight", None),
    ],
)
def test_a_layers_number_is_found_in_the_parameters_name(name: str, layer: int | None):
    assert layer_index(name) == layer


def two_layers() -> nn.ModuleDict:
    """Build a model of an "encoder" without numbered layers and a "head"."""
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 3)})


def test_bias_correction_makes_the_first_step_as_long_as_the_rate():
    model = two_layers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, replace(SPEC, weight_decay=0.0))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()

    for name, parameter in model.named_parameters():
        move = before[name] - parameter
        expected = torch.full_like(parameter, 3e-3 if name.startswith("head") else 1e-4)
        torch.testing.assert_close(move, expected, rtol=2e-3, atol=1e-8)
    assert {group["eps"] for group in optimizer.param_groups} == {SPEC.adam_epsilon}


def make_schedule(spec: TrainSpec, total_steps: int) -> Schedule:
    """Schedule two groups with rates 1 and 1/4; the second waits if there is a head-only phase."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.25)]
    if spec.head_only:
        groups[-1]["waits"] = True
    return Schedule(torch.optim.SGD(groups), spec, total_steps)


def current_rates(schedule: Schedule) -> list[float]:
    return [group["lr"] for group in schedule.optimizer.param_groups]


def take_steps(
    schedule: Schedule, steps: int, losses: dict[int, float] | None = None
) -> list[list[float]]:
    """Return the groups' rates at each step; after step k the schedule observes `losses[k]`."""
    rates = []
    for step in range(steps):
        rates.append(current_rates(schedule))
        schedule.optimizer.step()
        schedule.step()
        if losses and step in losses:
            schedule.observe(losses[step])
    return rates


def closed_form(kind: str, warmup: int, total_steps: int, step: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / (total_steps - warmup)
    return {"linear": 1 - share, "cosine": 0.5 + 0.5 * math.cos(math.pi * share)}.get(kind, 1.0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["linear", "cosine", "constant", "plateau"]),
    st.integers(1, 60),
    st.floats(0, 1),
)
def test_every_group_follows_the_curve(kind: str, total_steps: int, share: float):
    schedule = make_schedule(TrainSpec(schedule=kind, warmup=share), total_steps)
    warmup = math.ceil(share * total_steps)
    rates = take_steps(schedule, total_steps)
    for step, (first, second) in enumerate(rates):
        assert first == pytest.approx(closed_form(kind, warmup, total_steps, step), rel=1e-9)
        assert second == pytest.approx(first / 4, rel=1e-9)

        # No step is wasted.
        assert first > 0
    assert max(first for first, _ in rates) <= 1


def test_the_first_step_without_warm_up_has_the_full_rate():
    schedule = make_schedule(TrainSpec(schedule="linear", warmup=0.0), 4)
    expected = [[1.0, 0.25], [0.75, 0.1875], [0.5, 0.125], [0.25, 0.0625]]
    assert take_steps(schedule, 4) == expected


@pytest.mark.parametrize(("kind", "end"), [("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)])
def test_after_the_last_step_the_rate_stays_at_the_end_of_its_curve(kind: str, end: float):
    rates = take_steps(make_schedule(TrainSpec(schedule=kind, warmup=0.0), 5), 8)
    assert [first for first, _ in rates[5:]] == pytest.approx([end] * 3)


@settings(deadline=None, max_examples=100)
@given(
    losses=st.lists(
        st.sampled_from([0.9, 0.95, 1.0, 1.05, float("nan"), float("inf")]), min_size=1, max_size=15
    ),
    patience=st.integers(0, 3),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_a_plateau_is_what_torch_calls_one(losses: list[float], patience: int, factor: float):
    spec = TrainSpec(
        schedule="plateau", warmup=0.0, plateau_patience=patience, plateau_factor=factor
    )
    schedule = make_schedule(spec, 100)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, threshold=0.0, eps=0.0
    )
    for loss in losses:
        before = optimizer.param_groups[0]["lr"]
        reference.step(loss)
        after = optimizer.param_groups[0]["lr"]

        reduced = schedule.observe(loss)
        schedule.optimizer.step()
        schedule.step()
        assert current_rates(schedule) == pytest.approx([after, after / 4])
        assert reduced == (after < before)


def test_patience_counts_evaluations_without_a_better_loss():
    spec = TrainSpec(schedule="plateau", warmup=0.0, plateau_patience=1)
    schedule = make_schedule(spec, 100)
    losses = (1.0, 0.9, 0.9, 0.95, 0.9, 0.8, 0.9, 0.9)
    reduced = [schedule.observe(loss) for loss in losses]
    assert reduced == [False, False, False, True, False, False, False, True]


def test_a_plateau_composes_with_warm_up_and_keeps_the_groups_in_proportion():
    spec = TrainSpec(schedule="plateau", warmup=0.5, plateau_patience=0, plateau_factor=0.5)

    # The second loss is no better, in the middle of the warm-up.
    rates = take_steps(make_schedule(spec, 8), 8, losses={0: 1.0, 1: 1.0})
    curve = np.array([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0])
    scale = np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(rates, np.outer(curve * scale, [1.0, 0.25]))


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_other_schedules_do_not_react_to_losses(kind: str):
    spec = TrainSpec(schedule=kind, warmup=0.2, plateau_patience=0)
    undisturbed = take_steps(make_schedule(spec, 9), 9)
    assert take_steps(make_schedule(spec, 9), 9, dict.fromkeys(range(9), 1.0)) == undisturbed


def save_and_load(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as it comes back from a checkpoint, which may hold no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["linear", "cosine", "constant", "plateau"]),
    total_steps=st.integers(4, 60),
    head_share=st.floats(0.01, 0.5),
    warmup_share=st.floats(0, 0.4),
)
def test_after_the_head_only_phase_the_encoder_follows_the_curve(
    kind: str, total_steps: int, head_share: float, warmup_share: float
):
    spec = TrainSpec(schedule=kind, warmup=warmup_share, head_only=head_share)
    head_steps = math.ceil(head_share * total_steps)
    warmup = math.ceil(warmup_share * total_steps)
    rates = take_steps(make_schedule(spec, total_steps), total_steps)
    for step, (head, encoder) in enumerate(rates):
        own_step = step - head_steps
        curve = 0.0
        if own_step >= 0:
            curve = closed_form(kind, warmup, total_steps - head_steps, own_step)
        assert encoder == pytest.approx(curve / 4, abs=1e-12)

        # The head stays at its peak until the encoder has reached its own.
        ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
        assert head == pytest.approx(ramp if own_step < warmup else curve, abs=1e-12)


def test_just_the_encoder_waits_and_just_with_a_head_only_phase():
    model = build_model("roberta")
    encoder = {id(p) for p in model.encoder.parameters()}
    for group in parameter_groups(model, replace(SPEC, head_only=0.1)):
        assert {id(p) in encoder for p in group["params"]} == {group.get("waits", False)}
    assert not any("waits" in group for group in parameter_groups(model, SPEC))

    # With one rate for all, encoder and head still are in different groups.
    one_rate = replace(SPEC, layer_decay=1.0, head_lr=1e-4, head_only=0.1)
    assert len(parameter_groups(model, one_rate)) == 4


def test_a_waiting_encoder_does_not_move_while_its_moments_build_up():
    model = two_layers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    spec = replace(SPEC, head_only=0.5, warmup=0.0, weight_decay=0.1)
    optimizer = make_optimizer(model, spec)
    schedule = Schedule(optimizer, spec, 6)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        for name, parameter in model.named_parameters():
            has_moved = not torch.equal(parameter, before[name])
            assert has_moved == (name.startswith("head") or step >= 3)
    assert optimizer.state[model["encoder"].weight]["step"] == 4


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "plateau"])
@pytest.mark.parametrize("stop", [1, 3, 7, 10])
@pytest.mark.parametrize("head_only", [0.0, 0.2])
def test_a_resumed_schedule_continues_its_curve(kind: str, stop: int, head_only: float):
    spec = TrainSpec(schedule=kind, warmup=0.25, plateau_patience=1, head_only=head_only)
    losses = dict(enumerate([1.0, 0.9] + 12 * [0.95]))
    whole = take_steps(make_schedule(spec, 14), 14, losses)
    if kind == "plateau":
        assert whole[-1][0] < whole[6][0]

    before = make_schedule(spec, 14)
    rates = take_steps(before, stop, losses)
    after = make_schedule(spec, 14)
    after.optimizer.load_state_dict(save_and_load(before.optimizer.state_dict()))
    after.load_state_dict(save_and_load(before.state_dict()))
    remaining = {step - stop: loss for step, loss in losses.items()}
    assert rates + take_steps(after, 14 - stop, remaining) == whole
