"""Check that baselines learn from training rows alone, are symmetric, and leave complete runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from compare_runs import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from kit.baselines import BASELINES, tfidf
from kit.baselines import run as run_module
from kit.baselines.linear import fit_symmetric
from kit.baselines.models import MODELS, ClassicalModel, Uniform, baseline_run_name
from kit.baselines.rows import PairRows
from kit.baselines.run import run_baseline
from kit.baselines.trees import SETTINGS
from kit.cli.main import main
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensembling.members import member_name
from kit.errors import KitError, RecipeError, RunError
from kit.evaluation.metrics import accuracy, class_prior, log_loss
from kit.export import export_run
from kit.predictions import read_predictions
from kit.run import Run
from kit.storage.atomic import write_json
from kit.task import CLASSES, HOLDOUT, ID, LABEL, SWAP, TEXTS

GOOD, BAD = "certainly a helpful answer", "some hopeless nonsense here"


def make_pairs(rows: int, seed: int = 0) -> tuple[PairRows, np.ndarray]:
    """Return pairs in which a phrase decides, and length a little, with their labels (N,)."""
    generator = np.random.default_rng(seed)
    good = generator.random((2, rows)) < 0.5
    texts = [[f"{GOOD if g else BAD} word{generator.integers(9)}" for g in side] for side in good]
    better = np.where(good[0] == good[1], 2, np.where(good[0], 0, 1))
    labels = np.where(generator.random(rows) < 0.2, generator.integers(0, 3, rows), better)

    lengths = generator.normal(6, 1, (rows, 2)).astype(np.float32)
    a, b = (
        np.column_stack([length, generator.normal(size=rows)]).astype(np.float32)
        for length in lengths.T
    )
    pair = generator.normal(size=(rows, 1)).astype(np.float32)
    groups = np.arange(rows) // 2
    counts = (tfidf.count_ngrams(texts[0]), tfidf.count_ngrams(texts[1]))
    return PairRows(a, b, pair, lengths, groups, counts), labels


def fit(name: str, rows: PairRows, labels: np.ndarray) -> ClassicalModel:
    return MODELS[name].fit(rows, labels)


def test_every_name_has_its_model():
    assert {name: name.capitalize() for name in BASELINES} == {
        name: model.__name__ for name, model in MODELS.items()
    }


@pytest.mark.parametrize("name", [name for name in MODELS if name != "prior"])
def test_swapping_the_answers_swaps_the_probabilities(name):
    train, labels = make_pairs(400)
    model = fit(name, train, labels)
    other, _ = make_pairs(100, seed=1)
    predictions = model.predict(other)
    np.testing.assert_allclose(model.predict(other.swapped)[:, SWAP], predictions, rtol=1e-5)
    np.testing.assert_allclose(predictions.sum(axis=1), 1, rtol=1e-6)
    assert np.isfinite(predictions).all()


@pytest.mark.parametrize("name", ["length", "tfidf", "boosted"])
def test_training_on_swapped_answers_gives_the_same_model(name):
    train, labels = make_pairs(400)
    other, _ = make_pairs(50, seed=1)
    model = fit(name, train, labels)
    swapped = fit(name, train.swapped, np.array(SWAP)[labels])
    np.testing.assert_allclose(swapped.predict(other), model.predict(other), atol=0.05)


@pytest.mark.parametrize("name", list(MODELS))
def test_predictions_do_not_depend_on_other_predicted_rows(name):
    train, labels = make_pairs(400)
    other, _ = make_pairs(30, seed=1)
    model = fit(name, train, labels)
    together = model.predict(other)
    for row in (0, 7, 29):
        alone = model.predict(other.take(np.array([row])))[0]
        np.testing.assert_allclose(alone, together[row], rtol=1e-5)


def test_tfidf_learns_the_phrase_that_decides_and_constants_do_not():
    train, labels = make_pairs(1500)
    other, truth = make_pairs(500, seed=1)
    losses = {name: log_loss(fit(name, train, labels).predict(other), truth) for name in MODELS}
    assert losses["uniform"] == pytest.approx(np.log(3))
    assert losses["prior"] <= losses["uniform"] + 0.001
    assert losses["tfidf"] < 0.75 * losses["prior"]
    np.testing.assert_allclose(fit("prior", train, labels).predict(other)[3], class_prior(labels))


def test_trees_learn_interactions_of_features(monkeypatch: pytest.MonkeyPatch):
    # Of these seven columns a tree would see two.
    monkeypatch.setitem(SETTINGS, "feature_fraction", 1.0)
    train, _ = make_pairs(3000)
    other, _ = make_pairs(1000, seed=1)

    # Where one feature is high, which is a fifth of the rows, another one counts the other way.
    def interaction(rows: PairRows) -> np.ndarray:
        a_is_less = rows.a[:, 1] < rows.b[:, 1]
        a_is_more = rows.a[:, 1] > rows.b[:, 1]
        return np.where(rows.pair[:, 0] > 0.8, a_is_less, a_is_more).astype(int)

    boosted = fit("boosted", train, interaction(train)).predict(other)
    linear = fit("length", train, interaction(train)).predict(other)
    labels = interaction(other)
    assert accuracy(boosted, labels) > 0.9 > 0.6 > accuracy(linear, labels)


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("softened", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_one_class_alone_is_learnt(name, softened, label):
    pairs, labels = make_pairs(200)
    labels[:] = label
    fitted = fit(name, pairs, soft(labels) if softened else labels)
    predictions = fitted.predict(pairs)
    np.testing.assert_allclose(predictions.sum(axis=1), 1)
    if name != "uniform":
        side = predictions[:, label] + predictions[:, SWAP[label]]
        assert (side > 0.9).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_trees_need_no_more_than_one_prompt(groups):
    pairs, labels = make_pairs(60)
    pairs = replace(pairs, groups=np.arange(60) % groups)
    predictions = fit("boosted", pairs, labels).predict(pairs)
    np.testing.assert_allclose(predictions.sum(axis=1), 1)


@pytest.mark.parametrize("rounds", [1, 7])
def test_trees_have_the_rounds_that_they_are_given(rounds: int):
    pairs, labels = make_pairs(300)
    boosted = MODELS["boosted"].fit(pairs, labels, rounds)
    assert boosted.rounds == rounds
    assert boosted.trees == MODELS["boosted"].fit(pairs, labels, rounds).trees


def soft(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return labels as probabilities times weights, (N, 3)."""
    return np.eye(3)[labels] * (1.0 if weights is None else weights[:, None])


