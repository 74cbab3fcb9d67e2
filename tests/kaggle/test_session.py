"""Check that a Kaggle session finds its inputs, keeps its time and submits whenever it can."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from kit.ensembling.blend import Blend, apply_blend, blend_content
from kit.ensembling.calibration import Calibration, apply_calibration
from kit.evaluation.validate import validate_submission
from kit.kaggle.runtime import infer, train
from kit.kaggle.runtime import session as sessions
from kit.kaggle.runtime.session import OUTPUT_LIST, NotebookSession
from kit.model.registry import BACKBONES
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.task import COMPETITION

LAYOUTS = ("old", "by kind")


def place(root: Path, layout: str, kind: str, owner: str, slug: str) -> Path:
    """Return where Kaggle mounts a source."""
    inputs = root / "input"
    if layout == "old":
        return inputs / slug
    return inputs / kind / slug if kind == "competitions" else inputs / kind / owner / slug


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def root(tmp_path: Path, layout: str) -> Path:
    """A folder like /kaggle: the competition, two outputs of training kernels, another dataset."""
    root = tmp_path / "kaggle"
    competition = place(root, layout, "competitions", "", COMPETITION)
    competition.mkdir(parents=True)
    (competition / "test.csv").write_text(
        'id,prompt,response_a,response_b\n7,"[""p""]","[""a""]","[""b""]"\n'
    )
    (competition / "train.csv").write_text("")
    for slug in ("kit-train-a", "kit-train-b"):
        add_run(place(root, layout, "notebooks", "me", slug) / "runs" / f"{slug}-run")
    other = place(root, layout, "datasets", "me", "other")
    other.mkdir(parents=True)
    (other / "test.csv").write_text("id\n1\n")
    (root / "working").mkdir()
    return root


BACKBONE_RECIPE = "name = 'x'\nbackbone = 'electra-small'\n"


def add_backbone(folder: Path, name: str) -> Path:
    """Write the folder of a registry backbone, with weights that nothing reads."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(BACKBONES[name].config))
    (folder / "model.safetensors").write_text("")
    return folder


def add_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text("")
    (folder / "origin.json").write_text("{}")


@pytest.fixture
def session(root: Path) -> NotebookSession:
    sources = [{"ref": "me/kit-train-a", "weight": 1.0}, {"ref": "me/kit-train-b", "weight": 3.0}]
    job = {"push": "a" * 32, "competition": COMPETITION, "gpu": "none", "max_hours": 1.0}
    return NotebookSession(job | {"sources": sources, "method": "mean"}, root)


def with_job(session: NotebookSession, **settings: object) -> NotebookSession:
    """Return the session with other settings in its job."""
    return dataclasses.replace(session, job={**session.job, **settings})


@pytest.fixture
def predicts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, object]], list[list[str]]]:
    """Replace `kit predict`: per run, the probability of A that it writes, or its exit code."""

    def prepare(answers: dict[str, object]) -> list[list[str]]:
        commands: list[list[str]] = []

        def run_kit(_: NotebookSession, arguments: list, *__: object, **___: str) -> int:
            commands.append([str(argument) for argument in arguments])
            answer = answers[Path(arguments[1]).name]
            answer = next(answer) if isinstance(answer, Iterator) else answer
            if isinstance(answer, int):
                return answer
            ids = pd.read_csv(arguments[3])["id"].to_numpy()
            write_predictions(
                make_predictions(ids, [[answer, 1 - answer, 0.0]] * len(ids)), arguments[5]
            )
            return 0

        monkeypatch.setattr(NotebookSession, "run_kit", run_kit)
        monkeypatch.setattr(NotebookSession, "gpu_count", lambda self: 0)
        return commands

    return prepare


def submission(root: Path) -> pd.DataFrame:
    return read_predictions(root / "working/submission.csv")


def test_inputs_are_found_under_either_layout(session: NotebookSession) -> None:
    assert session.competition_file("test.csv").parent.name == COMPETITION
    assert [run.name for run in session.run_folders("me/kit-train-a")] == ["kit-train-a-run"]
    assert session.run_folders("me/kit-train") == []


