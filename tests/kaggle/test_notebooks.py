"""Check the notebooks by running the pushed text offline, in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kit.ensembling.blend import Blend, apply_blend
from kit.ensembling.calibration import Calibration
from kit.evaluation.validate import validate_submission
from kit.kaggle.job import Job, Source, baseline_job, infer_job, train_job
from kit.kaggle.notebook import build_notebook
from kit.model.base import digest_weights
from kit.predictions import read_predictions
from kit.recipe.load import load_recipe
from kit.recipe.spec import Recipe
from kit.task import COMPETITION, TEST_COLUMNS, TRAIN_FILE

RUNNER = """
import json, sys
names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile(cell["source"], cell["id"], "exec"), names)
"""
# On a busy machine, threads that wait for each other are slower than one.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

# Where Kaggle mounts a judge's weights, by layout, and how a push names them.
JUDGE_MOUNTS = {
    "old": "tiny-qwen/transformers/small/1",
    "by kind": "models/me/tiny-qwen/transformers/small/1",
}
JUDGE_MODEL = Source("me/tiny-qwen/transformers/small", kind="model", versions=(1,))

# A proxy that refuses every connection.
NO_NETWORK = {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "NO_PROXY": "",
}


@pytest.fixture
def execute(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run the notebook of a job below `tmp_path`/kaggle, without this checkout and network."""

    def run(job: Job, **environment: str) -> subprocess.CompletedProcess:
        text = build_notebook(job.kind, {**job.session_settings(), "push": "a" * 32})
        (tmp_path / "notebook.ipynb").write_text(text, encoding="utf-8")
        working = tmp_path / "kaggle/working"
        working.mkdir(parents=True, exist_ok=True)

        # Without PYTHONPATH kit comes from the notebook, and without the _OFFLINE variables the
        # notebook itself has to keep transformers offline.
        env = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.endswith("_OFFLINE")
        }
        env |= {"KIT_KAGGLE_ROOT": str(tmp_path / "kaggle"), "TMPDIR": str(tmp_path)}
        env |= ONE_THREAD | NO_NETWORK | environment
        command = [sys.executable, "-c", RUNNER, str(tmp_path / "notebook.ipynb")]
        return subprocess.run(
            command, env=env, cwd=working, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.fixture(scope="module")
def toy() -> Recipe:
    """A recipe of three steps."""
    overrides = (
        "encode.max_tokens=8",
        "train.max_steps=3",
        "train.batch_size=16",
        "train.evals_per_epoch=1",
    )
    return load_recipe("tiny-electra", overrides)


@pytest.fixture(scope="module")
def run_folder(data: Path, toy: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of a toy encoder."""
    from kit.training.train import train_recipe

    runs = tmp_path_factory.mktemp("trained") / "runs"
    return Path(train_recipe(toy, data, runs, "holdout")["run"])


def mount(root: Path, where: str, source: Path) -> Path:
    target = root / "input" / where
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source, target_is_directory=True)
    return target


def write_test(path: Path, rows: int) -> np.ndarray:
    """Write a test.csv with random ids, and return the ids."""
    ids = np.random.default_rng(rows).permutation(10_000_000)[:rows]
    texts = [
        json.dumps([f"turn {i % 97}", None if i % 50 == 0 else "wörd " * (i % 5)])
        for i in range(rows)
    ]
    table = pd.DataFrame(
        {"id": ids, "prompt": texts, "response_a": texts[::-1], "response_b": texts}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, columns=list(TEST_COLUMNS))
    return ids


def test_inference_submits_the_mounted_test_set_without_a_broken_source(
    execute: Callable, run_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    test = root / f"input/competitions/{COMPETITION}/test.csv"
    ids = write_test(test, 3)
    mount(root, "notebooks/me/kit-train-a/runs", run_folder.parent)
    sources = [
        broken(root / "input/notebooks/me/kit-train-b", run_folder),
        Source("me/kit-train-a"),
    ]
    done = execute(infer_job(sources, gpu="none"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rows, valid" in done.stdout
    assert done.stdout.count("FAILED and is left out") == 1

    report = validate_submission(root / "working/submission.csv", test)
    assert report.ok
    assert report.rows == 3
    assert read_predictions(root / "working/submission.csv")["id"].tolist() == ids.tolist()

    # Kit was imported from the notebook, not from this checkout.
    assert str(tmp_path) in next(line for line in done.stdout.splitlines() if "kit 0" in line)


def broken(mounted: Path, run: Path) -> Source:
    """Mount a source whose only run has no weights."""
    for name in ("recipe.toml", "origin.json", "holdout/metrics.json"):
        path = mounted / "runs" / run.name / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((run / name).read_bytes())
    return Source("me/kit-train-b")


def test_a_fitted_blend_gives_the_same_result_as_locally(
    execute: Callable, run_folder: Path, tmp_path: Path
) -> None:
    from kit.predict import predict_input

    other = Path(shutil.copytree(run_folder, tmp_path / "runs/other-1"))
    origin = json.loads((other / "origin.json").read_text())

    # Another way to prepare the text makes its predictions different from the first run's.
    (other / "origin.json").write_text(json.dumps(origin | {"text": "ascii"}))
    root = tmp_path / "kaggle"
    test = root / "input" / COMPETITION / "test.csv"
    write_test(test, 3)
    mount(root, f"notebooks/me/kit-train-a/runs/{run_folder.name}", run_folder)

    # The folder of a dataset does not have the run's name.
    mount(root, "datasets/me/kit-run-other", other)
    sources = [
        Source("me/kit-run-other", kind="dataset", runs=(other.name,)),
        Source("me/kit-train-a"),
    ]
    saved = Blend((run_folder.name, other.name), (0.2, 0.8), "geometric", Calibration(0.5))
    done = execute(infer_job(sources, blend=saved, gpu="none"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "geometric blend: " in done.stdout

    members = [predict_input(run, test) for run in (other, run_folder)]
    assert not members[0].equals(members[1])

    expected = apply_blend(saved, members, [other.name, run_folder.name])
    made = read_predictions(root / "working/submission.csv")
    pd.testing.assert_frame_equal(made, expected, check_exact=False, rtol=0, atol=1e-5)

    assert not list(tmp_path.glob("kit-*")), "the notebook left its scratch folders"


def test_training_leaves_a_run_that_inference_can_use(
    execute: Callable, raw: Path, toy: Recipe, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    mount(root, f"competitions/{COMPETITION}", raw)
    done = execute(train_job(toy, fold="0", gpu="none", restarts=1, preprocess={"folds": 3}))

    assert done.returncode == 0, done.stdout + done.stderr
    command = next(line for line in done.stdout.splitlines() if "-m kit train" in line)
    assert "--restart=1" in command
    assert "--scratch" in command

    run = root / "working/runs" / toy.run_name
    assert (run / "fold0/metrics.json").is_file()

    listed = json.loads((root / "working/kit_outputs.json").read_text())["files"]
    assert f"runs/{toy.run_name}/fold0/model.safetensors" in listed


def test_trees_are_fitted_without_a_gpu_and_blended_with_an_encoder(
    execute: Callable, raw: Path, data: Path, run_folder: Path, tmp_path: Path
) -> None:
    """The whole way of classical models: a kernel fits trees, another submits the blend.

    It is of as many rows as Kaggle's hidden test set has, mounted in the older layout.
    """
    from kit.baselines.run import run_baseline
    from kit.predict import predict_input

    root = tmp_path / "kaggle"
    mount(root, f"competitions/{COMPETITION}", raw)
    job = baseline_job("boosted", fold="0", preprocess={"folds": 3, "valid": 0.2})
    done = execute(job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the results cannot be shown" not in done.stdout
    trees = root / "working/runs" / str(job.settings["run_name"])
    assert (trees / "fold0/trees.txt").is_file()
    listed = json.loads((root / "working/kit_outputs.json").read_text())["files"]
    assert f"runs/{trees.name}/fold0/trees.txt" in listed

    # The output of that kernel, a dataset of TF-IDF, and an encoder's kernel.
    words = Path(run_baseline("tfidf", data, tmp_path / "fitted", "0")["run"])
    trees = Path(shutil.move(trees, tmp_path / "trees" / trees.name))
    shutil.rmtree(root)
    test = root / "input" / COMPETITION / "test.csv"
    ids = write_test(test, 25_000)
    mount(root, "kit-train-trees/runs", trees.parent)
    mount(root, "kit-train-a/runs", run_folder.parent)
    mount(root, "kit-run-words", words)
    sources = [
        Source("me/kit-train-trees"),
        Source("me/kit-train-a"),
        Source("me/kit-run-words", kind="dataset", runs=(words.name,)),
    ]
    runs = (run_folder, trees, words)
    blend = Blend(tuple(run.name for run in runs), (0.2, 0.5, 0.3), "geometric")
    done = execute(infer_job(sources, blend=blend, gpu="none"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "25,000 rows, valid" in done.stdout
    made = read_predictions(root / "working/submission.csv")
    assert made["id"].tolist() == ids.tolist()

    few = tmp_path / "few.csv"
    pd.read_csv(test, keep_default_na=False).tail(300).to_csv(few, index=False)
    members = [predict_input(run, few) for run in runs]
    expected = apply_blend(blend, members, list(blend.members))
    last = made.tail(300).reset_index(drop=True)
    pd.testing.assert_frame_equal(last, expected, check_exact=False, rtol=0, atol=1e-5)


def test_training_takes_a_mounted_backbone_without_a_network(
    execute: Callable, raw: Path, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from kit.model.encoder import build_encoder
    from kit.model.registry import BACKBONES

    root = tmp_path / "kaggle"
    mount(root, f"competitions/{COMPETITION}", raw)
    folder = root / "input/models/me/enc/transformers/small/1"
    build_encoder(BACKBONES["electra-small"].config, fast_attention=False).save_pretrained(folder)
    letters = [chr(code) for code in range(33, 127)]
    text = (raw / TRAIN_FILE).read_text(encoding="utf-8")
    common = sorted({word for word in re.findall("[A-Za-z]+", text) if len(word) > 1})[:25_000]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words += common
    size = BACKBONES["electra-small"].config["vocab_size"]
    words += [f"[unused{number}]" for number in range(size - len(words))]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    special |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)

    overrides = ("encode.max_tokens=8", "train.max_steps=1", "train.batch_size=8")
    recipe = load_recipe("electra-small", overrides)
    weights = [Source("me/enc/transformers/small", kind="model", versions=(1,))]
    job = train_job(recipe, fold="0", gpu="none", preprocess={"folds": 3}, weights=weights)
    done = execute(job)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the weights of electra-small are those in {folder}" in done.stdout
    assert (root / "working/runs" / recipe.run_name / "fold0/model.safetensors").is_file()


@pytest.fixture(scope="module")
def toy_judge() -> Recipe:
    """A recipe of two steps with adapters."""
    overrides = (
        "encode.max_tokens=128",
        "train.max_steps=2",
        "train.batch_size=8",
        "train.evals_per_epoch=1",
        "train.lora_rank=4",
    )
    return load_recipe("tiny-qwen", overrides)


@pytest.fixture
def old_torchao(tmp_path: Path) -> str:
    """Return a PYTHONPATH with torchao 0.10.0, as Kaggle's image has it."""
    folder = tmp_path / "packages"
    info = folder / "torchao-0.10.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n")
    (info / "top_level.txt").write_text("torchao\n")
    (folder / "torchao").mkdir()
    (folder / "torchao/__init__.py").touch()
    return str(folder)


def test_a_judge_trains_on_its_mounted_base(
    execute: Callable,
    raw: Path,
    judge_base: Path,
    toy_judge: Recipe,
    old_torchao: str,
    tmp_path: Path,
) -> None:
    root = tmp_path / "kaggle"
    mount(root, COMPETITION, raw)
    base = mount(root, JUDGE_MOUNTS["old"], judge_base)
    job = train_job(toy_judge, fold="0", gpu="none", preprocess={"folds": 3}, weights=[JUDGE_MODEL])
    done = execute(job, PYTHONPATH=old_torchao)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "torchao 0.10.0" in done.stdout
    assert f"the weights of tiny-qwen are those in {base}" in done.stdout
    config = root / "working/runs" / toy_judge.run_name / "fold0/config.json"
    reference = json.loads(config.read_text())["base"]
    assert (reference["name"], reference["digest"]) == ("tiny-qwen", digest_weights(judge_base))


@pytest.fixture(scope="module")
def judge_run(
    data: Path, judge_base: Path, toy_judge: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of adapters whose base was in models/tiny-qwen."""
    from kit.training.train import train_recipe

    folder = tmp_path_factory.mktemp("judges")
    (folder / "models").mkdir()
    (folder / "models/tiny-qwen").symlink_to(judge_base, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return Path(train_recipe(toy_judge, data, folder / "runs", "holdout")["run"])


def test_a_judge_predicts_on_its_mounted_base(
    execute: Callable, judge_run: Path, judge_base: Path, old_torchao: str, tmp_path: Path
) -> None:
    root = tmp_path / "kaggle"
    rows = 3
    ids = write_test(root / f"input/competitions/{COMPETITION}/test.csv", rows)
    mount(root, "notebooks/me/kit-train-a/runs", judge_run.parent)
    base = mount(root, JUDGE_MOUNTS["by kind"], judge_base)
    job = infer_job([Source("me/kit-train-a")], gpu="none", weights=[JUDGE_MODEL])
    done = execute(job, PYTHONPATH=old_torchao)

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the weights below {judge_run.name} are those in {base}" in done.stdout
    assert f"{rows:,} rows, valid" in done.stdout
    made = read_predictions(root / "working/submission.csv")
    assert made["id"].tolist() == ids.tolist()
    assert made["winner_model_a"].nunique() > 1


def test_trees_with_similarities_predict_by_the_mounted_encoder(
    execute: Callable, data: Path, fixed_backbone: Path, tmp_path: Path
) -> None:
    from kit.baselines.run import run_baseline

    # The encoder is no longer where it was at home.
    encoder = Path(shutil.copytree(fixed_backbone, tmp_path / "home/sentences"))
    run = Path(run_baseline("boosted", data, tmp_path / "runs", "0", embed=str(encoder))["run"])
    mounted = Path(shutil.move(encoder, tmp_path / "elsewhere"))

    root = tmp_path / "kaggle"
    ids = write_test(root / f"input/competitions/{COMPETITION}/test.csv", 3)
    mount(root, "notebooks/me/kit-fit/runs", run.parent)
    base = mount(root, "datasets/me/sentences", mounted)
    weights = [Source("me/sentences", kind="dataset")]
    done = execute(infer_job([Source("me/kit-fit")], gpu="none", weights=weights))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the weights below {run.name} are those in {base}" in done.stdout
    made = read_predictions(root / "working/submission.csv")
    assert made["id"].tolist() == ids.tolist()
    assert made["winner_model_a"].nunique() > 1