@pytest.mark.parametrize("name", list(MODELS))
def test_certain_soft_labels_equal_labels(name):
    train, labels = make_pairs(400)
    other, _ = make_pairs(50, seed=1)
    expected = fit(name, train, labels).predict(other)
    predictions = fit(name, train, soft(labels)).predict(other)
    np.testing.assert_allclose(predictions, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["prior", "length"])
def test_row_of_weight_2_counts_as_two_rows(name):
    train, labels = make_pairs(300)
    weights = np.random.default_rng(0).integers(1, 4, 300)
    repeated = np.repeat(np.arange(300), weights)
    expected = fit(name, train.take(repeated), labels[repeated]).predict(train)
    predictions = fit(name, train, soft(labels, weights)).predict(train)
    np.testing.assert_allclose(predictions, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["length", "tfidf", "boosted"])
def test_soft_labels_and_weights_outweigh_wrong_labels(name):
    train, _ = make_pairs(1200)
    right = np.where(train.lengths[:, 0] > train.lengths[:, 1], 0, 1)

    # Most rows have the wrong label, but little weight or a doubtful soft label.
    wrong = np.random.default_rng(0).random(1200) < 0.6
    labels = np.where(wrong, 1 - right, right)
    weighted = soft(labels, np.where(wrong, 0.01, 1.0))
    doubtful = 0.45 * soft(labels) + 0.55 * soft(1 - labels)
    softened = np.where(wrong[:, None], doubtful, soft(labels))

    def training_accuracy(targets: np.ndarray) -> float:
        return accuracy(fit(name, train, targets).predict(train), right)

    assert training_accuracy(labels) < 0.5
    assert training_accuracy(weighted) > 0.8
    assert training_accuracy(softened) > 0.8


