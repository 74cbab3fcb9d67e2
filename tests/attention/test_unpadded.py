"""Check that unpadded sequences give what padded ones give, for every family that can."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import PAD, token_rows
from torch import Tensor, nn

from kit.attention import unpadded
from kit.data.tokenize import PairTokenizer
from kit.errors import BackboneError
from kit.model.collator import Collator
from kit.model.device import Compute
from kit.model.encoder import build_encoder
from kit.model.inference import make_collator, predict_logits
from kit.model.pair_model import PairModel
from kit.model.registry import BACKBONES
from kit.recipe.spec import ModelSpec

SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 50,
}
BERT = {
    "model_type": "bert",
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": BERT,
    **{
        name: BACKBONES[name].config
        for name in ("electra", "roberta", "xlm-roberta", "deberta", "mdeberta")
    },
}
ABSOLUTE = BACKBONES["deberta"].config | {"position_biased_input": True, "type_vocab_size": 2}
LENGTHS = [19, 19, 12, 5, 5, 1]


def encoder(config: dict[str, Any], dropout: float = 0.0, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    chances = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return build_encoder(config | SMALL | chances | changes).train()


def packs(lengths: list[int], config: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the same sequences padded and end to end, with segments where the encoder has them."""
    generator = torch.Generator().manual_seed(1)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 50, real.shape, generator=generator)
    padded = {
        "input_ids": torch.where(real, ids, config.pad_token_id),
        "attention_mask": real.long(),
    }
    if config.type_vocab_size > 1:
        padded["token_type_ids"] = torch.randint(2, real.shape, generator=generator) * real
    return padded, {name: values[real][None] for name, values in padded.items()} | {
        "lengths": torch.tensor(lengths)
    }


def results(model: nn.Module, pack: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """States of real tokens, and gradients."""
    model.zero_grad()
    if "lengths" in pack:
        states = unpadded.run_unpadded(model, pack)
        states, real = unpadded.pad_states(states, pack["lengths"])
    else:
        states, real = model(**pack).last_hidden_state, pack["attention_mask"].bool()
    states = states[real].float()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).mean().backward()
    return states.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


def agree(model: nn.Module, lengths: list[int]) -> None:
    assert unpadded.supports_unpadded(model)
    (expected, wanted), (values, slopes) = (
        results(model, pack) for pack in packs(lengths, model.config)
    )
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert slopes.keys() == wanted.keys()
    for name, slope in slopes.items():
        largest = float(wanted[name].abs().max())
        torch.testing.assert_close(
            slope, wanted[name], rtol=0, atol=1e-4 * largest + 1e-8, msg=name
        )


@pytest.mark.parametrize(
    "config", [*FAMILIES.values(), ABSOLUTE], ids=[*FAMILIES, "absolute positions"]
)
def test_values_and_gradients_are_those_of_padded_sequences(config: dict[str, Any]):
    agree(encoder(config), LENGTHS)


@settings(deadline=None, max_examples=20)
@given(
    st.sampled_from(["bert", "roberta", "deberta"]),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
)
def test_any_lengths_in_any_order_agree(family: str, lengths: list[int]):
    agree(encoder(FAMILIES[family], num_hidden_layers=1), lengths)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_agree_in_half_precision(family: str):
    """Without dropout, families other than DeBERTa use kit's attention in bf16 only."""
    model = encoder(FAMILIES[family])
    with torch.autocast("cpu", torch.bfloat16):
        (expected, wanted), (values, slopes) = (
            results(model, pack) for pack in packs(LENGTHS, model.config)
        )
    assert (values - expected).norm() < 0.01 * expected.norm()
    found, other = (
        torch.cat([slope[name].flatten() for name in wanted]) for slope in (slopes, wanted)
    )
    assert (found - other).norm() < 0.01 * other.norm()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_under_dropout_no_token_sees_another_sequence(family: str, kind: torch.dtype):
    model = encoder(FAMILIES[family], dropout=0.2)
    pack = packs([9, 14, 9], model.config)[1]
    embedded: list[Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda *args: embedded.append(args[2]))
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        states = unpadded.run_unpadded(model, pack)
        states, real = unpadded.pad_states(states, pack["lengths"])
    for sequence, own in enumerate((slice(0, 9), slice(9, 23), slice(23, 32))):
        found = states[sequence][real[sequence]].float()
        slope = torch.autograd.grad(
            (found * torch.randn(found.shape)).sum(), embedded[0], retain_graph=True
        )[0][0]
        reached = slope.abs().sum(-1) > 0
        assert reached[own].all()
        assert int(reached.sum()) == own.stop - own.start


