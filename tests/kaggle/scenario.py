"""Go from the download to a scored submission; test_scenario.py runs this in a process of its own.

Prints the result as one line of JSON, and progress to stderr.
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


def log(text: str) -> None:
    print(text, file=sys.stderr)


def main(home: Path) -> dict[str, object]:
    with Client(patience=RetryPolicy(first_s=0.01, say=log)) as client:
        raw = download_competition(client, home / "raw", say=log)

        job = train_job(load_recipe("tiny-electra"), fold="0")
        training = push_kernel(client, job, home / "train", say=log)
        wait_for_kernel(client, training.ref, poll_s=0, say=log)

        sources = resolve_sources(client, [training.ref.name], say=log)
        inference = push_kernel(client, infer_job(sources), home / "infer", say=log)
        state = wait_for_kernel(client, inference.ref, poll_s=0, say=log)
        output = download_output(client, inference.ref, home / "output", say=log)

        book = home / "submissions/ledger.csv"
        entry = submit.submit_kernel(
            client, str(inference.ref), "the whole way", ledger_path=book, say=log
        )
        scored = wait_for_score(client, entry, poll_s=0, ledger_path=book, say=log)

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
