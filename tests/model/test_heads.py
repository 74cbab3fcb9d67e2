"""Check the heads: exact symmetry, the reference's formula, standardised features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tabular_rows import exchanged, tabular_rows
from torch import Tensor, nn

from kit.data.feature_cache import FeatureTable
from kit.model.heads import OUTLIER, Standardiser, build_head
from kit.task import CLASSES, SWAP

TABLE = tabular_rows(60)
SIDES, PAIR = TABLE.sides.shape[2], TABLE.pair.shape[1]
TRAIN = np.arange(0, 60, 2)


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
def test_a_rows_logits_do_not_depend_on_its_batch(kind: str):
    model, sides = head(kind), vectors(9)
    logits = model(sides)
    assert logits.shape == (9, len(CLASSES))
    torch.testing.assert_close(model(sides[4:5]), logits[4:5])


@pytest.mark.parametrize("kind", ["fusion", "symmetric"])
def test_dropout_acts_in_training_only(kind: str):
    sides = vectors(16)
    model = head(kind, dropout=0.5).train()
    assert not torch.equal(model(sides), model(sides))
    model.eval()
    assert torch.equal(model(sides), model(sides))
    still = head(kind, dropout=0.0).train()
    assert torch.equal(still(sides), still(sides))


def test_features_are_learned_in_a_few_hundred_steps_at_a_heads_learning_rate():
    """One feature of each side decides; the encoder's vectors are noise, and far wider."""
    torch.manual_seed(0)
    model = build_head("symmetric", 384, 256, 0.1, (["length", "other"], ["pair"])).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    generator = torch.Generator().manual_seed(1)

    def rows(number: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        numbers = torch.randn(number, 2, 2, generator=generator)
        features = {"sides": numbers, "pair": torch.randn(number, 1, generator=generator)}
        winner = (numbers[:, 1, 0] > numbers[:, 0, 0]).long()
        return torch.randn(number, 2, 384, generator=generator), features, winner

    for _ in range(200):
        sides, features, winner = rows(32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(sides, features), winner).backward()
        optimizer.step()
    sides, features, winner = rows(1000)
    accuracy = (model.eval()(sides, features).argmax(1) == winner).float().mean()
    assert accuracy > 0.9


def test_both_heads_have_the_same_parameters():
    sizes = [sorted(p.numel() for p in head(kind).parameters()) for kind in ("fusion", "symmetric")]
    assert sizes[0] == sizes[1] == sorted([24, 24, 24 * 7, 7, 7 * 3, 3])


def fitted(tabular: FeatureTable, rows: np.ndarray = TRAIN) -> Standardiser:
    scales = Standardiser(SIDES, PAIR)
    scales.fit_rows(tabular, rows)
    return scales


def standardised(scales: Standardiser, tabular: FeatureTable) -> Tensor:
    return scales(torch.from_numpy(tabular.sides), torch.from_numpy(tabular.pair))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(-1e6, 1e6, width=32))
def test_only_the_fitted_rows_decide_the_scale(seed: int, value: float):
    other = tabular_rows(60, seed)
    other.sides[1::2, 0], other.pair[1::2, 1] = value, value
    other.sides[TRAIN], other.pair[TRAIN] = TABLE.sides[TRAIN], TABLE.pair[TRAIN]
    expected = fitted(TABLE).state_dict()
    for name, each in fitted(other).state_dict().items():
        assert torch.equal(each, expected[name]), name


def test_the_fitted_rows_have_mean_0_and_deviation_1():
    found = standardised(fitted(TABLE), TABLE)[TRAIN].double()
    inside = (found.abs() < OUTLIER).all(0)
    a, b, difference, distance, pair = found.split([SIDES, SIDES, SIDES, SIDES, PAIR], 1)
    for each, part in (
        (torch.cat([a, b]), inside[:SIDES] & inside[SIDES : 2 * SIDES]),
        (distance, inside[3 * SIDES : 4 * SIDES]),
    ):
        constant = each.std(0) == 0
        torch.testing.assert_close(
            each.mean(0)[part], torch.zeros(int(part.sum())).double(), atol=1e-4, rtol=0
        )
        deviations = each.std(0, correction=0)[part & ~constant]
        torch.testing.assert_close(deviations, torch.ones_like(deviations), atol=1e-4, rtol=0)
    squares = difference.square().mean(0)[inside[2 * SIDES : 3 * SIDES]]
    assert ((squares - 1).abs() < 1e-4).sum() == len(squares) - 1  # but for the constant one
    assert abs(pair.mean().item()) < 0.05


def test_a_swap_exchanges_places_and_signs_to_the_bit():
    a, b, difference, distance, pair = standardised(fitted(TABLE), TABLE).split(
        [SIDES, SIDES, SIDES, SIDES, PAIR], 1
    )
    found = standardised(fitted(exchanged(TABLE)), exchanged(TABLE))
    assert torch.allclose(
        found, torch.cat([b, a, -difference, distance, pair], 1), atol=1e-6
    )  # fitted on them swapped
    assert torch.equal(
        standardised(fitted(TABLE), exchanged(TABLE)),
        torch.cat([b, a, -difference, distance, pair], 1),
    )


def test_an_outlier_is_cut_off_and_a_constant_is_harmless():
    scales, far = fitted(TABLE), tabular_rows(4)
    far.sides[:] = 1e30
    far.pair[:] = -1e30
    found = standardised(scales, far)
    assert found.abs().max() == OUTLIER
    assert torch.isfinite(found).all()
    constant = standardised(scales, TABLE)[:, 3]
    assert constant.abs().max() < 1e-3


def test_the_standardiser_has_no_parameters():
    scales = Standardiser(SIDES, PAIR)
    assert not list(scales.parameters())
    assert scales.width == 4 * SIDES + PAIR
    assert standardised(scales, TABLE).shape == (60, scales.width)
