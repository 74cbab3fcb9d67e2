"""Check that losses equal their closed forms, and do not depend on how a step is split."""

from functools import partial

import numpy as np
import pytest
import torch
from tabular_rows import exchanged, tabular_rows
from token_rows import PAD, swapped, token_rows
from torch.nn import functional

from kit.model.collator import Collator
from kit.model.encoder import build_encoder
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec
from kit.task import SWAP
from kit.training.loss import r_drop_loss, summed_cross_entropy

LABELS = torch.tensor([0, 1, 2, 1])
SMOOTHED = partial(summed_cross_entropy, smoothing=0.1)


def test_smoothed_cross_entropy_equals_its_closed_form():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    labels = torch.tensor([0, 1])
    target = torch.full((2, 3), 0.1 / 3)
    target[torch.arange(2), labels] += 0.9
    expected = -(target * logits.log_softmax(-1)).sum() / 5
    assert summed_cross_entropy(logits, labels, 5, 0.1) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_both_orders_in_one_step_equal_a_batch_with_swapped_copies(smoothing: float):
    """The gradients are those of the rows and of their swapped copies with swapped labels."""
    rows = token_rows(np.array([[9, 30], [12, 12], [40, 5], [17, 22]]))
    tabular = tabular_rows(len(rows))
    labels = torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    config = BACKBONES["tiny-electra"].config
    spec = ModelSpec(pooling="mean", head="fusion", head_hidden=8, features=True)
    model = PairModel(build_encoder(config), config, spec).eval()
    model.fit_features(tabular, np.arange(len(rows)))

    numbers = range(len(rows))
    given = Collator(rows, PAD, segments=True, tabular=tabular)(numbers)
    turned = Collator(swapped(rows), PAD, segments=True, tabular=exchanged(tabular))(numbers)

    # One step with both orders. The encoder reads every pack once all the same.
    passes: list[int] = []
    hook = model.encoder.register_forward_hook(lambda *_: passes.append(1))
    summed_cross_entropy(model(**given, augment=True), labels, 4, smoothing).backward()
    hook.remove()
    assert len(passes) == len(given["packs"])
    augmented = {name: p.grad.clone() for name, p in model.named_parameters()}

    # The same as two batches.
    model.zero_grad()
    turned_labels = torch.tensor(SWAP)[labels]
    summed_cross_entropy(model(**given), labels, 8, smoothing).backward()
    summed_cross_entropy(model(**turned), turned_labels, 8, smoothing).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(augmented[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_r_drop_of_two_equal_passes_equals_one_pass_in_value_and_gradient():
    torch.manual_seed(0)
    once = torch.randn(4, 3, requires_grad=True)
    twice = once.detach().clone().requires_grad_()
    single = SMOOTHED(once, LABELS, 4)
    double = r_drop_loss(SMOOTHED, 5.0)((twice, twice), LABELS, 4)
    assert double.item() == single.item()

    single.backward()
    double.backward()
    torch.testing.assert_close(twice.grad, once.grad, rtol=0, atol=1e-7)


def test_r_drop_is_the_mean_loss_and_the_symmetric_divergence():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3).double()
    p, q = first.softmax(-1), second.softmax(-1)
    forth = functional.kl_div(q.log(), p, reduction="sum")
    back = functional.kl_div(p.log(), q, reduction="sum")
    mean = (SMOOTHED(first, LABELS, 4) + SMOOTHED(second, LABELS, 4)) / 2
    expected = (mean + 0.7 * (forth + back) / 2 / 4).item()

    found = r_drop_loss(SMOOTHED, 0.7)((first, second), LABELS, 4)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_r_drop_weighs_rows_and_counts_each_order_half():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3)
    loss = r_drop_loss(SMOOTHED, 0.7)
    plain = loss((first, second), LABELS, 4).item()

    soft_labels = functional.one_hot(LABELS, 3).float()
    weighted = loss((first, second), 2 * soft_labels, 8).item()
    assert weighted == pytest.approx(plain, rel=1e-6)

    both_orders = tuple(torch.stack([each, each], 1) for each in (first, second))
    assert loss(both_orders, LABELS, 4).item() == pytest.approx(plain, rel=1e-6)


def test_r_drop_of_accumulated_batches_equals_that_of_the_whole():
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3)
    loss = r_drop_loss(SMOOTHED, 0.7)
    whole = loss((first, second), LABELS, 4)
    halves = [loss((first[i : i + 2], second[i : i + 2]), LABELS[i : i + 2], 4) for i in (0, 2)]
    assert sum(halves).item() == pytest.approx(whole.item(), rel=1e-6)
