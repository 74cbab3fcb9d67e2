"""A planted key, and everything that a user, a log or a bug report could see of it: nothing."""

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
FAULTS = [
    {"status": 400, "message": "echo {secret}"},
    {"status": 401, "message": "bad key {secret}"},
    {"status": 403, "message": "{secret}"},
    {"status": 500, "message": "Authorization: Basic {secret}"},
    {"status": 200, "raw": b"<html>{secret}</html>"},
    {"drop": True},
]
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
        lambda client, folder: submit.submit_kernel(client, str(REF), "m", book=folder / "b"),
    ),
    "quota": ("GetAcceleratorQuotaStatistics", lambda client, folder: read_quota(client)),
}


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
    object.__setattr__(client, "_secrets", [*client._secrets, *SECRETS])
    fake.kernel_script = ["COMPLETE"]
    fake.save_kernel({"slug": "kituser/kit-train", "text": ""})
    method, act = STEPS[step]
    for fault in FAULTS:
        told = {k: v.format(secret=secret) if isinstance(v, str) else v for k, v in fault.items()}
        fake.faults.clear()
        fake.fail(method, times=99, **told)
        with pytest.raises(KitError) as caught:
            act(client, tmp_path)
        shown = (
            "".join(traceback.format_exception(caught.value))
            + repr(caught.value)
            + str(vars(caught.value))
        )
        assert not [s for s in SECRETS if s in shown + caplog.text + heard.text]


def test_the_client_itself_shows_none(client: Client) -> None:
    shown = repr(client) + repr(client.credential) + str(client.credential) + repr(client._search)
    assert not [secret for secret in SECRETS if secret in shown]