def test_length_equals_a_regression_on_both_orders():
    train, _ = make_pairs(800)
    generator = np.random.default_rng(0)
    longer = train.lengths[:, 0] - train.lengths[:, 1]
    tie = generator.random(800) < 0.3
    labels = np.where(tie, 2, np.where(longer + generator.logistic(size=800) > 0, 0, 1))

    both = np.concatenate([longer, -longer])
    both_labels = np.concatenate([labels, np.array(SWAP)[labels]])
    reference = LogisticRegression(C=1e6, max_iter=1000, tol=1e-10)
    reference.fit(np.column_stack([both, np.abs(both)]), both_labels)
    expected = reference.predict_proba(np.column_stack([longer, np.abs(longer)]))

    model = fit("length", train, labels)
    np.testing.assert_allclose(model.predict(train), expected, atol=0.003)
    assert model.parameters == 3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.booleans())
def test_linear_model_does_not_depend_on_the_division_into_blocks(seed, is_sparse):
    generator = np.random.default_rng(seed)
    columns = generator.normal(size=(60, 4)).astype(np.float32)
    labels = generator.integers(0, 3, 60)
    whole = fit_symmetric([columns], [np.abs(columns)], labels, 0.1)

    first = sparse.csr_array(columns[:, :2]) if is_sparse else columns[:, :2]
    odd = [first, columns[:, 2:]]
    even = [abs(block) for block in odd]
    divided = fit_symmetric(odd, even, labels, 0.1)
    expected = whole.predict([columns], [np.abs(columns)])
    np.testing.assert_allclose(divided.predict(odd, even), expected, atol=1e-3)


def test_tfidf_equals_scikit_learn(monkeypatch):
    monkeypatch.setattr(tfidf, "MIN_TEXTS", 1)
    texts = ["The cat sat. The cat ran.", "A dog ran", "é 漢字 cat", ""]
    counts = tfidf.count_ngrams(texts)
    weighed = tfidf.weigh_ngrams(counts, tfidf.inverse_frequencies([counts]))
    for block, result in zip(counts, weighed, strict=True):
        raw = block.copy()
        raw.data = np.exp(raw.data - 1)
        expected = TfidfTransformer(sublinear_tf=True).fit_transform(raw)
        used = np.flatnonzero(np.bincount(block.indices, minlength=tfidf.WIDTH))
        expected = expected[:, used].toarray()
        np.testing.assert_allclose(result.toarray(), expected, rtol=1e-5, atol=1e-7)


def test_rare_ngrams_have_no_column():
    counts = tfidf.count_ngrams(["cat"] * tfidf.MIN_TEXTS + ["cat unheard of"])
    weights = tfidf.inverse_frequencies([counts])
    words, _ = tfidf.weigh_ngrams(counts, weights)
    assert words.shape == (tfidf.MIN_TEXTS + 1, 1)
    np.testing.assert_allclose(words.toarray(), 1)

    unknown = tfidf.weigh_ngrams(tfidf.count_ngrams(["entirely new"]), weights)
    assert [block.nnz for block in unknown] == [0, 0]


def test_tfidf_learns_from_features_where_no_ngram_is_frequent():
    train, labels = make_pairs(200)
    empty = tfidf.count_ngrams([""] * 200)
    without_words = replace(train, counts=(empty, empty))
    predictions = fit("tfidf", without_words, labels).predict(without_words)
    assert np.isfinite(predictions).all()


def class_columns(path: Path) -> np.ndarray:
    return read_predictions(path)[list(CLASSES)].to_numpy()


