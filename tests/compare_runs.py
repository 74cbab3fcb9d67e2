"""The comparison of runs without the rest of a report, which most tests of its lines want."""

from collections.abc import Sequence
from pathlib import Path

from kit.report.comparison import Comparison, tabulate_models
from kit.report.inputs import gather_inputs


def compare(
    runs: Sequence[str | Path],
    data: Path,
    frames: Sequence[tuple[str, Path]] = (),
    truth: Path | None = None,
) -> Comparison:
    """The table of `runs` on the processed rows in `data`."""
    return tabulate_models(gather_inputs(runs, data, frames=frames, truth=truth))
