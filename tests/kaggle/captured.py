"""What a test's user is told, and the secrets that must never be in it."""

import dataclasses

from fake_kaggle import KEY, TOKEN

from kit.kaggle.retry import RetryPolicy

SECRETS = (KEY, TOKEN, "signed5ecret")


@dataclasses.dataclass
class Heard:
    """What the user would have been told, and the pauses that were asked for."""

    lines: list[str] = dataclasses.field(default_factory=list)
    pauses: list[float] = dataclasses.field(default_factory=list)

    def patience(self, **more: float) -> RetryPolicy:
        return RetryPolicy(sleep=self.pauses.append, say=self.lines.append, **more)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
