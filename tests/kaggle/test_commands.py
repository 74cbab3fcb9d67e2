"""Check the output, the exit codes and the files of the commands that reach Kaggle."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from captured import Heard
from click.testing import CliRunner, Result
from fake_kaggle import OWNER, FakeKaggle
from fake_services import SLUG
from training_output import METRICS, RECIPE, training_output

from kit.baselines.models import baseline_run_name
from kit.cli.main import main
from kit.costs.devices import T4
from kit.ensembling.blend import Blend, parse_blend, write_blend
from kit.ensembling.calibration import Calibration, parse_calibration, write_calibration
from kit.kaggle import notebook
from kit.kaggle.job import train_jobs
from kit.kaggle.ledger import LedgerEntry, read_ledger, record_submission
from kit.kaggle.retry import RetryPolicy
from kit.recipe.load import load_recipe
from kit.sweeps.space import as_overrides, parse_keys, spread_points

TRAIN = ("kernels", "push", "train", "--backbone", "tiny-electra")
TRAIN_SLUG = f"kit-train-tiny-electra-{RECIPE.hash}-all-folds"
TWO_FOLD_SLUGS = [job.slug for job in train_jobs([RECIPE], preprocess={"folds": 2})]
INFER = f"{OWNER}/kit-infer"
Kit = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's working folder, empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def kit(
    fake: FakeKaggle, home: Path, here: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kit]:
    """Run kit for a user with a legacy key, against the fake and without pauses."""
    quick = functools.partial(RetryPolicy, sleep=heard.pauses.append)
    for module in ("kit.kaggle.retry", "kit.doctor"):
        monkeypatch.setattr(f"{module}.RetryPolicy", quick)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        heard.lines.append(result.output)
        assert Path.cwd() == here
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output

        return result

    with fake.patched(home):
        yield run


@pytest.fixture
def kit_without_key(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> Kit:
    """The same without credentials."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    return kit


