"""Compare runs without the rest of a report, for tests that look at the table only."""

from collections.abc import Sequence
from pathlib import Path

from kit.reporting.comparison import Comparison, tabulate_models
from kit.reporting.gather import gather_inputs


def compare(
    runs: Sequence[str | Path],
    data: Path,
    frames: Sequence[tuple[str, Path]] = (),
    truth: Path | None = None,
) -> Comparison:
    """Return the table of `runs` on the processed rows in `data`."""
    return tabulate_models(gather_inputs(runs, data, frames=frames, truth=truth))
