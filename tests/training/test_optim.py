"""Every weight learns at the rate its depth asks for, and the rate follows its curve, through plateaus and resumes."""

import io
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from kit.model.backbones import BACKBONES
from kit.model.encoder import build_encoder
from kit.model.pair_model import PairModel
from kit.recipe.spec import ModelSpec, TrainSpec
from kit.training.optim import Schedule, layer_index, make_optimizer, parameter_groups

LAYERS = 4
# What stands outside the layers, by the beginning of its name, and how many layers below the top it counts as.
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
INSIDE = {"modernbert-base": "layers.", "distilbert": "transformer.layer."}
SPEC = TrainSpec(lr=1e-4, head_lr=3e-3, layer_decay=0.5, weight_decay=0.02)


def model(family: str) -> PairModel:
    if family == "distilbert":
        config = {"model_type": "distilbert", "n_layers": LAYERS}
    else:
        config = BACKBONES[family].config | {"num_hidden_layers": LAYERS}
    with torch.device("meta"):
        return PairModel(build_encoder(config), config, ModelSpec(pooling="attention"))


@pytest.fixture(scope="module", params=OUTSIDE)
def family(request: pytest.FixtureRequest) -> tuple[str, PairModel]:
    return request.param, model(request.param)


def depths(name: str, pair: PairModel) -> dict[str, int]:
    """How many layers below the top every encoder parameter stands, told from the tables above."""
    inside = INSIDE.get(name, "encoder.layer.")
    found = {}
    for parameter, _ in pair.encoder.named_parameters():
        if parameter.startswith(inside):
            found[parameter] = LAYERS - 1 - int(parameter.removeprefix(inside).split(".")[0])
        else:
            (found[parameter],) = (
                d for start, d in OUTSIDE[name].items() if parameter.startswith(start)
            )
    return found


def test_layer_wise_rates_are_the_closed_form(family: tuple[str, PairModel]):
    name, pair = family
    rates = {id(p): group["lr"] for group in parameter_groups(pair, SPEC) for p in group["params"]}
    depth = depths(name, pair)
    assert set(depth.values()) == set(range(LAYERS + 1))
    assert all(any(key.startswith(start) for key in depth) for start in OUTSIDE[name])
    for key, parameter in pair.encoder.named_parameters():
        assert rates[id(parameter)] == pytest.approx(1e-4 * 0.5 ** depth[key], rel=1e-12), key
    for part in (pair.pooling, pair.head):
        assert {rates[id(p)] for p in part.parameters()} == {3e-3}


def test_every_parameter_is_in_exactly_one_group(family: tuple[str, PairModel]):
    _, pair = family
    grouped = [id(p) for group in parameter_groups(pair, SPEC) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in pair.parameters())
    assert len(parameter_groups(pair, SPEC)) == 2 * (LAYERS + 2)


def test_norms_and_biases_do_not_decay_and_matrices_do(family: tuple[str, PairModel]):
    _, pair = family
    decays = {
        id(p): group["weight_decay"]
        for group in parameter_groups(pair, SPEC)
        for p in group["params"]
    }
    for name, parameter in pair.named_parameters():
        plain = name.endswith(".bias") or "norm" in name.lower()
        assert decays[id(parameter)] == (0.0 if plain else 0.02), name
        assert plain == (parameter.ndim == 1)


def test_without_layer_decay_the_encoder_is_flat():
    groups = parameter_groups(model("roberta"), replace(SPEC, layer_decay=1.0))
    assert sorted((group["lr"], group["weight_decay"]) for group in groups) == [
        *((1e-4, 0.0), (1e-4, 0.02), (3e-3, 0.0), (3e-3, 0.02))
    ]
    assert (
        len(parameter_groups(model("roberta"), replace(SPEC, layer_decay=1.0, head_lr=1e-4))) == 2
    )


def test_groups_come_in_the_same_order_every_time(family: tuple[str, PairModel]):
    _, pair = family
    one, other = parameter_groups(pair, SPEC), parameter_groups(pair, SPEC)
    assert [[id(p) for p in group["params"]] for group in one] == [
        [id(p) for p in g["params"]] for g in other
    ]


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
def test_a_layer_is_told_by_its_name(name: str, layer: int | None):
    assert layer_index(name) == layer