@pytest.mark.parametrize("family", ["electra", "deberta"])
def test_gradient_checkpointing_changes_nothing_under_dropout(family: str):
    plain = encoder(FAMILIES[family], dropout=0.2)
    checkpointed = copy.deepcopy(plain)
    # Its name since transformers 5.23.
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)
    (enable or checkpointed.gradient_checkpointing_enable)({"use_reentrant": False})
    found = []
    for model in (plain, checkpointed):
        torch.manual_seed(3)
        found.append(results(model, packs(LENGTHS, model.config)[1]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], slope) for name, slope in found[1][1].items())


@pytest.mark.parametrize(
    ("config", "fast"),
    [
        # Layers that look no further than a window.
        (BACKBONES["modernbert-base"].config | {"pad_token_id": 1}, True),
        # A convolution, which looks at neighbours.
        (BACKBONES["deberta"].config | {"conv_kernel_size": 3}, True),
        # Attention maps, which transformers' own code computes.
        (BACKBONES["deberta"].config | {"output_attentions": True}, True),
        (BACKBONES["deberta"].config, False),
        (BACKBONES["electra"].config, False),
    ],
    ids=[
        "modernbert",
        "convolution",
        "attention maps",
        "transformers' own deberta",
        "transformers' own electra",
    ],
)
def test_other_encoders_are_padded(config: dict[str, Any], fast: bool):
    assert not unpadded.supports_unpadded(build_encoder(config | SMALL, fast_attention=fast))


def test_a_transformers_that_loses_the_sequences_is_refused(monkeypatch: pytest.MonkeyPatch):
    bert, deberta = encoder(BERT), encoder(FAMILIES["deberta"])
    forward = bert.encoder.forward
    monkeypatch.setattr(
        bert.encoder, "forward", lambda *args, sequences, **kwargs: forward(*args, **kwargs)
    )
    monkeypatch.setattr(deberta.encoder, "get_attention_mask", lambda mask: mask[:, None, None])
    for model in (bert, deberta):
        with pytest.raises(BackboneError, match="does not tell attention where a sequence ends"):
            unpadded.run_unpadded(model, packs(LENGTHS, model.config)[1])


def pair(family: str, **spec: Any) -> PairModel:
    config = FAMILIES[family] | SMALL | {"vocab_size": 200, "pad_token_id": PAD}
    torch.manual_seed(0)
    return PairModel(
        build_encoder(config), config, ModelSpec(head_hidden=8, features=False, **spec)
    ).eval()


def test_the_collator_omits_padding_where_encoder_and_device_allow_it():
    rows, tokenizer = token_rows(np.array([[9, 30], [12, 5]])), PairTokenizer(None, 1, 2, PAD)
    model = pair("electra", pooling="mean")
    assert make_collator(model, rows, tokenizer).unpadded

    # torch.compile needs padded lengths.
    assert not make_collator(model, rows, tokenizer, pad_multiple=64).unpadded
    other = pair("electra", pooling="mean")
    other.encoder.set_attn_implementation("sdpa")
    assert not make_collator(other, rows, tokenizer).unpadded
    assert not make_collator(model.to("meta"), rows, tokenizer).unpadded


@pytest.mark.parametrize("family", ["electra", "deberta"])
def test_predictions_are_the_same_from_either_batch(family: str, monkeypatch: pytest.MonkeyPatch):
    rows = token_rows(np.random.default_rng(0).integers(3, 40, (9, 2)))
    model, compute = pair(family, pooling="mean"), Compute(torch.device("cpu"), "fp32", "")
    found = []
    for supports in (unpadded.supports_unpadded, lambda encoder: False):
        monkeypatch.setattr(unpadded, "supports_unpadded", supports)
        collate = make_collator(model, rows, PairTokenizer(None, 1, 2, PAD))
        found.append(predict_logits(model, collate, np.arange(9), compute, both_orders=True))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


SPECS = [
    {"pooling": "mean"},
    {"pooling": "cls"},
    {"pooling": "attention"},
    {"pooling": "mean", "reward": True},
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("family", ["electra", "roberta", "deberta"])
def test_a_pair_model_gives_the_same_logits_for_either_batch(family: str, spec: dict[str, Any]):
    model = pair(family, **spec)
    rows = token_rows(np.array([[9, 30], [12, 12], [40, 5], [17, 22]]))
    segments = model.encoder_config.get("type_vocab_size", 0) > 1
    padded, end_to_end = (
        Collator(rows, PAD, segments=segments, unpadded=end_to_end)([3, 0, 2, 1])
        for end_to_end in (False, True)
    )
    assert [pack["input_ids"].shape for pack in end_to_end["packs"]] == [(1, rows.starts[-1])]
    assert end_to_end["packs"][0]["lengths"].tolist() == sorted(rows.lengths.ravel(), reverse=True)
    torch.testing.assert_close(model(**end_to_end), model(**padded), rtol=1e-4, atol=1e-5)
