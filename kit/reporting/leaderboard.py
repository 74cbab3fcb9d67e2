"""Compare the scores of submissions on the leaderboard with what was estimated here.

Use `parse_scores` on the entries of a ledger.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class ScoredEntry(Protocol):
    """What is read of a ledger's entry; every value is a text (see `kit.kaggle.ledger`)."""

    @property
    def time(self) -> str:
        """When it was submitted."""
        ...

    @property
    def kernel(self) -> str:
        """Owner, slug and version, or nothing for a file."""
        ...

    @property
    def file(self) -> str:
        """The file."""
        ...

    @property
    def message(self) -> str:
        """What was said about it."""
        ...

    @property
    def local_score(self) -> str:
        """The log loss estimated here."""
        ...

    @property
    def public_score(self) -> str:
        """The public score."""
        ...

    @property
    def private_score(self) -> str:
        """The private score."""
        ...


@dataclass(frozen=True)
class LeaderboardScore:
    """One submission that Kaggle has scored.

    Attributes:
        time: when it was made, as the ledger says.
        source: the kernel or the file.
        message: what was said about it.
        local: the log loss estimated here, None where none was noted.
        public: the public score.
        private: the private score, None while it is not known.
    """

    time: str
    source: str
    message: str
    local: float | None
    public: float
    private: float | None

    @property
    def difference(self) -> float | None:
        """The public score minus the local one."""
        return None if self.local is None else self.public - self.local


def parse_scores(entries: Iterable[ScoredEntry]) -> tuple[LeaderboardScore, ...]:
    """Return the submissions with a public score, in the ledger's order.

    People edit a ledger by hand: a score that is no number counts as none.
    """
    scores = []
    for entry in entries:
        public = _parse_score(entry.public_score)
        if public is not None:
            scores.append(
                LeaderboardScore(
                    time=entry.time,
                    source=entry.kernel or entry.file,
                    message=entry.message,
                    local=_parse_score(entry.local_score),
                    public=public,
                    private=_parse_score(entry.private_score),
                )
            )
    return tuple(scores)


def _parse_score(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    # No log loss of clipped probabilities is above 36.1; NaN fails the comparison too.
    return value if 0 <= value < 40 else None
