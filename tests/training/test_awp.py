"""Perturbed weights are where the method says and come back exactly; R-Drop is its closed form."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional

from kit.model.backbones import BACKBONES
from kit.model.encoder import build_encoder
from kit.model.pair_model import PairModel
from kit.recipe.spec import ModelSpec
from kit.training.awp import WeightPerturbation
from kit.training.loss import r_drop_loss, summed_cross_entropy
from kit.training.optim import layer_index

LABELS = torch.tensor([0, 1, 2, 1])
SMOOTHED = partial(summed_cross_entropy, smoothing=0.1)


@pytest.fixture
def pair() -> PairModel:
    torch.manual_seed(0)
    config = BACKBONES["tiny-electra"].config
    return PairModel(build_encoder(config), config, ModelSpec(pooling="mean")).eval()


def loss(pair: PairModel) -> torch.Tensor:
    tokens = torch.arange(8 * 5).reshape(8, 5)
    packs = [{"input_ids": tokens + 4, "attention_mask": torch.ones_like(tokens)}]
    return SMOOTHED(pair(packs, torch.arange(8).reshape(4, 2)), LABELS, 4)


def test_the_encoders_matrices_move_along_their_gradient_by_a_share_of_their_norm(pair: PairModel):
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    other = copy.deepcopy(pair)
    loss(other).backward()
    gradients = {name: p.grad for name, p in other.named_parameters()}
    with WeightPerturbation(pair, 0.01).applied(loss(pair)):
        for name, parameter in pair.named_parameters():
            move = parameter.detach() - before[name]
            if layer_index(name) is None or parameter.ndim == 1:
                assert torch.equal(parameter, before[name]), name
                continue
            assert move.norm().item() == pytest.approx(
                0.01 * before[name].norm().item(), rel=1e-3
            ), name
            assert (
                functional.cosine_similarity(move.ravel(), gradients[name].ravel(), dim=0) > 0.999
            ), name
        worse = loss(pair).item()
    assert worse > loss(pair).item()
    assert all(torch.equal(p, before[name]) for name, p in pair.named_parameters())


def test_the_gradient_is_that_of_the_perturbed_weights_and_adds_to_what_was_accumulated(
    pair: PairModel,
):
    nearby = WeightPerturbation(pair, 0.01)
    with nearby.applied(loss(pair)):
        expected = torch.autograd.grad(loss(pair), list(pair.parameters()), allow_unused=True)
    loss(pair).backward()
    plain = [None if p.grad is None else p.grad.clone() for p in pair.parameters()]
    with nearby.applied(loss(pair)):
        loss(pair).backward()
    for parameter, first, second in zip(pair.parameters(), plain, expected, strict=True):
        if second is not None:
            torch.testing.assert_close(parameter.grad, first + second)


def test_what_does_not_learn_does_not_move(pair: PairModel):
    pair.encoder.encoder.layer[0].requires_grad_(False)
    frozen = [p.detach().clone() for p in pair.encoder.encoder.layer[0].parameters()]
    before = pair.encoder.encoder.layer[1].output.dense.weight.detach().clone()
    with WeightPerturbation(pair, 0.01).applied(loss(pair)):
        kept = zip(pair.encoder.encoder.layer[0].parameters(), frozen, strict=True)
        assert all(torch.equal(p, b) for p, b in kept)
        assert not torch.equal(pair.encoder.encoder.layer[1].output.dense.weight, before)


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_without_a_usable_gradient_nothing_moves(pair: PairModel, factor: float):
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    with WeightPerturbation(pair, 0.01).applied(loss(pair) * factor):
        assert all(torch.equal(p, before[name]) for name, p in pair.named_parameters())


def test_the_weights_come_back_when_the_pass_fails(pair: PairModel):
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises(MemoryError), WeightPerturbation(pair, 0.5).applied(loss(pair)):
        raise MemoryError
    assert all(torch.equal(p, b) for p, b in zip(pair.parameters(), before, strict=True))


def test_two_equal_passes_are_one_in_value_and_gradient():
    torch.manual_seed(0)
    one, two = torch.randn(4, 3), None
    two = one.clone().requires_grad_()
    one.requires_grad_()
    single, double = SMOOTHED(one, LABELS, 4), r_drop_loss(SMOOTHED, 5.0)((two, two), LABELS, 4)
    assert double.item() == single.item()
    single.backward()
    double.backward()
    torch.testing.assert_close(two.grad, one.grad, rtol=0, atol=1e-7)


def test_r_drop_is_the_mean_loss_and_the_symmetric_divergence():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3).double()
    p, q = first.softmax(-1), second.softmax(-1)
    forth = functional.kl_div(q.log(), p, reduction="sum")
    back = functional.kl_div(p.log(), q, reduction="sum")
    mean = (SMOOTHED(first, LABELS, 4) + SMOOTHED(second, LABELS, 4)) / 2
    found = r_drop_loss(SMOOTHED, 0.7)((first, second), LABELS, 4)
    assert found.item() == pytest.approx((mean + 0.7 * (forth + back) / 2 / 4).item(), rel=1e-6)


def test_r_drop_counts_rows_by_their_weight_and_orders_by_half():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3)
    soft = functional.one_hot(LABELS, 3).float()
    plain = r_drop_loss(SMOOTHED, 0.7)((first, second), LABELS, 4)
    assert r_drop_loss(SMOOTHED, 0.7)((first, second), 2 * soft, 8).item() == pytest.approx(
        plain.item(), rel=1e-6
    )
    orders = tuple(torch.stack([each, each], 1) for each in (first, second))
    assert r_drop_loss(SMOOTHED, 0.7)(orders, LABELS, 4).item() == pytest.approx(
        plain.item(), rel=1e-6
    )


def test_r_drop_of_accumulated_batches_is_that_of_the_whole():
    torch.manual_seed(0)
    passes = torch.randn(2, 4, 3)
    whole = r_drop_loss(SMOOTHED, 0.7)(tuple(passes), LABELS, 4)
    parts = sum(
        r_drop_loss(SMOOTHED, 0.7)(tuple(passes[:, i : i + 2]), LABELS[i : i + 2], 4)
        for i in (0, 2)
    )
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
