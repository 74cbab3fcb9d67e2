"""A training that is broken off after a given step, as a user's Ctrl-C would."""

from typing import Any

import pytest
from transformers import TrainerState

from kit.training.callbacks import Steering


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """From now on, until `patch` is undone, every training ends with KeyboardInterrupt once `step` is done."""
    on_step_end = Steering.on_step_end

    def stop(self: Steering, args: Any, state: TrainerState, control: Any, **named: Any) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **named)

    patch.setattr(Steering, "on_step_end", stop)