def test_the_first_step_is_a_full_one_at_each_groups_rate():
    torch.manual_seed(0)
    pair = nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    optim = make_optimizer(pair, replace(SPEC, weight_decay=0.0))
    for parameter in pair.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optim.step()
    for name, parameter in pair.named_parameters():
        rate = 3e-3 if name.startswith("head") else 1e-4  # there are no layers
        torch.testing.assert_close(
            before[name] - parameter, torch.full_like(parameter, rate), rtol=2e-3, atol=1e-8
        )
    assert {group["eps"] for group in optim.param_groups} == {SPEC.adam_epsilon}


def schedule(spec: TrainSpec, total: int, rates: tuple[float, ...] = (1.0, 0.25)) -> Schedule:
    """Of two groups, the second of which waits where there is a head-only phase."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    groups[-1] |= {"waits": True} if spec.head_only else {}
    return Schedule(torch.optim.SGD(groups), spec, total)


def run(curve: Schedule, updates: int, losses: dict[int, float] | None = None) -> list[list[float]]:
    """The groups' rates at each update; after update number k the loss in `losses[k]` is observed."""
    used = []
    for number in range(updates):
        used.append([group["lr"] for group in curve.optimizer.param_groups])
        curve.optimizer.step()
        curve.step()
        if losses and number in losses:
            curve.observe(losses[number])
    return used


def closed_form(kind: str, warmup: int, total: int, update: int) -> float:
    if update < warmup:
        return (update + 1) / warmup
    share = (update - warmup) / (total - warmup)
    return {"linear": 1 - share, "cosine": 0.5 + 0.5 * math.cos(math.pi * share)}.get(kind, 1.0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["linear", "cosine", "constant", "plateau"]),
    st.integers(1, 60),
    st.floats(0, 1),
)
def test_the_rate_follows_its_curve_in_every_group(kind: str, total: int, share: float):
    curve = schedule(TrainSpec(schedule=kind, warmup=share), total)
    warmup = math.ceil(share * total)
    used = run(curve, total)
    for update, (first, second) in enumerate(used):
        assert first == pytest.approx(closed_form(kind, warmup, total, update), rel=1e-9)
        assert second == pytest.approx(first / 4, rel=1e-9)
        assert first > 0  # no update is wasted
    assert max(first for first, _ in used) <= 1


def test_the_first_update_without_warm_up_has_the_full_rate():
    assert run(schedule(TrainSpec(schedule="linear", warmup=0.0), 4), 4) == [
        *([1.0, 0.25], [0.75, 0.1875], [0.5, 0.125], [0.25, 0.0625])
    ]


def test_past_the_last_step_the_rate_stays_at_the_end_of_its_curve():
    for kind, end in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        used = run(schedule(TrainSpec(schedule=kind, warmup=0.0), 5), 8)
        assert [first for first, _ in used[5:]] == pytest.approx([end] * 3)


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
    curve = schedule(spec, 100)
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = ReduceLROnPlateau(other, factor=factor, patience=patience, threshold=0.0, eps=0.0)
    for loss in losses:
        before = other.param_groups[0]["lr"]
        reference.step(loss)
        reduced = curve.observe(loss)
        curve.optimizer.step()
        curve.step()
        rates = [group["lr"] for group in curve.optimizer.param_groups]
        assert rates == pytest.approx(
            [other.param_groups[0]["lr"], other.param_groups[0]["lr"] / 4]
        )
        assert reduced == (other.param_groups[0]["lr"] < before)


def test_patience_counts_evaluations_without_a_better_loss():
    curve = schedule(TrainSpec(schedule="plateau", warmup=0.0, plateau_patience=1), 100)
    answers = [curve.observe(loss) for loss in (1.0, 0.9, 0.9, 0.95, 0.9, 0.8, 0.9, 0.9)]
    assert answers == [False, False, False, True, False, False, False, True]


