"""Sequences end to end give what padded ones give, for every family that takes them so."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from token_rows import PAD, token_rows
from torch import Tensor, nn

from kit.errors import BackboneError
from kit.model import unpadded
from kit.model.backbones import BACKBONES
from kit.model.batches import Collator
from kit.model.encoder import build
from kit.model.pair import PairModel
from kit.recipe import ModelSpec

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "vocab_size": 50}
BERT = {"model_type": "bert", "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0}
FAMILIES = {
    "bert": BERT,
    **{name: BACKBONES[name].config for name in ("electra", "roberta", "xlm-roberta", "deberta", "mdeberta")},
}
ABSOLUTE = BACKBONES["deberta"].config | {"position_biased_input": True, "type_vocab_size": 2}
LENGTHS = [19, 19, 12, 5, 5, 1]


def encoder(config: dict[str, Any], dropout: float = 0.0, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    chances = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return build(config | SMALL | chances | changes).train()


def packs(lengths: list[int], pad: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same sequences padded and end to end."""
    generator = torch.Generator().manual_seed(1)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 50, real.shape, generator=generator)
    padded = {"input_ids": torch.where(real, ids, pad), "attention_mask": real.long()}
    return padded, {
        "input_ids": ids[real][None],
        "attention_mask": torch.ones(1, sum(lengths), dtype=torch.long),
        "lengths": torch.tensor(lengths),
    }


def results(model: nn.Module, pack: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """States of real tokens, and gradients."""
    model.zero_grad()
    if "lengths" in pack:
        states, real = unpadded.run(model, pack)
    else:
        states, real = model(**pack).last_hidden_state, pack["attention_mask"].bool()
    states = states[real].float()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).mean().backward()
    return states.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def agree(model: nn.Module, lengths: list[int]) -> None:
    assert unpadded.suits(model)
    (values, slopes), (expected, wanted) = (
        results(model, pack) for pack in reversed(packs(lengths, model.config.pad_token_id))
    )
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert slopes.keys() == wanted.keys()
    for name, slope in slopes.items():
        largest = float(wanted[name].abs().max())
        torch.testing.assert_close(slope, wanted[name], rtol=0, atol=1e-4 * largest + 1e-8, msg=name)


@pytest.mark.parametrize("config", [*FAMILIES.values(), ABSOLUTE], ids=[*FAMILIES, "absolute positions"])
def test_values_and_gradients_are_those_of_padded_sequences(config: dict[str, Any]):
    agree(encoder(config), LENGTHS)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["bert", "roberta", "deberta"]), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_lengths_may_be_any_in_any_order(family: str, lengths: list[int]):
    agree(encoder(FAMILIES[family], num_hidden_layers=1), lengths)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_under_dropout_no_token_sees_another_sequence(family: str, kind: torch.dtype):
    """Where kit's attention computes, not torch's: what one sequence holds must not reach the gradients of the rest."""
    model, pack = encoder(FAMILIES[family], dropout=0.2), packs([9, 14, 9])[1]
    changed = pack | {"input_ids": pack["input_ids"].clone()}
    changed["input_ids"][0, 9:23] ^= 1
    states = []
    for each in (pack, changed):
        torch.manual_seed(4)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
            states.append(unpadded.run(model, each)[0])
    assert torch.equal(states[0][[0, 2]], states[1][[0, 2]])
    assert not torch.equal(states[0][1], states[1][1])
    assert not torch.equal(states[0][0], states[0][2])


@pytest.mark.parametrize("family", ["electra", "deberta"])
def test_gradient_checkpointing_changes_nothing_under_dropout(family: str):
    plain = encoder(FAMILIES[family], dropout=0.2)
    checkpointed = copy.deepcopy(plain)
    enable = getattr(checkpointed, "activation_checkpointing_enable", None)  # its name since transformers 5.23
    (enable or checkpointed.gradient_checkpointing_enable)({"use_reentrant": False})
    found = []
    for model in (plain, checkpointed):
        torch.manual_seed(3)
        found.append(results(model, packs(LENGTHS)[1]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(found[0][1][name], slope) for name, slope in found[1][1].items())


@pytest.mark.parametrize(
    ("config", "fast"),
    [
        (BACKBONES["modernbert-base"].config | {"pad_token_id": 1}, True),  # whose layers look a window far
        (BACKBONES["deberta"].config | {"conv_kernel_size": 3}, True),  # which looks at neighbours
        (BACKBONES["deberta"].config, False),
        (BACKBONES["electra"].config, False),
    ],
    ids=["modernbert", "convolution", "transformers' own deberta", "transformers' own electra"],
)
def test_other_encoders_are_padded(config: dict[str, Any], fast: bool):
    assert not unpadded.suits(build(config | SMALL, fast_attention=fast))


def test_a_transformers_that_loses_the_sequences_is_refused(monkeypatch: pytest.MonkeyPatch):
    model = encoder(BERT)
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda *args, sequences, **kwargs: forward(*args, **kwargs))
    with pytest.raises(BackboneError, match="keeps a batch's sequences from their attention"):
        unpadded.run(model, packs(LENGTHS)[1])


@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
@pytest.mark.parametrize("family", ["electra", "roberta", "deberta"])
def test_a_pair_model_says_the_same_of_either_batch(family: str, pooling: str):
    config = FAMILIES[family] | SMALL | {"vocab_size": 200, "pad_token_id": PAD}
    model = PairModel(build(config), config, ModelSpec(pooling=pooling, head_hidden=8, features=False)).eval()
    rows = token_rows(np.array([[9, 30], [12, 12], [40, 5], [17, 22]]))
    segments = config.get("type_vocab_size", 0) > 1
    padded, end_to_end = (Collator(rows, PAD, segments=segments, unpadded=each)([3, 0, 2, 1]) for each in (False, True))
    assert [pack["input_ids"].shape for pack in end_to_end["packs"]] == [(1, rows.starts[-1])]
    assert end_to_end["packs"][0]["lengths"].tolist() == sorted(rows.lengths.ravel(), reverse=True)
    torch.testing.assert_close(model(**end_to_end), model(**padded), rtol=1e-4, atol=1e-5)
