"""A person's way through Kaggle with kit, as a program of its own: run by test_story in a process without any patch.

Prints one JSON line with what it saw; progress goes to stderr.
"""

import json
import sys
from pathlib import Path

from kit.recipe.load import load_recipe
from kit.remote import download, kernels, outputs, push, sources, submissions, submit
from kit.remote.client import Client
from kit.remote.job import infer_job, train_job
from kit.remote.retry import Patience


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def main(home: Path) -> dict[str, object]:
    with Client(patience=Patience(first_s=0.01, say=tell)) as client:
        raw = download.download(client, home / "raw", say=tell)
        train = push.push(client, train_job(load_recipe("tiny-electra"), fold="0"), home / "train", say=tell)
        kernels.wait(client, train.ref, poll_s=0, say=tell)
        source = f"{train.ref.owner}/{train.ref.slug}"
        infer = push.push(client, infer_job(sources.resolve(client, [source], say=tell)), home / "infer", say=tell)
        state = kernels.wait(client, infer.ref, poll_s=0, say=tell)
        output = outputs.download(client, infer.ref, home / "output", say=tell)
        book = home / "submissions/ledger.csv"
        entry = submit.submit_kernel(client, str(infer.ref), "the whole way", book=book, say=tell)
        scored = submissions.wait(client, entry, poll_s=0, book=book, say=tell)
    return {
        "files": sorted(raw.sizes),
        "state": state.status,
        "output": list(output.files),
        "score": scored.public_score,
        "kernel": scored.kernel,
        "runs": scored.runs,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
