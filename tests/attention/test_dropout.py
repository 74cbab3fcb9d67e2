"""Check the distribution of dropout's masks, their seed, and their gradient."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from kit.attention.dropout import STEPS, QuickDropout, RandomBits, copy_signs, to_steps


@pytest.mark.parametrize("chance", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_a_share_of_the_numbers_is_zero_and_the_mean_stays(chance: float, kind: torch.dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1000, dtype=kind)
    out = QuickDropout(chance)(x)
    dropped = (out == 0).float()
    assert abs(dropped.mean() - chance) < 5 * (chance * (1 - chance) / x.numel()) ** 0.5 + 1 / STEPS
    assert out.dtype == kind
    assert torch.equal(
        out[out != 0], torch.full_like(out[out != 0], 1 / (1 - to_steps(chance) / STEPS))
    )

    # Neighbours are independent.
    neighbours = (dropped[:, 1:] * dropped[:, :-1]).mean() - chance**2
    assert abs(neighbours) < 0.001


def test_the_gradient_is_masked_as_the_values_are():
    x = torch.randn(7, 33, requires_grad=True)
    out = QuickDropout(0.4)(x)
    grad = torch.randn(33, 7).T
    assert not grad.is_contiguous()
    out.backward(grad)
    scale = 1 / (1 - to_steps(0.4) / STEPS)
    expected = torch.where(out == 0, 0.0, grad * scale)
    torch.testing.assert_close(x.grad, expected)


def test_torchs_seed_and_state_decide_the_mask():
    x, dropout = torch.ones(50, 50), QuickDropout(0.3)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout(x), second)


def test_a_checkpointed_layer_sees_the_same_mask_again():
    x, dropout = torch.randn(40, 40, requires_grad=True), QuickDropout(0.5)
    out = checkpoint(lambda x: dropout(x) ** 2, x, use_reentrant=False)
    out.sum().backward()
    scale = 1 / (1 - to_steps(0.5) / STEPS)
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 2 * x.detach() * scale**2))


def test_dropout_does_nothing_in_evaluation_and_at_zero():
    x = torch.randn(5, 5)
    assert QuickDropout(0.5).eval()(x) is x
    assert torch.equal(QuickDropout(0.0)(x), x)


def test_other_types_and_probability_one_go_to_torch():
    assert torch.equal(QuickDropout(1.0)(torch.ones(99999)), torch.zeros(99999))
    assert torch.equal(
        QuickDropout(1.0)(torch.ones(9, dtype=torch.float64)), torch.zeros(9, dtype=torch.float64)
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_copied_signs_change_the_sign_alone(kind: torch.dtype):
    torch.manual_seed(1)
    positive = torch.rand(999).to(kind)
    signs = RandomBits().draw_signs(positive.shape, to_steps(0.25))
    signed = copy_signs(positive.clone(), signs)
    assert torch.equal(signed.abs(), positive)
    assert torch.equal(torch.signbit(signed), signs < 0)


def test_probabilities_are_rounded_to_steps_below_all_of_them():
    assert to_steps(0.1) == 3277
    assert to_steps(0.99999999) == STEPS - 1
    assert to_steps(0.0) == 0
