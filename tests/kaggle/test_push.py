"""Check jobs, their notebooks and the wheel in them, and that a push that fails is an error."""

import ast
import base64
import dataclasses
import hashlib
import io
import json
import lzma
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from captured import Heard
from fake_kaggle import OWNER, FakeKaggle
from fake_services import SLUG

import kit
from kit.cli import data
from kit.cli.push import push_train
from kit.errors import KitError
from kit.kaggle import errors, notebook, push
from kit.kaggle.client import Client
from kit.kaggle.job import (
    PREPROCESS_DEFAULTS,
    Job,
    Source,
    choose_gpu,
    infer_job,
    pin_datasets,
    train_job,
)
from kit.kaggle.notebook import build_wheel
from kit.kaggle.push import METADATA
from kit.recipe.load import load_recipe


@pytest.fixture
def job() -> Job:
    return train_job(load_recipe("tiny-electra"), fold="0")


class TestNotebook:
    @pytest.fixture
    def cells(self) -> list[dict]:
        text = notebook.build_notebook(
            "infer", {"push": "a" * 32, "text": "é 😀 \ud800 \"quoted\" '''"}
        )
        nbformat.validate(nbformat.reads(text, as_version=4))
        return json.loads(text)["cells"]

    def test_the_cells_are_two_of_literals_and_the_runtime_files(self, cells: list[dict]) -> None:
        assert [(c["id"], c["cell_type"]) for c in cells[:1]] == [("about", "markdown")]
        names = [cell["id"] for cell in cells[1:]]
        assert names == ["job", "wheels", "start", "infer", "show"]
        hidden = [cell["id"] for cell in cells if cell["metadata"].get("_kg_hide-input")]
        assert hidden == ["wheels", "start"]

        for cell in cells[1:3]:
            (assignment,) = ast.parse(cell["source"]).body
            assert isinstance(assignment, ast.Assign)
            ast.literal_eval(assignment.value)
        folder = Path(kit.__file__).parent / "kaggle/runtime"
        for cell in cells[3:]:
            assert cell["source"] + "\n" == (folder / f"{cell['id']}.py").read_text(
                encoding="utf-8"
            )

    def test_it_says_what_it_does_and_which_wheels_it_has(self, job: Job) -> None:
        settings = {**job.session_settings(), "push": "a" * 32}
        about, *_ = json.loads(notebook.build_notebook("train", settings))["cells"]
        assert f"Trains fold 0 of `{load_recipe('tiny-electra').run_name}`" in about["source"]
        assert "on two T4 GPUs, within 9 hours" in about["source"]
        assert hashlib.sha256(build_wheel("kit").data).hexdigest() in about["source"]

    def test_the_recipe_can_be_read_in_the_job(self, job: Job) -> None:
        settings = {**job.session_settings(), "push": "a" * 32}
        text = notebook.build_notebook("train", settings)
        assert "\nlr = 0.001\n" in json.loads(text)["cells"][1]["source"]
        assert notebook.job_of(text) == settings

    def test_the_job_of_an_older_notebook_is_read(self) -> None:
        payload = {"job": json.dumps({"push": "a"}), "wheels": {}}
        cells = [{"source": f"KIT_PAYLOAD = {json.dumps(payload)}"}]
        assert notebook.job_of(json.dumps({"cells": cells})) == {"push": "a"}

    @pytest.mark.parametrize("between", [" ", "\n", "\\\n"])
    def test_the_job_and_the_marks_are_read_back(self, between: str) -> None:
        job = {
            "push": "a" * 32,
            "text": f"é 😀 \ud800 \"quoted\"{between} ''' \r\x00\u2028 \\N \\",
            "more": {"list": [None, True, 1.5, {}], "none": []},
        }
        fingerprint = notebook.job_fingerprint("train", job)
        text = notebook.build_notebook("train", job)
        assert notebook.job_of(text) == job
        assert notebook.notebook_marks(text) == {"push": "a" * 32, "job": fingerprint}

    def test_the_fingerprint_is_that_of_the_job_without_its_push(self) -> None:
        job = {"push": "a" * 32, "text": "x"}
        fingerprint = notebook.job_fingerprint("train", job)
        assert notebook.job_fingerprint("train", job | {"push": "b" * 32}) == fingerprint
        assert notebook.job_fingerprint("train", job | {"text": ""}) != fingerprint

    @pytest.mark.parametrize(
        "text", ["", "print()", "[]", '{"cells": [{"source": "KIT_PAYLOAD = 1"}]}']
    )
    def test_another_notebook_has_no_job(self, text: str) -> None:
        assert notebook.job_of(text) == {}
        assert notebook.notebook_marks(text) == {}

    def test_it_leaves_a_third_of_kaggles_limit_free(self) -> None:
        assert (
            len(notebook.build_notebook("train", {"push": "a" * 32})) < notebook.MAX_BYTES * 2 // 3
        )

    def test_a_notebook_that_is_too_large_is_refused(self) -> None:
        with pytest.raises(KitError, match="Kaggle accepts less than 1,000,000"):
            notebook.build_notebook("train", {"push": "a" * 32, "text": "x" * 1_000_000})


