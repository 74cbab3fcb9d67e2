"""Pick rows to read: those on which models disagree, and those that the best model gets most wrong.

Use `find_disagreements` and `find_worst`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kit.evaluation.metrics import EPS, row_losses
from kit.reporting.inputs import ReportInputs
from kit.task import TEXTS

CASES = 8  # rows shown of those with labels
TEST_CASES = 3  # rows shown of test rows without labels
WORST_CASES = 5  # rows shown of those that the best model gets wrong


@dataclass(frozen=True)
class RowCase:
    """One row to read.

    Attributes:
        rows: where it is from: "holdout", "out-of-fold", …, or "test".
        label: the index into `CLASSES`, None where it is not known.
        probabilities: three for each model, by name.
        texts: the turns of prompt, answer A and answer B; empty where there is no data folder.
        divergence: of a row that models disagree on, the Jensen-Shannon divergence of the models
            that rank the rows, in nats.
        loss: of a row that the best model gets wrong, that model's loss.
    """

    rows: str
    id: int
    label: int | None
    probabilities: dict[str, tuple[float, ...]]
    texts: tuple[tuple[str, ...], ...]
    divergence: float | None = None
    loss: float | None = None


def find_disagreements(
    inputs: ReportInputs, split: str, number: int = CASES
) -> tuple[RowCase, ...]:
    """Return the rows with the largest divergence between models, at most one for each prompt.

    Blends, which lie between their members, and models with a constant prediction do not count
    in the divergence, but their probabilities are in each case. Labelled rows are ranked only if
    two other models are there. Test rows without labels are returned in their order if there are
    no more than `number`, as in the files that Kaggle gives out.
    """
    rows = inputs.rows[split]
    models = inputs.models_with(split)
    ranking = [model for model in models if not (model.saved or model.is_constant(split))]
    if not models or (rows.labels is not None and len(ranking) < 2):
        return ()

    divergence = np.zeros(len(rows.ids))
    if ranking:
        divergence = jensen_shannon(np.stack([model.predictions[split] for model in ranking]))
    if rows.labels is None and len(rows.ids) <= number:
        positions = list(range(len(rows.ids)))
    else:
        positions = _first_of_prompts(divergence, rows.groups, number)
    return _make_cases(inputs, split, positions, divergences=divergence)


def find_worst(
    inputs: ReportInputs, split: str, name: str, number: int = WORST_CASES
) -> tuple[RowCase, ...]:
    """Return the rows with the largest loss of one model, at most one for each prompt."""
    rows = inputs.rows[split]
    model = next(model for model in inputs.models_with(split) if model.name == name)
    losses = row_losses(model.predictions[split], rows.known_labels)
    return _make_cases(inputs, split, _first_of_prompts(losses, rows.groups, number), losses=losses)


def _first_of_prompts(values: np.ndarray, groups: np.ndarray, number: int) -> list[int]:
    """Return the positions of the largest values (N,), falling, at most one of each prompt."""
    order = np.argsort(-values, kind="stable")
    first_of_prompt = np.unique(groups[order], return_index=True)[1]
    return order[np.sort(first_of_prompt)][:number].tolist()


def _make_cases(
    inputs: ReportInputs,
    split: str,
    positions: Sequence[int],
    divergences: np.ndarray | None = None,
    losses: np.ndarray | None = None,
) -> tuple[RowCase, ...]:
    rows = inputs.rows[split]
    models = inputs.models_with(split)
    texts = inputs.read_texts(split, np.array(positions, np.int64))
    cases = []
    for text_row, position in enumerate(positions):
        turns = [texts[name][text_row].as_py() for name in TEXTS] if texts else []
        case = RowCase(
            rows=rows.name,
            id=int(rows.ids[position]),
            label=None if rows.labels is None else int(rows.labels[position]),
            probabilities={
                model.name: tuple(model.predictions[split][position].tolist()) for model in models
            },
            texts=tuple(tuple(turn or "" for turn in text) for text in turns),
            divergence=None if divergences is None else float(divergences[position]),
            loss=None if losses is None else float(losses[position]),
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
