"""A training that is broken off after a given step, as a user's Ctrl-C would."""

from typing import Any

import pytest
from transformers import TrainerState

from kit.training.callbacks import ScheduleCallback


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """From now on, until `patch` is undone, every training ends with KeyboardInterrupt once `step` is done."""
    on_step_end = ScheduleCallback.on_step_end

    def stop(
        self: ScheduleCallback, args: Any, state: TrainerState, control: Any, **named: Any
    ) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **named)

    patch.setattr(ScheduleCallback, "on_step_end", stop)
