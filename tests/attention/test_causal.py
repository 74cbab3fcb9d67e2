"""Check that a decoder's states and gradients are transformers' own, padded or end to end."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from kit.attention import causal, unpadded
from kit.attention.patch import patch_encoder
from kit.model.encoder import build_encoder

LENGTHS = [23, 9, 23, 1, 14]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"attn_logit_softcapping": None, "query_pre_attn_scalar": 8, "sliding_window": 64},
    # Its layers look back over a few tokens or over all in turn.
    "gemma3_text": {
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 7},
}


def batches(lengths: list[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the same sequences padded on the right, and end to end."""
    generator = torch.Generator().manual_seed(1)
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, SMALL["vocab_size"], real.shape, generator=generator) * real
    padded = {"input_ids": ids, "attention_mask": real.long()}
    return padded, {"input_ids": ids[real][None], "lengths": torch.tensor(lengths)}


def results(model: nn.Module, states: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the states (N, H) and the gradients of all weights."""
    model.zero_grad()
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * weights).mean().backward()
    return states.detach(), [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("tiles", [False, True], ids=["torch's kernels", "tiles"])
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_transformers(
    family: str, tiles: bool, monkeypatch: pytest.MonkeyPatch
):
    """Tiles are for bf16, whose rounding would hide a mistake: here they compute in float32."""
    monkeypatch.setattr(causal, "_suits_tiles", lambda *_: tiles)
    config = {"model_type": family, **SMALL, **FAMILIES[family]}
    torch.manual_seed(0)
    own = build_encoder(config)
    assert own.config._attn_implementation == causal.CAUSAL_NAME
    assert unpadded.supports_unpadded(own)
    values = {key: value for key, value in config.items() if key != "model_type"}
    settings = AutoConfig.for_model(family, **values)
    reference = AutoModel.from_config(settings, attn_implementation="eager", dtype=torch.float32)
    reference.load_state_dict(own.state_dict())

    padded, row = batches(LENGTHS)
    real = padded["attention_mask"].bool()
    expected, slopes = results(reference, reference(**padded).last_hidden_state[real])
    rectangle = own(input_ids=padded["input_ids"]).last_hidden_state[real]
    for states in (rectangle, unpadded.run_unpadded(own, row)):
        found, found_slopes = results(own, states)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for slope, found_slope in zip(slopes, found_slopes, strict=True):
            torch.testing.assert_close(found_slope, slope, rtol=1e-5, atol=1e-5)


def test_a_training_in_bf16_on_a_cpu_takes_tiles_and_a_prediction_does_not(
    monkeypatch: pytest.MonkeyPatch,
):
    calls = []
    apply = causal.TiledAttention.apply
    monkeypatch.setattr(
        causal.TiledAttention, "apply", lambda *args: calls.append(len(args)) or apply(*args)
    )
    model = build_encoder({"model_type": "qwen2", **SMALL})
    padded, row = batches(LENGTHS)
    real = padded["attention_mask"].bool()

    states = unpadded.run_unpadded(model, row)
    assert not calls
    # Each has a block of its own: autocast keeps the weights that it has cast to the end of one.
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        predicted = unpadded.run_unpadded(model, row)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        for trained in (
            unpadded.run_unpadded(model, row),
            model(input_ids=padded["input_ids"]).last_hidden_state[real],
        ):
            torch.testing.assert_close(trained.float(), states, rtol=0.05, atol=0.05)
            torch.testing.assert_close(trained.float(), predicted.float(), rtol=0.05, atol=0.05)
    assert len(calls) == 4


def test_no_mask_of_all_queries_and_keys_is_made(monkeypatch: pytest.MonkeyPatch):
    masks = []
    attend = causal.functional.scaled_dot_product_attention

    def watch(*args: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(causal.functional, "scaled_dot_product_attention", watch)
    model = build_encoder({"model_type": "qwen2", **SMALL})
    padded, row = batches(LENGTHS)
    model(input_ids=padded["input_ids"])
    unpadded.run_unpadded(model, row)
    assert len(masks) == 2 * (1 + len(LENGTHS))
    assert all(mask is None for mask in masks)


def test_a_cap_on_the_scores_is_left_out_unless_the_recipe_keeps_transformers_attention():
    config = {"model_type": "gemma2", **SMALL, "query_pre_attn_scalar": 8}
    kept = build_encoder(config, fast_attention=False)
    layer = kept.layers[0].self_attn
    assert layer.attn_logit_softcapping == 50.0
    assert patch_encoder(kept).layers[0].self_attn.attn_logit_softcapping is None


def test_a_window_has_one_mask_for_all_lengths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(causal, "_MASKS", {})
    query, key, value = torch.randn(3, 1, 2, 20, 8).unbind()
    seen = torch.ones(20, 20, dtype=torch.bool).tril().triu(-4)
    with torch.inference_mode():
        found = causal._attend(query, key, value, 0.0, 0.5, 5)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, seen, scale=0.5)
    torch.testing.assert_close(found, expected)

    # A training after an evaluation takes the same mask.
    (mask,) = causal._MASKS.values()
    short = query[:, :, :9].requires_grad_()
    causal._attend(short, key[:, :, :9], value[:, :, :9], 0.0, 0.5, 5).sum().backward()
    assert short.grad is not None
    assert causal._seen_mask(9, 5, query).data_ptr() == mask.data_ptr()
    assert len(causal._seen_mask(300, 5, query)) == 300
    assert len(causal._MASKS) == 1
