"""Put the report's answer and the facts about its data into words, for the top of the page.

Use `write_headline`, `list_findings`, `list_facts` and `list_origin`, further down `describe_rows`
and `describe_resampling`, and in the terminal `summarise_answer` and `summarise_resampling`.
"""

from typing import TYPE_CHECKING

from kit import __version__
from kit.reporting.rows import LABELLED, Resampled, count_rows
from kit.reporting.significance import PairedDifference
from kit.reporting.table import CLASS_NAMES, format_difference

if TYPE_CHECKING:
    from kit.reporting.report import Report

NAMED = 5  # models that are named in a sentence


def write_headline(report: "Report") -> str:
    """Return the answer in one line."""
    answer = report.answer
    if answer.lead is None:
        return f"{answer.best}: log loss {answer.figures.log_loss:.4f}"
    if answer.lead.verdict == "better":
        return f"{answer.best} is best"
    return f"{answer.best} leads, but not clearly"


def summarise_answer(report: "Report") -> str:
    """Return the answer, the loss and the lead in one sentence."""
    answer = report.answer
    figures = answer.figures
    rows = count_rows(answer.rows, figures.rows)
    text = f"{answer.best}: log loss {figures.log_loss:.4f} on {rows}"
    if answer.lead and answer.next:
        verdict = "clearly" if answer.lead.verdict == "better" else "not clearly"
        text += f", {_describe_lead(answer.lead)} ahead of {answer.next}, {verdict}"
    return text


def list_findings(report: "Report") -> list[tuple[str, str]]:
    """Return what the answer rests on, as names and sentences."""
    answer = report.answer
    figures = answer.figures
    rows = count_rows(answer.rows, figures.rows)
    findings = [
        (
            "Log loss",
            f"{figures.log_loss:.4f} on {rows}, 95% interval {figures.low:.4f} to "
            f"{figures.high:.4f}; accuracy {figures.accuracy:.1%}",
        )
    ]
    if answer.lead and answer.next:
        verdict = _judge_lead(answer.lead, report.inputs.resampled)
        text = f"{_describe_lead(answer.lead)} ahead of {answer.next}; {verdict}"
        findings.append(("Lead", text))
    if answer.level:
        named = ", ".join(answer.level[:NAMED])
        more = len(answer.level) - NAMED
        names = f"{named} and {more} more" if more > 0 else named
        findings.append(("Not clearly worse", names))
    if answer.over_prior:
        text = f"{_describe_lead(answer.over_prior)} better than always predicting the class prior"
        if answer.floor is not None:
            above = figures.log_loss - answer.floor
            side = "above" if above >= 0 else "below"
            text += f"; {abs(above):.4f} {side} the Bayes floor"
        findings.append(("What it knows", text))
    others = [
        figures
        for split in report.inputs.scored_splits
        if split != report.inputs.main_split
        for line in report.comparison.lines
        if line.name == answer.best and (figures := getattr(line, split))
    ]
    if others:
        name = report.inputs.validation if report.main_rows == "test" else "test"
        text = f"{others[0].log_loss:.4f}, {others[0].low:.4f} to {others[0].high:.4f}"
        findings.append((f"On {name} rows", text))
    return findings


def list_origin(report: "Report") -> list[tuple[str, str]]:
    """Return when and by which command the report was made, as names and values."""
    made = f"{report.made}, by kit {__version__}" if report.made else f"by kit {__version__}"
    return [("Made", made), *([("Command", report.command)] if report.command else [])]


def list_facts(report: "Report") -> list[tuple[str, str]]:
    """Return the facts about the data as names and values."""
    inputs = report.inputs
    pairs = []
    for split in inputs.compared_splits:
        rows = inputs.rows[split]
        name = "test rows with labels" if split == "test" else f"{rows.name} rows"
        pairs.append((name, f"{len(rows.ids):,}"))
    facts = report.facts
    if facts:
        shares = zip(CLASS_NAMES, facts.classes, strict=True)
        pairs = [
            ("training rows", f"{facts.train:,}"),
            *pairs,
            ("prompt groups", f"{facts.prompts:,}"),
            ("classes", ", ".join(f"{name} {share:.1%}" for name, share in shares)),
        ]
        if facts.soft:
            warning = ", predicted by models that may have seen validation labels"
            text = f"{facts.soft:,} rows{warning if facts.predicted else ''}"
            pairs.append(("soft labels", text))
        pairs += [
            ("split", f"{facts.split}, {facts.folds} folds"),
            ("text", facts.text),
            ("data fingerprint", facts.data),
        ]
    else:
        labels = inputs.rows["valid"].known_labels
        counts = [(labels == number).mean() for number in range(len(CLASS_NAMES))]
        shares = zip(CLASS_NAMES, counts, strict=True)
        pairs.append(("classes", ", ".join(f"{name} {share:.1%}" for name, share in shares)))
    return pairs


def describe_rows(report: "Report") -> str:
    """Explain what the validation rows are."""
    name = report.inputs.validation
    if name == LABELLED:
        return (
            "Labelled rows are those of the truth file that the predictions are of. The class "
            "prior is that of these very rows: no constant does better."
        )
    if name == "holdout":
        return "Holdout rows are training rows set aside: the models here were not trained on them."
    rows = "Out-of-fold rows are all training rows"
    if name != "out-of-fold":
        rows = f"The rows of {name} are a share of the training rows"
    return (
        f"{rows}, each predicted by a model that was not trained on it: the rows are split into "
        "folds, and for each fold a model is trained on the others."
    )


def describe_resampling(report: "Report") -> str:
    """Explain what the intervals come from."""
    resampled = report.inputs.resampled
    text = (
        "The brackets hold a 95% bootstrap interval: the log loss is computed again on 1,000 "
        f"random resamples of the {resampled}, and 95% of the results lie inside."
    )
    if resampled == "prompts":
        return text
    return (
        f"{text} The truth file does not tell which rows share a prompt; where some do, intervals "
        "by prompts are as a rule wider."
    )


def summarise_resampling(report: "Report") -> str:
    """Say the same in the title of a table."""
    if report.inputs.resampled == "prompts":
        return "intervals resample prompts"
    return "intervals resample rows, as prompts are unknown"


def _describe_lead(pair: PairedDifference) -> str:
    """Return how far the pair's model is below the other, above 0, with the interval."""
    low, high = format_difference(-pair.high), format_difference(-pair.low)
    return f"{-pair.mean:.4f} [{low}, {high}]"


def _judge_lead(pair: PairedDifference, resampled: Resampled) -> str:
    if pair.verdict == "better":
        return "the lead is clear, since its whole interval is above 0"
    if pair.high < 0:
        return f"the lead is not clear, since there are too few {resampled}"
    return "the lead is not clear, since its interval contains 0"
