"""Check that a secret appears in no error, traceback, log line or message."""

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from captured import SECRETS, Heard
from fake_kaggle import FakeKaggle

from kit.errors import KitError
from kit.kaggle import submit
from kit.kaggle.client import Client
from kit.kaggle.download import download_competition
from kit.kaggle.job import train_job
from kit.kaggle.kernels import KernelRef, kernel_status
from kit.kaggle.outputs import download_output
from kit.kaggle.push import push_kernel
from kit.kaggle.quota import read_quota
from kit.recipe.load import load_recipe

REF = KernelRef("kituser", "kit-train", 1)

# By step of the workflow: Kaggle's method that fails, and our function that calls it.
STEPS: dict[str, tuple[str, Callable[[Client, Path], object]]] = {
    "download": (
        "ListDataFiles",
        lambda client, folder: download_competition(client, folder / "raw"),
    ),
    "archive": ("_blob", lambda client, folder: download_competition(client, folder / "raw")),
    "push": (
        "SaveKernel",
        lambda client, folder: push_kernel(
            client, train_job(load_recipe("tiny-electra")), folder / "k"
        ),
    ),
    "status": ("GetKernelSessionStatus", lambda client, folder: kernel_status(client, REF)),
    "output": ("_blob", lambda client, folder: download_output(client, REF, folder / "out")),
    "submit": (
        "CreateCodeSubmission",
        lambda client, folder: submit.submit_kernel(
            client, str(REF), "m", ledger_path=folder / "ledger.csv"
        ),
    ),
    "quota": ("GetAcceleratorQuotaStatistics", lambda client, folder: read_quota(client)),
}


def faults(secret: str) -> list[dict]:
    """Failures whose answers repeat a secret."""
    return [
        {"status": 400, "message": f"echo {secret}"},
        {"status": 401, "message": f"bad key {secret}"},
        {"status": 403, "message": secret},
        {"status": 500, "message": f"Authorization: Basic {secret}"},
        {"status": 200, "raw": f"<html>{secret}</html>".encode()},
        {"drop": True},
    ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("secret", SECRETS)
def test_no_failure_shows_a_secret(
    client: Client,
    fake: FakeKaggle,
    tmp_path: Path,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
    step: str,
    secret: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    client._secrets.extend(SECRETS)
    fake.kernel_script = ["COMPLETE"]
    fake.save_kernel({"slug": "kituser/kit-train", "text": ""})

    method, call = STEPS[step]
    for fault in faults(secret):
        fake.faults.clear()
        fake.fail(method, times=99, **fault)
        with pytest.raises(KitError) as caught:
            call(client, tmp_path)

        error = caught.value
        shown = "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))
        shown += caplog.text + heard.text
        assert [secret for secret in SECRETS if secret in shown] == []


def test_the_client_itself_shows_no_secret(client: Client) -> None:
    shown = repr(client) + repr(client.credential) + str(client.credential) + repr(client._search)
    assert [secret for secret in SECRETS if secret in shown] == []
