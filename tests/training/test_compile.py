"""A compiled encoder gives the same numbers, of every family, and a recipe can ask for it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from quick_recipe import QUICK
from torch import nn

from kit.model.backbones import BACKBONES
from kit.model.encoder import build_encoder
from kit.recipe.load import load_recipe
from kit.training.train import train_recipe


@pytest.mark.parametrize("name", ["tiny-electra", "tiny-roberta", "tiny-deberta"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_values_and_gradients_are_those_of_the_encoder_as_it_is(name: str, precision: str):
    """Traced by dynamo and run by torch itself: no compiler has to be here."""
    config = BACKBONES[name].config | {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(config).train()
        if compiled:
            encoder.compile(dynamic=True, backend="eager")
        grads = []
        for length in (64, 128):
            ids = torch.arange(2 * length).reshape(2, length) % 50 + 5
            mask = torch.ones_like(ids)
            mask[1, length // 2 :] = 0
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                states = encoder(ids, attention_mask=mask).last_hidden_state
            states[mask.bool()].float().pow(3).sum().backward()
            grads.append(
                torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
            )
        found.append((states.float(), *grads))
    for plain, compiled in zip(*found, strict=True):
        scale = 1e-5 if precision == "fp32" else 0.03
        assert (plain - compiled).norm() <= scale * plain.norm()


def test_a_recipe_can_ask_for_it_and_the_model_is_saved_as_any_other(
    still: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled, compile = [], nn.Module.compile

    def listening(module: nn.Module, **kwargs: object) -> None:
        compiled.append(type(module).__name__)
        partial(compile, module, **kwargs, backend="eager")()

    monkeypatch.setattr(nn.Module, "compile", listening)
    losses = []
    for switch in ("false", "true"):
        overrides = (
            *QUICK,
            "train.max_steps=4",
            "model.head_dropout=0.0",
            f"train.compile={switch}",
        )
        recipe = load_recipe("tiny-roberta", overrides, backbone=str(still))
        run = train_recipe(recipe, data, tmp_path / switch)
        losses.append(run["parts"]["holdout"]["log_loss"])
        assert (tmp_path / switch / recipe.run_name / "holdout" / "model.safetensors").exists()
    assert compiled == ["RobertaModel"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
