"""The symmetric head permutes to the bit when the answers change places; the fusion head is the reference's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from kit.model.heads import build_head
from kit.task import CLASSES, SWAP


def head(
    kind: str,
    hidden: int = 6,
    width: int = 7,
    dropout: float = 0.1,
    seed: int = 0,
    shape: str = "siamese",
) -> nn.Module:
    torch.manual_seed(seed)
    return build_head(kind, hidden, width, dropout, shape=shape).eval()


def vectors(rows: int, hidden: int = 6, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, 2, hidden, generator=torch.Generator().manual_seed(seed))


def swapped(logits: Tensor) -> Tensor:
    """Logits with the classes where a swap of the answers puts them."""
    return logits[:, list(SWAP)]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    hidden=st.sampled_from([1, 6, 64]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 999),
    shape=st.sampled_from(["siamese", "cross"]),
)
def test_swapping_the_answers_permutes_the_logits_to_the_bit(
    rows: int, hidden: int, scale: float, seed: int, shape: str
):
    symmetric = head("symmetric", hidden, seed=seed, shape=shape)
    sides = vectors(rows, hidden, seed, scale)
    assert torch.equal(symmetric(sides.flip(1)), swapped(symmetric(sides)))


def test_the_fusion_head_has_no_such_symmetry():
    fusion, sides = head("fusion"), vectors(8)
    assert not torch.allclose(fusion(sides.flip(1)), swapped(fusion(sides)), atol=1e-3)


def test_equal_answers_get_equal_chances():
    sides = vectors(5)[:, :1].expand(-1, 2, -1)
    logits = head("symmetric")(sides)
    assert torch.equal(logits[:, 0], logits[:, 1])


def test_gradients_are_symmetric_too():
    symmetric, sides = head("symmetric"), vectors(4)
    one, other = sides.clone().requires_grad_(), sides.flip(1).requires_grad_()
    symmetric(one)[:, 0].sum().backward()
    symmetric(other)[:, 1].sum().backward()
    torch.testing.assert_close(one.grad, other.grad.flip(1))


def test_the_fusion_head_is_the_references_formula():
    fusion, sides = head("fusion"), vectors(5)
    a, b = sides[:, 0], sides[:, 1]
    blocks = torch.cat([a, b, a - b, a * b], 1)
    centred = blocks - blocks.mean(1, keepdim=True)
    normed = centred / (blocks.var(1, unbiased=False, keepdim=True) + fusion.norm.eps).sqrt()
    inner = nn.functional.gelu(normed @ fusion.dense.weight.T + fusion.dense.bias)
    torch.testing.assert_close(fusion(sides), inner @ fusion.out.weight.T + fusion.out.bias)


@pytest.mark.parametrize("kind", ["fusion", "symmetric"])
def test_a_row_has_one_logit_for_each_class_whatever_else_is_in_the_batch(kind: str):
    judge, sides = head(kind), vectors(9)
    logits = judge(sides)
    assert logits.shape == (9, len(CLASSES))
    torch.testing.assert_close(judge(sides[4:5]), logits[4:5])


@pytest.mark.parametrize("kind", ["fusion", "symmetric"])
def test_dropout_acts_in_training_only(kind: str):
    sides = vectors(16)
    judge = head(kind, dropout=0.5).train()
    assert not torch.equal(judge(sides), judge(sides))
    judge.eval()
    assert torch.equal(judge(sides), judge(sides))
    still = head(kind, dropout=0.0).train()
    assert torch.equal(still(sides), still(sides))


def test_features_can_be_learnt_in_a_few_hundred_steps_at_the_rate_of_a_head():
    """One feature of each side decides; the encoder's vectors are noise, and a hundred times as many."""
    torch.manual_seed(0)
    judge = build_head("symmetric", 384, 256, 0.1, (["length", "other"], ["pair"])).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-4)
    generator = torch.Generator().manual_seed(1)

    def rows(number: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        numbers = torch.randn(number, 2, 2, generator=generator)
        features = {"sides": numbers, "pair": torch.randn(number, 1, generator=generator)}
        winner = (numbers[:, 1, 0] > numbers[:, 0, 0]).long()
        return torch.randn(number, 2, 384, generator=generator), features, winner

    for _ in range(200):
        sides, features, winner = rows(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(judge(sides, features), winner).backward()
        optimizer.step()
    sides, features, winner = rows(1000)
    accuracy = (judge.eval()(sides, features).argmax(1) == winner).float().mean()
    assert accuracy > 0.9


def test_both_heads_have_the_same_parameters():
    sizes = [sorted(p.numel() for p in head(kind).parameters()) for kind in ("fusion", "symmetric")]
    assert sizes[0] == sizes[1] == sorted([24, 24, 24 * 7, 7, 7 * 3, 3])