def test_a_classical_run_has_no_recipe_and_is_found(session: NotebookSession) -> None:
    (run,) = session.run_folders("me/kit-train-a")
    (run / "recipe.toml").unlink()
    assert session.run_folders("me/kit-train-a") == [run]


def test_a_run_that_is_linked_counts_once(session: NotebookSession) -> None:
    (run,) = session.run_folders("me/kit-train-a")
    (run.parent / "best").symlink_to(run)
    (run.parent / "last").symlink_to(run)
    assert len(session.run_folders("me/kit-train-a")) == 1


@pytest.mark.parametrize("kind", ["models", "datasets"])
def test_a_backbone_is_found_in_a_mounted_model_or_dataset(
    session: NotebookSession, root: Path, layout: str, kind: str
) -> None:
    version = "transformers/small/1" if kind == "models" else ""
    folder = add_backbone(place(root, layout, kind, "me", "enc") / version, "electra-small")
    assert session.backbone_folder("electra-small") == folder
    assert session.backbone_folder("electra-base") is None
    assert session.backbone_folder("tiny-electra") is None


class TestStart:
    """A session begins by comparing the image with what kit needs."""

    @pytest.fixture
    def start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., NotebookSession]:
        """Start a session in an image that has other versions of some packages."""
        real = sessions.importlib.metadata.version

        def begin(recipe: str = "", baseline: str = "", **versions: str) -> NotebookSession:
            def version(name: str) -> str:
                found = versions.get(name.replace("-", "_")) or real(name)
                if found == "missing":
                    raise sessions.importlib.metadata.PackageNotFoundError(name)
                return found

            monkeypatch.setattr(sessions.importlib.metadata, "version", version)
            job = {"push": "a" * 32, "gpu": "none", "max_hours": 1.0, "recipe": recipe}
            job |= {"baseline": baseline} if baseline else {}
            monkeypatch.setenv("KIT_KAGGLE_ROOT", str(tmp_path / "kaggle"))
            (tmp_path / "job.json").write_text(json.dumps(job))
            monkeypatch.setenv("KIT_JOB", str(tmp_path / "job.json"))
            return NotebookSession.from_environment()

        return begin

    def test_all_versions_and_the_image_are_logged(
        self,
        start: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("KAGGLE_DOCKER_IMAGE", "gcr.io/kaggle-images/python@sha256:abc")
        start(torchao="0.10.0")
        log = capfd.readouterr().out
        assert "torchao 0.10.0" in log
        for name in ("peft", "huggingface_hub", "protobuf", "torch", "transformers"):
            assert f"{name} {sessions.importlib.metadata.version(name)}" in log
        assert "image gcr.io/kaggle-images/python@sha256:abc" in log

    @pytest.mark.parametrize(
        ("versions", "problem"),
        [
            ({"transformers": "4.57.1"}, r"transformers 4\.57\.1 \(needs .*>=5\.0"),
            ({"torch": "2.6.0+cu124"}, r"torch 2\.6\.0\+cu124 \(needs >=2\.10"),
            ({"pyarrow": "missing"}, "pyarrow is missing"),
        ],
    )
    def test_an_image_that_does_not_fit_is_an_error(
        self, start: Callable, versions: dict, problem: str
    ) -> None:
        with pytest.raises(RuntimeError, match=problem) as caught:
            start(**versions)
        assert "--docker-image" in str(caught.value)

    def test_packages_that_the_session_does_not_use_may_be_old(self, start: Callable) -> None:
        start(kaggle="2.0.1", kagglesdk="0.1.18", torch="2.10.0+cu128", peft="0.5.0")

    def test_adapters_need_peft(self, start: Callable) -> None:
        recipe = "[train]\nlora_rank = 4\n"
        with pytest.raises(RuntimeError, match="peft is missing"):
            start(recipe, peft="missing")

    @pytest.mark.parametrize("version", ["missing", "4.3.0"])
    def test_trees_need_lightgbm(self, start: Callable, root: Path, version: str) -> None:
        start(lightgbm=version)
        start(baseline="tfidf", lightgbm=version)
        with pytest.raises(RuntimeError, match="lightgbm"):
            start(baseline="boosted", lightgbm=version)

        # A mounted run of trees needs it, too.
        origin = next((root / "input").rglob("origin.json"))
        origin.write_text('{"baseline": "boosted"}')
        with pytest.raises(RuntimeError, match="lightgbm"):
            start(lightgbm=version)

    def test_a_quantised_base_needs_bitsandbytes(
        self, start: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        needed = ['peft>=0.18; extra == "lora"', 'bitsandbytes>=0.46; extra == "quant"']
        monkeypatch.setattr(sessions.importlib.metadata, "requires", lambda _: needed)
        recipe = "[model]\nquantize = '8bit'\n[train]\nlora_rank = 4\n"
        with pytest.raises(RuntimeError, match="bitsandbytes is missing") as caught:
            start(recipe, bitsandbytes="missing")
        assert "peft" not in str(caught.value)
        start("[train]\nlora_rank = 4\n", bitsandbytes="missing")

    def test_a_scoring_run_goes_on(
        self,
        start: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        start(transformers="4.57.1")
        assert "this image does not fit" in capfd.readouterr().out


def test_a_missing_competition_file_says_what_to_do(
    session: NotebookSession,
) -> None:
    with pytest.raises(RuntimeError, match="push the notebook again"):
        session.competition_file("no_such.csv")


@pytest.mark.parametrize("layout", ["by kind"], indirect=True)
def test_the_same_slug_of_another_owner_is_ignored(session: NotebookSession) -> None:
    assert session.run_folders("you/kit-train-a") == []


def test_all_models_are_blended_for_the_mounted_test_set(
    session: NotebookSession, root: Path, predicts: Callable
) -> None:
    predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
    infer.run_inference(session)
    assert submission(root).to_numpy().tolist() == [
        [7.0, pytest.approx(0.4), pytest.approx(0.6), 0.0]
    ]

    listed = json.loads((root / "working" / OUTPUT_LIST).read_text())
    assert (listed["push"], list(listed["files"])) == ("a" * 32, ["submission.csv"])


def test_the_method_weights_uses_the_sources_weights(
    session: NotebookSession, root: Path, predicts: Callable
) -> None:
    predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
    infer.run_inference(with_job(session, method="weights"))
    assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.5)]


def with_blend(
    session: NotebookSession,
    shares: dict[str, float],
    pool: str = "arithmetic",
    temperature: float = 1.0,
) -> NotebookSession:
    """Return the session with a fitted blend in its job, as a push writes it."""
    saved = Blend(tuple(shares), tuple(shares.values()), pool, Calibration(temperature))
    content = json.loads(json.dumps(blend_content(saved)))
    return with_job(session, method="blend", blend=content)


class TestFittedBlend:
    # Not in the order of the sources.
    SHARES: ClassVar = {"kit-train-b-run": 0.75, "kit-train-a-run": 0.25}

    @pytest.mark.parametrize(
        ("pool", "temperature"), [("arithmetic", 1.0), ("arithmetic", 0.8), ("geometric", 1.25)]
    )
    def test_it_equals_apply_blend_on_the_same_predictions(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        pool: str,
        temperature: float,
    ) -> None:
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        infer.run_inference(with_blend(session, self.SHARES, pool, temperature))
        members = [make_predictions([7], [[a, 1 - a, 0.0]]) for a in (0.6, 0.2)]
        saved = Blend(
            tuple(self.SHARES), tuple(self.SHARES.values()), pool, Calibration(temperature)
        )
        expected = apply_blend(saved, members, list(self.SHARES))

        assert submission(root).to_numpy().tolist() == [
            pytest.approx(expected.to_numpy()[0].tolist())
        ]

    def test_folds_in_several_sources_are_one_run(
        self, session: NotebookSession, root: Path, predicts: Callable
    ) -> None:
        add_run(place(root, "old", "notebooks", "me", "kit-train-c") / "runs/kit-train-a-run")
        sources = [*session.job["sources"], {"ref": "me/kit-train-c", "weight": 0.1}]
        session = with_job(session, sources=sources)

        # The first fold of a, then b, then the second fold of a.
        answers = iter((0.1, 0.6, 0.3))
        predicts({"kit-train-a-run": answers, "kit-train-b-run": answers})
        infer.run_inference(with_blend(session, self.SHARES))

        assert submission(root)["winner_model_a"].tolist() == [
            pytest.approx(0.75 * 0.6 + 0.25 * 0.2)
        ]

    def test_a_dataset_is_matched_by_its_run_and_not_by_its_folder(
        self, session: NotebookSession, root: Path, predicts: Callable
    ) -> None:
        first, second = session.job["sources"]
        sources = [first | {"runs": ["deberta-1"]}, second | {"runs": ["roberta-2"]}]
        session = with_job(session, sources=sources)
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        infer.run_inference(with_blend(session, {"roberta-2": 0.75, "deberta-1": 0.25}))

        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.5)]

    def test_a_dropped_member_is_not_run(
        self, session: NotebookSession, root: Path, predicts: Callable
    ) -> None:
        commands = predicts({"kit-train-b-run": 0.6})
        infer.run_inference(with_blend(session, {"kit-train-b-run": 1.0, "kit-train-a-run": 0.0}))
        assert [Path(c[1]).name for c in commands] == ["kit-train-b-run"]
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.6)]

    @pytest.mark.parametrize("rerun", ["", "1"])
    def test_the_weights_are_scaled_up_where_a_model_fails(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        rerun: str,
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", rerun)
        add_run(place(root, "old", "notebooks", "me", "kit-train-c") / "runs/third")
        sources = [*session.job["sources"], {"ref": "me/kit-train-c", "weight": 0.2}]
        session = with_job(session, sources=sources)
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 1, "third": 0.8})
        shares = {"kit-train-b-run": 0.5, "kit-train-a-run": 0.1, "third": 0.4}
        infer.run_inference(with_blend(session, shares))

        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.2 * 0.2 + 0.8 * 0.8)]
        log = capfd.readouterr().out
        assert "the blend continues without kit-train-b-run" in log
        assert "kit-train-a-run 0.200, third 0.800" in log

    def test_a_missing_member_is_an_error_and_a_warning_while_scoring(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        predicts({"kit-train-b-run": 0.6})
        session = with_blend(session, {"kit-train-b-run": 0.5, "elsewhere": 0.5})
        with pytest.raises(RuntimeError, match="the blend needs elsewhere"):
            infer.run_inference(session)

        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        infer.run_inference(session)
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.6)]

    def test_a_saved_calibration_is_applied_to_the_blend(
        self, session: NotebookSession, root: Path, predicts: Callable
    ) -> None:
        predicts({"kit-train-a-run": 0.3, "kit-train-b-run": 0.5})
        calibration = {"temperature": 2.0, "bias": [0.0, 0.0, 0.0]}
        infer.run_inference(with_job(session, calibration=calibration))
        mean = make_predictions([7], [[0.4, 0.6, 0.0]])
        expected = apply_calibration(Calibration(2.0), mean).to_numpy()[0]

        assert submission(root).to_numpy().tolist() == [pytest.approx(expected.tolist())]


