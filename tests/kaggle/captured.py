"""Record what a user would be shown, and name the secrets that must never be in it."""

import dataclasses

from fake_kaggle import KEY, TOKEN

from kit.kaggle.retry import RetryPolicy

SECRETS = (KEY, TOKEN, "signed5ecret")


@dataclasses.dataclass
class Heard:
    """The messages to the user, and the pauses that were asked for, in seconds."""

    lines: list[str] = dataclasses.field(default_factory=list)
    pauses: list[float] = dataclasses.field(default_factory=list)

    def patience(self, **options: float) -> RetryPolicy:
        """Return a policy that records its pauses instead of sleeping."""
        return RetryPolicy(sleep=self.pauses.append, say=self.lines.append, **options)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)
