"""Run sentence-transformers at its best: its trainer, autocast, rows grouped by length."""

import tempfile
import time
from collections.abc import Iterator

import numpy as np
import torch
from bout import Job, SecondEpoch, length_batches, report
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import SoftmaxLoss


class LengthGroups(DefaultBatchSampler):
    """Batches of rows of like length in random order, which its own samplers do not offer."""

    lengths: np.ndarray

    def __iter__(self) -> Iterator[list[int]]:
        yield from length_batches(self.lengths, self.batch_size)


def main() -> None:
    """Train and predict through sentence-transformers, with the two texts of a side joined."""
    job = Job.from_arguments()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(job.precision)
    model = SentenceTransformer(
        job.backbone, device=job.device, model_kwargs={"torch_dtype": torch.float32}
    )
    model.max_seq_length = job.tokens
    loss = SoftmaxLoss(model, model.get_embedding_dimension(), 3)
    texts = {
        name: [[f"{row['prompt']}\n{row[side]}" for row in rows] for side in "ab"]
        for name, rows in (("train", job.train), ("predict", job.predict))
    }
    LengthGroups.lengths = np.array([[len(text) for text in side] for side in texts["train"]]).max(
        0
    )
    rows = Dataset.from_dict(
        {
            "a": texts["train"][0],
            "b": texts["train"][1],
            "label": [row["label"] for row in job.train],
        }
    )
    clock = SecondEpoch()
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=scratch,
            use_cpu=job.device == "cpu",
            num_train_epochs=2,
            per_device_train_batch_size=job.batch,
            learning_rate=2e-5,
            bf16=job.precision == "bf16",
            fp16=job.precision == "fp16",
            batch_sampler=LengthGroups,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        SentenceTransformerTrainer(
            model, arguments, train_dataset=rows, loss=loss, callbacks=[clock]
        ).train()
    if half is not None:
        model.to(half)
    head = loss.classifier.float()
    for _ in range(2):
        begun = time.perf_counter()
        u, v = (
            model.encode(
                side, batch_size=4 * job.batch, convert_to_tensor=True, show_progress_bar=False
            ).float()
            for side in texts["predict"]
        )
        with torch.no_grad():
            head(torch.cat([u, v, (u - v).abs()], 1)).softmax(1).cpu()
        predicted = time.perf_counter() - begun
    report(job, clock.ready, clock.seconds, predicted)


if __name__ == "__main__":
    main()
