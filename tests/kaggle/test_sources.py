"""Check that --runs becomes sources that Kaggle can mount, and that blends find theirs by name."""

import dataclasses
import json
from pathlib import Path

import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle
from training_output import RECIPE, training_output

from kit.ensembling.blend import Blend, parse_blend, read_blend, write_blend
from kit.ensembling.calibration import Calibration
from kit.errors import DataError, KitError, RunError
from kit.kaggle import collect, errors, notebook
from kit.kaggle.client import Client
from kit.kaggle.job import Source, infer_job, train_job
from kit.kaggle.push import write_kernel_folder
from kit.kaggle.sources import (
    base_sources,
    identify_runs,
    match_sources,
    parse_sources,
    parse_weights,
    resolve_sources,
)
from kit.model.base import BaseReference
from kit.recipe.load import load_recipe

OTHER = load_recipe("tiny-roberta")
BLEND = Blend(
    ("roberta-2", "deberta-1", "electra-3"), (0.7, 0.3, 0.0), "geometric", Calibration(0.9)
)


@pytest.fixture
def complete(fake: FakeKaggle) -> None:
    """Two training kernels that have completed."""
    fake.kernel_script = ["COMPLETE"]
    for slug in ("kit-train-a", "kit-train-b"):
        fake.save_kernel({"slug": f"{OWNER}/{slug}", "text": ""})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A local run with two finished folds, collected from two kernels."""
    folder = tmp_path / "runs/tiny-0a1b2c3d"
    origins = {f"fold{n}": f"{OWNER}/kit-train-{letter}/1" for n, letter in enumerate("ab")}
    files = {
        "recipe.toml": "",
        "origin.json": "{}",
        "fold0/metrics.json": "{}",
        "fold1/metrics.json": "{}",
        collect.ORIGINS: json.dumps(origins),
    }
    write_files(folder, files)
    return folder


def write_files(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.usefixtures("complete")
def test_kernels_are_named_with_or_without_their_owner(client: Client) -> None:
    found = resolve_sources(client, [f"{OWNER}/kit-train-a/1", "kit-train-b"], weights=[2.0, 1.0])
    assert found == [
        Source(f"{OWNER}/kit-train-a", 2.0, versions=(1,)),
        Source(f"{OWNER}/kit-train-b", 1.0),
    ]


@pytest.mark.usefixtures("complete")
def test_a_collected_run_is_mounted_from_its_kernels_which_share_its_weight(
    client: Client, run: Path
) -> None:
    found = resolve_sources(client, [run], weights=[3.0])
    assert [(s.ref, s.weight) for s in found] == [
        (f"{OWNER}/kit-train-a", 1.5),
        (f"{OWNER}/kit-train-b", 1.5),
    ]
    assert {s.runs for s in found} == {("tiny-0a1b2c3d",)}


@pytest.mark.usefixtures("complete")
def test_another_version_than_the_latest_is_refused(
    client: Client, fake: FakeKaggle, run: Path
) -> None:
    fake.save_kernel({"slug": f"{OWNER}/kit-train-b", "text": "another training"})
    with pytest.raises(
        errors.RefusedError, match=r"version 2, but tiny-0a1b2c3d is from version 1"
    ) as caught:
        resolve_sources(client, [run])
    assert caught.value.hint.startswith("Add --dataset")
    assert f"name {OWNER}/kit-train-b to use its latest version" in caught.value.hint

    with pytest.raises(
        errors.RefusedError,
        match=rf"(?s)version 1 was named.*kit kernels output {OWNER}/kit-train-b/1 --runs",
    ):
        resolve_sources(client, [f"{OWNER}/kit-train-b/1"])
    assert resolve_sources(client, [run], as_dataset=True)[0].kind == "dataset"


@pytest.mark.usefixtures("complete")
def test_a_run_without_noted_versions_is_mounted_from_the_latest(client: Client, run: Path) -> None:
    """Kaggle's answer may lack the version's number when a run is collected."""
    origins = {f"fold{n}": f"{OWNER}/kit-train-b" for n in range(2)}
    (run / collect.ORIGINS).write_text(json.dumps(origins))
    assert resolve_sources(client, [run])[0].versions == ()


def test_a_local_run_has_to_be_published(client: Client, fake: FakeKaggle, run: Path) -> None:
    (run / collect.ORIGINS).unlink()
    with pytest.raises(
        KitError, match="fold0, fold1 were trained on this machine, so Kaggle does not have them"
    ) as caught:
        resolve_sources(client, [run])
    assert "--dataset" in str(caught.value)

    (found,) = resolve_sources(client, [run], as_dataset=True)
    assert (found.versions, found.address) == ((1,), f"{found.ref}/1")
    (found,) = resolve_sources(client, [run], as_dataset=True)
    assert found.address == f"{found.ref}/2"
    assert (found.kind, found.ref) == ("dataset", f"{OWNER}/kit-run-tiny-0a1b2c3d")
    assert found.ref in fake.datasets


@pytest.mark.parametrize("as_dataset", [True, False])
def test_a_run_that_is_named_twice_is_refused(
    client: Client, fake: FakeKaggle, run: Path, as_dataset: bool
) -> None:
    link = run.parent / "best"
    link.symlink_to(run)
    with pytest.raises(DataError, match="are the same folder"):
        resolve_sources(client, [run, link], as_dataset=as_dataset)
    assert fake.datasets == {}


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"<html>"])
def test_a_damaged_record_of_kernels_is_one_message(content: bytes, run: Path) -> None:
    (run / collect.ORIGINS).write_bytes(content)
    with pytest.raises(RunError, match=rf"{collect.ORIGINS}: cannot be read"):
        parse_sources([run], OWNER)


@pytest.mark.parametrize("state", ["RUNNING", "ERROR"])
def test_a_kernel_without_an_output_is_refused(
    client: Client, fake: FakeKaggle, state: str
) -> None:
    fake.kernel_script = [state]
    fake.save_kernel({"slug": f"{OWNER}/kit-train-a", "text": ""})
    with pytest.raises(errors.RefusedError, match=f"is {state}"):
        resolve_sources(client, ["kit-train-a"])


def test_every_run_needs_a_weight(client: Client) -> None:
    with pytest.raises(KitError, match="2 weights for 1 run"):
        resolve_sources(client, ["kit-train-a"], weights=[1, 2])


def holding(ref: str, *runs: str) -> Source:
    """A kernel whose output has these runs."""
    return Source(f"me/{ref}", runs=runs)


def test_members_are_matched_by_name_and_folds_share_a_weight() -> None:
    found = match_sources(
        BLEND, [holding("a", "deberta-1"), holding("b", "roberta-2"), holding("c", "deberta-1")]
    )
    assert [(s.ref, s.weight) for s in found] == [("me/a", 0.15), ("me/b", 0.7), ("me/c", 0.15)]


def test_a_dropped_run_is_not_mounted(heard: Heard) -> None:
    named = [holding("a", "deberta-1"), holding("b", "roberta-2"), holding("c", "electra-3")]
    assert [s.ref for s in match_sources(BLEND, named, say=heard.lines.append)] == ["me/a", "me/b"]
    assert "me/c is not mounted" in heard.text


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([holding("a", "deberta-1")], "needs roberta-2, which no source has"),
        (
            [holding("a", "deberta-1"), holding("b", "roberta-2"), holding("c", "xlm-4")],
            r"no member of the blend is in me/c \(xlm-4\)",
        ),
    ],
)
def test_missing_and_unknown_members_are_refused(named: list[Source], message: str) -> None:
    with pytest.raises(KitError, match=message):
        match_sources(BLEND, named)


def test_a_missing_baseline_is_asked_for() -> None:
    blend = Blend(("roberta-2", "baseline-tfidf"), (0.7, 0.3), "arithmetic")
    with pytest.raises(KitError, match="Add its kernel or run directory"):
        match_sources(blend, [holding("b", "roberta-2")])


def test_a_source_with_unknown_runs_is_kept(heard: Heard) -> None:
    named = [holding("a", "deberta-1"), holding("b")]
    assert [s.ref for s in match_sources(BLEND, named, say=heard.lines.append)] == ["me/a", "me/b"]
    assert "me/b: its runs will be compared" in heard.text


def test_the_job_carries_the_saved_blend(tmp_path: Path) -> None:
    write_blend(BLEND, tmp_path / "blend.json", {})
    found = match_sources(
        read_blend(tmp_path / "blend.json"), [holding("a", "deberta-1"), holding("b", "roberta-2")]
    )
    job = infer_job(found, blend=read_blend(tmp_path / "blend.json"))
    carried = notebook.job_of(
        notebook.build_notebook("infer", job.session_settings() | {"push": "a" * 32})
    )

    assert carried["method"] == "blend"
    assert parse_blend("job", carried["blend"]) == BLEND
    assert carried["sources"][0] == {
        "ref": "me/a",
        "weight": 0.3,
        "kind": "kernel",
        "runs": ["deberta-1"],
    }


class TestKernelsOnKaggle:
    @pytest.fixture(autouse=True)
    def trained(self, fake: FakeKaggle) -> None:
        """Two training kernels of different recipes, and one whose output has no run."""
        fake.kernel_script = ["COMPLETE"]
        for slug, files in (
            ("kit-train-a", training_output(RECIPE, "0")),
            ("kit-train-b", training_output(OTHER, "0")),
            ("kit-other", {"notes.txt": b"x"}),
        ):
            fake.kernel_files = files
            fake.save_kernel({"slug": f"{OWNER}/{slug}", "text": ""})

    def test_the_runs_of_a_kernel_are_read_from_its_output(self, client: Client) -> None:
        named = parse_sources(["kit-train-a", "kit-train-b"], OWNER)
        assert [s.runs for s in identify_runs(client, named)] == [
            (RECIPE.run_name,),
            (OTHER.run_name,),
        ]

    def test_a_kernel_without_a_run_is_refused(self, client: Client) -> None:
        with pytest.raises(errors.RefusedError, match="holds no run directory"):
            identify_runs(client, parse_sources(["kit-other"], OWNER))

    def test_an_unfinished_kernel_is_refused(self, client: Client, fake: FakeKaggle) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": f"{OWNER}/kit-train-c", "text": ""})
        with pytest.raises(errors.RefusedError, match="is RUNNING"):
            identify_runs(client, parse_sources(["kit-train-c"], OWNER))


def test_a_published_run_is_named_after_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs/tiny-0a1b2c3d"
    files = {"recipe.toml": "", "origin.json": json.dumps({"folds": 3}), "fold0/metrics.json": "{}"}
    write_files(run, files)
    (found,) = parse_sources([run], "me", as_dataset=True)
    assert found.runs == ("tiny-0a1b2c3d",)


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("me/weights", "dataset", "me/weights"),
        ("https://www.kaggle.com/datasets/me/weights/3", "dataset", "me/weights/3"),
        (
            "qwen-lm/qwen2.5/transformers/1.5b-instruct/1",
            "model",
            "qwen-lm/qwen2.5/transformers/1.5b-instruct/1",
        ),
        ("models/me/enc/pyTorch/base", "model", "me/enc/pyTorch/base"),
    ],
)
def test_weights_are_named_by_a_dataset_or_a_model(name: str, kind: str, address: str) -> None:
    source = parse_weights(name)
    assert (source.kind, source.address) == (kind, address)


@pytest.mark.parametrize(
    "name", ["", "weights", "me/enc/pyTorch", "me/../x/y", "me/a b", "a/b/c/d/e/f"]
)
def test_other_names_of_weights_are_refused(name: str) -> None:
    with pytest.raises(KitError, match="neither a dataset nor a model"):
        parse_weights(name)


QWEN = Source("qwen-lm/qwen2.5/transformers/1.5b-instruct", kind="model", versions=(1,))


def test_a_judges_training_mounts_its_base_and_an_encoder_is_downloaded():
    job = train_job(load_recipe("qwen2.5-1.5b"))
    assert job.model_sources == (QWEN.address,)
    assert job.settings["weights"] == [QWEN.ref]
    assert train_job(load_recipe("deberta")).model_sources == ()


def test_inference_mounts_the_bases_of_local_runs_and_of_pushed_kernels(tmp_path: Path):
    run = tmp_path / "runs" / "judge"
    config = run / "holdout" / "config.json"
    config.parent.mkdir(parents=True)
    base = BaseReference("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct", "abc", 1, "def")
    config.write_text(json.dumps({"base": dataclasses.asdict(base)}))
    assert base_sources([run], tmp_path) == [QWEN]

    folder = write_kernel_folder(train_job(load_recipe("qwen2.5-1.5b")), "ada", tmp_path / "k")
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    folder.rename(kernels / "kit-train-qwen")
    assert base_sources(["ada/kit-train-qwen", "kit-train-qwen"], kernels) == [QWEN]
    assert base_sources(["ada/kit-train-deberta"], kernels) == []
    job = infer_job([Source("ada/kit-train-qwen")], weights=[QWEN])
    assert job.model_sources == (QWEN.address,)


def test_a_base_that_is_nowhere_on_kaggle_is_asked_for(tmp_path: Path):
    config = tmp_path / "boosted" / "fold0" / "config.json"
    config.parent.mkdir(parents=True)
    base = BaseReference("minilm", "/home/ada/minilm", None, 1, "def")
    config.write_text(json.dumps({"base": dataclasses.asdict(base)}))
    with pytest.raises(
        KitError, match="the weights of minilm below it would not be on Kaggle"
    ) as e:
        base_sources([tmp_path / "boosted"], tmp_path)
    assert "--model OWNER/SLUG" in e.value.hint