class TestWheel:
    def test_it_has_the_same_bytes_each_time(self) -> None:
        first = build_wheel("kit")
        build_wheel.cache_clear()
        assert build_wheel("kit") == first

    def test_pip_installs_it_and_kit_runs_from_it(self, tmp_path: Path) -> None:
        made = build_wheel("kit")
        (tmp_path / made.name).write_bytes(made.data)
        options = [
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            tmp_path / "lib",
        ]
        pip = [sys.executable, "-m", "pip", "install", *options, tmp_path / made.name]
        subprocess.run(pip, check=True)

        code = (
            "import kit; from kit.cli.main import main; "
            "print(kit.__file__); main(['recipes', '--json'])"
        )
        env = {"PYTHONPATH": str(tmp_path / "lib")}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        path, _, recipes = out.stdout.partition("\n")

        assert Path(path).is_relative_to(tmp_path / "lib")

        # The recipes are data files of the package.
        assert len(json.loads(recipes)) > 10

    def test_it_has_no_caches_and_a_record_of_every_file(self) -> None:
        with zipfile.ZipFile(io.BytesIO(build_wheel("kit").data)) as bundle:
            names = bundle.namelist()
            record = bundle.read(next(n for n in names if n.endswith("RECORD"))).decode()
        assert not [n for n in names if "__pycache__" in n or n.endswith(".pyc")]
        assert [line.split(",")[0] for line in record.splitlines()] == names

    def test_it_knows_the_versions_that_kit_needs(self) -> None:
        with zipfile.ZipFile(io.BytesIO(build_wheel("kit").data)) as bundle:
            name = next(name for name in bundle.namelist() if name.endswith("/METADATA"))
            metadata = bundle.read(name).decode()
        assert "Requires-Python: >=3.11" in metadata
        assert "Requires-Dist: torch>=2.10" in metadata

    def test_an_unknown_package_is_refused(self) -> None:
        with pytest.raises(KitError, match="no_such_package"):
            build_wheel("no_such_package")


