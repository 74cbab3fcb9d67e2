"""Run transformers' sequence classifier over a decoder as in peft's examples.

A row is one text of prompt and both answers; with both orders at prediction, as kit has them.
"""

import tempfile
import time
from typing import Any

import numpy as np
import torch
from bout import Job, SecondEpoch, report, wait_for
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Rows(torch.utils.data.Dataset):
    """Tokenised rows."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


def main() -> None:
    """Train and predict through Trainer."""
    job = Job.from_arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job.backbone)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(job.precision, torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(
        job.backbone, num_labels=3, dtype=dtype
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    rank = job.options["rank"]
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=rank / 2,
        lora_dropout=job.options["dropout"],
        target_modules=LINEAR,
    )
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

    seconds = []

    def encoded(rows: list[dict], first: str = "a", second: str = "b") -> list[dict]:
        begun = time.perf_counter()
        texts = [
            f"## Prompt\n{row['prompt']}\n\n## Response A\n{row[first]}\n\n"
            f"## Response B\n{row[second]}\n\nVerdict:"
            for row in rows
        ]
        ids = tokenizer(texts, truncation=True, max_length=job.tokens)["input_ids"]
        seconds.append(time.perf_counter() - begun)
        return [{"input_ids": i, "labels": r["label"]} for i, r in zip(ids, rows, strict=True)]

    # As kit, it learns from both orders of the answers in the same step.
    swapped = [row | {"label": (1, 0, 2)[row["label"]]} for row in job.train]
    both = zip(encoded(job.train), encoded(swapped, "b", "a"), strict=True)
    train = [one for pair in both for one in pair]
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            use_cpu=job.device == "cpu",
            num_train_epochs=2,
            per_device_train_batch_size=2 * job.batch,
            per_device_eval_batch_size=4 * job.batch,
            learning_rate=2e-4,
            bf16=job.precision == "bf16",
            fp16=job.precision == "fp16",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        clock = SecondEpoch()
        trainer = Trainer(
            model,
            arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=Rows(train),
            callbacks=[clock],
        )
        trainer.train()
        for _ in range(2):
            begun = time.perf_counter()
            logits = [
                trainer.predict(Rows(encoded(job.predict, *order))).predictions
                for order in ("ab", "ba")
            ]
            wait_for(job.device)
            predicted = time.perf_counter() - begun

    straight, other = (torch.from_numpy(np.asarray(one)).softmax(1) for one in logits)
    probabilities = (straight + other[:, [1, 0, 2]]) / 2
    labels = torch.tensor([row["label"] for row in job.predict])
    loss = torch.nn.functional.nll_loss(probabilities.clamp_min(1e-9).log(), labels)
    report(
        job,
        clock.ready,
        clock.seconds,
        predicted,
        **{"log loss": float(loss), "tokenise rows/s": len(job.train) / seconds[0]},
    )


if __name__ == "__main__":
    main()
