"""Run pairjudge, a library of a winner of the first competition on this task, as its guide has it.

It trains one order of the answers a step, so that both orders are given to it as rows, as kit has
them. On a CPU it computes in float32 only, and nowhere does it take rows of like length together.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from bout import Job, report
from pairjudge import PairwiseJudge, training
from pairjudge.validation import WINNER_COLUMNS

SWAPPED = (1, 0, 2)

# It refuses to validate on prompts that it trains on, and validation is not timed.
UNRELATED = [
    {"prompt": "Which of the two is a fruit?", "a": "The apple is.", "b": "The stone.", "label": 0}
]


def make_frame(rows: list[dict[str, Any]], *, both_orders: bool) -> pd.DataFrame:
    """Return rows of one turn in pairjudge's columns, those with the answers swapped after them."""
    orders = [("a", "b", (0, 1, 2)), ("b", "a", SWAPPED)][: 1 + both_orders]
    records = []
    for first, second, labels in orders:
        for place, row in enumerate(rows):
            winner = dict.fromkeys(WINNER_COLUMNS, 0)
            winner[WINNER_COLUMNS[labels[row["label"]]]] = 1
            texts = {
                "prompt": [row["prompt"]],
                "response_a": [row[first]],
                "response_b": [row[second]],
            }
            records.append({"id": f"{first}{place}", **texts, **winner})
    return pd.DataFrame(records)


def main() -> None:
    """Train two epochs, and predict in both orders."""
    job = Job.from_arguments()
    ends: list[tuple[float, float]] = []
    evaluate = training._evaluate

    def timed_evaluation(*arguments: Any) -> dict[str, float]:
        began = time.perf_counter()
        metrics = evaluate(*arguments)
        ends.append((began, time.perf_counter()))
        return metrics

    training._evaluate = timed_evaluation
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_frame(job.train, both_orders=True).to_parquet(folder / "train.parquet")
        frame = make_frame(job.predict, both_orders=False)
        make_frame(UNRELATED, both_orders=False).to_parquet(folder / "valid.parquet")
        rank = job.options["rank"]
        settings = training.JudgeTrainConfig(
            train_path=str(folder / "train.parquet"),
            validation_path=str(folder / "valid.parquet"),
            model_name=job.backbone,
            local_files_only=True,
            max_length=job.tokens,
            lora_r=rank,
            lora_alpha=rank // 2,
            lora_dropout=0.0,
            output_dir=str(folder / "judge"),
            n_epochs=2,
            per_device_train_batch_size=2 * job.batch,
            gradient_accumulation_steps=1,
            warmup_steps=1,
            device=job.device,
            provenance=job.options.get("provenance", {}),
        )
        ready = time.time()
        training.train(settings)
        judge = PairwiseJudge.from_pretrained(str(folder / "judge/merged"), device=job.device)
        for _ in range(2):
            begun = time.perf_counter()
            probabilities = judge.predict_proba(frame, swap_debias=True, batch_size=4 * job.batch)
            predicted = time.perf_counter() - begun

    labels = np.array([row["label"] for row in job.predict])
    chosen = probabilities[np.arange(len(labels)), labels]
    loss = float(-np.log(np.clip(chosen, 1e-9, 1)).mean())
    report(job, ready, ends[1][0] - ends[0][1], predicted, **{"log loss": loss})


if __name__ == "__main__":
    main()
