"""Check that kit's DeBERTa attention equals transformers', in values and gradients."""

import copy
import json
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import DebertaV2Model
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DisentangledSelfAttention,
)

from kit.attention import disentangled
from kit.attention.deberta import FastAttention, attend_with_bias, table_rows
from kit.attention.disentangled import TiledDisentangledAttention
from kit.model.backbones import local_backbone
from kit.model.encoder import build_encoder, load_encoder
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec

REGISTRY = [
    name for name, record in BACKBONES.items() if record.config["model_type"] == "deberta-v2"
]
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 16,
    "vocab_size": 50,
}
VARIANTS = {
    "only c2p": {"pos_att_type": ["c2p"]},
    "only p2c": {"pos_att_type": ["p2c"]},
    "neither": {"pos_att_type": []},
    "as one string": {"pos_att_type": "c2p|p2c"},
    "own projections": {"share_att_key": False},
    "own projections, only p2c": {"share_att_key": False, "pos_att_type": ["p2c"]},
    "no buckets": {"position_buckets": -1, "max_relative_positions": 24},
    "few buckets": {"position_buckets": 6, "max_position_embeddings": 32},
    "distances plain": {"norm_rel_ebd": "none"},
    "absolute positions": {"position_biased_input": True},
    "no relative positions": {"relative_attention": False, "position_biased_input": True},
    "a convolution": {"conv_kernel_size": 3},
}


def shrunk(name: str = "deberta", **changes: Any) -> dict[str, Any]:
    return BACKBONES[name].config | SMALL | changes


