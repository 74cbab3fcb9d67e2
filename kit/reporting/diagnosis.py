"""Look behind a model's log loss: its reliability, its confusions, its likeness to other models.

Use `diagnose_models` and `correlate_models`; `find_cases` picks the rows on which models disagree.
"""

from dataclasses import dataclass

import numpy as np

from kit.evaluation.metrics import EPS, reliability_bins
from kit.reporting.inputs import ReportInputs
from kit.task import CLASSES, TEXTS

CASES = 8  # rows shown of those with labels
TEST_CASES = 3  # rows shown of test rows without labels


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows of similar confidence, which is the probability of the most probable class."""

    rows: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Diagnosis:
    """One model on the rows of one split.

    Attributes:
        bins: the bins of the reliability diagram that have rows, by rising confidence.
        confusion: row counts by true class and by most probable class, in the order of `CLASSES`.
    """

    model: str
    bins: tuple[ReliabilityBin, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Correlation:
    """Correlations of the models' predictions, None for a model that always predicts the same."""

    models: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class DisagreementCase:
    """One row on which models disagree.

    Attributes:
        rows: where it is from: "holdout", "out-of-fold" or "test".
        label: the index into `CLASSES`, None where it is not known.
        divergence: the Jensen-Shannon divergence of the models that rank the rows, in nats.
        probabilities: three for each model, by name.
        texts: the turns of prompt, answer A and answer B.
    """

    rows: str
    id: int
    label: int | None
    divergence: float
    probabilities: dict[str, tuple[float, ...]]
    texts: tuple[tuple[str, ...], ...]


def diagnose_models(inputs: ReportInputs, split: str) -> tuple[Diagnosis, ...]:
    """Compute reliability and confusion of every model that is not a reference."""
    labels = inputs.rows[split].known_labels
    diagnoses = []
    for model in inputs.models_with(split):
        probabilities = model.predictions[split]
        counts, confidences, accuracies = reliability_bins(probabilities, labels)
        # An empty bin has no means.
        bins = tuple(
            ReliabilityBin(int(counts[i]), float(confidences[i]), float(accuracies[i]))
            for i in np.flatnonzero(counts)
        )

        # Unlike `confusion[...] += 1`, `np.add.at` counts every row of the same pair of classes.
        confusion = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
        np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
        diagnoses.append(Diagnosis(model.name, bins, tuple(map(tuple, confusion.tolist()))))
    return tuple(diagnoses)


def correlate_models(inputs: ReportInputs, split: str) -> Correlation:
    """Compute Pearson's correlation of the probabilities of every two models.

    Each class is centred by its own mean first, so that a class prior that the models share does
    not count as likeness.
    """
    models = inputs.models_with(split)
    probabilities = np.stack([model.predictions[split] for model in models])  # (M, N, 3)
    centred = probabilities - probabilities.mean(axis=1, keepdims=True)
    centred = centred.reshape(len(models), -1)

    norms = np.sqrt((centred**2).sum(axis=1))
    # A constant prediction has no correlation; its norm is not exactly 0 because of rounding.
    constant = norms < 1e-9
    unit = centred / np.where(constant, 1, norms)[:, None]
    values = np.clip(unit @ unit.T, -1, 1).astype(object)
    values[constant[:, None] | constant] = None
    return Correlation(tuple(model.name for model in models), tuple(map(tuple, values.tolist())))


def find_cases(
    inputs: ReportInputs, split: str, number: int = CASES
) -> tuple[DisagreementCase, ...]:
    """Return the rows with the largest divergence between models, at most one for each prompt.

    Blends, which lie between their members, and models with a constant prediction do not count
    in the divergence, but their probabilities are in each case. Labelled rows are ranked only if
    two other models are there. Test rows without labels are returned in their order if there are
    no more than `number`, as in the files that Kaggle gives out.
    """
    rows = inputs.rows[split]
    models = inputs.models_with(split)
    ranking = [
        position
        for position, model in enumerate(models)
        if not (model.saved or model.is_constant(split))
    ]
    if not models or (rows.labels is not None and len(ranking) < 2):
        return ()

    probabilities = np.stack([model.predictions[split] for model in models])  # (M, N, 3)
    divergence = np.zeros(len(rows.ids))
    if ranking:
        divergence = jensen_shannon(probabilities[ranking])

    if rows.labels is None and len(rows.ids) <= number:
        positions = np.arange(len(rows.ids))
    else:
        # Keep the first row of each prompt, in the order of falling divergence.
        order = np.argsort(-divergence, kind="stable")
        first_of_prompt = np.unique(rows.groups[order], return_index=True)[1]
        positions = order[np.sort(first_of_prompt)][:number]

    texts = inputs.read_texts(split, positions)
    cases = []
    for text_row, position in enumerate(positions.tolist()):
        turns = [texts[name][text_row].as_py() for name in TEXTS]
        case = DisagreementCase(
            rows=rows.name,
            id=int(rows.ids[position]),
            label=None if rows.labels is None else int(rows.labels[position]),
            divergence=float(divergence[position]),
            probabilities={
                model.name: tuple(probabilities[i, position].tolist())
                for i, model in enumerate(models)
            },
            texts=tuple(tuple(turn or "" for turn in text) for text in turns),
        )
        cases.append(case)
    return tuple(cases)


def jensen_shannon(members: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence of each row's predictions (M, N, 3), in nats: (N,).

    It is the entropy of the mean minus the mean of the entropies, and 0 where all members agree
    (Lin, IEEE Transactions on Information Theory 37(1), 1991).
    """
    divergence = _entropy(members.mean(axis=0)) - _entropy(members).mean(axis=0)
    # Rounding can leave it a little below 0.
    return np.maximum(divergence, 0)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(np.maximum(probabilities, EPS))).sum(axis=-1)