class TestJob:
    def test_the_metadata_is_written_in_full(self, job: Job) -> None:
        assert job.metadata("me") == {
            "id": f"me/{job.slug}",
            "title": job.title,
            "code_file": f"{job.slug}.ipynb",
            "language": "python",
            "kernel_type": "notebook",
            "is_private": True,
            "enable_gpu": True,
            "enable_tpu": False,
            "enable_internet": True,
            "machine_shape": "NvidiaTeslaT4",
            "docker_image_pinning_type": "latest",
            "competition_sources": [SLUG],
            "kernel_sources": [],
            "dataset_sources": [],
            "model_sources": [],
            "keywords": [],
        }

    def test_the_slug_is_the_one_that_kaggle_derives_from_the_title(self, job: Job) -> None:
        from slugify import slugify

        others = [
            infer_job([Source("a/kernel")]),
            train_job(load_recipe("roberta-reference"), fold="holdout"),
        ]
        for any_job in (job, *others):
            assert slugify(any_job.title) == any_job.slug
            assert len(any_job.title) <= 50

    def test_other_recipes_and_folds_have_other_slugs(self) -> None:
        slugs = {
            train_job(load_recipe("tiny-electra", overrides), fold=fold).slug
            for overrides in ([], ["train.lr=1e-5"])
            for fold in ("0", "1", "all", "holdout")
        }
        assert len(slugs) == 8

    def test_recipes_that_differ_in_their_names_alone_have_other_slugs(self) -> None:
        """A recipe's hash leaves its name out, and Kaggle writes slugs in lower case."""
        long = "an-experiment-with-a-long-name"
        names = (f"{long}-1", f"{long}-2", "a_b", "a-b", "A-b", "модель", "другая")
        for options in ({}, {"folds": 3}):
            jobs = [
                train_job(
                    dataclasses.replace(load_recipe("tiny-electra"), name=name), preprocess=options
                )
                for name in names
            ]
            assert len({job.slug for job in jobs}) == len(names)
            assert all(len(job.title) <= 50 for job in jobs)

    def test_rows_prepared_differently_have_another_title(self) -> None:
        def title(name: str = "tiny-electra", **options: object) -> str:
            recipe = dataclasses.replace(load_recipe("tiny-electra"), name=name)
            return train_job(recipe, preprocess=options).title

        assert title() == f"kit train tiny-electra {load_recipe('tiny-electra').hash} all folds"
        assert title(**PREPROCESS_DEFAULTS) == title()

        others = [
            {"text": "ascii"},
            {"folds": 3},
            {"valid": 0.2},
            {"seed": 1},
            {"split": "stratified"},
            {"more": 1},
        ]
        assert len({title(), *(title(**options) for options in others)}) == 7
        assert title(folds=3, seed=1) == title(seed=1, folds=3)
        assert len(title("a-name-of-forty-letters-" + "x" * 16, text="ascii")) <= 50

    def test_the_preprocess_defaults_are_those_of_the_command(self) -> None:
        of_command = {option.name: option.default for option in data.preprocess_command.params}
        assert of_command.items() >= PREPROCESS_DEFAULTS.items()
        assert set(PREPROCESS_DEFAULTS) <= {option.name for option in push_train.params}

    def test_inference_runs_without_internet_and_mounts_the_training_kernels(self) -> None:
        metadata = infer_job(
            [Source("me/kit-train-a"), Source("me/runs", 1, "dataset"), Source("me/kit-train-b")]
        ).metadata("me")
        assert metadata["enable_internet"] is False
        assert metadata["kernel_sources"] == ["me/kit-train-a", "me/kit-train-b"]
        assert metadata["dataset_sources"] == ["me/runs"]

    def test_an_image_can_be_pinned(self) -> None:
        image = f"gcr.io/kaggle-images/python@sha256:{'a' * 64}"
        for job in (
            train_job(load_recipe("tiny-electra"), docker_image=image),
            infer_job([Source("a/kernel")], docker_image=image),
        ):
            metadata = job.metadata("me")
            assert metadata["docker_image"] == image
            assert metadata["docker_image_pinning_type"] == "original"

    def test_weights_may_come_from_a_model_or_a_dataset(self) -> None:
        weights = [
            Source("me/enc/transformers/small", kind="model", versions=(2,)),
            Source("me/weights", kind="dataset"),
        ]
        job = train_job(load_recipe("tiny-electra"), weights=weights)
        assert job.metadata("me")["model_sources"] == ["me/enc/transformers/small/2"]
        assert job.metadata("me")["dataset_sources"] == ["me/weights"]
        assert job.settings["weights"] == ["me/enc/transformers/small", "me/weights"]

    def test_published_datasets_are_pinned_to_their_version(self) -> None:
        sources = [Source("me/runs", kind="dataset"), Source("me/kit-train-a")]
        published = [Source("me/runs", kind="dataset", versions=(3,)), sources[1]]
        job = pin_datasets(infer_job(sources), published)
        assert job.metadata("me")["dataset_sources"] == ["me/runs/3"]
        assert job.metadata("me")["kernel_sources"] == ["me/kit-train-a"]
        # The session finds the dataset by its address without the version.
        assert job.settings["sources"][0]["ref"] == "me/runs"

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: infer_job([Source("a/kernel")], docker_image="latest"),
                "is not the address of an image",
            ),
            (lambda: infer_job([]), "needs runs"),
            (lambda: infer_job([Source("a/kernel"), Source("a/kernel")]), "more than once"),
            (lambda: infer_job([Source("a/kernel", -1.0)]), "invalid weights"),
            (
                lambda: infer_job([Source("a/kernel")], title="Kit!"),
                "cannot be the title of a kernel",
            ),
            (lambda: infer_job([Source("a/kernel")], title="x" * 51), "5 to 50"),
            (lambda: infer_job([Source("a/kernel")], max_hours=13), "at most 12 hours"),
            (lambda: choose_gpu("a100"), "unknown GPU"),
            (lambda: choose_gpu("p100"), "retired the P100"),
        ],
    )
    def test_a_job_that_kaggle_would_refuse_is_an_error(
        self, make: Callable[[], object], message: str
    ) -> None:
        with pytest.raises(KitError, match=message):
            make()

    def test_an_accepted_p100_becomes_a_t4(self) -> None:
        assert choose_gpu("p100", accept_t4=True)[0] == "t4"
        assert "instead" in choose_gpu("p100", accept_t4=True)[1]
        assert choose_gpu("t4") == ("t4", "")

    def test_a_backbone_in_a_local_folder_is_refused(self, tmp_path: Path) -> None:
        recipe = dataclasses.replace(load_recipe("tiny-electra"), backbone=str(tmp_path))
        with pytest.raises(KitError, match="which Kaggle does not have"):
            train_job(recipe)


