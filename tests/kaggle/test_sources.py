"""--runs: kernels that have completed, runs that came from Kaggle, and runs that have to be published."""

import json
from pathlib import Path

import pytest
from fake_kaggle import OWNER, FakeKaggle

from kit.errors import KitError
from kit.kaggle import collect, errors
from kit.kaggle.client import Client
from kit.kaggle.job import Source
from kit.kaggle.sources import resolve_sources


@pytest.fixture
def complete(fake: FakeKaggle) -> None:
    """Two training kernels that have ended well."""
    fake.kernel_script = ["COMPLETE"]
    for slug in ("kit-train-a", "kit-train-b"):
        fake.save_kernel({"slug": f"{OWNER}/{slug}", "text": ""})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A local run with two finished folds, brought home from two kernels."""
    folder = tmp_path / "runs/tiny-0a1b2c3d"
    origins = {f"fold{n}": f"{OWNER}/kit-train-{letter}/1" for n, letter in enumerate("ab")}
    files = {"recipe.toml": "", "origin.json": "{}", collect.ORIGINS: json.dumps(origins)}
    for name, text in {**files, "fold0/metrics.json": "{}", "fold1/metrics.json": "{}"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.usefixtures("complete")
def test_kernels_are_named_with_or_without_their_owner(client: Client) -> None:
    found = resolve_sources(client, [f"{OWNER}/kit-train-a/1", "kit-train-b"], weights=[2.0, 1.0])
    assert found == [
        Source(f"{OWNER}/kit-train-a", 2.0, versions=(1,)),
        Source(f"{OWNER}/kit-train-b", 1.0),
    ]


@pytest.mark.usefixtures("complete")
def test_a_run_from_kaggle_is_mounted_from_there_with_its_weight_shared(
    client: Client, run: Path
) -> None:
    found = resolve_sources(client, [run], weights=[3.0])
    assert [(s.ref, s.weight) for s in found] == [
        (f"{OWNER}/kit-train-a", 1.5),
        (f"{OWNER}/kit-train-b", 1.5),
    ]
    assert {s.runs for s in found} == {("tiny-0a1b2c3d",)}


@pytest.mark.usefixtures("complete")
def test_a_version_that_kaggle_would_not_mount_is_refused(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    fake.save_kernel({"slug": f"{OWNER}/kit-train-b", "text": "another training"})
    with pytest.raises(
        errors.RefusedError, match=r"kit-train-b, 2, and tiny-0a1b2c3d is from version 1"
    ) as caught:
        resolve_sources(client, [run])
    assert caught.value.hint.startswith("Add --dataset")
    assert f"name {OWNER}/kit-train-b for" in caught.value.hint
    with pytest.raises(
        errors.RefusedError,
        match=rf"(?s)is version 1.*kit kernels output {OWNER}/kit-train-b/1 --runs",
    ):
        resolve_sources(client, [f"{OWNER}/kit-train-b/1"])
    assert resolve_sources(client, [run], as_dataset=True)[0].kind == "dataset"
    (run / collect.ORIGINS).write_text(
        json.dumps({f"fold{n}": f"{OWNER}/kit-train-b" for n in range(2)})
    )
    assert (
        resolve_sources(client, [run])[0].versions == ()
    )  # brought home by a kit that did not note it


def test_a_run_of_this_machine_has_to_be_published(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    (run / collect.ORIGINS).unlink()
    with pytest.raises(KitError, match="fold0, fold1 was trained here") as caught:
        resolve_sources(client, [run])
    assert "--dataset" in str(caught.value)
    (found,) = resolve_sources(client, [run], as_dataset=True)
    assert (found.kind, found.ref) == ("dataset", f"{OWNER}/kit-run-tiny-0a1b2c3d")
    assert found.ref in fake.datasets


@pytest.mark.parametrize("state", ["RUNNING", "ERROR"])
def test_a_kernel_without_an_output_is_refused(
    client: Client, fake: FakeKaggle, state: str
) -> None:
    fake.kernel_script = [state]
    fake.save_kernel({"slug": f"{OWNER}/kit-train-a", "text": ""})
    with pytest.raises(errors.RefusedError, match=f"is {state}"):
        resolve_sources(client, ["kit-train-a"])


def test_weights_must_be_as_many_as_runs(client: Client) -> None:
    with pytest.raises(KitError, match="2 weights for 1 runs"):
        resolve_sources(client, ["kit-train-a"], weights=[1, 2])
