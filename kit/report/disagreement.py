"""Single rows to read: those on which the models disagree most, with what each of them says."""

from dataclasses import dataclass

import numpy as np

from kit.evaluation.metrics import EPS
from kit.report.inputs import ReportInputs
from kit.task import TEXTS

CASES, TEST_CASES = (
    8,
    3,
)  # rows shown: of labelled rows, and of test rows that nobody knows the labels of


@dataclass(frozen=True)
class DisagreementCase:
    """One row.

    Attributes:
        rows: which rows it is of: "holdout", "out-of-fold" or "test".
        label: the index into `CLASSES`, None where nobody knows it.
        divergence: how much the models that rank the rows disagree, see `cases` and `divergence`.
        probabilities: of each model by name, three.
        texts: the turns of prompt, answer A and answer B.
    """

    rows: str
    id: int
    label: int | None
    divergence: float
    probabilities: dict[str, tuple[float, float, float]]
    texts: tuple[tuple[str, ...], ...]


def find_cases(
    evidence: ReportInputs, split: str, number: int = CASES
) -> tuple[DisagreementCase, ...]:
    """The rows with the largest divergence, one of each prompt, the largest first; equal ones in their order.

    Blends, which lie between their members, and models that say the same of every row have no say in the order, but
    stand in each row's table. Without two models that do, there is nothing to rank labelled rows by.

    Of test rows without labels all are shown in their order where they are few, as competitions show them.
    """
    rows, models = evidence.rows[split], evidence.having(split)
    ranking = [
        place for place, model in enumerate(models) if not (model.saved or model.constant(split))
    ]
    if not models or (rows.labels is not None and len(ranking) < 2):
        return ()
    each = np.stack([model.predictions[split] for model in models])
    apart = divergence(each[ranking]) if ranking else np.zeros(len(rows.ids))
    if rows.labels is None and len(rows.ids) <= number:
        places = np.arange(len(rows.ids))
    else:
        order = np.argsort(-apart, kind="stable")
        places = order[np.sort(np.unique(rows.groups[order], return_index=True)[1])][:number]
    texts = evidence.texts(split, places)
    return tuple(
        DisagreementCase(
            rows.name,
            int(rows.ids[place]),
            None if rows.labels is None else int(rows.labels[place]),
            float(apart[place]),
            {model.name: tuple(each[i, place].tolist()) for i, model in enumerate(models)},
            tuple(tuple(turn or "" for turn in texts[name][row].as_py()) for name in TEXTS),
        )
        for row, place in enumerate(places.tolist())
    )


def divergence(members: np.ndarray) -> np.ndarray:
    """The Jensen-Shannon divergence of each row's predictions (M, N, 3), in nats: (N,), 0 where all say the same.

    The entropy of the mean less the mean of the entropies (Lin, IEEE Transactions on Information Theory 37(1), 1991).
    """
    return np.maximum(_entropy(members.mean(axis=0)) - _entropy(members).mean(axis=0), 0)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    return -(probabilities * np.log(np.maximum(probabilities, EPS))).sum(axis=-1)