class TestANamedRun:
    """The job names the run of a kernel, as it does for a local run directory."""

    @pytest.fixture
    def naming(self, session: NotebookSession) -> Callable[[str], NotebookSession]:
        def with_name(name: str) -> NotebookSession:
            first, second = session.job["sources"]
            named = first | {"kind": "kernel", "runs": [name]}
            return with_job(session, sources=[named, second])

        return with_name

    def test_another_run_in_its_place_is_an_error_and_a_warning_while_scoring(
        self,
        naming: Callable,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        with pytest.raises(
            RuntimeError, match="me/kit-train-a has kit-train-a-run, but not deberta-1"
        ):
            infer.run_inference(naming("deberta-1"))

        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        infer.run_inference(naming("deberta-1"))
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.4)]
        assert (
            "!\nkit | me/kit-train-a has kit-train-a-run, but not deberta-1"
            in capfd.readouterr().out
        )

    def test_other_runs_of_that_kernel_are_not_run(
        self, naming: Callable, layout: str, root: Path, predicts: Callable
    ) -> None:
        add_run(place(root, layout, "notebooks", "me", "kit-train-a") / "runs/another")
        commands = predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        infer.run_inference(naming("kit-train-a-run"))
        assert [Path(c[1]).name for c in commands] == ["kit-train-a-run", "kit-train-b-run"]


