"""Check that the average equals its closed form, and that training does not notice it."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from kit.training.ema import EMACallback


def end_step(averaging: EMACallback, step: int) -> None:
    averaging.on_step_end(None, TrainerState(global_step=step), TrainerControl())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40), st.floats(0.1, 0.9999))
def test_the_average_equals_its_closed_form(path: list[float], decay: float):
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    averaging = EMACallback(layer, decay)

    # `shares[i]` is the weight of `values[i]` in the average.
    shares = [1.0]
    values = [1.0]
    for step, value in enumerate(path, 1):
        nn.init.constant_(layer.weight, value)
        end_step(averaging, step)
        kept = min(decay, (1 + step) / (10 + step))
        shares = [*(kept * share for share in shares), 1 - kept]
        values.append(value)

    expected = sum(share * value for share, value in zip(shares, values, strict=True))
    assert averaging.average[0].item() == pytest.approx(expected, abs=1e-5)
    assert sum(shares) == pytest.approx(1)


def test_the_weights_come_back_to_the_bit_and_training_does_not_notice_the_average():
    torch.manual_seed(0)
    averaged = nn.Linear(4, 3)
    plain = copy.deepcopy(averaged)
    averaging = EMACallback(averaged, 0.9)
    optimizers = [
        torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True) for layer in (averaged, plain)
    ]
    for step in range(1, 6):
        for layer, optimizer in zip((averaged, plain), optimizers, strict=True):
            layer(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        end_step(averaging, step)

        with averaging.average_in_model():
            inside = [p.detach().clone() for p in averaged.parameters()]
        for average, used, own, expected in zip(
            averaging.average, inside, averaged.parameters(), plain.parameters(), strict=True
        ):
            assert torch.equal(average, used)
            assert not torch.equal(used, expected)
            assert torch.equal(own, expected)


def test_a_checkpoint_restores_the_average_to_the_bit(tmp_path: Path):
    layer = nn.Linear(4, 3)
    averaging = EMACallback(layer, 0.9)
    nn.init.normal_(layer.weight)
    end_step(averaging, 3)
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    averaging.save(checkpoint)

    # A resume continues with the saved average.
    resumed = EMACallback(nn.Linear(4, 3), 0.9)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    resumed.on_train_begin(args, TrainerState(global_step=3), TrainerControl())
    for restored, saved in zip(resumed.average, averaging.average, strict=True):
        assert torch.equal(restored, saved)

    # The end of training puts the best checkpoint's average into the model.
    best = TrainerState(best_model_checkpoint=str(checkpoint))
    resumed.on_train_end(args, best, TrainerControl())
    for weight, saved in zip(resumed.weights, averaging.average, strict=True):
        assert torch.equal(weight, saved)
