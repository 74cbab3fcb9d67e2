"""Check that compiled encoders of every family compute the same, and that a recipe can use them."""

from functools import partial
from pathlib import Path

import pytest
import torch
from quick_recipe import QUICK
from torch import nn

from kit.model.encoder import build_encoder
from kit.model.registry import BACKBONES
from kit.recipe.load import load_recipe
from kit.run import Run
from kit.task import HOLDOUT
from kit.training.train import train_recipe

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("name", ["tiny-electra", "tiny-roberta", "tiny-deberta"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_and_gradients_are_those_of_the_uncompiled_encoder(name: str, precision: str):
    """With the backend "eager" dynamo traces the encoder, and torch runs it without a compiler."""
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(BACKBONES[name].config | NO_DROPOUT).train()
        if compiled:
            encoder.compile(dynamic=True, backend="eager")

        gradients = []
        for length in (64, 128):
            ids = torch.arange(2 * length).reshape(2, length) % 50 + 5
            mask = torch.ones_like(ids)
            mask[1, length // 2 :] = 0
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                states = encoder(ids, attention_mask=mask).last_hidden_state
            states[mask.bool()].float().pow(3).sum().backward()
            present = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
            gradients.append(torch.cat(present))
        results.append((states.float(), *gradients))

    tolerance = 1e-5 if precision == "fp32" else 0.03
    for plain, compiled in zip(*results, strict=True):
        assert (plain - compiled).norm() <= tolerance * plain.norm()


def test_a_recipe_with_compile_trains_and_saves_an_ordinary_model(
    fixed_backbone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled = []
    compile_module = nn.Module.compile

    def record_compile(module: nn.Module, **kwargs: object) -> None:
        compiled.append(type(module).__name__)
        partial(compile_module, module, **kwargs, backend="eager")()

    monkeypatch.setattr(nn.Module, "compile", record_compile)
    losses = []
    for switch in ("false", "true"):
        overrides = (
            *QUICK,
            "train.max_steps=4",
            "model.head_dropout=0.0",
            f"train.compile={switch}",
        )
        recipe = load_recipe("tiny-roberta", overrides, backbone=str(fixed_backbone))
        result = train_recipe(recipe, data, tmp_path / switch)
        losses.append(result["parts"]["holdout"]["log_loss"])
        assert (Run.open(result["run"]).fold(HOLDOUT).path / "model.safetensors").exists()

    assert compiled == ["RobertaModel"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