@pytest.mark.parametrize("name", list(MODELS))
def test_run_holds_what_a_trained_run_holds(name, runs: Path, processed: Dataset):
    run = Run.open(runs / baseline_run_name(name))
    assert (run.name, run.baseline) == (baseline_run_name(name), name)
    assert list(run.metrics["parts"]) == [HOLDOUT, "fold0", "fold1", "fold2"]
    table = processed.train()
    truth = dict(zip(table[ID].to_pylist(), table[LABEL].to_pylist(), strict=True))
    for fold in (HOLDOUT, 0, 1, 2):
        predictions = read_predictions(run.fold(fold).path / "valid.csv")
        rows = processed.fold_rows(fold)[1]
        assert predictions[ID].tolist() == table[ID].to_numpy()[rows].tolist()

        metrics = run.metrics["parts"][run.fold(fold).path.name]
        labels = predictions[ID].map(truth).to_numpy()
        loss = log_loss(predictions[list(CLASSES)].to_numpy(), labels)
        assert metrics["log_loss"] == pytest.approx(loss, abs=1e-9)
        assert (metrics["best_epoch"], metrics["valid_rows"]) == (None, len(rows))
        assert metrics["parameters"] >= 0 < metrics["minutes"]

    oof = read_predictions(run.path / "oof.csv")
    assert sorted(oof[ID]) == sorted(truth)
    test = read_predictions(run.path / "test.csv")
    assert test[ID].tolist() == processed.test()[ID].to_pylist()
    assert json.loads((run.path / "metrics.json").read_text())["oof"]["rows"] == len(oof)
    assert member_name(run.path / "oof.csv") == run.name


def test_no_fit_sees_validation_rows_or_their_prompts(
    data: Path, processed: Dataset, tmp_path: Path, monkeypatch
):
    groups = processed.train()["group"].to_numpy()
    labels = processed.train()[LABEL].to_numpy()
    fitted: list[tuple[PairRows, np.ndarray]] = []

    class Recorder(Uniform):
        @classmethod
        def fit(cls, rows: PairRows, labels: np.ndarray) -> Uniform:
            fitted.append((rows, labels))
            return Uniform()

    monkeypatch.setitem(MODELS, "uniform", Recorder)
    run_baseline("uniform", data, tmp_path, "all")
    assert len(fitted) == 3
    for fold, (train, train_labels) in enumerate(fitted):
        train_rows, validation_rows = processed.fold_rows(fold)
        assert sorted(train.groups) == sorted(groups[train_rows])
        assert sorted(train_labels) == sorted(labels[train_rows])
        assert not set(train.groups) & set(groups[validation_rows])


def test_finished_folds_are_not_fitted_again(data: Path, tmp_path: Path):
    messages: list[str] = []
    result = run_baseline("length", data, tmp_path, say=messages.append)
    run = Path(result["run"])
    assert "oof" not in result
    files = [run / HOLDOUT / "metrics.json", run / "test.csv"]

    before = [file.stat().st_mtime_ns for file in files]
    run_baseline("length", data, tmp_path, say=messages.append)
    assert "is already finished" in messages[-1]
    assert [file.stat().st_mtime_ns for file in files] == before


def test_test_predictions_follow_the_test_rows(raw: Path, tmp_path: Path):
    source = tmp_path / "raw"
    processed = tmp_path / "out"
    shutil.copytree(raw, source)
    table = pd.read_csv(raw / "test.csv", dtype=str, keep_default_na=False)
    (source / "sample_submission.csv").unlink()

    def fit_and_read(test: pd.DataFrame) -> pd.DataFrame:
        test.to_csv(source / "test.csv", index=False)
        preprocess_files(source, processed, folds=3, valid=0.2)
        run = run_baseline("length", processed, tmp_path / "runs", "0")["run"]
        return read_predictions(Path(run) / "test.csv")

    first = fit_and_read(table)
    reversed_rows = fit_and_read(table[::-1])
    pd.testing.assert_frame_equal(reversed_rows[::-1].reset_index(drop=True), first)
    other_ids = table.assign(id=table["id"].astype(int) + 500_000)
    assert (fit_and_read(other_ids)[ID] - 500_000).tolist() == first[ID].tolist()


def test_texts_are_read_once_for_all_folds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read_table = pq.read_table
    read_with_texts = []

    def record(path: Path, columns: list[str] | None = None, **options: object) -> object:
        if columns is None or set(TEXTS) & set(columns):
            read_with_texts.append(path.name)
        return read_table(path, columns=columns, **options)

    monkeypatch.setattr(pq, "read_table", record)
    run_baseline("prior", data, tmp_path, "all")
    assert sorted(read_with_texts) == ["test.parquet", "train.parquet"]


