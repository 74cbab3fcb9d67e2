"""A person's way through Kaggle with kit, as a program of its own: run by test_story in a process without any patch.

Prints one JSON line with what it saw; progress goes to stderr.
"""

import json
import sys
from pathlib import Path

from kit.kaggle import submit
from kit.kaggle.client import Client
from kit.kaggle.download import download_competition
from kit.kaggle.job import infer_job, train_job
from kit.kaggle.kernels import wait_for_kernel
from kit.kaggle.outputs import download_output
from kit.kaggle.push import push_kernel
from kit.kaggle.retry import RetryPolicy
from kit.kaggle.sources import resolve_sources
from kit.kaggle.submissions import wait_for_score
from kit.recipe.load import load_recipe


def tell(text: str) -> None:
    print(text, file=sys.stderr)


def main(home: Path) -> dict[str, object]:
    with Client(patience=RetryPolicy(first_s=0.01, say=tell)) as client:
        raw = download_competition(client, home / "raw", say=tell)
        train = push_kernel(
            client, train_job(load_recipe("tiny-electra"), fold="0"), home / "train", say=tell
        )
        wait_for_kernel(client, train.ref, poll_s=0, say=tell)
        source = f"{train.ref.owner}/{train.ref.slug}"
        infer = push_kernel(
            client, infer_job(resolve_sources(client, [source], say=tell)), home / "infer", say=tell
        )
        state = wait_for_kernel(client, infer.ref, poll_s=0, say=tell)
        output = download_output(client, infer.ref, home / "output", say=tell)
        book = home / "submissions/ledger.csv"
        entry = submit.submit_kernel(
            client, str(infer.ref), "the whole way", ledger_path=book, say=tell
        )
        scored = wait_for_score(client, entry, poll_s=0, ledger_path=book, say=tell)
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