def both(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Return kit's encoder and transformers', with equal and large weights, for sharp attention."""
    torch.manual_seed(0)
    own = build_encoder(config, fast_attention=False).eval()
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.3)
    fast = build_encoder(config).eval()
    fast.load_state_dict(own.state_dict())
    return fast, own


def batch(lengths: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {
        "input_ids": torch.randint(1, 50, mask.shape, generator=generator) * mask,
        "attention_mask": mask,
    }


def states(encoder: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The hidden states of real tokens, one after the other; padding's are not used."""
    return encoder(**inputs).last_hidden_state[inputs["attention_mask"].bool()]


def gradients(encoder: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    found = states(encoder, inputs)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    (found.float() * weights).mean().backward()
    return found.detach(), {
        name: p.grad for name, p in encoder.named_parameters() if p.grad is not None
    }


def agree(config: dict[str, Any], lengths: list[int]) -> None:
    fast, own = both(config)
    assert isinstance(fast.encoder.layer[0].attention.self, FastAttention)
    (values, slopes), (own_values, own_slopes) = (
        gradients(encoder, batch(lengths)) for encoder in (fast, own)
    )
    torch.testing.assert_close(values, own_values, rtol=1e-5, atol=1e-5)
    assert slopes.keys() == own_slopes.keys()
    for name, slope in slopes.items():
        largest = float(own_slopes[name].abs().max())
        torch.testing.assert_close(
            slope, own_slopes[name], rtol=0, atol=1e-4 * largest + 1e-8, msg=name
        )


@pytest.mark.parametrize("name", REGISTRY)
def test_every_deberta_of_the_registry_agrees_with_transformers(name: str):
    agree(shrunk(name), [37, 5, 21, 37])
    agree(shrunk(name, num_hidden_layers=1), [177, 9])  # where distances share buckets


@pytest.mark.parametrize("lengths", [[1], [2, 1], [128], [601, 530]], ids=str)
def test_lengths_at_and_beyond_every_border_agree(lengths: list[int]):
    agree(shrunk(num_hidden_layers=1), lengths)


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_every_kind_of_relative_position_agrees_with_transformers(change: dict[str, Any]):
    agree(shrunk(**change), [41, 1, 33])


@settings(deadline=None, max_examples=12)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    chunk=st.sampled_from([1, 5000, 20000, 1 << 20]),
    block=st.sampled_from([1, 7, 16, 128]),
    buckets=st.sampled_from([-1, 2, 8, 32]),
)
def test_lengths_chunks_and_blocks_change_nothing(
    lengths: list[int], chunk: int, block: int, buckets: int
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(disentangled.CHUNK_BYTES, "cpu", chunk)
        patch.setitem(disentangled.BLOCK_ROWS, "cpu", block)
        agree(
            shrunk(position_buckets=buckets, max_position_embeddings=40, num_hidden_layers=1),
            lengths,
        )


def parts(size: int = 3, length: int = 21, width: int = 8, seed: int = 0) -> list[Tensor]:
    """q, k, v (B·T, H, D) and the two tables (H, 2T-1, D) for two heads."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(size * length, 2, width)] * 3 + [(2, 2 * length - 1, width)] * 2
    return [(torch.randn(shape, generator=generator) / 2).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("tables", ["both", "c2p", "p2c", "none"])
@pytest.mark.parametrize("length", [1, 8, 21])
def test_the_bias_for_fused_kernels_gives_the_same_values_and_gradients(length: int, tables: str):
    inputs = parts(length=length)
    if tables in ("p2c", "none"):
        inputs[3] = None
    if tables in ("c2p", "none"):
        inputs[4] = None
    real = torch.arange(length) < torch.tensor([[length], [length // 2 + 1], [1]])
    weights = torch.randn(3 * length, 2, 8)
    found = []
    for way in (
        lambda *given: TiledDisentangledAttention.apply(*given[:5], [length] * 3, *given[5:]),
        attend_with_bias,
    ):
        mixed = way(*inputs, real, 0.0)
        found.append(
            [
                mixed,
                *torch.autograd.grad((mixed * weights).sum(), [x for x in inputs if x is not None]),
            ]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [40, 150])
def test_in_half_precision_it_is_as_close_to_float32_as_transformers(
    kind: torch.dtype, length: int
):
    fast, own = both(shrunk())
    inputs = batch([length, length // 2])
    exact, slopes = gradients(own, inputs)
    errors = []
    for encoder in (fast, own):
        with torch.autocast("cpu", dtype=kind):
            found, half = gradients(encoder, inputs)
        errors.append(
            [(found - exact).norm(), *((half[name] - slopes[name]).norm() for name in slopes)]
        )
    assert errors[0][0] < 1.1 * errors[1][0]
    assert sum(errors[0][1:]) < 1.1 * sum(errors[1][1:])


def test_large_scores_stay_finite_in_fp16():
    fast, own = both(shrunk())
    with torch.no_grad():
        for encoder in (fast, own):
            for layer in encoder.encoder.layer:
                layer.attention.self.query_proj.weight.mul_(60)
                layer.attention.self.key_proj.weight.mul_(60)
    with torch.autocast("cpu", dtype=torch.float16), torch.no_grad():
        assert states(fast, batch([30, 12])).isfinite().all()


def attended(inputs: list[Tensor], dropout: float) -> Tensor:
    """Of sequences as long as the tables are for: (B, T, H, D)."""
    length = (inputs[3].shape[1] + 1) // 2
    lengths = [length] * (len(inputs[0]) // length)
    return TiledDisentangledAttention.apply(*inputs, lengths, None, dropout).unflatten(
        0, (len(lengths), length)
    )


def dropped(inputs: list[Tensor], dropout: float, times: int = 1) -> Tensor:
    return torch.stack([attended(inputs, dropout).detach() for _ in range(times)])


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_dropout_removes_the_share_asked_for_and_keeps_the_mean(dropout: float):
    inputs = parts(size=4, length=64, width=64)
    # With these values the output is the probabilities.
    inputs[2] = torch.eye(64)[:, None].repeat(4, 2, 1)
    torch.manual_seed(0)
    plain, found = dropped(inputs, 0.0)[0], dropped(inputs, dropout, times=30)
    gone = found == 0
    spread = (dropout * (1 - dropout) / gone.numel()) ** 0.5
    assert abs(float(gone.float().mean()) - dropout) < 5 * spread

    # No row, column or head is dropped more often than another.
    for axis in range(1, gone.dim()):
        others = [i for i in range(gone.dim()) if i != axis]
        shares = gone.float().mean(others)
        count = gone.numel() / gone.shape[axis]
        assert float((shares - dropout).abs().max()) < 5 * (dropout * (1 - dropout) / count) ** 0.5

    # Neighbours in memory are independent.
    one, next_one = gone[..., :-1].float() - dropout, gone[..., 1:].float() - dropout
    assert abs(float((one * next_one).mean())) < 5 * spread
    torch.testing.assert_close(
        found[~gone], (plain / (1 - dropout)).expand_as(found)[~gone], rtol=1e-4, atol=1e-6
    )


def test_dropout_has_the_gradients_of_the_mask_it_drew():
    inputs = parts(length=16, width=16)
    identity = torch.eye(16)[:, None].repeat(3, 2, 1)
    torch.manual_seed(0)
    mask = (attended([*inputs[:2], identity, *inputs[3:]], 0.25) > 0).permute(0, 2, 1, 3) / 0.75
    torch.manual_seed(0)
    mixed = attended(inputs, 0.25)

    q, k, v = (x.unflatten(0, (3, 16)).transpose(1, 2) for x in inputs[:3])
    distance = (torch.arange(16) - torch.arange(16)[:, None] + 15).expand(3, 2, 16, 16)
    scores = (
        q @ k.mT
        + (q @ inputs[3].mT).gather(-1, distance)
        + (k @ inputs[4].mT).gather(-1, distance).mT
    )
    expected = ((scores.softmax(-1) * mask) @ v).transpose(1, 2)
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(mixed)
    slopes = [torch.autograd.grad((way * weights).sum(), inputs) for way in (mixed, expected)]
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_what_is_dropped():
    inputs = parts()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(dropped(inputs, 0.3))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing_under_dropout(kind: torch.dtype):
    plain = both(shrunk())[0].train()
    checkpointed = copy.deepcopy(plain)
    # Its name since transformers 5.23.
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)
    (enable or checkpointed.gradient_checkpointing_enable)({"use_reentrant": False})
    found = []
    for encoder in (plain, checkpointed, plain):
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
            found.append(gradients(encoder, batch([20, 33])))
    for values, slopes in found[1:]:
        assert torch.equal(values, found[0][0])
        assert all(torch.equal(slopes[name], slope) for name, slope in found[0][1].items())
        # None is unused, which distributed training forbids.
        assert len(slopes) == len(dict(plain.named_parameters()))


def test_weights_have_the_same_names_and_draws_with_either_attention():
    states_after, weights = [], []
    for fast in (True, False):
        torch.manual_seed(5)
        encoder = build_encoder(shrunk(), fast_attention=fast)
        states_after.append(torch.get_rng_state())
        weights.append(encoder.state_dict())
    assert torch.equal(*states_after)
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any(value.is_meta for value in weights[0].values())


def test_the_switch_leaves_transformers_own_modules(tmp_path: Path):
    DebertaV2Model(build_encoder(shrunk()).config).save_pretrained(tmp_path)
    for encoder in (
        build_encoder(shrunk(), fast_attention=False),
        load_encoder(local_backbone(tmp_path), fast_attention=False),
    ):
        assert type(encoder.encoder) is DebertaV2Encoder
        assert all(
            type(layer.attention.self) is DisentangledSelfAttention
            for layer in encoder.encoder.layer
        )
    assert isinstance(
        load_encoder(local_backbone(tmp_path)).encoder.layer[1].attention.self, FastAttention
    )


@pytest.mark.parametrize(("spec", "fast"), [({}, True), ({"fast_attention": False}, False)])
def test_a_saved_model_has_the_attention_of_its_config_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: dict[str, bool], fast: bool
):
    config = shrunk()
    model = PairModel(build_encoder(config), config, ModelSpec(pooling="mean", head_hidden=8))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    old = {"pooling": "mean", "head": "symmetric", "head_hidden": 8, "head_dropout": 0.1}
    (tmp_path / "config.json").write_text(
        json.dumps({"format": 1, "model": old | spec, "encoder": config})
    )
    monkeypatch.setattr("kit.model.pair_model.load_tokenizer", lambda *_: Mock(frame=None))
    monkeypatch.setattr("kit.model.pair_model.check_vocabulary", lambda *_: None)
    loaded = PairModel.from_pretrained(tmp_path)[0]
    assert isinstance(loaded.encoder.encoder.layer[0].attention.self, FastAttention) == fast
    assert loaded.spec.fast_attention == fast


def test_a_prediction_before_a_training_does_not_spoil_its_tables():
    table_rows.cache_clear()
    fast = both(shrunk())[0]
    with torch.inference_mode():
        states(fast, batch([19]))
    assert gradients(fast, batch([19]))[1]


def test_unusual_calls_run_in_transformers_own_code():
    fast, own = both(shrunk())
    inputs = batch([12, 7])
    maps = [encoder(**inputs, output_attentions=True).attentions[1] for encoder in (fast, own)]
    torch.testing.assert_close(maps[0][1, :, :7], maps[1][1, :, :7], rtol=1e-5, atol=1e-6)
    blocks = torch.ones(2, 12, 12, dtype=torch.long).tril()
    embedded = own.embeddings(inputs["input_ids"])
    found = [encoder.encoder(embedded, blocks).last_hidden_state for encoder in (fast, own)]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_a_sequence_of_padding_alone_makes_no_nan():
    fast, own = both(shrunk())
    inputs = batch([9, 6])
    inputs["attention_mask"][1] = 0
    found, expected = (encoder(**inputs).last_hidden_state for encoder in (fast, own))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_backward_pass_needs_less_than_six_tenths_of_the_memory():
    kept = []
    for encoder in both(shrunk(attention_probs_dropout_prob=0.1, num_hidden_layers=1)):
        module, seen = encoder.encoder.layer[0].attention.self.train(), {}
        length = 96
        mask = (
            torch.ones(2, 1, 1, length)
            if isinstance(module, FastAttention)
            else torch.ones(2, 1, length, length)
        )

        def keep(x: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with saved_tensors_hooks(keep, lambda x: x):
            hidden = torch.randn(2, length, 24, requires_grad=True)
            result = module(hidden, mask, rel_embeddings=torch.randn(512, 24, requires_grad=True))
        kept.append(sum(seen.values()))
        assert result[0].shape == (2, length, 24)
    assert kept[0] < 0.6 * kept[1]


def test_a_prediction_holds_the_states_of_one_layer_at_a_time():
    """Transformers' own encoder holds those of all layers until it returns."""
    most = []
    for encoder in both(shrunk(num_hidden_layers=6)):
        outputs: list[weakref.ref[Tensor]] = []
        counts = []

        def count(
            _: nn.Module,
            __: Any,
            output: tuple[Tensor, Any],
            outputs: list[weakref.ref[Tensor]] = outputs,
            counts: list[int] = counts,
        ) -> None:
            outputs.append(weakref.ref(output[0]))
            counts.append(sum(alive() is not None for alive in outputs))

        for layer in encoder.encoder.layer:
            layer.register_forward_hook(count)
        with torch.inference_mode():
            encoder(**batch([40, 33]))
        most.append(max(counts))
    assert most[0] <= 2
    assert most[1] == 6


def test_the_tables_of_all_usual_lengths_are_kept():
    """A GPU waits for every table that is made, and a training meets hundreds of lengths."""
    table_rows.cache_clear()
    for _ in range(2):
        for length in range(1, 769):
            table_rows(length, 256, 512, 256, torch.device("cpu"))
    assert table_rows.cache_info().misses == 768