def test_reports_take_a_baseline_like_any_run(runs: Path, data: Path):
    comparison = compare(
        [runs / baseline_run_name("length"), runs / baseline_run_name("tfidf")], data
    )
    # The runs have both a holdout and every fold; out-of-fold rows are preferred.
    assert comparison.validation == "out-of-fold"

    line = next(line for line in comparison.lines if line.name == baseline_run_name("tfidf"))
    oof = json.loads((runs / baseline_run_name("tfidf") / "metrics.json").read_text())["oof"]
    assert line.valid.log_loss == pytest.approx(oof["log_loss"])
    metrics = Run.open(runs / baseline_run_name("tfidf")).metrics["parts"]["fold0"]
    assert (line.best_epoch, line.parameters) == (None, metrics["parameters"])


def test_a_report_names_the_baseline_to_run_for_rows_that_it_lacks(
    runs: Path, data: Path, tmp_path: Path
):
    run_baseline("uniform", data, tmp_path, "0")
    comparison = compare(
        [runs / baseline_run_name("length"), tmp_path / baseline_run_name("uniform")], data
    )
    (left_out,) = comparison.left_out
    command = f"kit baseline uniform --data {data} --runs {tmp_path} --fold all"
    assert left_out.reason.endswith(f"next: {command}")


def test_baseline_run_has_no_recipe(runs: Path):
    with pytest.raises(RunError, match="which has no recipe"):
        _ = Run.open(runs / baseline_run_name("prior")).recipe


def test_folder_without_a_recipe_is_a_run_only_if_it_is_a_baseline(tmp_path: Path):
    write_json(tmp_path / "odd" / "origin.json", {"data": "x"})
    with pytest.raises(RunError, match="not a run directory"):
        Run.open(tmp_path / "odd")


def test_unknown_baselines_and_folds_are_refused_before_anything_is_written(
    data: Path, tmp_path: Path
):
    with pytest.raises(KitError, match="no baseline 'bayes'"):
        run_baseline("bayes", data, tmp_path)
    for fold in ("3", "-1", "first"):
        with pytest.raises(RecipeError, match="have folds 0 to"):
            run_baseline("length", data, tmp_path, fold)
    assert list(tmp_path.iterdir()) == []


def test_a_fit_that_fails_leaves_no_empty_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise KitError("no memory")

    monkeypatch.setattr(run_module, "read_pairs", fail)
    with pytest.raises(KitError, match="no memory"):
        run_baseline("length", data, tmp_path)
    assert not list(tmp_path.iterdir())

    monkeypatch.undo()
    run = Path(run_baseline("length", data, tmp_path)["run"])
    monkeypatch.setattr(run_module, "read_pairs", fail)
    with pytest.raises(KitError, match="no memory"):
        run_baseline("length", data, tmp_path, "0")
    assert (run / "holdout/metrics.json").is_file()


def test_run_remembers_the_data_it_was_made_from(data: Path, runs: Path, tmp_path: Path):
    origin = json.loads((runs / baseline_run_name("uniform") / "origin.json").read_text())
    assert origin["data"] == open_dataset(data).digest("train")
    options = [origin[name] for name in ("text", "split", "folds", "valid", "seed")]
    assert options == ["unicode", "grouped", 3, 0.2, 0]

    write_json(tmp_path / baseline_run_name("uniform") / "origin.json", origin | {"data": "other"})
    with pytest.raises(RunError, match="different data"):
        run_baseline("uniform", data, tmp_path)


def test_the_out_of_fold_file_of_a_run_is_not_replaced_by_a_prediction(data: Path, tmp_path: Path):
    run = Path(run_baseline("prior", data, tmp_path, "all")["run"])
    before = (run / "oof.csv").read_bytes()
    command = ["predict", str(run), "--data", str(data), "--split", "oof", "--force"]
    for out in ([], ["-o", str(run / "oof.csv")]):
        refused = CliRunner().invoke(main, [*command, *out])
        assert refused.exit_code == 2
        assert "needs another -o FILE" in refused.output
    assert (run / "oof.csv").read_bytes() == before

    again = CliRunner().invoke(main, [*command, "-o", str(tmp_path / "again.csv")])
    assert again.exit_code == 0, again.output


def test_a_baseline_has_nothing_to_export(runs: Path, tmp_path: Path):
    with pytest.raises(RunError, match="is a baseline, which has no encoder to export"):
        export_run(runs / baseline_run_name("uniform"), tmp_path / "out")
