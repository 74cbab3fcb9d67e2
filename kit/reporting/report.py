"""Compute everything a report shows, each part when it is first needed. Use `build_report`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import KitError
from kit.reporting.comparison import (
    STUDY,
    Comparison,
    PublishedScore,
    Significance,
    compare_pairs,
    tabulate_models,
)
from kit.reporting.curves import Curve, read_curves
from kit.reporting.diagnosis import (
    TEST_CASES,
    Correlation,
    Diagnosis,
    DisagreementCase,
    correlate_models,
    diagnose_models,
    find_cases,
)
from kit.reporting.inputs import ReportInputs, gather_inputs
from kit.reporting.models import SavedBlend
from kit.reporting.slices import Slice, score_slices
from kit.run import Run


@dataclass(frozen=True)
class ReportFacts:
    """What data the models were compared on, and by which version of kit.

    Attributes:
        train: the number of training rows.
        validation, test: the numbers of rows compared on; test is 0 where labels are not known.
        prompts: the number of prompt groups.
        folds: the number of folds.
        text, split: the options of `kit preprocess`.
        classes: shares of the classes among the training rows, in the order of `CLASSES`.
        soft: the number of training rows with soft labels that are not certain.
        predicted: whether soft labels were predicted by models, which may have seen validation
            labels.
        data: the first digits of the SHA-256 of the training rows.
        kit: the version.
    """

    train: int
    validation: int
    test: int
    prompts: int
    folds: int
    text: str
    split: str
    classes: tuple[float, ...]
    soft: int
    predicted: bool
    data: str
    kit: str


@dataclass(frozen=True)
class Report:
    """The inputs of a report, and what follows from them."""

    inputs: ReportInputs

    @property
    def main_rows(self) -> str:
        """The rows that models are inspected closely on: "holdout", "out-of-fold" or "test"."""
        return self.inputs.rows[self.inputs.main_split].name

    @cached_property
    def facts(self) -> ReportFacts:
        """Facts from the processed folder's manifest."""
        manifest = self.inputs.processed.manifest
        options = manifest["options"]
        counts = manifest["counts"]
        valid = self.inputs.rows["valid"]
        test = self.inputs.rows["test"]
        return ReportFacts(
            train=counts["train_rows"],
            validation=len(valid.ids),
            test=0 if test.labels is None else len(test.ids),
            prompts=counts["prompt_groups"],
            folds=options["folds"],
            text=options["text"],
            split=options["split"],
            classes=tuple(manifest["frequencies"].values()),
            soft=counts.get("rows_with_soft_labels", 0),
            predicted=any(entry["role"] == "soft_labels" for entry in manifest["inputs"]),
            data=self.inputs.processed.digest("train")[:12],
            kit=__version__,
        )

    @cached_property
    def comparison(self) -> Comparison:
        """The table of all models."""
        return tabulate_models(self.inputs)

    @cached_property
    def published(self) -> tuple[PublishedScore, ...]:
        """The reference study's scores, where a run was trained by one of the study's recipes."""
        runs = [model.run for model in self.inputs.models if model.run]
        return STUDY if any(map(_is_reference_run, runs)) else ()

    @cached_property
    def significance(self) -> tuple[Significance, ...]:
        """The paired comparisons on validation rows, and on test rows where they have labels."""
        found = [compare_pairs(self.inputs, split) for split in self.inputs.scored_splits]
        return tuple(significance for significance in found if significance)

    @cached_property
    def curves(self) -> tuple[Curve, ...]:
        """The learning curves of every trained part."""
        return read_curves(self.inputs)

    @cached_property
    def diagnosis(self) -> tuple[Diagnosis, ...]:
        """The diagnosis of every model on the main rows."""
        return diagnose_models(self.inputs, self.inputs.main_split)

    @cached_property
    def correlation(self) -> Correlation:
        """The correlations between the models on the main rows."""
        return correlate_models(self.inputs, self.inputs.main_split)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The scores on slices of the main rows."""
        return score_slices(self.inputs, self.inputs.main_split)

    @property
    def blends(self) -> tuple[SavedBlend, ...]:
        """The saved blends."""
        return tuple(model.saved for model in self.inputs.models if model.saved)

    @cached_property
    def cases(self) -> tuple[DisagreementCase, ...]:
        """The main rows on which models disagree most, then a few test rows without labels."""
        cases = find_cases(self.inputs, self.inputs.main_split)
        if "test" not in self.inputs.scored_splits:
            cases += find_cases(self.inputs, "test", TEST_CASES)
        return cases

    def as_dict(self) -> dict[str, Any]:
        """Return every number as plain values that JSON can hold, without the texts of rows.

        The fields of `comparison` are at the top level.
        """
        diagnosis = {
            "rows": self.main_rows,
            "models": _as_dicts(self.diagnosis),
            "correlation": asdict(self.correlation),
        }
        blends = [
            {"name": saved.name, "fitted": dict(saved.fitted)} | asdict(saved.blend)
            for saved in self.blends
        ]
        cases = [
            {name: value for name, value in case.items() if name != "texts"}
            for case in _as_dicts(self.cases)
        ]
        return self.comparison.as_dict() | {
            "data": asdict(self.facts),
            "published": _as_dicts(self.published),
            "significance": _as_dicts(self.significance),
            "curves": _as_dicts(self.curves),
            "diagnosis": diagnosis,
            "slices": _as_dicts(self.slices),
            "blends": blends,
            "cases": cases,
        }

    def _repr_html_(self) -> str:
        """Return the page for a notebook cell; IPython calls this to display the report."""
        # Matplotlib is imported only where a page is drawn.
        from kit.reporting.html import render_frame

        return render_frame(self)


def build_report(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
) -> Report:
    """Build the report of runs, prediction files and blends.

    Arguments and errors are those of `inputs.gather_inputs`.
    """
    return Report(gather_inputs(runs, data, frames=frames, blends=blends, truth=truth))


def _is_reference_run(run: Run) -> bool:
    """Return whether the run's recipe is one of the `*-reference` recipes."""
    try:
        return not run.baseline and run.recipe.name.endswith("-reference")
    except KitError:
        # A recipe that was edited, or is of another version of kit, does not stop a report, which
        # needs nothing but the run's predictions.
        return False


def _as_dicts(values: Sequence[Any]) -> list[dict[str, Any]]:
    return [asdict(value) for value in values]
