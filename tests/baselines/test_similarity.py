"""Check similarities of prompt and answers by an encoder, and the runs that read them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from kit.baselines.models import baseline_run_name
from kit.baselines.rows import SIMILARITY_FEATURE_NAMES
from kit.baselines.run import run_baseline
from kit.baselines.similarity import Embedder, cosines
from kit.data.dataset import Dataset, open_dataset
from kit.data.prediction_rows import PredictionRows
from kit.errors import BackboneError, KitError, RunError
from kit.model.base import run_bases
from kit.predict import RunPredictor, predict_split
from kit.predictions import read_predictions
from kit.reporting.left_out import next_training
from kit.run import Run
from kit.storage.atomic import write_json
from kit.task import CLASSES, TEXTS


def rows_of(texts: list[tuple[str, str, str]], cache: Path) -> PredictionRows:
    columns = zip(TEXTS, zip(*texts, strict=True), strict=True)
    table = pa.table({name: pa.array([[text] for text in column]) for name, column in columns})
    return PredictionRows(table, f"{hash(tuple(texts))}", cache)


TEXT = [
    ("What is 2 and 2?", "It is four.", "I do not know that, sorry. " * 40),
    ("", "", "Something."),
    ("The same.", "The same.", "The same."),
]


@pytest.fixture(scope="module")
def embedder(fixed_backbone: Path) -> Embedder:
    return Embedder.of_backbone(str(fixed_backbone))


@pytest.fixture(scope="module")
def run(data: Path, fixed_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Boosted trees that read similarities, of two folds."""
    runs = tmp_path_factory.mktemp("embedded")
    for fold in ("0", "1"):
        result = run_baseline("boosted", data, runs, fold, embed=str(fixed_backbone))
    return Run.open(result["run"])


def test_similarities_are_the_cosines_of_transformers_mean_states(
    embedder: Embedder, fixed_backbone: Path, tmp_path: Path
):
    tokenizer = AutoTokenizer.from_pretrained(fixed_backbone)
    encoder = AutoModel.from_pretrained(fixed_backbone, add_pooling_layer=False).eval()

    def embed(text: str) -> np.ndarray:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:254]
        framed = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
        with torch.inference_mode():
            mean = encoder(framed).last_hidden_state[0].mean(0)
        return torch.nn.functional.normalize(mean, dim=0).numpy()

    found = embedder.measure(rows_of(TEXT, tmp_path))
    for row, texts in enumerate(TEXT):
        prompt, a, b = map(embed, texts)
        expected = [a @ prompt, b @ prompt, a @ b]
        np.testing.assert_allclose([values[row, 0] for values in found], expected, atol=1e-5)


def test_swapping_the_answers_swaps_the_similarities(embedder: Embedder, tmp_path: Path):
    found = embedder.measure(rows_of(TEXT, tmp_path))
    swapped = embedder.measure(rows_of([(prompt, b, a) for prompt, a, b in TEXT], tmp_path))
    np.testing.assert_allclose(found.a, swapped.b, atol=1e-6)
    np.testing.assert_allclose(found.pair, swapped.pair, atol=1e-6)
    np.testing.assert_allclose(found.a[2], 1, atol=1e-6)


def test_vectors_of_zeros_have_no_similarity():
    assert np.array(cosines(np.zeros((2, 3, 4), np.float32))).tolist() == [[[0.0]] * 2] * 3


def test_rows_are_read_once(embedder: Embedder, tmp_path: Path):
    messages: list[str] = []
    first, again = (embedder.measure(rows_of(TEXT, tmp_path), messages.append) for _ in range(2))
    assert messages == ["fixed reads 3 prompts and their answers"]
    np.testing.assert_array_equal(first, again)


def test_a_run_knows_its_encoder_and_predicts_with_it(run: Run, data: Path, fixed_backbone: Path):
    processed = open_dataset(data)
    (base,) = run_bases(run.path)
    assert run.name == baseline_run_name("boosted", base.digest) != baseline_run_name("boosted")
    assert run.command == f"kit baseline boosted --embed {fixed_backbone}"
    config = json.loads((run.path / "fold0" / "config.json").read_text())
    assert config["features"] == SIMILARITY_FEATURE_NAMES

    # As in a fresh process: from the files alone, and to the last bit.
    predicted = predict_split(run.path, "test", data)
    kept = read_predictions(run.test_path)
    np.testing.assert_array_equal(predicted[list(CLASSES)], kept[list(CLASSES)])

    # Without a cache, and of some rows alone.
    test = processed.test()
    probabilities = RunPredictor(run).predict_table(test.slice(0, 5))
    np.testing.assert_allclose(probabilities, kept[list(CLASSES)][:5], atol=0.05)


def test_what_follows_knows_the_encoder(run: Run, data: Path, fixed_backbone: Path):
    assert f"--embed {fixed_backbone} --data" in next_training(run, data, "all")


@pytest.mark.parametrize("index", ["{", "{}", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_a_damaged_encoder_is_refused(
    processed: Dataset, fixed_backbone: Path, tmp_path: Path, index: str
):
    folder = Path(shutil.copytree(fixed_backbone, tmp_path / "encoder"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BackboneError):
        run_baseline("boosted", processed.folder, tmp_path / "runs", embed=str(folder))
    assert not (tmp_path / "runs").exists()


def test_an_encoder_that_is_gone_or_another_is_refused(
    run: Run, data: Path, tmp_path: Path, fixed_backbone: Path
):
    copy = Path(shutil.copytree(run.path, tmp_path / run.name))
    for fold in ("fold0", "fold1"):
        config = json.loads((copy / fold / "config.json").read_text())
        config["base"]["source"] = str(tmp_path / "gone")
        write_json(copy / fold / "config.json", config)
        # As if it had been fitted so: the hashes fit.
        metrics = json.loads((copy / fold / "metrics.json").read_text())
        metrics["files"] = Run(copy).fold(int(fold[-1])).file_digests()
        write_json(copy / fold / "metrics.json", metrics)
    with pytest.raises(BackboneError, match="the backbone fixed below this run is not on this"):
        predict_split(copy, "test", data)

    other = shutil.copytree(fixed_backbone, tmp_path / "gone")
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BackboneError, match="not those that the run was made with"):
        predict_split(copy, "test", data)


def test_a_damaged_reference_is_refused(run: Run, tmp_path: Path):
    fold = Path(shutil.copytree(run.path / "fold0", tmp_path / "fold0"))
    config = json.loads((fold / "config.json").read_text())
    write_json(fold / "config.json", config | {"base": {"name": "fixed"}})
    with pytest.raises(RunError, match="which encoder it reads is lost"):
        Embedder.load(fold)


def test_models_without_features_and_backbones_that_do_not_exist_are_refused(
    processed: Dataset, fixed_backbone: Path, judge_base: Path, tmp_path: Path
):
    with pytest.raises(KitError, match="length reads no features"):
        run_baseline("length", processed.folder, tmp_path, embed=str(fixed_backbone))
    with pytest.raises(BackboneError):
        run_baseline("boosted", processed.folder, tmp_path, embed=str(tmp_path / "nothing"))
    for name in ("tiny-roberta", ""):
        with pytest.raises(BackboneError):
            run_baseline("boosted", processed.folder, tmp_path, embed=name)
    with pytest.raises(BackboneError, match="is a decoder"):
        run_baseline("boosted", processed.folder, tmp_path, embed=str(judge_base))
    assert not list(tmp_path.iterdir())