class TestPush:
    def test_the_version_that_kaggle_made_is_returned(
        self, client: Client, job: Job, tmp_path: Path
    ) -> None:
        first = push.push_kernel(client, job, tmp_path / "k")
        assert (first.ref.owner, first.ref.slug, first.ref.version) == (OWNER, job.slug, 1)
        assert push.push_kernel(client, job, tmp_path / "k").ref.version == 2

    def test_the_request_is_that_of_kaggles_client(
        self, client: Client, fake: FakeKaggle, job: Job, home: Path, tmp_path: Path
    ) -> None:
        folder = push.push_kernel(client, job, tmp_path / "k").folder
        code = f"""
import sys
sys.argv = ["kaggle", "kernels", "push", "-p", {str(folder)!r}, "-t", "33300"]
from kaggle.cli import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], env=fake.env(home), capture_output=True, text=True
        )

        assert "Kernel version 2 successfully pushed" in done.stdout, done.stderr
        ours, theirs = (call.body for call in fake.seen("SaveKernel"))
        assert json.loads(ours.pop("text")) == json.loads(theirs.pop("text"))
        assert ours == {k: v for k, v in theirs.items() if v != ""}

    def test_the_folder_is_written_without_kaggle(self, job: Job, tmp_path: Path) -> None:
        folder = push.write_kernel_folder(job, "somebody", tmp_path / "k")
        assert sorted(p.name for p in folder.iterdir()) == [METADATA, f"{job.slug}.ipynb"]
        assert json.loads((folder / METADATA).read_text())["id"] == f"somebody/{job.slug}"

    def test_a_folder_with_other_files_is_not_overwritten(self, job: Job, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(KitError, match="holds other files"):
            push.write_kernel_folder(job, "somebody", tmp_path)

    def test_a_push_refused_with_http_200_is_an_error(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path
    ) -> None:
        fake.save_kernel = lambda _: {"error": "Notebook not found", "ref": "", "url": ""}
        with pytest.raises(errors.RefusedError, match="Notebook not found"):
            push.push_kernel(client, job, tmp_path / "k")

    def test_sources_that_kaggle_drops_are_an_error(
        self, client: Client, fake: FakeKaggle, tmp_path: Path
    ) -> None:
        runs = [Source(f"{OWNER}/kit-gone"), Source(f"{OWNER}/gone", kind="dataset")]
        with pytest.raises(
            errors.RefusedError, match=f"without dataset {OWNER}/gone, kernel {OWNER}/kit-gone"
        ):
            push.push_kernel(client, infer_job(runs), tmp_path / "k")

    def test_an_image_and_models_are_sent_as_kaggles_client_sends_them(
        self, client: Client, fake: FakeKaggle, home: Path, tmp_path: Path
    ) -> None:
        job = train_job(
            load_recipe("tiny-electra"),
            weights=[Source("kituser/enc/transformers/small", kind="model", versions=(1,))],
            docker_image="gcr.io/kaggle-images/python@sha256:" + "a" * 64,
        )
        folder = push.push_kernel(client, job, tmp_path / "k").folder
        code = f"""