def test_a_plateau_composes_with_warm_up_and_leaves_the_groups_in_proportion():
    spec = TrainSpec(schedule="plateau", warmup=0.5, plateau_patience=0, plateau_factor=0.5)
    used = run(
        schedule(spec, 8), 8, losses={0: 1.0, 1: 1.0}
    )  # the second is no better, in mid warm-up
    shape = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    scale = [1.0, 1.0, *[0.5] * 6]
    assert [first for first, _ in used] == pytest.approx(
        [a * b for a, b in zip(shape, scale, strict=True)]
    )
    assert all(second == pytest.approx(first / 4) for first, second in used)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_other_schedules_do_not_react_to_losses(kind: str):
    spec = TrainSpec(schedule=kind, warmup=0.2, plateau_patience=0)
    assert run(schedule(spec, 9), 9, dict.fromkeys(range(9), 1.0)) == run(schedule(spec, 9), 9)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint keeps it: no code comes back from it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["linear", "cosine", "constant", "plateau"]),
    total=st.integers(4, 60),
    alone=st.floats(0.01, 0.5),
    share=st.floats(0, 0.4),
)
def test_in_the_head_only_phase_the_encoder_rests_and_then_follows_the_curve(
    kind: str, total: int, alone: float, share: float
):
    used = run(schedule(TrainSpec(schedule=kind, warmup=share, head_only=alone), total), total)
    phase, warmup = math.ceil(alone * total), math.ceil(share * total)
    for update, (head, encoder) in enumerate(used):
        later = update - phase
        curve = 0.0 if later < 0 else closed_form(kind, warmup, total - phase, later)
        assert encoder == pytest.approx(curve / 4, abs=1e-12)
        ramp = min(1.0, (update + 1) / warmup) if warmup else 1.0
        assert head == pytest.approx(ramp if later < warmup else curve, abs=1e-12)


def test_only_the_encoder_rests_and_only_where_it_is_asked_to():
    pair = model("roberta")
    groups = parameter_groups(pair, replace(SPEC, head_only=0.1))
    encoder = {id(p) for p in pair.encoder.parameters()}
    for group in groups:
        assert {id(p) in encoder for p in group["params"]} == {group.get("waits", False)}
    assert not any("waits" in group for group in parameter_groups(pair, SPEC))
    assert (
        len(parameter_groups(pair, replace(SPEC, layer_decay=1.0, head_lr=1e-4, head_only=0.1)))
        == 4
    )


def test_a_rate_of_0_leaves_the_encoder_as_it_is_while_its_moments_build_up():
    torch.manual_seed(0)
    pair = nn.ModuleDict({"encoder": nn.Linear(3, 3), "head": nn.Linear(3, 3)})
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    spec = replace(SPEC, head_only=0.5, warmup=0.0, weight_decay=0.1)
    optim = make_optimizer(pair, spec)
    curve = Schedule(optim, spec, 6)
    for update in range(4):
        for parameter in pair.parameters():
            parameter.grad = torch.ones_like(parameter)
        optim.step()
        curve.step()
        for name, parameter in pair.named_parameters():
            moved = not torch.equal(parameter, before[name])
            assert moved == (name.startswith("head") or update >= 3)
    assert optim.state[pair["encoder"].weight]["step"] == 4


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "plateau"])
@pytest.mark.parametrize("stop", [1, 3, 7, 10])
@pytest.mark.parametrize("alone", [0.0, 0.2])
def test_a_resumed_schedule_goes_on_as_if_nothing_had_happened(kind: str, stop: int, alone: float):
    spec = TrainSpec(schedule=kind, warmup=0.25, plateau_patience=1, head_only=alone)
    losses = dict(enumerate(itertools.chain([1.0, 0.9], itertools.repeat(0.95, 12))))
    whole = run(schedule(spec, 14), 14, losses)
    first = schedule(spec, 14)
    used = run(first, stop, losses)
    second = schedule(spec, 14)
    second.optimizer.load_state_dict(through_a_file(first.optimizer.state_dict()))
    second.load_state_dict(through_a_file(first.state_dict()))
    rest = run(second, 14 - stop, {number - stop: loss for number, loss in losses.items()})
    assert used + rest == whole
    assert kind != "plateau" or whole[-1][0] < whole[6][0]
