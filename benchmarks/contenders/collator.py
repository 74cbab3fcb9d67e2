"""Run transformers' Trainer as in its examples: padding collator, lengths grouped, autocast."""

import tempfile
import time
from itertools import chain
from typing import Any

import numpy as np
import torch
from bout import Job, SecondEpoch, length_batches, report, wait_for
from torch import nn
from transformers import (
    AutoModel,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


class GroupingTrainer(Trainer):
    """Group rows by length, which Trainer itself does for many rows of one sequence only."""

    def _get_train_sampler(self, train_dataset: Any = None) -> list[int]:
        lengths = np.array([row["length"] for row in self.train_dataset.rows])
        return list(chain.from_iterable(length_batches(lengths, self.args.train_batch_size)))


class Siamese(nn.Module):
    """Mean-pooled vectors of both sides, their difference and product, a linear classifier."""

    def __init__(self, backbone: str):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(backbone, dtype=torch.float32)
        self.classifier = nn.Linear(4 * self.encoder.config.hidden_size, 3)

    def forward(self, a: dict, b: dict, labels: torch.Tensor | None = None) -> dict:
        """Return loss and logits."""
        u, v = (self._vectors(side) for side in (a, b))
        logits = self.classifier(torch.cat([u, v, u - v, u * v], 1))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        return {"loss": loss, "logits": logits}

    def _vectors(self, side: dict) -> torch.Tensor:
        mask = side["attention_mask"][..., None]
        return (self.encoder(**side).last_hidden_state * mask).sum(1) / mask.sum(1)


def main() -> None:
    """Train and predict through Trainer."""
    job = Job.from_arguments()
    tokenizer = AutoTokenizer.from_pretrained(job.backbone)
    pad = DataCollatorWithPadding(tokenizer)
    counts = [0, 0]
    seconds = []

    def encoded(rows: list[dict]) -> list[dict]:
        begun = time.perf_counter()
        settings = {"truncation": True, "max_length": job.tokens}
        a, b = (
            tokenizer([r["prompt"] for r in rows], [r[s] for r in rows], **settings) for s in "ab"
        )
        seconds.append(time.perf_counter() - begun)
        return [
            {
                "a": {name: a[name][i] for name in a},
                "b": {name: b[name][i] for name in b},
                "labels": row["label"],
                "length": max(len(a["input_ids"][i]), len(b["input_ids"][i])),
            }
            for i, row in enumerate(rows)
        ]

    def collate(rows: list[dict]) -> dict:
        sides = {side: pad([row[side] for row in rows]) for side in "ab"}
        for side in sides.values():
            counts[0] += int(side["attention_mask"].sum())
            counts[1] += side["attention_mask"].numel()
        return {side: dict(batch) for side, batch in sides.items()} | {
            "labels": torch.tensor([row["labels"] for row in rows])
        }

    class Rows(torch.utils.data.Dataset):
        def __init__(self, rows: list[dict]):
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, place: int) -> dict:
            return self.rows[place]

    train = encoded(job.train)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            use_cpu=job.device == "cpu",
            num_train_epochs=2,
            per_device_train_batch_size=job.batch,
            per_device_eval_batch_size=4 * job.batch,
            learning_rate=2e-5,
            bf16=job.precision == "bf16",
            fp16=job.precision == "fp16",
            bf16_full_eval=job.precision == "bf16",
            fp16_full_eval=job.precision == "fp16",
            remove_unused_columns=False,
            label_names=["labels"],
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = SecondEpoch()
        trainer = GroupingTrainer(
            Siamese(job.backbone),
            arguments,
            data_collator=collate,
            train_dataset=Rows(train),
            callbacks=[clock],
        )
        trainer.train()
        padding = 1 - counts[0] / counts[1]
        for _ in range(2):
            begun = time.perf_counter()
            trainer.predict(Rows(sorted(encoded(job.predict), key=lambda row: -row["length"])))
            wait_for(job.device)
            predicted = time.perf_counter() - begun
    report(
        job,
        clock.ready,
        clock.seconds,
        predicted,
        **{"padding": padding, "tokenise rows/s": len(job.train) / seconds[0]},
    )


if __name__ == "__main__":
    main()
