"""Run the padded notebook: sides padded to the budget, a forward pass for each, float32."""

import time

import torch
from bout import Job, report, wait_for
from torch import nn
from transformers import AutoModel, AutoTokenizer


class Siamese(nn.Module):
    """[CLS] vectors of both sides, their difference and product, a linear classifier."""

    def __init__(self, backbone: str):
        super().__init__()
        self.encoder = AutoModel.from_pretrained(backbone, dtype=torch.float32)
        self.classifier = nn.Linear(4 * self.encoder.config.hidden_size, 3)

    def forward(self, a: dict, b: dict) -> torch.Tensor:
        """Return logits."""
        u, v = (self.encoder(**side).last_hidden_state[:, 0] for side in (a, b))
        return self.classifier(torch.cat([u, v, u - v, u * v], 1))


def main() -> None:
    """Train and predict as most notebooks do."""
    job = Job.from_arguments()
    tokenizer = AutoTokenizer.from_pretrained(job.backbone)
    model = Siamese(job.backbone).to(job.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    def encoded(rows: list[dict]) -> list[tuple]:
        begun = time.perf_counter()
        settings = {
            "truncation": True,
            "max_length": job.tokens,
            "padding": "max_length",
            "return_tensors": "pt",
        }
        sides = [
            tokenizer([r["prompt"] for r in rows], [r[s] for r in rows], **settings) for s in "ab"
        ]
        seconds.append(time.perf_counter() - begun)
        labels = torch.tensor([row["label"] for row in rows])
        cut = range(0, len(rows), job.batch)
        return [
            (
                *({k: v[i : i + job.batch] for k, v in side.items()} for side in sides),
                labels[i : i + job.batch],
            )
            for i in cut
        ]

    def moved(batch: tuple) -> tuple:
        a, b, labels = batch
        a, b = ({k: v.to(job.device) for k, v in side.items()} for side in (a, b))
        return a, b, labels.to(job.device)

    seconds: list[float] = []
    train = encoded(job.train)
    ready = time.time()
    for _ in range(2):
        model.train()
        begun = time.perf_counter()
        for a, b, labels in map(moved, train):
            nn.functional.cross_entropy(model(a, b), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        wait_for(job.device)
        trained = time.perf_counter() - begun
    model.eval()
    for _ in range(2):
        begun = time.perf_counter()
        with torch.no_grad():
            for a, b, _labels in map(moved, encoded(job.predict)):
                model(a, b).softmax(1).cpu()
        predicted = time.perf_counter() - begun
    tokens = sum(int(side["attention_mask"].sum()) for a, b, _ in train for side in (a, b))
    padded = 2 * job.tokens * len(job.train)
    rate = len(job.train) / seconds[0]
    report(
        job, ready, trained, predicted, **{"padding": 1 - tokens / padded, "tokenise rows/s": rate}
    )


if __name__ == "__main__":
    main()
