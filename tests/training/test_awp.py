"""Check that perturbed weights are where the method puts them, and come back exactly."""

import copy
from functools import partial

import pytest
import torch
from torch.nn import functional

from kit.model.encoder import build_encoder, layer_index
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec
from kit.training.awp import WeightPerturbation
from kit.training.loss import summed_cross_entropy

LABELS = torch.tensor([0, 1, 2, 1])
SMOOTHED = partial(summed_cross_entropy, smoothing=0.1)


@pytest.fixture
def model() -> PairModel:
    torch.manual_seed(0)
    config = BACKBONES["tiny-electra"].config
    return PairModel(build_encoder(config), config, ModelSpec(pooling="mean")).eval()


def loss(model: PairModel) -> torch.Tensor:
    """Compute the loss of a batch of four rows."""
    tokens = torch.arange(8 * 5).reshape(8, 5)
    packs = [{"input_ids": tokens + 4, "attention_mask": torch.ones_like(tokens)}]
    return SMOOTHED(model(packs, torch.arange(8).reshape(4, 2)), LABELS, 4)


def copy_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_matrices_of_the_layers_move_along_their_gradient_by_a_share_of_their_norm(
    model: PairModel,
):
    before = copy_weights(model)
    reference = copy.deepcopy(model)
    loss(reference).backward()
    gradients = {name: p.grad for name, p in reference.named_parameters()}

    with WeightPerturbation(model, 0.01).applied(loss(model)):
        for name, parameter in model.named_parameters():
            move = parameter.detach() - before[name]
            if layer_index(name) is None or parameter.ndim == 1:
                assert not move.any(), name
                continue
            expected = 0.01 * before[name].norm().item()
            assert move.norm().item() == pytest.approx(expected, rel=1e-3), name
            cosine = functional.cosine_similarity(move.ravel(), gradients[name].ravel(), dim=0)
            assert cosine > 0.999, name
        perturbed = loss(model).item()

    assert perturbed > loss(model).item()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_gradient_is_that_of_the_perturbed_weights_and_adds_to_earlier_ones(model: PairModel):
    perturbation = WeightPerturbation(model, 0.01)
    with perturbation.applied(loss(model)):
        expected = torch.autograd.grad(loss(model), list(model.parameters()), allow_unused=True)
    loss(model).backward()
    earlier = [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    with perturbation.applied(loss(model)):
        loss(model).backward()
    for parameter, first, second in zip(model.parameters(), earlier, expected, strict=True):
        if second is not None:
            torch.testing.assert_close(parameter.grad, first + second)


def test_frozen_weights_do_not_move(model: PairModel):
    frozen, trained = model.encoder.encoder.layer[:2]
    frozen.requires_grad_(False)
    before = copy_weights(frozen)
    trained_before = trained.output.dense.weight.detach().clone()
    with WeightPerturbation(model, 0.01).applied(loss(model)):
        assert all(torch.equal(p, before[name]) for name, p in frozen.named_parameters())
        assert not torch.equal(trained.output.dense.weight, trained_before)


@pytest.mark.parametrize("factor", [0.0, float("inf"), float("nan")])
def test_without_a_usable_gradient_nothing_moves(model: PairModel, factor: float):
    before = copy_weights(model)
    with WeightPerturbation(model, 0.01).applied(loss(model) * factor):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_the_weights_come_back_when_the_pass_fails(model: PairModel):
    before = copy_weights(model)
    with pytest.raises(MemoryError), WeightPerturbation(model, 0.5).applied(loss(model)):
        raise MemoryError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
