"""Check attention on a CPU: torch's values and gradients, dropout, and when it is used."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kit.attention import sdpa
from kit.attention.dropout import STEPS, QuickDropout, RandomBits, to_steps
from kit.attention.sdpa import SequenceLengths, TiledAttention, sdpa_attention
from kit.attention.tiles import cut_tiles
from kit.model.encoder import build_encoder
from kit.model.registry import BACKBONES

FAMILIES = ["tiny-electra", "tiny-roberta", "modernbert-base", "xlm-roberta"]


def inputs(size: int, heads: int, length: int, width: int) -> list[Tensor]:
    """Return query, key and value as transformers has them: transposed views."""
    torch.manual_seed(0)
    return [
        torch.randn(size, length, heads, width).transpose(1, 2).requires_grad_() for _ in range(3)
    ]


def padding(lengths: list[int], length: int) -> Tensor:
    real = torch.arange(length) < torch.tensor(lengths)[:, None]
    return real[:, None, None].expand(-1, 1, length, length)


def mixed(lengths: list[int], bias: Tensor | None, steps: int, *tensors: Tensor) -> Tensor:
    """Return `TiledAttention`'s values in transformers' layout: (B, H, T, D) in and out."""
    size, width = len(tensors[0]), tensors[0].shape[-1]
    flat = (x.transpose(1, 2).flatten(0, 1) for x in tensors)
    return (
        TiledAttention.apply(*flat, lengths, bias, None, width**-0.5, steps)
        .unflatten(0, (size, -1))
        .transpose(1, 2)
    )


def results(function, tensors: list[Tensor]) -> list[Tensor]:
    """Return values and gradients, for an incoming gradient that differs everywhere."""
    out = function(*tensors)
    grad = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.parametrize(
    ("size", "heads", "length", "width"),
    [(3, 4, 9, 8), (2, 3, 33, 5), (1, 1, 1, 4), (5, 2, 64, 16)],
)
@pytest.mark.parametrize("mask", ["none", "padding", "window"])
@pytest.mark.parametrize("chunk", [1, 3000, 1 << 21])
def test_values_and_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    heads: int,
    length: int,
    width: int,
    mask: str,
    chunk: int,
):
    monkeypatch.setattr(sdpa, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(sdpa, "JOINED_BYTES", chunk // 2)
    tensors = inputs(size, heads, length, width)
    seen = (
        None
        if mask == "none"
        else padding([max(1, length - 2 * row) for row in range(size)], length)
    )
    if mask == "window":
        near = (torch.arange(length)[:, None] - torch.arange(length)).abs() < 3
        seen = seen & near | torch.eye(length, dtype=torch.bool)
    bias = None if seen is None else sdpa._mask_bias(seen, torch.float32)
    assert bias is None or bias.shape[2] == (1 if mask == "padding" or length == 1 else length)
    found = results(lambda q, k, v: mixed([length] * size, bias, 0, q, k, v), tensors)
    expected = results(
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, seen), tensors
    )
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chance", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [1, 1000, 1 << 21])
def test_sequences_end_to_end_give_what_each_gives_alone(
    monkeypatch: pytest.MonkeyPatch, chance: float, chunk: int
):
    """With dropout, each alone is given the masks that it has among the others."""
    monkeypatch.setattr(sdpa, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(sdpa, "JOINED_BYTES", chunk // 2)
    lengths, (heads, width), steps = [9, 9, 5, 1, 14], (3, 8), to_steps(chance)
    tensors = inputs(1, heads, sum(lengths), width)
    torch.manual_seed(9)
    found = results(lambda *qkv: mixed(lengths, None, steps, *qkv), tensors)
    torch.manual_seed(9)
    bits = RandomBits()
    masks: dict[int, list[Tensor]] = {}
    threads = torch.get_num_threads()
    tiles = cut_tiles(lengths, heads, chunk * threads // 4, chunk // 2 * threads // 4)
    for tile in tiles:
        shape = tile.of_scores(torch.empty(heads * sum(n * n for n in lengths))).shape
        kept = bits.draw_signs(torch.Size(shape), steps) >= 0 if steps else torch.ones(shape)
        for number, sequence in enumerate(range(*tile.sequences.indices(len(lengths)))):
            masks.setdefault(sequence, []).append(kept[:, number])

    def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for number, (qs, ks, vs) in enumerate(
            zip(*(x[0].split(lengths, 1) for x in (q, k, v)), strict=True)
        ):
            weights = torch.softmax(qs @ ks.mT * width**-0.5, -1) * torch.cat(masks[number])
            out.append(weights / (1 - steps / STEPS) @ vs)
        return torch.cat(out, 1)[None]

    for one, other in zip(found, results(one_by_one, tensors), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_unpadded_causal_batch_is_an_error():
    tensors, causal = inputs(1, 2, 9, 4), torch.nn.Module()
    causal.is_causal = True
    with pytest.raises(ValueError, match="look both ways"):
        sdpa_attention(causal, *tensors, None, sequences=SequenceLengths([4, 5]))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_dropout_masks_the_weights_and_their_gradient(kind: torch.dtype):
    size, heads, length, width, chance = 2, 3, 20, 8, 0.3
    tensors = [x.detach().to(kind).requires_grad_() for x in inputs(size, heads, length, width)]
    torch.manual_seed(9)
    found = results(
        lambda q, k, v: mixed([length] * size, None, to_steps(chance), q, k, v), tensors
    )
    torch.manual_seed(9)
    # All of it fits into one tile.
    drawn = RandomBits().draw_signs(torch.Size((heads, size, length, length)), to_steps(chance))
    kept = drawn.transpose(0, 1) >= 0
    assert 0.6 < kept.float().mean() < 0.8

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = torch.softmax(q.float() @ k.float().mT * width**-0.5, -1)
        return weights * kept / (1 - to_steps(chance) / STEPS) @ v.float()

    expected = results(reference, tensors)
    for one, other in zip(found, expected, strict=True):
        close = (
            {"rtol": 1e-4, "atol": 1e-5} if kind == torch.float32 else {"rtol": 0.05, "atol": 0.03}
        )
        torch.testing.assert_close(one.float(), other.float(), **close)


def test_the_backward_pass_keeps_the_weights_once():
    tensors, seen = inputs(2, 4, 64, 8), {}

    def keep(x: Tensor) -> Tensor:
        seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        result = sdpa_attention(torch.nn.Module(), *tensors, None, dropout=0.1, is_causal=False)[0]
    assert result.shape == (2, 64, 4, 8)
    assert sum(seen.values()) < 4 * (2 * 4 * 64 * 64 + 6 * 2 * 4 * 64 * 8)


def test_torchs_kernel_runs_where_it_is_faster(monkeypatch: pytest.MonkeyPatch):
    calls: list[float] = []

    def recording(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
        calls.append(dropout)
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )

    monkeypatch.setattr(sdpa, "sdpa_attention_forward", recording)
    tensors, module = inputs(2, 2, 8, 4), torch.nn.Module()
    module.is_causal = False

    # In float32 without dropout, without gradients, and with fewer keys than queries.
    sdpa_attention(module, *tensors, None)
    with torch.no_grad():
        sdpa_attention(module, *tensors, None, dropout=0.1)
        with torch.autocast("cpu", torch.bfloat16):
            sdpa_attention(module, *tensors, None)
    fewer = [x[:, :, :4] for x in tensors[1:]]
    sdpa_attention(module, tensors[0], *fewer, None, dropout=0.1)
    assert len(calls) == 4
    sdpa_attention(module, *tensors, None, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert sdpa_attention(module, *tensors, None)[0].dtype == torch.bfloat16
    assert len(calls) == 4


def test_causal_attention_is_left_to_torchs_kernel():
    """Without padding transformers gives a causal encoder no mask, only the module's attribute."""
    tensors, causal = inputs(1, 2, 9, 4), torch.nn.Module()
    causal.is_causal = True
    changed = [torch.cat([x[:, :, :-1], x[:, :, -1:] + 1], 2) for x in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        for module, given in ((causal, {}), (torch.nn.Module(), {"is_causal": True})):
            first, other = (
                sdpa_attention(module, *qkv, None, **given)[0][:, 0] for qkv in (tensors, changed)
            )
            assert torch.equal(first, other)
        causal.is_causal = False
        assert not torch.equal(sdpa_attention(causal, *changed, None)[0][:, 0], first)


@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_of_every_family_agree_with_transformers_own(name: str):
    small = {
        "num_hidden_layers": 2,
        "hidden_size": 24,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    config = BACKBONES[name].config | small | {"pad_token_id": 1}
    if name == "modernbert-base":
        # So that the window hides some of 19 tokens.
        config |= {"local_attention": 8}
    encoders = []
    for fast in (True, False):
        torch.manual_seed(2)
        encoders.append(build_encoder(config, fast_attention=fast).train())

    # ModernBERT cannot in transformers 5.0 to 5.3.
    replaceable = encoders[0]._can_set_attn_implementation()
    expected = sdpa.ATTENTION_NAME if replaceable else "sdpa"
    assert encoders[0].config._attn_implementation == expected
    assert any(type(module) is QuickDropout for module in encoders[0].modules())
    assert not any(type(module) is QuickDropout for module in encoders[1].modules())
    for encoder in encoders:
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    ids = torch.randint(2, 50, (3, 19))
    real = torch.arange(19) < torch.tensor([19, 12, 5])[:, None]
    for training in (True, False):
        # In float32 without dropout both would run torch's kernel.
        with torch.autocast("cpu", torch.bfloat16):
            states = [
                e.train(training)(ids, attention_mask=real.long()).last_hidden_state[real]
                for e in encoders
            ]
        torch.testing.assert_close(states[0].float(), states[1].float(), rtol=0.05, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        for encoder in encoders:
            found = encoder.train()(ids, attention_mask=real.long()).last_hidden_state[real]
            found.float().pow(3).sum().backward()
    found, expected = (
        torch.cat([p.grad.flatten() for p in encoder.parameters()]) for encoder in encoders
    )
    assert (found - expected).norm() < 0.02 * expected.norm()
