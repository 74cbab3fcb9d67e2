"""Say which model is best, how far it is ahead of the next, and whether that is clear.

Use `find_answer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kit.reporting.comparison import Comparison, ModelFigures, rank_lines
from kit.reporting.models import FLOOR, PRIOR, ReportModel
from kit.reporting.significance import PairedDifference, Significance


@dataclass(frozen=True)
class Answer:
    """What a reader wants to know first.

    Attributes:
        rows: the name of the rows it holds for.
        best: the model with the lowest log loss that is not a reference.
        figures: of the best model.
        next: the model with the next lowest log loss, None if there is no other.
        lead: the best model against the next.
        level: the models that are not clearly worse than the best, in the order of their losses.
        over_prior: the best model against the class prior.
        floor: the log loss of the Bayes floor, where it is known.
    """

    rows: str
    best: str
    figures: ModelFigures
    next: str | None
    lead: PairedDifference | None
    level: tuple[str, ...]
    over_prior: PairedDifference | None
    floor: float | None


def find_answer(
    comparison: Comparison,
    models: Sequence[ReportModel],
    rows: str,
    significance: Significance | None,
) -> Answer:
    """Return the answer for one split.

    Args:
        comparison: the table of all models; at least one has predicted the split that counts.
        models: the same models.
        rows: the name of that split's rows.
        significance: the paired comparisons on these rows, None if there is only one model.
    """
    split = comparison.split
    ranked, references = rank_lines(comparison)
    ranked = [line for line in ranked if getattr(line, split)]
    best = ranked[0].name
    floor = next((line for line in references if line.name == FLOOR), None)

    # A baseline run of the class prior takes the reference's place.
    priors = {model.name for model in models if model.run and model.run.baseline == "prior"}
    prior = next(iter([*priors, PRIOR]))
    second = ranked[1].name if len(ranked) > 1 else None
    lead = over_prior = None
    level: tuple[str, ...] = ()
    if significance:
        pairs = {
            name: significance.pair(best, name) for name in significance.models if name != best
        }
        lead = pairs[second] if second else None
        over_prior = pairs.get(prior)
        level = tuple(
            name
            for name, pair in pairs.items()
            if pair.verdict != "better" and name not in comparison.references
        )
    figures = getattr(ranked[0], split)
    floor_loss = getattr(floor, split).log_loss if floor else None
    return Answer(rows, best, figures, second, lead, level, over_prior, floor_loss)
