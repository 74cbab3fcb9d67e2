"""Check that predictions come in the order of their rows, whatever the batching."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import PAD, swapped, token_rows

from kit.data.tokenize import PairTokenizer, TokenizedRows
from kit.model import inference, memory
from kit.model.collator import cut_token_batches
from kit.model.device import Compute
from kit.model.encoder import build_encoder
from kit.model.inference import (
    distinct_sequences,
    logits_to_probabilities,
    make_collator,
    predict_logits,
    softmax_logits,
)
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec
from kit.task import SWAP

CPU = Compute(torch.device("cpu"), "fp32", "for this test")
TOKENIZER = PairTokenizer(SimpleNamespace(), 1, 2, PAD)
ROWS = token_rows(np.random.default_rng(0).integers(3, 60, (23, 2)))


def pair(name: str = "tiny-electra", head: str = "fusion") -> PairModel:
    torch.manual_seed(2)
    config = BACKBONES[name].config
    return PairModel(
        build_encoder(config),
        config,
        ModelSpec(pooling="mean", head=head, head_hidden=8, head_dropout=0.5),
    )


@pytest.fixture(scope="module")
def model() -> PairModel:
    return pair()


@pytest.fixture(scope="module")
def expected(model: PairModel) -> np.ndarray:
    """Logits of every row, each in a batch of its own."""
    collator = make_collator(model, ROWS, TOKENIZER)
    model.eval()
    with torch.no_grad():
        return np.concatenate([model(**collator([row])).numpy() for row in range(len(ROWS))])


@settings(deadline=None, max_examples=15)
@given(
    st.permutations(range(len(ROWS))),
    st.integers(1, len(ROWS)),
    st.sampled_from([1, 90, 500, 10**6]),
)
def test_predictions_are_in_the_order_of_the_rows(
    model: PairModel, expected: np.ndarray, order: list[int], number: int, tokens: int
):
    rows = np.array(order[:number])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "BATCH_TOKENS", {"cpu": tokens})
        found = predict_logits(model, make_collator(model, ROWS, TOKENIZER), rows, CPU)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected[rows], rtol=1e-5, atol=1e-5)


def test_predictions_of_both_orders_are_in_the_order_of_the_rows(
    model: PairModel, expected: np.ndarray
):
    rows = np.arange(len(ROWS))[::-1]
    found = predict_logits(
        model, make_collator(model, ROWS, TOKENIZER), rows, CPU, both_orders=True
    )
    assert found.shape == (len(ROWS), 2, 3)
    np.testing.assert_allclose(found[:, 0], expected[rows], rtol=1e-5, atol=1e-5)
    other = predict_logits(model, make_collator(model, swapped(ROWS), TOKENIZER), rows, CPU)
    np.testing.assert_allclose(found[:, 1], other[:, SWAP], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [1, 7, 100])
def test_windows_of_rows_change_nothing(
    model: PairModel, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, window: int
):
    monkeypatch.setattr(inference, "WINDOW_ROWS", window)
    monkeypatch.setattr(inference, "HEAD_ROWS", 3)
    found = predict_logits(model, make_collator(model, ROWS, TOKENIZER), np.arange(len(ROWS)), CPU)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_repeated_sequence_is_encoded_once(model: PairModel, monkeypatch: pytest.MonkeyPatch):
    lengths = [[5, 9], [9, 5], [5, 5], [9, 12]]

    # Rows are made of three sequences a, b and c: a b, b a, a a, b c.
    one = token_rows(np.array([[5], [9], [12]]), seed=3)
    pieces = {
        n: one.tokens[s:e] for n, s, e in zip((5, 9, 12), one.starts, one.starts[1:], strict=False)
    }
    firsts = dict(zip((5, 9, 12), one.first_lengths, strict=True))
    flat = [n for row in lengths for n in row]
    starts = np.concatenate([[0], np.cumsum(flat)])
    first = np.array([firsts[n] for n in flat], np.int32)
    rows = TokenizedRows(
        np.concatenate([pieces[n] for n in flat]), starts, first, np.array(flat, np.int32), 2, cut=0
    )
    sequences, inverse = distinct_sequences(rows, np.arange(4), 2)
    assert sequences.tolist() == [0, 1, 7]
    assert inverse.tolist() == [[0, 1], [1, 0], [0, 0], [1, 2]]
    encoded = []
    pool = PairModel.pool

    def count(self: PairModel, pack: dict[str, torch.Tensor]) -> torch.Tensor:
        encoded.append(len(pack["lengths"]))
        return pool(self, pack)

    # Of the class: undone on the model, a patch would leave an attribute of its own.
    monkeypatch.setattr(PairModel, "pool", count)
    found = predict_logits(model, make_collator(model, rows, TOKENIZER), np.arange(4), CPU)
    assert sum(encoded) == 3
    monkeypatch.undo()
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            found, model(**make_collator(model, rows, TOKENIZER)(range(4))), rtol=1e-5, atol=1e-5
        )


def test_the_same_tokens_with_another_boundary_are_another_sequence():
    rows = token_rows(np.array([[8, 8]]))
    twice = TokenizedRows(
        np.tile(rows.tokens[:8], 2),
        rows.starts,
        np.array([3, 4], np.int32),
        rows.whole_lengths,
        2,
        cut=0,
    )
    assert distinct_sequences(twice, np.arange(1), 2)[1].tolist() == [[0, 1]]


def test_dropout_is_off_and_the_models_mode_is_restored(expected: np.ndarray):
    fresh = pair().train()
    found = predict_logits(fresh, make_collator(fresh, ROWS, TOKENIZER), np.arange(len(ROWS)), CPU)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert fresh.training
    fresh.eval()
    predict_logits(fresh, make_collator(fresh, ROWS, TOKENIZER), np.arange(2), CPU)
    assert not fresh.training


def test_progress_counts_to_the_number_of_rows(model: PairModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "BATCH_TOKENS", {"cpu": 300})
    reports = []
    rows = np.arange(10)
    collator = make_collator(model, ROWS, TOKENIZER)
    predict_logits(
        model, collator, rows, CPU, progress=lambda done, total: reports.append((done, total))
    )
    assert len(reports) > 2
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})
    assert reports[-1] == (10, 10)
    assert {total for _, total in reports} == {10}


def test_no_rows_are_no_logits(model: PairModel):
    collator = make_collator(model, ROWS, TOKENIZER)
    assert predict_logits(model, collator, np.arange(0), CPU).shape == (0, 3)
    assert predict_logits(model, collator, np.arange(0), CPU, both_orders=True).shape == (0, 2, 3)


def test_half_precision_on_request_gives_nearly_the_same(model: PairModel, expected: np.ndarray):
    compute = Compute(torch.device("cpu"), "bf16", "for this test")
    found = predict_logits(
        model, make_collator(model, ROWS, TOKENIZER), np.arange(len(ROWS)), compute
    )
    assert found.dtype == np.float32
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.1)


def test_rows_that_overflow_in_half_precision_are_computed_again_in_float32(
    model: PairModel, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    """Others keep what half precision gave; weights that are not finite are not tried again."""
    pool, sizes = PairModel.pool, []

    def overflowing(self: PairModel, pack: dict[str, torch.Tensor]) -> torch.Tensor:
        vectors = pool(self, pack)
        sizes.append(len(vectors))
        if torch.is_autocast_enabled("cpu"):
            # The longest sequences come first.
            vectors[0] = float("inf")
        return vectors

    half = Compute(torch.device("cpu"), "bf16", "for this test")
    collator, rows = make_collator(model, ROWS, TOKENIZER), np.arange(len(ROWS))
    plain = predict_logits(model, collator, rows, half)
    monkeypatch.setattr(PairModel, "pool", overflowing)
    found = predict_logits(model, collator, rows, half)
    longest = ROWS.lengths.max(1).argmax()
    others = rows != longest
    np.testing.assert_allclose(found[longest], expected[longest], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found[others], plain[others])
    assert sum(sizes) < 2 * len(ROWS) + 3

    sizes.clear()
    broken = pair()
    broken.head.out.bias.data[0] = float("nan")
    assert not np.isfinite(predict_logits(broken, collator, rows, half)).all(1).any()
    assert sum(sizes) <= 2 * len(ROWS)


@pytest.mark.parametrize(
    ("hidden", "device", "expected"),
    [(384, "cuda", 1024), (768, "cuda", 256), (1024, "cuda", 256), (1024, "cpu", 64)],
)
def test_another_pack_costs_a_wide_encoder_less_on_a_gpu(hidden: int, device: str, expected: int):
    encoder = SimpleNamespace(config=SimpleNamespace(hidden_size=hidden))
    assert inference._pack_overhead(SimpleNamespace(encoder=encoder), device) == expected


def test_in_half_precision_rotary_positions_keep_their_angles():
    """In bf16 angles would have larger errors than states, and larger ones in longer texts."""
    torch.manual_seed(0)
    size = {
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = (
        BACKBONES["modernbert-base"].config
        | size
        | {"vocab_size": 200, "pad_token_id": 0, "initializer_range": 0.3}
    )
    model = PairModel(
        build_encoder(config), config, ModelSpec(pooling="mean", head_hidden=8)
    ).eval()
    rows = token_rows(np.array([[500, 480], [300, 500]]))
    collator = make_collator(model, rows, TOKENIZER)
    with torch.no_grad():
        exact = model(**collator([0, 1])).numpy()
        with torch.autocast("cpu", torch.bfloat16):
            cast = model(**collator([0, 1])).numpy()
    found = predict_logits(
        model, collator, np.arange(2), Compute(torch.device("cpu"), "bf16", "for this test")
    )
    assert abs(found - exact).max() < 3 * abs(cast - exact).max()
    with inference._bf16_encoder(model, Compute(torch.device("cpu"), "bf16", "for this test")):
        assert {p.dtype for p in model.encoder.parameters()} == {torch.bfloat16}
        assert {b.dtype for b in model.encoder.buffers() if b.is_floating_point()} == {
            torch.float32
        }
    assert {p.dtype for p in model.encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "segments"), [("tiny-electra", 1), ("tiny-roberta", 0), ("tiny-deberta", 0)]
)
def test_segments_go_to_encoders_that_were_pretrained_with_two(name: str, segments: int):
    batch = make_collator(pair(name), ROWS, TOKENIZER)([0, 1])
    assert all(("token_type_ids" in pack) == bool(segments) for pack in batch["packs"])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(3, 600), min_size=1, max_size=60), st.integers(1, 9000))
def test_batches_stay_within_the_budget_or_are_one_sequence(lengths: list[int], tokens: int):
    longest = np.array(lengths)
    batches = cut_token_batches(longest, tokens)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    in_order = longest[np.concatenate(batches)]

    # The longest come first, so that memory runs out at once or never.
    assert (np.diff(in_order) <= 0).all()
    for places, following in zip(batches, [*batches[1:], None], strict=True):
        padded = len(places) * longest[places].max()
        assert padded <= tokens or len(places) == 1
        # A batch is no smaller than it need be.
        if following is not None:
            assert (len(places) + 1) * longest[places].max() > tokens


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4, width=32)] * 3), min_size=1, max_size=20))
def test_probabilities_are_finite_and_sum_to_one(rows: list):
    found = softmax_logits(np.array(rows, np.float32))
    assert found.dtype == np.float64
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)


def test_extreme_logits_neither_overflow_nor_lose_the_order():
    np.testing.assert_array_equal(
        softmax_logits(np.array([[3e38, 0, -3e38]], np.float32)), [[1, 0, 0]]
    )
    np.testing.assert_allclose(
        softmax_logits(np.array([1e6, 1e6, 1e6 - np.log(2)])), [0.4, 0.4, 0.2], rtol=1e-9
    )
    np.testing.assert_allclose(softmax_logits(np.array([-1e6, -1e6, -np.inf])), [0.5, 0.5, 0])


def test_probabilities_of_both_orders_are_their_average():
    logits = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    each = np.exp(logits.astype(np.float64))
    each /= each.sum(-1, keepdims=True)
    np.testing.assert_allclose(logits_to_probabilities(logits), each.mean(1))
    np.testing.assert_allclose(logits_to_probabilities(logits[:, 0]), each[:, 0])