@pytest.fixture
def ready(fake: FakeKaggle) -> None:
    """A finished inference kernel on Kaggle."""
    job = {"push": "a" * 32, "sources": [{"ref": f"{OWNER}/kit-train-a", "weight": 1.0}]}
    fake.kernel_script = ["COMPLETE"]
    text = notebook.build_notebook("infer", job)
    settings = {
        "kernelType": "notebook",
        "enableInternet": False,
        "competitionDataSources": [SLUG],
    }
    fake.save_kernel({"slug": INFER, "text": text, **settings})


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_commands_lead_from_download_to_a_score(
    kit: Kit, fake: FakeKaggle, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kit("download").exit_code == 0

    train = kit(*TRAIN, "--fold", "all", "--max-hours", 9)
    assert train.exit_code == 0
    assert train.stdout == f"{OWNER}/{TRAIN_SLUG}/1\n"

    ref = train.stdout.strip()
    assert f"kit kernels wait {ref}" in train.stderr

    waited = kit("kernels", "wait", ref)
    assert waited.stdout == f"{ref} COMPLETE\n"
    assert waited.stderr.endswith(f"Next: kit kernels push infer --runs {ref}\n")

    infer = kit("kernels", "push", "infer", "--runs", ref, "--wait")
    assert infer.exit_code == 0, infer.output
    assert f"Next: kit submit --kernel {INFER}/1 -m" in infer.stderr
    assert kit("kernels", "output", INFER).stdout == "kernels/kit-infer.output/submission.csv\n"

    submitted = kit("submit", "--kernel", f"{INFER}/1", "-m", "the whole way", "--wait")
    assert submitted.exit_code == 0, submitted.output
    assert "COMPLETE: public score 0.98765" in submitted.stdout
    assert "5 submissions left today" in submitted.stderr
    assert "GPU hours left" in submitted.stderr

    listed = kit("submissions").stdout
    assert all(word in listed for word in ("0.98765", "the whole way", f"{INFER}/1"))
    for command in ("submissions", "kernels status", "kernels list"):
        monkeypatch.setenv("COLUMNS", "80")
        assert max(map(len, kit(*command.split()).stdout.splitlines())) <= 80
    assert read_ledger(here / "submissions/ledger.csv")[0].runs == f"{OWNER}/{TRAIN_SLUG}"
    assert len(fake.submissions) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["download"],
        TRAIN,
        [*TRAIN, "--fan-out"],
        ["sweep", "push", "tiny-electra", "--key", "train.lr=1e-4,1e-3"],
        ["kernels", "push", "infer", "--runs", "me/kit-train"],
        ["kernels", "list"],
        ["kernels", "status"],
        ["kernels", "stop", "me/kit-train"],
        ["kernels", "wait", "me/kit-train"],
        ["kernels", "logs", "me/kit-train"],
        ["kernels", "output", "me/kit-train"],
        ["submit", "--kernel", "kit-infer", "-m", "m"],
        ["submissions"],
    ],
    ids=" ".join,
)
def test_every_command_without_credentials_says_how_to_get_them(
    kit_without_key: Kit, fake: FakeKaggle, here: Path, arguments: list[str]
) -> None:
    result = kit_without_key(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no Kaggle credentials found" in result.stderr
    assert "https://www.kaggle.com/settings/api" in result.stderr
    assert (fake.calls, files_in(here)) == ([], [])


def test_a_stale_token_error_says_how_to_unset_it(
    kit: Kit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "stale-token")
    result = kit("download")
    assert result.exit_code == 1
    assert "unset KAGGLE_API_TOKEN" in result.stderr
    assert "stale-token" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "-m", "neither"],
        ["submit", "a.csv", "--kernel", "me/kit-infer", "-m", "both"],
        ["submit", "--kernel", "me/kit-infer"],
        ["kernels", "push", "infer"],
        ["kernels", "push", "infer", "--runs", "a", "--runs", "b", "c"],
        ["kernels", "push", "infer", "--runs", "a", "--weights", "one"],
        ["kernels", "push", "infer", "--runs", "a", "--weights", "1", "--method", "mean"],
        ["kernels", "push", "infer", "--runs", "a", "--method", "weights"],
        ["kernels", "push", "infer", "--runs", "a", "--blend", "b.json", "--weights", "1"],
        ["kernels", "push", "infer", "--runs", "a", "--blend", "b.json", "--calibration", "t.json"],
        ["kernels", "push", "infer", "--runs", "a", "--max-hours", "9.5"],
        [*TRAIN, "--backbone", "tiny-roberta"],
        [*TRAIN, "--fan-out", "--title", "mine"],
        [*TRAIN, "--gpu", "a100"],
        [*TRAIN, "--max-hours", "13"],
        ["kernels", "wait"],
        ["kernels", "output", "me/kit-train", "--runs", "runs", "--only", "*.csv"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2_before_any_request(
    kit: Kit, fake: FakeKaggle, arguments: list[str]
) -> None:
    assert kit(*arguments).exit_code == 2
    assert fake.calls == []


class TestDownload:
    def test_downloaded_files_and_the_next_step_are_reported(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        result = kit("download", "--json")
        sizes = json.loads(result.stdout)["sizes"]
        assert sizes == {name: len(data) for name, data in fake.competitions[SLUG].items()}
        assert "Kaggle may have updated it" in result.stderr

        again = kit("download")
        assert "there already" in again.stderr
        assert "Next: kit preprocess --raw data/raw" in again.stderr
        assert files_in(here) == [f"data/raw/{name}" for name in sorted(fake.competitions[SLUG])]

    def test_rules_that_are_not_accepted(self, kit: Kit, fake: FakeKaggle, here: Path) -> None:
        fake.rules_accepted.clear()
        result = kit("download")
        assert result.exit_code == 1
        assert f"https://www.kaggle.com/competitions/{SLUG}/rules" in result.stderr
        assert files_in(here) == []

    def test_an_unknown_competition_is_an_error(self, kit: Kit) -> None:
        result = kit("download", "--competition", "no-such-thing")
        assert result.exit_code == 1
        assert "Check the name of the competition" in result.stderr

    def test_existing_files_are_not_overwritten(self, kit: Kit, here: Path) -> None:
        (here / "data/raw").mkdir(parents=True)
        (here / "data/raw/train.csv").write_text("mine")
        assert "--force" in kit("download").stderr
        assert (here / "data/raw/train.csv").read_text() == "mine"
        assert kit("download", "--force").exit_code == 0


class TestPush:
    @pytest.mark.parametrize(
        ("arguments", "slugs"),
        [
            (TRAIN, [TRAIN_SLUG]),
            (
                ["kernels", "push", "infer", "--runs", "a-kernel", "b/other", "--weights", "2,1"],
                ["kit-infer"],
            ),
            (
                [*TRAIN, "--fan-out", "--folds", "2"],
                TWO_FOLD_SLUGS,
            ),
        ],
    )
    def test_a_dry_run_writes_the_folder_without_a_request(
        self,
        kit_without_key: Kit,
        fake: FakeKaggle,
        here: Path,
        arguments: list[str],
        slugs: list[str],
    ) -> None:
        result = kit_without_key(*arguments, "--dry-run")
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == [f"kernels/{slug}" for slug in slugs]
        assert "OWNER" in result.stderr
        assert "without --dry-run" in result.stderr

        names = [
            f"kernels/{slug}/{name}"
            for slug in slugs
            for name in ("kernel-metadata.json", f"{slug}.ipynb")
        ]
        assert files_in(here) == sorted(names)
        assert fake.calls == []

    def test_a_dry_run_with_a_key_writes_the_real_kernel_id(self, kit: Kit, here: Path) -> None:
        assert json.loads(kit(*TRAIN, "--dry-run", "--json").stdout) == [
            {"kernel": f"{OWNER}/{TRAIN_SLUG}", "folder": f"kernels/{TRAIN_SLUG}"}
        ]
        written = json.loads((here / f"kernels/{TRAIN_SLUG}/kernel-metadata.json").read_text())
        assert written["id"] == f"{OWNER}/{TRAIN_SLUG}"

    def test_sources_and_the_image_reach_the_push(self, kit: Kit, fake: FakeKaggle) -> None:
        image = "gcr.io/kaggle-images/python@sha256:" + "b" * 64
        arena = "lmsys-chatbot-arena"
        fake.competitions[arena] = fake.competitions[SLUG]
        more = ("--docker-image", image, "--competition", arena)
        result = kit(*TRAIN, *more, "--model", "kituser/enc/transformers/small/2")
        assert result.exit_code == 0, result.output

        fake.kernels["kituser/kit-train-a"] = {"id": 1, "versions": {1: {"script": ["COMPLETE"]}}}
        fake.kernels["kituser/kit-train-a"]["versions"][1] |= {"last": "COMPLETE", "gpu": False}
        result = kit("kernels", "push", "infer", "--runs", "kituser/kit-train-a", *more)
        assert result.exit_code == 0, result.output

        train, infer = (call.body for call in fake.seen("SaveKernel"))
        for body in (train, infer):
            assert body["dockerImage"] == image
            assert body["dockerImagePinningType"] == "original"
            assert body["competitionDataSources"] == [arena]
            assert notebook.job_of(body["text"])["competition"] == arena
        assert train["modelDataSources"] == ["kituser/enc/transformers/small/2"]

    def test_options_reach_the_notebook(self, kit: Kit, fake: FakeKaggle) -> None:
        options = ["--fold", 1, "--folds", 3, "--text", "ascii", "--max-hours", 2, "--gpu", "none"]
        options += ["--set", "train.lr=1e-5", "--title", "my own title"]
        result = kit(*TRAIN, *options, "--json")

        assert json.loads(result.stdout)[0]["kernel"] == f"{OWNER}/my-own-title/1"
        (call,) = fake.seen("SaveKernel")
        job = notebook.job_of(call.body["text"])

        assert (job["fold"], job["max_hours"], job["gpu"]) == ("1", 2.0, "none")
        assert job["preprocess"] == {
            "text": "ascii",
            "split": "grouped",
            "folds": 3,
            "valid": 0.1,
            "seed": 0,
        }
        assert "lr = 1e-05" in job["recipe"]
        assert call.body["enableGpu"] is False

    @pytest.mark.parametrize(
        ("typed", "restarts"), [((), None), (("--restart",), 2), (("--restart", 4), 4)]
    )
    def test_restarts_reach_the_notebook(
        self, kit: Kit, fake: FakeKaggle, typed: tuple, restarts: int | None
    ) -> None:
        assert kit(*TRAIN, *typed).exit_code == 0
        (call,) = fake.seen("SaveKernel")
        assert notebook.job_of(call.body["text"]).get("restarts") == restarts

    def test_weights_and_method_reach_the_notebook(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script = ["COMPLETE"]
        for name in ("kit-a", "kit-b"):
            fake.save_kernel({"slug": f"{OWNER}/{name}", "text": ""})
        runs = ["--runs", "kit-a", "kit-b", "--weights", "2,1", "--local-score", "1.01"]

        assert kit("kernels", "push", "infer", *runs).exit_code == 0
        call = fake.seen("SaveKernel")[-1]
        job = notebook.job_of(call.body["text"])

        assert (job["method"], [s["weight"] for s in job["sources"]], job["local_score"]) == (
            "weights",
            [2, 1],
            "1.01",
        )
        assert call.body["kernelDataSources"] == [f"{OWNER}/kit-a", f"{OWNER}/kit-b"]
        assert call.body["enableInternet"] is False

    def test_a_saved_blend_reaches_the_notebook_and_the_ledger(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        other = load_recipe("tiny-roberta")
        fake.kernel_script = ["COMPLETE"]
        for slug, recipe in (("kit-train-a", RECIPE), ("kit-train-b", other)):
            fake.kernel_files = training_output(recipe, "0")
            fake.save_kernel({"slug": f"{OWNER}/{slug}", "text": ""})
        fake.kernel_files = {
            "submission.csv": b"id,winner_model_a,winner_model_b,winner_tie\n1,0.2,0.3,0.5\n"
        }
        saved = Blend(
            (other.run_name, RECIPE.run_name), (0.75, 0.25), "arithmetic", Calibration(0.9)
        )
        write_blend(saved, "blend.json", {})
        push = ("kernels", "push", "infer", "--blend", "blend.json", "--runs")
        refused = kit(*push, "kit-train-a")

        assert refused.exit_code == 1
        assert f"needs {other.run_name}" in refused.stderr
        assert len(fake.seen("SaveKernel")) == 0
        assert kit(*push, "kit-train-a", "kit-train-b").exit_code == 0

        job = notebook.job_of(fake.seen("SaveKernel")[-1].body["text"])
        assert parse_blend("job", job["blend"]) == saved
        assert kit("submit", "--kernel", INFER, "-m", "fitted").exit_code == 0

        (entry,) = read_ledger(here / "submissions/ledger.csv")
        assert (entry.runs, entry.weights) == (
            f"{OWNER}/kit-train-a {OWNER}/kit-train-b",
            "0.25 0.75",
        )

    def test_a_saved_calibration_reaches_the_notebook(
        self, kit_without_key: Kit, here: Path
    ) -> None:
        write_calibration(Calibration(1.25), "t.json", {})
        push = ("kernels", "push", "infer", "--runs", "kit-train-a", "--dry-run")
        dry = kit_without_key(*push, "--calibration", "t.json")

        assert dry.exit_code == 0, dry.output
        job = notebook.job_of((here / "kernels/kit-infer/kit-infer.ipynb").read_text())
        assert parse_calibration("job", job["calibration"]) == Calibration(1.25)

        swapped = kit_without_key(*push, "--blend", "t.json")
        assert swapped.exit_code == 1
        assert "not a saved blend" in swapped.stderr

    def test_the_p100_needs_the_option_yes(self, kit: Kit, fake: FakeKaggle, here: Path) -> None:
        refused = kit(*TRAIN, "--gpu", "p100")
        assert refused.exit_code == 1
        assert "retired the P100" in refused.stderr
        assert "--yes" in refused.stderr
        assert (fake.calls, files_in(here)) == ([], [])
        assert kit(*TRAIN, "--gpu", "p100", "--yes").exit_code == 0
        assert fake.seen("SaveKernel")[0].body["machineShape"] == "NvidiaTeslaT4"

    def test_a_refused_push_exits_with_1(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.max_gpu_sessions = 0
        result = kit(*TRAIN)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "Maximum batch GPU session count" in result.stderr
        assert "stop one at https://" in result.stderr

    def test_a_push_that_loses_a_source_exits_with_1(self, kit: Kit, fake: FakeKaggle) -> None:
        del fake.competitions[SLUG]
        result = kit(*TRAIN)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert f"without competition {SLUG}" in result.stderr

    def test_waiting_for_a_failing_run_exits_with_1(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script, fake.kernel_failure = ["QUEUED", "ERROR"], "out of memory"
        result = kit(*TRAIN, "--wait")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "failed: out of memory" in result.stderr
        assert "The log ends:\nhello" in result.stderr
        assert f"kit kernels logs {OWNER}/{TRAIN_SLUG}/1" in result.stderr

    @pytest.mark.parametrize("fold", ["5", "-1", "first"])
    def test_an_unknown_fold_is_refused_before_any_request(
        self, kit: Kit, fake: FakeKaggle, fold: str
    ) -> None:
        result = kit(*TRAIN, "--fold", fold)
        assert result.exit_code == 1
        assert "Choose 0 to 4" in result.stderr
        assert fake.calls == []

    def test_a_misspelt_backbone_is_not_pushed(self, kit: Kit, fake: FakeKaggle) -> None:
        result = kit("kernels", "push", "train", "--backbone", "debrta")
        assert result.exit_code == 1
        assert "no backbone 'debrta'" in result.stderr
        assert not fake.seen("SaveKernel")

    def test_a_misspelt_run_is_not_taken_for_a_kernel(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        (here / "runs/tiny-1").mkdir(parents=True)
        (here / "runs/tiny-1/origin.json").write_text("{}")
        result = kit("kernels", "push", "infer", "--runs", "runs/tiny-2-typo")

        assert result.exit_code == 1
        assert "Runs in runs: tiny-1" in result.stderr

        result = kit("kernels", "push", "infer", "--runs", "elsewhere/tiny-2-typo", "--dataset")
        assert result.exit_code == 1
        assert "there is none at elsewhere/tiny-2-typo" in result.stderr
        assert fake.seen("SaveKernel") == []

    def test_an_empty_kernel_name_is_explained(self, kit: Kit, fake: FakeKaggle) -> None:
        for command in (
            ["kernels", "push", "infer", "--runs", ""],
            ["submit", "--kernel", "", "-m", "m"],
        ):
            result = kit(*command)
            assert result.exit_code == 1
            assert "the name of the kernel is empty" in result.stderr
        assert fake.calls == []

    def test_a_local_run_can_be_published_as_a_dataset(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        for name, data in training_output(RECIPE, "0").items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(data)
        run = f"runs/{RECIPE.run_name}"
        refused = kit("kernels", "push", "infer", "--runs", run)

        assert refused.exit_code == 1
        assert "Add --dataset" in refused.stderr
        dry = kit("kernels", "push", "infer", "--runs", run, "--dataset", "--dry-run")
        assert dry.exit_code == 0
        assert fake.datasets == {}

        bad = kit("kernels", "push", "infer", "--runs", run, "--dataset", "--weights", "-1")
        assert bad.exit_code == 1
        assert fake.datasets == {}
        assert kit("kernels", "push", "infer", "--runs", run, "--dataset").exit_code == 0

        (ref,) = fake.datasets
        assert fake.seen("SaveKernel")[0].body["datasetDataSources"] == [f"{ref}/1"]


class TestClassical:
    PUSH = ("kernels", "push", "train", "--backbone", "boosted", "--dry-run")

    @pytest.mark.parametrize("fold", ["all", "holdout", "2"])
    def test_a_classical_model_needs_no_gpu_and_no_network(
        self, kit: Kit, here: Path, fold: str
    ) -> None:
        (pushed,) = json.loads(kit(*self.PUSH, "--fold", fold, "--json").stdout)
        folder = here / pushed["folder"]
        metadata = json.loads((folder / "kernel-metadata.json").read_text())
        assert metadata["enable_gpu"] is False
        assert metadata["enable_internet"] is False
        text = next(folder.glob("*.ipynb")).read_text()
        assert notebook.kind_of(text) == "train"
        settings = notebook.job_of(text)
        assert (settings["baseline"], settings["fold"]) == ("boosted", fold)
        assert settings["run_name"] == baseline_run_name("boosted")

    def test_what_has_no_effect_is_refused(self, kit: Kit) -> None:
        for more in (("--set", "train.lr=1e-5"), ("--recipe", "deberta"), ("--restart=2",)):
            result = kit(*self.PUSH, *more)
            assert result.exit_code == 2
            assert "it is a classical model" in result.stderr
        assert "no fold" in kit(*self.PUSH, "--fold", "9").stderr

    def test_it_goes_along_with_encoders_in_a_fan_out(self, kit: Kit) -> None:
        result = kit(*self.PUSH, "--backbone", "tiny-electra", "--fan-out", "--json")
        kernels = [pushed["kernel"] for pushed in json.loads(result.stdout)]
        assert len(kernels) == 6
        assert sum("boosted" in kernel for kernel in kernels) == 1


class TestFanOut:
    def test_folds_that_do_not_fit_a_session_are_pushed_one_by_one(
        self, kit: Kit, fake: FakeKaggle
    ) -> None:
        large = ("kernels", "push", "train", "--backbone", "deberta-large", "--dry-run")
        result = kit(*large)
        assert [line[-6:] for line in result.stdout.split()] == [f"fold-{n}" for n in range(5)]
        assert "do not fit into 9 h" in result.stderr
        assert len(kit(*large, "--fold", "0").stdout.split()) == 1
        assert kit(*large, "--title", "my training").exit_code == 2
        assert fake.calls == []

    def test_a_fold_that_fits_no_session_is_refused(self, kit: Kit, fake: FakeKaggle) -> None:
        large = ("kernels", "push", "train", "--backbone", "deberta-large")
        for more in ((), ("--fan-out",)):
            result = kit(*large, "--set", "train.epochs=12", *more)
            assert result.exit_code == 1
            assert "--set train.epochs=" in result.stderr
        assert fake.seen("SaveKernel") == []

    def test_a_split_training_is_collected(
        self, kit: Kit, fake: FakeKaggle, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = load_recipe("tiny-electra", ("train.max_steps=800",))
        slow = dataclasses.replace(T4, launch_seconds=0.08)
        monkeypatch.setattr("kit.kaggle.session_hours.T4", slow)
        real = fake.save_kernel

        def save(body: dict) -> dict:
            fake.kernel_files = training_output(recipe, body["newTitle"][-1])
            return real(body)

        fake.save_kernel = save
        options = ("--folds", "2", "--set", "train.max_steps=800")
        result = kit(*TRAIN, *options)
        assert result.exit_code == 0, result.output
        assert len(fake.seen("SaveKernel")) == 2
        assert (here / "runs" / recipe.run_name / "fold1/metrics.json").is_file()

    def test_finished_folds_are_collected(self, kit: Kit, fake: FakeKaggle, here: Path) -> None:
        fake.kernel_files = training_output(RECIPE, "0")
        result = kit(*TRAIN, "--fold", 0, "--fan-out")
        assert result.exit_code == 0, result.output
        assert f"Next: kit kernels push infer --runs runs/{RECIPE.run_name}" in result.stderr
        assert (here / f"runs/{RECIPE.run_name}/fold0/model.safetensors").is_file()

    def test_a_failed_job_exits_with_1_and_its_reason(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script = ["QUEUED", "ERROR"]
        result = kit(
            *TRAIN, "--backbone", "tiny-roberta", "--fold", "holdout", "--fan-out", "--json"
        )
        assert result.exit_code == 1
        assert [row["status"] for row in json.loads(result.stdout)] == ["failed", "failed"]
        assert "the same command again" in result.stderr

    def test_the_same_training_twice_is_refused(self, kit: Kit, fake: FakeKaggle) -> None:
        assert "are the same" in kit(*TRAIN, "--backbone", "tiny-electra", "--fan-out").stderr
        assert fake.calls == []


class TestSweep:
    """Check `kit sweep push`, whose points are trained by a kernel for each seed."""

    KEYS = ("train.lr=1e-4..1e-2:log", "model.head=symmetric,fusion")
    COMMAND = ("sweep", "push", "tiny-electra", "--seeds", 2, "--fold", 0, "--folds", 3)

    @pytest.fixture
    def points(self, fake: FakeKaggle, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
        """Return three points, and make each kernel leave the run that its title names.

        The losses of a point's seeds are 1.0 and 1.1 less a tenth of its number.
        """
        points = spread_points(parse_keys(self.KEYS), 3, seed=0)
        recipes = {}
        for number, point in enumerate(points):
            for seed in range(2):
                overrides = (*as_overrides(point), f"train.seed={seed}")
                recipe = load_recipe("tiny-electra", overrides)
                recipes[recipe.hash] = (recipe, 1 + (seed - number) / 10)
        real = fake.save_kernel

        def save(body: dict) -> dict:
            [(recipe, loss)] = [recipes[h] for h in recipes if h in body["newTitle"]]
            monkeypatch.setitem(METRICS["0"], "log_loss", loss)
            fake.kernel_files = training_output(recipe, "0")
            return real(body)

        fake.save_kernel = save
        return points

    def push(self, kit: Kit, trials: int, *options: object) -> Result:
        keys = [word for key in self.KEYS for word in ("--key", key)]
        return kit(*self.COMMAND, "--trials", trials, *keys, *options)

    def test_points_are_trained_collected_and_ranked(
        self, kit: Kit, fake: FakeKaggle, here: Path, points: list[dict]
    ) -> None:
        result = self.push(kit, 2)
        assert result.exit_code == 0, result.output
        assert "4 kernels, about" in result.stderr
        assert len(fake.seen("SaveKernel")) == 4
        assert len(list((here / "runs").glob("*/fold0/model.safetensors"))) == 4
        ranked = json.loads(kit("sweep", "show", "--json").stdout)["points"]
        assert [point["point"] for point in ranked] == [points[1], points[0]]
        assert [point["mean"] for point in ranked] == pytest.approx([0.95, 1.05])

        # More points begin with those that are there.
        again = self.push(kit, 3, "--json")
        assert len(fake.seen("SaveKernel")) == 6
        states = [point["state"] for point in json.loads(again.stdout)["points"]]
        assert states == ["finished"] * 3

    def test_a_failed_kernel_leaves_its_point_unfinished_until_it_is_pushed_again(
        self, kit: Kit, fake: FakeKaggle, points: list[dict]
    ) -> None:
        real = fake.save_kernel

        def save(body: dict) -> dict:
            fails = len(fake.seen("SaveKernel")) == 2
            fake.kernel_script = ["QUEUED", "ERROR" if fails else "COMPLETE"]
            return real(body)

        fake.save_kernel = save
        result = self.push(kit, 1)
        assert result.exit_code == 1
        assert "1 of 2 seeds" in result.stdout
        assert "it pushes only what is missing" in result.stderr

        assert self.push(kit, 1).exit_code == 0
        assert len(fake.seen("SaveKernel")) == 3

    def test_a_dry_run_writes_the_notebooks_and_no_sweep(
        self, kit_without_key: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        result = self.push(kit_without_key, 2, "--dry-run")
        assert result.exit_code == 0, result.output
        assert len(list((here / "kernels").glob("*/*.ipynb"))) == 4
        assert not (here / "sweeps").exists()
        assert fake.calls == []

    def test_values_that_cannot_be_combined_are_not_pushed(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        keys = ("--key", "train.swap_augmentation=true,false")
        result = kit(*self.COMMAND, *keys)
        assert result.exit_code == 1
        assert "no effect with the symmetric head" in result.stderr
        assert (fake.calls, files_in(here)) == ([], [])


class TestKernels:
    def test_status_lists_the_kernels_in_the_folder(self, kit: Kit, fake: FakeKaggle) -> None:
        nothing = kit("kernels", "status")
        assert nothing.exit_code == 0
        assert "Next: kit kernels push train" in nothing.stderr

        kit(*TRAIN)
        kit("kernels", "push", "infer", "--runs", "a/kit-train", "--dry-run")
        states = json.loads(kit("kernels", "status", "--json").stdout)

        assert {s["kernel"]: s["status"] for s in states} == {
            f"{OWNER}/{TRAIN_SLUG}": "QUEUED",
            INFER: "MISSING",
        }

    @pytest.mark.usefixtures("ready")
    def test_status_of_a_failed_run_exits_with_1(self, kit: Kit, fake: FakeKaggle) -> None:
        assert kit("kernels", "status", "kit-infer").exit_code == 0
        fake.kernel_script = ["ERROR"]
        fake.save_kernel({"slug": INFER, "text": ""})
        result = kit("kernels", "status", INFER)

        assert result.exit_code == 1
        assert f"kit kernels logs {INFER}" in result.stderr
        assert kit("kernels", "status", f"{INFER}/1").exit_code == 0

    @pytest.mark.parametrize("command", ["status", "wait", "logs", "output"])
    def test_an_unknown_kernel_is_an_error(self, kit: Kit, here: Path, command: str) -> None:
        result = kit("kernels", command, "me/not-there")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "check the spelling" in result.stderr
        assert files_in(here) == []

    def test_waiting_ends_at_the_timeout(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": INFER, "text": ""})
        result = kit("kernels", "wait", INFER, "--timeout", 1, "--every", 30)
        assert result.exit_code == 1
        assert "RUNNING after 1 minutes" in result.stderr

    def test_the_account_s_kernels_are_listed_with_their_states(
        self, kit: Kit, fake: FakeKaggle
    ) -> None:
        assert "None yet" in kit("kernels", "list").stderr
        fake.save_kernel({"slug": INFER, "text": "", "enableGpu": True})
        (row,) = json.loads(kit("kernels", "list", "--json").stdout)
        assert (row["kernel"], row["status"], row["gpu"]) == (INFER, "QUEUED", "yes")
        assert "2026-11-28 00:00" in kit("kernels", "list", "--wide").stdout

    def test_the_page_of_a_kernel_is_opened(
        self, kit: Kit, fake: FakeKaggle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[str] = []
        monkeypatch.setattr("click.launch", opened.append)
        kit("kernels", "open", "kit-infer")
        assert opened == [f"https://www.kaggle.com/code/{INFER}"]
        assert json.loads(kit("kernels", "open", INFER, "--json").stdout)["url"] == opened[0]
        assert fake.calls == []

    def test_a_run_is_stopped_by_hand(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script = ["RUNNING", "COMPLETE"]
        fake.save_kernel({"slug": INFER, "text": ""})
        running = kit("kernels", "stop", "kit-infer")
        assert running.exit_code == 1
        assert "https://www.kaggle.com/code?sessions=active" in running.stderr
        assert kit("kernels", "stop", "kit-infer").exit_code == 0

    def test_waiting_shows_the_newest_line_of_the_log(
        self, kit: Kit, fake: FakeKaggle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Watcher:
            def __init__(self, *_: object):
                self.lines = ["step 1/9", "", "step 5/9"]

            def take(self) -> str:
                return self.lines.pop(0) if self.lines else ""

        monkeypatch.setattr("kit.kaggle.kernels.LogWatcher", Watcher)
        fake.kernel_script = ["QUEUED", *["RUNNING"] * 12, "COMPLETE"]
        fake.save_kernel({"slug": INFER, "text": ""})
        lines = kit("kernels", "wait", INFER, "--every", 30).stderr.splitlines()
        assert [line for line in lines if "step" in line] == ["step 1/9", "step 5/9"]

    @pytest.mark.usefixtures("ready")
    def test_logs_are_printed_as_text_or_json(self, kit: Kit) -> None:
        assert kit("kernels", "logs", "kit-infer").stdout == "hello\n"
        assert json.loads(kit("kernels", "logs", INFER, "--json").stdout) == {
            "kernel": INFER,
            "log": "hello\n",
        }

    @pytest.mark.usefixtures("ready")
    def test_a_log_that_nobody_reads_any_more_is_not_followed(
        self, kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Such as before `| head`; a training's log goes on for hours."""
        monkeypatch.setattr("kit.kaggle.logs.log_records", lambda *_: itertools.repeat("line\n"))
        monkeypatch.setattr("kit.cli.kernels.reader_is_gone", lambda: True)
        assert kit("kernels", "logs", "kit-infer").stdout == "line\n"

    @pytest.mark.usefixtures("ready")
    def test_output_is_downloaded_and_not_overwritten(self, kit: Kit, here: Path) -> None:
        output = ("kernels", "output", "kit-infer", "-o", "got")
        assert json.loads(kit(*output, "--only", "*.csv", "--json").stdout) == {
            "kernel": INFER,
            "files": ["got/submission.csv"],
            "hashes_compared": False,
        }
        assert files_in(here) == ["got/kit-infer.log", "got/submission.csv"]
        assert "--force" in kit(*output).stderr
        assert kit(*output, "--force").exit_code == 0

    @pytest.mark.parametrize(
        "pattern",
        ["oof.csv", "*.csv", "runs/*/oof.csv", "./runs/a/oof.csv", "/kaggle/working/*.csv"],
    )
    def test_only_finds_a_file_in_a_folder(
        self, kit: Kit, fake: FakeKaggle, here: Path, pattern: str
    ) -> None:
        fake.kernel_files = {"runs/a/oof.csv": b"x", "model.bin": b"y"}
        fake.kernel_script = ["COMPLETE"]
        fake.save_kernel({"slug": INFER, "text": ""})
        result = kit("kernels", "output", "kit-infer", "-o", "got", "--only", pattern)
        assert result.stdout == "got/runs/a/oof.csv\n", result.stderr

    @pytest.mark.usefixtures("ready")
    def test_an_error_page_is_not_saved_as_output(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        fake.fail("_blob", 200, raw=b"<html>Sign in</html>", times=99)
        result = kit("kernels", "output", INFER)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "a web page came in place of submission.csv" in result.stderr
        assert files_in(here) == []

    def test_the_output_of_a_training_is_collected_as_a_run(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        fake.kernel_files, fake.kernel_script = training_output(RECIPE, "0"), ["COMPLETE"]
        kit(*TRAIN, "--wait")
        assert (
            kit("kernels", "output", TRAIN_SLUG, "--runs", "runs").stdout
            == f"runs/{RECIPE.run_name}/fold0\n"
        )

        again = kit("kernels", "output", TRAIN_SLUG, "--runs", "runs")
        assert again.exit_code == 0
        assert "already" in again.stderr


class TestSubmit:
    @pytest.mark.usefixtures("ready")
    def test_a_failed_submission_is_explained(self, kit: Kit, fake: FakeKaggle, here: Path) -> None:
        fake.submission_script, fake.submission_error = ["PENDING", "ERROR"], "Notebook Timeout"
        result = kit("submit", "--kernel", INFER, "-m", "too slow", "--wait")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "longer than 9 hours" in result.stderr
        assert read_ledger(here / "submissions/ledger.csv")[0].error == "Notebook Timeout"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["no-such.csv"], "no-such.csv: no such file"),
            (["bad.csv"], "bad.csv would not be scored"),
            (["--kernel", "no/such/kernel/here"], "is not the name of a kernel"),
            (
                ["--kernel", "https://www.kaggle.com/code/a/kit-infer?scriptVersionId=1"],
                "Write a/kit-infer/VERSION",
            ),
            (["--kernel", "kit-infer", "--sample", "no-such.csv"], "no-such.csv: no such file"),
        ],
    )
    def test_wrong_arguments_are_refused_before_a_credential_is_read(
        self, kit_without_key: Kit, fake: FakeKaggle, here: Path, arguments: list[str], message: str
    ) -> None:
        (here / "bad.csv").write_text(
            "id,winner_model_a,winner_model_b,winner_tie\n1,0.2,0.3,0.9\n"
        )
        result = kit_without_key("submit", *arguments, "-m", "m")
        assert result.exit_code == 1
        assert message in result.stderr
        assert "credentials" not in result.stderr
        assert fake.calls == []

    @pytest.mark.usefixtures("ready")
    def test_without_wait_the_next_step_is_printed(self, kit: Kit) -> None:
        result = kit("submit", "--kernel", "kit-infer", "-m", "m", "--json")
        assert json.loads(result.stdout)["kernel"] == f"{INFER}/1"
        again = ("submit", "--kernel", INFER, "-m", "m")
        assert "was submitted before" in kit(*again).stderr
        assert "kit submissions" in kit(*again, "--force").stderr

    def test_a_file_is_refused_by_a_notebooks_only_competition(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        (here / "mine.csv").write_bytes(fake.kernel_files["submission.csv"])
        result = kit("submit", "mine.csv", "-m", "m")
        assert result.exit_code == 1
        assert "kit kernels push infer" in result.stderr
        assert fake.submissions == []

    def test_a_file_is_submitted_to_another_competition(
        self, kit: Kit, fake: FakeKaggle, here: Path
    ) -> None:
        (here / "mine.csv").write_bytes(fake.kernel_files["submission.csv"])
        fake.notebooks_only = False
        assert kit("submit", "mine.csv", "-m", "m").exit_code == 0
        assert read_ledger()[0].file == "mine.csv"

    def test_an_unfinished_kernel_is_not_submitted(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.kernel_script = ["RUNNING"]
        fake.save_kernel({"slug": INFER, "text": ""})
        result = kit("submit", "--kernel", "kit-infer", "-m", "m")

        assert result.exit_code == 1
        assert f"kit kernels wait {INFER}" in result.stderr
        assert fake.submissions == []

    def test_rules_that_are_not_accepted(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.rules_accepted.clear()
        result = kit("submissions")
        assert result.exit_code == 1
        assert f"competitions/{SLUG}/rules" in result.stderr

    def test_the_list_shows_entries_that_only_the_ledger_has(self, kit: Kit, here: Path) -> None:
        assert "None yet" in kit("submissions").stderr
        old = LedgerEntry(
            "2026-01-01T00:00:00Z", "7", SLUG, kernel="other/kit-infer/3", message="another account"
        )
        record_submission(old)
        listed = kit("submissions").stdout

        assert "another account" in listed
        assert "in the ledger only" in listed
        assert json.loads(kit("submissions", "--json").stdout)[0]["kaggle"] is None


class TestDoctor:
    def test_online_it_shows_the_account_and_the_quotas(self, kit: Kit, fake: FakeKaggle) -> None:
        result = kit("doctor", "--online")
        assert result.exit_code == 0, result.output

        for text in (
            OWNER,
            "5 submissions left today",
            "29.0 of 30 GPU hours left",
            "legacy key from KAGGLE_KEY",
        ):
            assert text in result.stdout
        reading = {"GetCompetition", "GetSubmissionLimits", "GetAcceleratorQuotaStatistics"}
        assert {call.rpc.split("/")[1] for call in fake.calls} == reading

    def test_it_may_ask_about_another_competition(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.competitions["lmsys-chatbot-arena"] = {}
        result = kit("doctor", "--online", "--competition", "lmsys-chatbot-arena")
        assert "lmsys-chatbot-arena is not joined" in result.output
        assert {call.body["competitionName"] for call in fake.seen("GetCompetition")} == {
            "lmsys-chatbot-arena"
        }

    def test_offline_it_makes_no_request(self, kit: Kit, fake: FakeKaggle) -> None:
        assert kit("doctor").exit_code == 0
        assert fake.calls == []

    def test_a_stale_token_is_reported_as_broken(
        self, kit: Kit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KAGGLE_API_TOKEN", "stale-token")
        result = kit("doctor", "--online")
        assert result.exit_code == 1
        assert "unset KAGGLE_API_TOKEN" in result.stdout
        assert result.stdout.endswith("Broken: Kaggle credential\n")

    def test_a_competition_that_was_not_joined_is_reported_as_broken(
        self, kit: Kit, fake: FakeKaggle
    ) -> None:
        fake.rules_accepted.clear()
        result = kit("doctor", "--online")
        assert result.exit_code == 1
        assert f"https://www.kaggle.com/competitions/{SLUG}/rules" in result.stdout

    def test_no_answer_from_kaggle_is_reported_as_broken(self, kit: Kit, fake: FakeKaggle) -> None:
        fake.fail("GetCompetition", 503, times=9)
        result = kit("doctor", "--online")
        assert result.exit_code == 1
        assert "https://status.kaggle.com" in result.stdout

    @pytest.mark.parametrize("used", [108000, None, "nothing"])
    def test_missing_gpu_hours_are_only_a_note(
        self, kit: Kit, fake: FakeKaggle, used: int | str | None
    ) -> None:
        if used is None:
            fake.fail("GetAcceleratorQuotaStatistics", 403, "no phone number", times=9)
        elif used == "nothing":
            fake.get_accelerator_quota_statistics = lambda _: {}
        else:
            fake.gpu_used_s = used
        result = kit("doctor", "--online")
        assert result.exit_code == 0, result.output
        assert "note    GPU quota" in result.stdout
