"""Interrupt a training after a given step, as a user's Ctrl-C would. Use `interrupt_at`."""

from typing import Any

import pytest
from transformers import TrainerState

from kit.training.callbacks import ScheduleCallback


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt at the end of optimizer step `step` of any training."""
    on_step_end = ScheduleCallback.on_step_end

    def interrupt(
        self: ScheduleCallback, args: Any, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        if state.global_step == step:
            raise KeyboardInterrupt
        on_step_end(self, args, state, control, **kwargs)

    patch.setattr(ScheduleCallback, "on_step_end", interrupt)