def test_temporary_folders_are_removed(
    session: NotebookSession, predicts: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
    infer.run_inference(session)
    predicts({"kit-train-a-run": 1, "kit-train-b-run": 1})
    with pytest.raises(RuntimeError):
        infer.run_inference(session)

    monkeypatch.setattr(NotebookSession, "run_kit", lambda *_: 1)
    with pytest.raises(RuntimeError, match="preprocess failed"):
        train.run_training(with_job(session, recipe="", fold="0", preprocess={}))
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("layout", ["old"], indirect=True)
class TestFailures:
    def test_a_failing_model_is_left_out_with_a_warning(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        predicts({"kit-train-a-run": 1, "kit-train-b-run": 0.6})
        infer.run_inference(session)
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.6)]
        assert "kit-train-a-run FAILED" in capfd.readouterr().out

    def test_no_working_model_is_an_error_in_the_visible_run(
        self, session: NotebookSession, root: Path, predicts: Callable
    ) -> None:
        predicts({"kit-train-a-run": 1, "kit-train-b-run": 1})
        with pytest.raises(RuntimeError, match="no model gave predictions"):
            infer.run_inference(session)
        assert not (root / "working/submission.csv").exists()

    def test_no_working_model_gives_the_class_prior_while_scoring(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        predicts({"kit-train-a-run": 1, "kit-train-b-run": 1})
        infer.run_inference(session)

        assert validate_submission(
            root / "working/submission.csv", session.competition_file("test.csv")
        ).ok
        assert submission(root)["winner_tie"].tolist() == [pytest.approx(17761 / 57477)]
        assert "NO MODEL WORKED" in capfd.readouterr().out

    def test_a_missing_source_is_an_error_and_left_out_while_scoring(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        predicts({"kit-train-b-run": 0.6})
        (root / "input/kit-train-a/runs/kit-train-a-run/origin.json").unlink()
        with pytest.raises(RuntimeError, match="no run directory from me/kit-train-a"):
            infer.run_inference(session)

        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        infer.run_inference(session)
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.6)]

    def test_no_gpu_is_an_error_and_the_cpu_is_used_while_scoring(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})

        def no_gpu(_: NotebookSession) -> int:
            raise RuntimeError("this job needs a GPU and there is none")

        monkeypatch.setattr(NotebookSession, "gpu_count", no_gpu)
        with pytest.raises(RuntimeError, match="there is none"):
            infer.run_inference(session)

        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        infer.run_inference(session)
        assert len(submission(root)) == 1

    def test_a_model_that_fails_on_several_gpus_is_tried_on_one(
        self, session: NotebookSession, predicts: Callable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commands = predicts({"kit-train-a-run": 1, "kit-train-b-run": 0.6})
        monkeypatch.setattr(NotebookSession, "gpu_count", lambda self: 2)
        infer.run_inference(session)
        assert [Path(c[1]).name for c in commands] == ["kit-train-a-run"] * 2 + ["kit-train-b-run"]

    def test_the_file_of_a_failed_attempt_is_removed(
        self, session: NotebookSession, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run_kit(
            _: NotebookSession, arguments: list, processes: int, *__: object, **___: str
        ) -> int:
            # `kit predict` without --force refuses to overwrite.
            if Path(arguments[5]).exists():
                return 1
            write_predictions(make_predictions([7], [[0.3, 0.7, 0.0]]), arguments[5])
            return 1 if processes == 2 else 0

        monkeypatch.setattr(NotebookSession, "run_kit", run_kit)
        monkeypatch.setattr(NotebookSession, "gpu_count", lambda self: 2)
        infer.run_inference(session)
        assert submission(root)["winner_model_a"].tolist() == [pytest.approx(0.3)]

    def test_a_used_up_budget_stops_predicting(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        commands = predicts({})
        infer.run_inference(dataclasses.replace(session, started=time.monotonic() - 3600))
        assert commands == []
        assert len(submission(root)) == 1


@pytest.mark.parametrize("layout", ["old"], indirect=True)
class TestTraining:
    @pytest.fixture
    def job(self, session: NotebookSession) -> NotebookSession:
        preprocess = {"text": "ascii", "folds": 3}
        return with_job(session, recipe="name = 'x'\n", fold="all", preprocess=preprocess)

    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> list[tuple[list[str], int]]:
        """Replace kit: training leaves a finished and an unfinished fold; exit codes: `codes`."""
        made: list[tuple[list[str], int]] = []
        self.codes = {"preprocess": 0, "train": 0, "baseline": 0}

        def run_kit(
            _: NotebookSession,
            arguments: list,
            processes: int,
            __: float,
            environment: dict | None = None,
            folder: Path | None = None,
        ) -> int:
            self.environment = environment or {}
            self.models = {path.name: path.resolve() for path in (folder or root).glob("models/*")}
            made.append(([str(argument) for argument in arguments], processes))
            if arguments[0] != "preprocess" and self.codes["train"] != 9:
                for name in ("fold0/metrics.json", "fold1/checkpoints/checkpoint-5/optimizer.pt"):
                    path = root / "working/runs/x-1" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text("{}")
            return self.codes[arguments[0]]

        monkeypatch.setattr(NotebookSession, "run_kit", run_kit)
        monkeypatch.setattr(NotebookSession, "gpu_count", lambda self: 2)
        return made

    def test_rows_are_prepared_and_every_gpu_trains_within_the_budget(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        train.run_training(job)
        (preprocess, one), (training, two) = commands
        assert (one, two) == (1, 2)
        assert preprocess[:3] == ["preprocess", "--raw", str(root / "input" / COMPETITION)]
        assert {"--text=ascii", "--folds=3"} <= set(preprocess)
        assert 0.8 < float(training[training.index("--max-hours") + 1]) < 1.0
        assert training[training.index("--runs") + 1] == str(root / "working/runs")

    def test_a_classical_model_is_fitted_by_one_process(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        settings = {name: value for name, value in job.job.items() if name != "recipe"}
        train.run_training(
            dataclasses.replace(job, job={**settings, "baseline": "boosted", "fold": "1"})
        )
        (preprocess, _), (fitting, processes) = commands
        assert processes == 1
        assert fitting[:4] == ["baseline", "boosted", "--fold", "1"]
        assert fitting[fitting.index("--data") + 1] == preprocess[preprocess.index("--out") + 1]

    def test_checkpoints_are_not_on_the_disk_of_the_output(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        train.run_training(job)
        training = commands[1][0]
        scratch = Path(training[training.index("--scratch") + 1])
        assert root not in scratch.parents

    def test_a_mounted_backbone_is_used_offline(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        folder = add_backbone(root / "input/enc/transformers/small/2", "electra-small")
        train.run_training(with_job(job, recipe=BACKBONE_RECIPE, weights=["me/enc"]))
        assert self.models == {"electra-small": folder}
        assert self.environment["HF_HUB_OFFLINE"] == "1"

    def test_without_a_mounted_backbone_the_hub_is_asked(
        self, job: NotebookSession, commands: list
    ) -> None:
        train.run_training(with_job(job, recipe=BACKBONE_RECIPE))
        assert self.models == {}
        assert "HF_HUB_OFFLINE" not in self.environment

    def test_a_named_model_without_the_backbone_is_an_error_before_the_rows_are_prepared(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        add_backbone(root / "input/enc/transformers/small/2", "electra-base")
        with pytest.raises(RuntimeError, match="no weights of electra-small in me/enc") as caught:
            train.run_training(with_job(job, recipe=BACKBONE_RECIPE, weights=["me/enc"]))
        assert "enc/transformers/small/2" in str(caught.value)
        assert commands == []

    def test_unfinished_folds_are_not_in_the_output(
        self, job: NotebookSession, commands: list, root: Path
    ) -> None:
        train.run_training(job)
        assert list(json.loads((root / "working" / OUTPUT_LIST).read_text())["files"]) == [
            "runs/x-1/fold0/metrics.json"
        ]

    @pytest.mark.parametrize(
        ("codes", "message"),
        [
            ({"preprocess": 1}, "preprocess failed"),
            ({"train": 9}, "exit code 9 and finished no fold"),
            ({"train": -15}, "not every fold was trained"),
        ],
    )
    def test_a_failure_ends_the_notebook_as_failed(
        self, job: NotebookSession, commands: list, codes: dict, message: str
    ) -> None:
        self.codes |= codes
        with pytest.raises(RuntimeError, match=message):
            train.run_training(job)


@pytest.mark.parametrize("layout", ["old"], indirect=True)
class TestCommands:
    def test_a_command_is_stopped_after_its_budget(
        self, session: NotebookSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions.sys, "executable", "/bin/sleep")
        real = sessions.subprocess.Popen
        monkeypatch.setattr(
            sessions.subprocess, "Popen", lambda command, **more: real(["/bin/sleep", "60"], **more)
        )
        began = time.monotonic()

        assert session.run_kit(["train"], 1, 0.2) < 0
        assert time.monotonic() - began < 5

    def test_the_output_of_a_command_reaches_the_log(
        self,
        session: NotebookSession,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        real = sessions.subprocess.Popen
        fake = ["/bin/sh", "-c", "echo out; echo err >&2; exit 3"]
        monkeypatch.setattr(
            sessions.subprocess, "Popen", lambda command, **more: real(fake, **more)
        )

        assert session.run_kit(["train"], 2, 60) == 3
        log = capfd.readouterr().out
        assert "torch.distributed.run --standalone --nproc_per_node=2 -m kit train" in log
        assert "out\nerr\n" in log

    def test_memory_of_the_gpu_grows_in_place_unless_the_user_says_otherwise(
        self,
        session: NotebookSession,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        real = sessions.subprocess.Popen
        show = ["/bin/sh", "-c", "echo $PYTORCH_ALLOC_CONF $PYTORCH_CUDA_ALLOC_CONF"]
        monkeypatch.setattr(
            sessions.subprocess, "Popen", lambda command, **more: real(show, **more)
        )
        session.run_kit(["train"], 1, 60)
        assert "expandable_segments:True expandable_segments:True\n" in capfd.readouterr().out

        monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:64")
        session.run_kit(["train"], 1, 60)
        assert "max_split_size_mb:64 " in capfd.readouterr().out

    @pytest.mark.parametrize(
        ("device", "gpu", "message"),
        [
            ({"names": [], "problem": ""}, "t4", "there is none"),
            ({"names": ["Tesla P100"], "problem": "no kernels for Tesla P100"}, "t4", "no kernels"),
        ],
    )
    def test_an_unusable_gpu_is_an_error(
        self,
        session: NotebookSession,
        monkeypatch: pytest.MonkeyPatch,
        device: dict,
        gpu: str,
        message: str,
    ) -> None:
        line = json.dumps({"memory_gb": [], "kernels": ["sm_75"], **device})
        done = sessions.subprocess.CompletedProcess([], 0, "a warning\n" + line + "\n", "")
        monkeypatch.setattr(sessions.subprocess, "run", lambda *_, **__: done)
        with pytest.raises(RuntimeError, match=message):
            with_job(session, gpu=gpu).gpu_count()

    def test_two_gpus_are_two_processes(
        self, session: NotebookSession, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = {"memory_gb": [15.8, 15.8], "kernels": ["sm_75"], "problem": ""}
        line = json.dumps({**device, "names": ["Tesla T4"] * 2})
        done = sessions.subprocess.CompletedProcess([], 0, line, "")
        monkeypatch.setattr(sessions.subprocess, "run", lambda *_, **__: done)
        assert session.gpu_count() == 2


@pytest.mark.parametrize("layout", ["old"], indirect=True)
class TestOddRows:
    """One odd cell in the hidden rows costs one row."""

    GOOD = '"[""p""]","[""a""]","[""b""]"'

    def write(self, session: NotebookSession, *rows: bytes | str) -> None:
        lines = [b"id,prompt,response_a,response_b", f"7,{self.GOOD}".encode()]
        lines += [row.encode() if isinstance(row, str) else row for row in rows]
        lines.append(f"9,{self.GOOD}".encode())
        session.competition_file("test.csv").write_bytes(b"\n".join(lines) + b"\n")

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ('8,"[""p""]",,"[""b""]"', "response_a is not a JSON list of texts but ''"),
            ('8,plain text,"[""a""]","[""b""]"', "prompt is not a JSON list"),
            ('8,"[""p""]","[""a""]","[{}]"', "response_b is not a JSON list"),
            ('8,"[""p""]","[1]","[""b""]"', "response_a is not a JSON list"),
            ('8,"[""p""]","[""a""]"', "3 cells where the header has 4"),
            (b'8,"[""p\xff""]","[""a""]","[""b""]"', "prompt is not UTF-8 text"),
            (f"eight,{GOOD}", "the id is not a whole number"),
            (f"8.5,{GOOD}", "the id is not a whole number"),
        ],
    )
    def test_the_others_are_predicted_and_it_gets_the_class_prior(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
        row: bytes | str,
        problem: str,
    ) -> None:
        self.write(session, row)
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        with pytest.raises(RuntimeError, match="ODD ROWS: 1"):
            infer.run_inference(session)

        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        infer.run_inference(session)
        submitted = pd.read_csv(root / "working/submission.csv", dtype={"id": str})
        odd_id = row.split(b"," if isinstance(row, bytes) else ",")[0]
        assert submitted["id"].tolist() == [
            "7",
            odd_id.decode() if isinstance(odd_id, bytes) else odd_id,
            "9",
        ]
        assert submitted["winner_model_a"].tolist() == pytest.approx([0.4, 20064 / 57477, 0.4])
        log = capfd.readouterr().out
        assert "row 3, id" in log
        assert problem in log

    def test_of_two_rows_with_one_id_the_usable_one_counts(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        self.write(session, "7,,,", f"007,{self.GOOD}", "9,,,")
        predicts({"kit-train-a-run": 0.2, "kit-train-b-run": 0.6})
        infer.run_inference(session)
        assert submission(root)["id"].tolist() == [7, 9]
        assert submission(root)["winner_model_a"].tolist() == pytest.approx([0.4, 0.4])

    def test_rows_that_are_all_odd_get_the_class_prior(
        self,
        session: NotebookSession,
        root: Path,
        predicts: Callable,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
        session.competition_file("test.csv").write_bytes(b"id,prompt\n7,\xff\n8,,\n8\xff,\n")
        predicts({"kit-train-a-run": 1, "kit-train-b-run": 1})
        infer.run_inference(session)
        submitted = pd.read_csv(root / "working/submission.csv", dtype={"id": str})
        assert submitted["id"].tolist() == ["7", "8", "8\ufffd"]