import sys
sys.argv = ["kaggle", "kernels", "push", "-p", {str(folder)!r}, "-t", "33300"]
from kaggle.cli import main
main()
"""
        done = subprocess.run(
            [sys.executable, "-c", code], env=fake.env(home), capture_output=True, text=True
        )
        assert "Kernel version 2 successfully pushed" in done.stdout, done.stderr
        ours, theirs = (call.body for call in fake.seen("SaveKernel"))
        for key in ("dockerImage", "dockerImagePinningType", "modelDataSources"):
            assert ours[key] == theirs[key] != []

    def test_a_model_that_does_not_exist_is_an_error(self, client: Client, tmp_path: Path) -> None:
        weights = [Source("kituser/gone/transformers/small", kind="model")]
        job = train_job(load_recipe("tiny-electra"), weights=weights)
        with pytest.raises(errors.RefusedError, match="without model kituser/gone"):
            push.push_kernel(client, job, tmp_path / "k")

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 500}, {"stall_s": 0.8}])
    def test_a_lost_answer_makes_no_second_version(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path, fault: dict
    ) -> None:
        fake.fail("SaveKernel", after=True, **fault)
        assert push.push_kernel(client, job, tmp_path / "k").ref.version == 1
        assert len(fake.kernels[f"{OWNER}/{job.slug}"]["versions"]) == 1

    @pytest.mark.parametrize("fault", [{"drop": True}, {"status": 503}, {"status": 429}])
    def test_a_push_that_did_not_arrive_is_repeated(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path, fault: dict
    ) -> None:
        fake.fail("SaveKernel", **fault)
        assert push.push_kernel(client, job, tmp_path / "k").ref.version == 1

    def test_a_version_from_another_push_is_not_taken_for_ours(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path
    ) -> None:
        push.push_kernel(client, job, tmp_path / "k")
        fake.fail("SaveKernel", drop=True)
        real = fake.get_kernel

        def meanwhile(body: dict) -> dict:
            if fake.seen("SaveKernel")[-1].status == -1:
                # Another window pushes between the lost push and the look at what is there.
                fake.get_kernel = real
                fake.save_kernel({"slug": f"{OWNER}/{job.slug}", "text": "another window"})
            return real(body)

        fake.get_kernel = meanwhile

        assert push.push_kernel(client, job, tmp_path / "k").ref.version == 3

    def test_a_push_waits_for_a_free_session_within_its_limit(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path, heard: Heard
    ) -> None:
        fake.max_gpu_sessions = 0
        with pytest.raises(errors.BusyError, match="session count of 0"):
            push.push_kernel(client, job, tmp_path / "k", slot_wait_s=120)
        assert heard.pauses == [30.0] * 4

    def test_the_quota_is_reported_where_it_can_be_read(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path, heard: Heard
    ) -> None:
        fake.gpu_total_s, fake.max_gpu_sessions = 30 * 3600, 3
        push.push_kernel(client, job, tmp_path / "k", say=heard.lines.append)
        assert "29.0 of 30 GPU hours left" in heard.text

        fake.fail("GetAcceleratorQuotaStatistics", 404, "gone")
        push.push_kernel(client, job, tmp_path / "k", say=heard.lines.append)
        assert "quota cannot be read" in heard.text

        fake.get_accelerator_quota_statistics = lambda _: {}
        push.push_kernel(client, job, tmp_path / "k", say=heard.lines.append)
        assert "Kaggle's answer has none" in heard.text

    def test_a_kernel_that_kaggle_renames_has_its_new_name(
        self, client: Client, fake: FakeKaggle, job: Job, tmp_path: Path, heard: Heard
    ) -> None:
        real = fake.save_kernel

        def renamed(body: dict) -> dict:
            return real(body) | {
                "url": f"https://www.kaggle.com/code/{OWNER}/another-name?scriptVersionId=9"
            }

        fake.save_kernel = renamed
        assert (
            push.push_kernel(client, job, tmp_path / "k", say=heard.lines.append).ref.slug
            == "another-name"
        )
        assert "Kaggle named the kernel" in heard.text


def test_the_payload_has_the_wheels_of_kit_and_tomli_w() -> None:
    cells = json.loads(notebook.build_notebook("train", {"push": "a" * 32}))["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == "wheels"]
    wheels = ast.literal_eval(ast.parse(cell["source"]).body[0].value)
    for wheel, package in zip(wheels.values(), ("kit", "tomli_w"), strict=True):
        data = lzma.decompress(base64.b64decode(wheel["lzma"]))
        assert hashlib.sha256(data).hexdigest() == wheel["sha256"]
        with zipfile.ZipFile(io.BytesIO(data)) as bundle:
            assert bundle.testzip() is None
            assert f"{package}/__init__.py" in bundle.namelist()
