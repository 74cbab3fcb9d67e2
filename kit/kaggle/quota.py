"""Read what an account may still use: GPU hours this week, submissions today, competition rules.

Use `read_quota`, `read_limits` and `read_rules`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from kit.kaggle.client import Client
from kit.kaggle.errors import KaggleError, UnreachableError
from kit.task import COMPETITION


@dataclass(frozen=True)
class GpuQuota:
    """GPU hours used and allowed in this week, and when the week ends (UTC)."""

    used_hours: float
    total_hours: float
    resets: datetime | None

    @property
    def left_hours(self) -> float:
        """Hours that may still be used."""
        return max(0.0, self.total_hours - self.used_hours)

    def __str__(self) -> str:
        until = f", until {self.resets:%a %d %b %H:%M} UTC" if self.resets else ""
        return f"{self.left_hours:.1f} of {self.total_hours:.0f} GPU hours left{until}"


@dataclass(frozen=True)
class SubmissionLimits:
    """Submissions made today, and how many are left now."""

    today: int
    left: int

    def __str__(self) -> str:
        return f"{self.left} submissions left today ({self.today} made)"


@dataclass(frozen=True)
class CompetitionRules:
    """What a competition takes, and whether this account has joined it."""

    notebooks_only: bool
    joined: bool
    closed: bool


def read_quota(client: Client) -> GpuQuota:
    """Return the week's GPU quota.

    Raises:
        UnreachableError: the answer has none.
    """
    action = "reading the GPU quota"
    answer = client.call("kernels.get_accelerator_quota_statistics", {}, action)
    gpu = answer.gpu_quota
    if gpu is None:
        raise UnreachableError(
            f"{action}: Kaggle's answer has none", "See https://www.kaggle.com/settings."
        )

    # As durations: converted to text, Kaggle's client drops whole days of them.
    used, total = (
        duration.total_seconds() / 3600 if duration else 0.0
        for duration in (gpu.time_used, gpu.total_time_allowed)
    )
    resets = answer.quota_refresh_time
    return GpuQuota(used, total, resets.replace(tzinfo=UTC) if resets else None)


def tell_quota(client: Client, say: Callable[[str], None]) -> None:
    """Report the GPU hours that are left. A quota that cannot be read is reported, not raised."""
    try:
        say(str(read_quota(client)))
    except KaggleError as error:
        say(f"the GPU quota cannot be read: {error.problem}")


def read_limits(client: Client, competition: str = COMPETITION) -> SubmissionLimits:
    """Return the day's submission limits."""
    body = {"competitionName": competition}
    action = "reading the submission limits"
    answer = client.call("competitions.get_submission_limits", body, action)
    return SubmissionLimits(answer.num_today, answer.num_allowed_now)


def read_rules(client: Client, competition: str = COMPETITION) -> CompetitionRules:
    """Return the competition's rules for submissions."""
    body = {"competitionName": competition}
    action = f"looking up the competition {competition}"
    answer = client.call("competitions.get_competition", body, action)
    return CompetitionRules(
        notebooks_only=answer.is_kernels_submissions_only,
        joined=answer.user_has_entered,
        closed=answer.submissions_disabled,
    )
