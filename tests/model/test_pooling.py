"""Check that pooling ignores padding and is done in float32."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kit.model.pooling import AttentionPooling, build_pooling

KINDS = ["mean", "cls", "attention"]


def trained(kind: str, hidden: int, seed: int = 0) -> torch.nn.Module:
    """Return a pooling with other parameters than it starts with."""
    torch.manual_seed(seed)
    pooling = build_pooling(kind, hidden)
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter)
    return pooling


def example(lengths: list[int], hidden: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States (N, T, H) and mask (N, T) of sequences of these lengths."""
    states = torch.randn(
        len(lengths), max(lengths), hidden, generator=torch.Generator().manual_seed(seed)
    )
    return states, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    columns=st.integers(1, 7),
    content=st.sampled_from([0.0, -3.0, 1e30, float("inf"), float("nan")]),
    seed=st.integers(0, 99),
)
def test_the_content_of_padding_changes_nothing(
    kind: str, lengths: list[int], columns: int, content: float, seed: int
):
    pooling = trained(kind, 5, seed)
    states, mask = example(lengths, seed=seed)
    dirty = torch.where(mask.bool()[..., None], states, content)
    wider = torch.cat([dirty, torch.full((len(lengths), columns, 5), content)], 1)
    wider_mask = torch.cat([mask, torch.zeros(len(lengths), columns, dtype=mask.dtype)], 1)
    torch.testing.assert_close(
        pooling(wider, wider_mask), pooling(states, mask), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_flows_from_padding(kind: str):
    states, mask = example([3, 1])
    states.requires_grad_()
    trained(kind, 5)(states, mask).square().sum().backward()
    assert states.grad[0].abs().sum() > 0
    assert (states.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_result_is_float32_for_states_of_any_type(kind: str, dtype: torch.dtype):
    states, mask = example([700, 3], hidden=8)
    pooled = trained(kind, 8)(states.to(dtype), mask)
    assert pooled.shape == (2, 8)
    assert pooled.dtype == torch.float32
    exact = trained(kind, 8)(states.to(dtype).float(), mask)
    assert torch.equal(pooled, exact)


def test_sums_of_half_precision_states_do_not_overflow():
    states, mask = torch.full((1, 512, 4), 1000.0, dtype=torch.float16), torch.ones(1, 512)
    assert torch.equal(build_pooling("mean", 4)(states, mask), torch.full((1, 4), 1000.0))


def test_the_mean_is_that_of_the_real_tokens():
    states, mask = example([4, 2, 1])
    expected = [states[i, :n].numpy().astype(np.float64).mean(0) for i, n in enumerate([4, 2, 1])]
    np.testing.assert_allclose(
        build_pooling("mean", 5)(states, mask), expected, rtol=1e-5, atol=1e-6
    )


def test_cls_is_the_first_state():
    states, mask = example([4, 2])
    assert torch.equal(build_pooling("cls", 5)(states, mask), states[:, 0])


def test_attention_starts_as_the_masked_mean():
    states, mask = example([4, 2, 1])
    torch.testing.assert_close(
        build_pooling("attention", 5)(states, mask), build_pooling("mean", 5)(states, mask)
    )


def test_attention_is_a_softmax_over_the_scores_of_real_tokens():
    states, mask = example([4, 2])
    pooling = trained("attention", 5)
    pooled = pooling(states, mask).detach().numpy()
    query, bias = (
        p.detach().numpy().astype(np.float64) for p in (pooling.score.weight[0], pooling.score.bias)
    )
    for i, n in enumerate([4, 2]):
        real = states[i, :n].numpy().astype(np.float64)
        weights = np.exp(real @ query + bias)
        np.testing.assert_allclose(pooled[i], weights @ real / weights.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_a_sequence_of_padding_alone_is_the_zero_vector(kind: str):
    states, mask = example([3, 3])
    mask[1] = 0
    assert torch.equal(trained(kind, 5)(states, mask)[1], torch.zeros(5))


def test_only_attention_has_parameters():
    counts = {kind: sum(p.numel() for p in build_pooling(kind, 5).parameters()) for kind in KINDS}
    assert counts == {"mean": 0, "cls": 0, "attention": 6}
    assert isinstance(build_pooling("attention", 5), AttentionPooling)
