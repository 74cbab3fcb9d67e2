"""Everything a comparison has to say, each part computed when it is first asked for."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kit import __version__
from kit.report.comparison import Comparison, tabulate_models
from kit.report.curves import Curve, read_curves
from kit.report.diagnosis import Correlation, Diagnosis, correlate_errors, diagnose_model
from kit.report.disagreement import TEST_CASES, DisagreementCase, find_cases
from kit.report.inputs import ReportInputs, gather_inputs
from kit.report.models import ReportModel
from kit.report.published import STUDY
from kit.report.significance import Significance, test_significance
from kit.report.slices import Slice, score_slices


@dataclass(frozen=True)
class ReportFacts:
    """What data it is, and which kit looked at it.

    Attributes:
        validation, test: rows compared on; test is 0 where there are no labels.
        classes: shares among the training rows, in the order of `CLASSES`.
        soft: training rows with soft labels that are not sure.
        predicted: whether soft labels are predictions of models, which may have seen validation labels.
        data: the first digits of the SHA-256 of the training rows.
    """

    train: int
    validation: int
    test: int
    prompts: int
    folds: int
    text: str
    split: str
    classes: tuple[float, float, float]
    soft: int
    predicted: bool
    data: str
    kit: str


@dataclass(frozen=True)
class Report:
    """The evidence, and what follows from it."""

    evidence: ReportInputs

    @property
    def main(self) -> str:
        """The rows that models are looked at closely on: "holdout", "out-of-fold" or "test"."""
        return self.evidence.rows[self.evidence.main].name

    @cached_property
    def facts(self) -> ReportFacts:
        """Of the processed folder's manifest."""
        manifest, rows = self.evidence.processed.manifest, self.evidence.rows
        options, counts = manifest["options"], manifest["counts"]
        return ReportFacts(
            train=counts["train_rows"],
            validation=len(rows["valid"].ids),
            test=0 if rows["test"].labels is None else len(rows["test"].ids),
            prompts=counts["prompt_groups"],
            folds=options["folds"],
            text=options["text"],
            split=options["split"],
            classes=tuple(manifest["frequencies"].values()),
            soft=counts.get("rows_with_soft_labels", 0),
            predicted=any(each["role"] == "soft_labels" for each in manifest["inputs"]),
            data=self.evidence.processed.digest("train")[:12],
            kit=__version__,
        )

    @cached_property
    def comparison(self) -> Comparison:
        """The table."""
        return tabulate_models(self.evidence)

    @cached_property
    def significance(self) -> tuple[Significance, ...]:
        """On validation rows, and on test rows where they have labels."""
        return tuple(
            filter(
                None, (test_significance(self.evidence, split) for split in self.evidence.scored)
            )
        )

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """Of every part that was trained."""
        return read_curves(self.evidence)

    @cached_property
    def diagnosis(self) -> tuple[Diagnosis, ...]:
        """Of every model, on the main rows."""
        return diagnose_model(self.evidence, self.evidence.main)

    @cached_property
    def correlation(self) -> Correlation:
        """Between all models, on the main rows."""
        return correlate_errors(self.evidence, self.evidence.main)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """Of the main rows."""
        return score_slices(self.evidence, self.evidence.main)

    @property
    def blends(self) -> tuple[ReportModel, ...]:
        """The saved blends."""
        return tuple(model for model in self.evidence.models if model.saved)

    @cached_property
    def cases(self) -> tuple[DisagreementCase, ...]:
        """Of the main rows if there are two models to disagree; and some test rows, where nobody knows the labels."""
        found = find_cases(self.evidence, self.evidence.main)
        unknown = (
            () if "test" in self.evidence.scored else find_cases(self.evidence, "test", TEST_CASES)
        )
        return found + unknown

    def as_dict(self) -> dict[str, Any]:
        """Every number as plain values that JSON can hold; the table's at the top, as `kit demo` gives them."""
        diagnosis = {
            "rows": self.main,
            "models": _plain(self.diagnosis),
            "correlation": asdict(self.correlation),
        }
        return self.comparison.as_dict() | {
            "data": asdict(self.facts),
            "published": _plain(STUDY),
            "significance": _plain(self.significance),
            "curves": _plain(self.curves),
            "diagnosis": diagnosis,
            "slices": _plain(self.slices),
            "blends": [
                {"name": m.name, "fitted": dict(m.saved.fitted)} | asdict(m.saved.blend)
                for m in self.blends
            ],
            "cases": [
                {k: v for k, v in each.items() if k != "texts"} for each in _plain(self.cases)
            ],
        }


def build_report(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
) -> Report:
    """A report of runs and what goes with them; arguments and errors as `evidence.gather`."""
    return Report(gather_inputs(runs, data, frames=frames, blends=blends, truth=truth))


def _plain(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(value) for value in values]
