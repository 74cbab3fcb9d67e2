"""What is left this week and today: GPU hours and submissions."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, UnreachableError
from kit.task import COMPETITION


@dataclass(frozen=True)
class Quota:
    """GPU hours used and allowed in this week, and when it ends (UTC)."""

    used_hours: float
    total_hours: float
    resets: datetime | None

    @property
    def left_hours(self) -> float:
        """What may still be used."""
        return max(0.0, self.total_hours - self.used_hours)

    def __str__(self) -> str:
        when = f", until {self.resets:%a %d %b %H:%M} UTC" if self.resets else ""
        return f"{self.left_hours:.1f} of {self.total_hours:.0f} GPU hours left{when}"


@dataclass(frozen=True)
class Limits:
    """Submissions: made today, and possible now."""

    today: int
    left: int

    def __str__(self) -> str:
        return f"{self.left} submissions left today ({self.today} made)"


@dataclass(frozen=True)
class Rules:
    """What a competition takes, and whether this account has joined it."""

    notebooks_only: bool
    joined: bool
    closed: bool


def read_quota(client: Client) -> Quota:
    """The week's GPU quota. Durations are read as such: as text, Kaggle's client drops whole days of them.

    Raises:
        UnreachableError: there is none in the answer.
    """
    answer = client.call("kernels.get_accelerator_quota_statistics", {}, "reading the GPU quota")
    gpu, resets = answer.gpu_quota, answer.quota_refresh_time
    if gpu is None:
        raise UnreachableError(
            "reading the GPU quota: Kaggle's answer has none",
            "See https://www.kaggle.com/settings.",
        )
    used, total = (
        t.total_seconds() / 3600 if t else 0.0 for t in (gpu.time_used, gpu.total_time_allowed)
    )
    return Quota(used, total, resets.replace(tzinfo=UTC) if resets else None)


def tell_quota(client: Client, say: Callable[[str], None]) -> None:
    """Says what is left of the week's GPU hours; that it cannot be read stops nothing."""
    try:
        say(str(read_quota(client)))
    except KaggleError as error:
        say(f"the GPU quota cannot be read: {error.problem}")


def read_limits(client: Client, competition: str = COMPETITION) -> Limits:
    """The day's submissions."""
    body = {"competitionName": competition}
    answer = client.call(
        "competitions.get_submission_limits", body, "reading the submission limits"
    )
    return Limits(answer.num_today, answer.num_allowed_now)


def read_rules(client: Client, competition: str = COMPETITION) -> Rules:
    """The competition's rules for submissions."""
    body = {"competitionName": competition}
    answer = client.call(
        "competitions.get_competition", body, f"looking up the competition {competition}"
    )
    return Rules(
        answer.is_kernels_submissions_only, answer.user_has_entered, answer.submissions_disabled
    )
