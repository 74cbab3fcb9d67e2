"""The average is the closed form, is what is evaluated and kept, and training goes on as if it were not there."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from kit.training.ema import EMACallback


def after(averaging: EMACallback, step: int) -> None:
    averaging.on_step_end(None, TrainerState(global_step=step), TrainerControl())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40), st.floats(0.1, 0.9999))
def test_the_average_is_the_closed_form(path: list[float], decay: float):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    averaging, shares, values = EMACallback(layer, decay), [1.0], [1.0]
    for number, value in enumerate(path, 1):
        nn.init.constant_(layer.weight, value)
        after(averaging, number)
        kept = min(decay, (1 + number) / (10 + number))
        shares, values = [kept * share for share in shares] + [1 - kept], [*values, value]
    expected = sum(share * value for share, value in zip(shares, values, strict=True))
    assert averaging.average[0].item() == pytest.approx(expected, abs=1e-5)
    assert sum(shares) == pytest.approx(1)


def test_the_models_own_weights_come_back_to_the_bit_and_training_does_not_see_the_average():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    other = copy.deepcopy(layer)
    averaging = EMACallback(layer, 0.9)
    optim, reference = (
        torch.optim.AdamW(each.parameters(), lr=0.1, fused=True) for each in (layer, other)
    )
    for number in range(1, 6):
        for each, steps in ((layer, optim), (other, reference)):
            each(torch.ones(2, 4)).square().sum().backward()
            steps.step()
            steps.zero_grad()
        after(averaging, number)
        before = [p.detach().clone() for p in layer.parameters()]
        with averaging.average_in_model():
            assert all(
                torch.equal(p, a) is False for p, a in zip(layer.parameters(), before, strict=True)
            )
            inside = [p.detach().clone() for p in layer.parameters()]
        assert all(torch.equal(a, b) for a, b in zip(averaging.average, inside, strict=True))
        for mine, plain in zip(layer.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, plain)


def test_a_checkpoint_brings_the_average_back_to_the_bit(tmp_path: Path):
    layer = nn.Linear(4, 3)
    averaging = EMACallback(layer, 0.9)
    nn.init.normal_(layer.weight)
    after(averaging, 3)
    (tmp_path / "checkpoint-3").mkdir()
    averaging.save(tmp_path / "checkpoint-3")
    fresh = EMACallback(nn.Linear(4, 3), 0.9)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    fresh.on_train_begin(arguments, TrainerState(global_step=3), TrainerControl())
    assert all(torch.equal(a, b) for a, b in zip(fresh.average, averaging.average, strict=True))
    best = TrainerState(best_model_checkpoint=str(tmp_path / "checkpoint-3"))
    fresh.on_train_end(arguments, best, TrainerControl())
    assert all(torch.equal(w, a) for w, a in zip(fresh.weights, averaging.average, strict=True))
