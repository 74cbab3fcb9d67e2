"""Compute everything a report shows, each part when it is first needed. Use `build_report`."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from kit import __version__
from kit.errors import KitError
from kit.plotting import importing_matplotlib
from kit.reporting.answer import Answer, find_answer
from kit.reporting.blend_models import MemberGain, measure_gains
from kit.reporting.cases import TEST_CASES, RowCase, find_disagreements, find_worst
from kit.reporting.comparison import Comparison, rank_lines, tabulate_models
from kit.reporting.curves import Curve, read_curves
from kit.reporting.diagnosis import (
    Correlation,
    Diagnosis,
    FoldSpread,
    correlate_models,
    diagnose_models,
    spread_over_folds,
)
from kit.reporting.gather import gather_inputs
from kit.reporting.inputs import ReportInputs
from kit.reporting.leaderboard import LeaderboardScore
from kit.reporting.models import SavedBlend
from kit.reporting.published import STUDY, PublishedScore
from kit.reporting.significance import Significance, compare_pairs
from kit.reporting.slices import Slice, score_slices
from kit.run import Run
from kit.tracking.differences import differing_keys


@dataclass(frozen=True)
class ReportFacts:
    """What data the models were trained on, of which the processed folder's manifest tells.

    Attributes:
        train: the number of training rows.
        prompts: the number of prompt groups.
        folds: the number of folds.
        text, split: the options of `kit preprocess`.
        classes: shares of the classes among the training rows, in the order of `CLASSES`.
        soft: the number of training rows with soft labels that are not certain.
        predicted: whether soft labels were predicted by models, which may have seen validation
            labels.
        data: the first digits of the SHA-256 of the training rows.
    """

    train: int
    prompts: int
    folds: int
    text: str
    split: str
    classes: tuple[float, ...]
    soft: int
    predicted: bool
    data: str


@dataclass(frozen=True)
class Report:
    """The inputs of a report, and what follows from them.

    Attributes:
        inputs: rows and models.
        submissions: those of the ledger that Kaggle has scored.
        command: the command that makes this report.
        made: when it was made, in UTC.
    """

    inputs: ReportInputs
    submissions: tuple[LeaderboardScore, ...] = ()
    command: str = ""
    made: str = ""

    @property
    def main_rows(self) -> str:
        """The rows that models are inspected closely on: "holdout", "out-of-fold" or "test"."""
        return self.inputs.rows[self.inputs.main_split].name

    @property
    def is_scored_by_truth(self) -> bool:
        """Whether a model is scored by the labels of a truth file, and not by training rows'."""
        return self.inputs.processed is None or "test" in self.inputs.compared_splits

    @cached_property
    def facts(self) -> ReportFacts | None:
        """Facts from the processed folder's manifest, None if there is no such folder."""
        if self.inputs.processed is None:
            return None
        manifest = self.inputs.processed.manifest
        options = manifest["options"]
        counts = manifest["counts"]
        return ReportFacts(
            train=counts["train_rows"],
            prompts=counts["prompt_groups"],
            folds=options["folds"],
            text=options["text"],
            split=options["split"],
            classes=tuple(manifest["frequencies"].values()),
            soft=counts.get("rows_with_soft_labels", 0),
            predicted=any(entry["role"] == "soft_labels" for entry in manifest["inputs"]),
            data=self.inputs.processed.digest("train")[:12],
        )

    @cached_property
    def comparison(self) -> Comparison:
        """The table of all models."""
        return tabulate_models(self.inputs)

    @cached_property
    def answer(self) -> Answer:
        """The best model on the main rows, and how far it is ahead."""
        return find_answer(
            self.comparison,
            self.inputs.models,
            self.main_rows,
            next((each for each in self.significance if each.rows == self.main_rows), None),
        )

    @cached_property
    def ranking(self) -> tuple[str, ...]:
        """The models that are no references, the best on the main rows first."""
        return tuple(line.name for line in rank_lines(self.comparison)[0])

    @cached_property
    def recipe_keys(self) -> dict[str, dict[str, Any]]:
        """The recipe keys that tell each run from the others, by the models' names."""
        runs = {model.name: model.run for model in self.inputs.models if model.run}
        return dict(zip(runs, differing_keys(list(runs.values())), strict=True))

    @cached_property
    def groups(self) -> tuple["Report", ...]:
        """The comparisons of runs that lack the validation rows, by the rows that they share."""
        return tuple(Report(inputs) for inputs in self.inputs.groups)

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
    def folds(self) -> tuple[FoldSpread, ...]:
        """The scores on each fold's rows, where the validation rows are those of several folds."""
        return spread_over_folds(self.inputs)

    @cached_property
    def gains(self) -> tuple[MemberGain, ...]:
        """What each member is worth to its blend, on the main rows."""
        split = self.inputs.main_split
        return measure_gains(self.inputs.models, self.inputs.rows[split], split)

    @cached_property
    def slices(self) -> tuple[Slice, ...]:
        """The scores on slices of the main rows."""
        return score_slices(self.inputs, self.inputs.main_split)

    @property
    def blends(self) -> tuple[SavedBlend, ...]:
        """The saved blends."""
        return tuple(model.saved for model in self.inputs.models if model.saved)

    @cached_property
    def disagreements(self) -> tuple[RowCase, ...]:
        """The main rows on which models disagree most, then a few test rows without labels."""
        cases = find_disagreements(self.inputs, self.inputs.main_split)
        if "test" in self.inputs.rows and "test" not in self.inputs.scored_splits:
            cases += find_disagreements(self.inputs, "test", TEST_CASES)
        return cases

    @cached_property
    def worst(self) -> tuple[RowCase, ...]:
        """The main rows that the best model gets most wrong."""
        return find_worst(self.inputs, self.inputs.main_split, self.answer.best)

    def as_dict(self) -> dict[str, Any]:
        """Return every number as plain values that JSON can hold, without the texts of rows.

        The fields of `comparison` are at the top level.
        """
        blends = [
            {"name": saved.name, "fitted": dict(saved.fitted)} | asdict(saved.blend)
            for saved in self.blends
        ]
        groups = [
            group.comparison.as_dict() | {"significance": _as_dicts(group.significance)}
            for group in self.groups
        ]
        return self.comparison.as_dict() | {
            "kit": __version__,
            "data": asdict(self.facts) if self.facts else None,
            "answer": asdict(self.answer),
            "recipe_keys": self.recipe_keys,
            "published": _as_dicts(self.published),
            "significance": _as_dicts(self.significance),
            "groups": groups,
            "foreign": _as_dicts(self.inputs.foreign),
            "curves": _as_dicts(self.curves),
            "folds": _as_dicts(self.folds),
            "diagnosis": {
                "rows": self.main_rows,
                "models": _as_dicts(self.diagnosis),
                "correlation": asdict(self.correlation),
            },
            "slices": _as_dicts(self.slices),
            "blends": blends,
            "gains": _as_dicts(self.gains),
            "submissions": [
                asdict(score) | {"difference": score.difference} for score in self.submissions
            ],
            "worst": _without_texts(self.worst),
            "disagreements": _without_texts(self.disagreements),
        }

    def _repr_html_(self) -> str:
        """Return the page for a notebook cell; IPython calls this to display the report."""
        # Matplotlib is imported only where a page is drawn.
        with importing_matplotlib():
            from kit.reporting.html import render_frame

        return render_frame(self)


def build_report(
    runs: Sequence[str | Path],
    data: Path,
    *,
    frames: Sequence[tuple[str, Path]] = (),
    blends: Sequence[Path] = (),
    truth: Path | None = None,
    submissions: Sequence[LeaderboardScore] = (),
) -> Report:
    """Build the report of runs, prediction files and blends.

    Args:
        submissions: those of the ledger that Kaggle has scored. The other arguments and the errors
            are those of `gather.gather_inputs`.
    """
    inputs = gather_inputs(runs, data, frames=frames, blends=blends, truth=truth)
    words = ["kit", "report", *map(str, runs)]
    if inputs.processed:
        words += ["--data", str(data)]
    if truth:
        words += ["--truth", str(truth)]
    for name, file in frames:
        words += ["--frame", f"{name}={file}"]
    for file in blends:
        words += ["--blend", str(file)]
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Report(inputs, tuple(submissions), shlex.join(words), made)


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


def _without_texts(cases: Sequence[RowCase]) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in case.items() if name != "texts"}
        for case in _as_dicts(cases)
    ]
