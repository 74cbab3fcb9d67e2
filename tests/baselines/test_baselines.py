"""Baselines learn from training rows alone, cannot favour a place, and leave runs like any other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare_runs import compare
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet as pq
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from kit.baselines import tfidf
from kit.baselines.linear import fit_symmetric
from kit.baselines.models import FITS, FittedBaseline, PairRows, fit_uniform
from kit.baselines.run import run_baseline
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensembling.members import member_name
from kit.errors import KitError, RecipeError, RunError
from kit.evaluation import softmax
from kit.evaluation.metrics import accuracy, class_prior, log_loss
from kit.predictions import read_predictions
from kit.run import Run
from kit.storage.atomic import write_json
from kit.task import CLASSES, HOLDOUT, ID, LABEL, SWAP, TEXTS

GOOD, BAD = "certainly a helpful answer", "some hopeless nonsense here"


def pairs(rows: int, seed: int = 0) -> tuple[PairRows, np.ndarray]:
    """Pairs in which a phrase decides, and length a little; labels (N,)."""
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
    return PairRows(
        a, b, pair, lengths, np.arange(rows) // 2, tuple(map(tfidf.count_ngrams, texts))
    ), labels


@pytest.mark.parametrize("name", [name for name in FITS if name != "prior"])
def test_swapping_the_answers_swaps_the_probabilities(name):
    train, labels = pairs(400)
    model = FITS[name](train, labels)
    other, _ = pairs(100, seed=1)
    found = model.predict(other)
    np.testing.assert_allclose(model.predict(other.swapped)[:, SWAP], found, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["length", "tfidf", "boosted"])
def test_training_on_the_other_order_gives_the_same_model(name):
    train, labels = pairs(400)
    other, _ = pairs(50, seed=1)
    flipped = FITS[name](train.swapped, np.array(SWAP)[labels])
    np.testing.assert_allclose(
        flipped.predict(other), FITS[name](train, labels).predict(other), atol=0.02
    )


@pytest.mark.parametrize("name", list(FITS))
def test_a_prediction_depends_on_its_row_and_the_training_rows_only(name):
    train, labels = pairs(400)
    other, _ = pairs(30, seed=1)
    model = FITS[name](train, labels)
    together = model.predict(other)
    for row in (0, 7, 29):
        np.testing.assert_allclose(
            model.predict(other.take(np.array([row])))[0], together[row], rtol=1e-5
        )


def test_tfidf_learns_the_phrase_that_decides_and_constants_do_not():
    train, labels = pairs(1500)
    other, truth = pairs(500, seed=1)
    losses = {
        name: log_loss(fit(train, labels).predict(other), truth) for name, fit in FITS.items()
    }
    assert losses["uniform"] == pytest.approx(np.log(3))
    assert losses["prior"] <= losses["uniform"] + 0.001
    assert losses["tfidf"] < 0.75 * losses["prior"]
    np.testing.assert_allclose(FITS["prior"](train, labels).predict(other)[3], class_prior(labels))


def test_trees_learn_what_depends_on_two_features_at_once():
    train, _ = pairs(3000)
    other, _ = pairs(1000, seed=1)

    def rule(some: PairRows) -> np.ndarray:
        return np.where(
            some.pair[:, 0] > 0, some.a[:, 1] < some.b[:, 1], some.a[:, 1] > some.b[:, 1]
        ).astype(int)

    boosted, linear = (
        FITS[name](train, rule(train)).predict(other) for name in ("boosted", "length")
    )
    assert accuracy(boosted, rule(other)) > 0.9 > 0.6 > accuracy(linear, rule(other))


def expanded(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Labels as probabilities times weights, (N, 3)."""
    return np.eye(3)[labels] * (1.0 if weights is None else weights[:, None])


@pytest.mark.parametrize("name", list(FITS))
def test_certain_soft_labels_of_weight_1_are_labels(name):
    train, labels = pairs(400)
    other, _ = pairs(50, seed=1)
    expected = FITS[name](train, labels).predict(other)
    np.testing.assert_allclose(
        FITS[name](train, expanded(labels)).predict(other), expected, atol=2e-3
    )


@pytest.mark.parametrize("name", ["prior", "length"])
def test_a_row_of_weight_2_counts_as_two_rows(name):
    train, labels = pairs(300)
    weights = np.random.default_rng(0).integers(1, 4, 300)
    often = np.repeat(np.arange(300), weights)
    expected = FITS[name](train.take(often), labels[often]).predict(train)
    np.testing.assert_allclose(
        FITS[name](train, expanded(labels, weights)).predict(train), expected, atol=1e-4
    )


@pytest.mark.parametrize("name", ["length", "tfidf", "boosted"])
def test_soft_labels_and_weights_outweigh_wrong_labels(name):
    train, _ = pairs(1200)
    right = np.where(train.lengths[:, 0] > train.lengths[:, 1], 0, 1)
    wrong, light = (
        1 - right,
        np.random.default_rng(0).random(1200) < 0.6,
    )  # most rows are wrong, and of little weight
    labels = np.where(light, wrong, right)
    weighed = expanded(labels, np.where(light, 0.01, 1.0))
    doubtful = np.where(
        light[:, None], 0.45 * expanded(labels) + 0.55 * expanded(1 - labels), expanded(labels)
    )
    misled, by_weight, by_doubt = (
        FITS[name](train, each).predict(train) for each in (labels, weighed, doubtful)
    )
    assert accuracy(misled, right) < 0.5
    assert accuracy(by_weight, right) > 0.8
    assert accuracy(by_doubt, right) > 0.8


def test_the_gradient_by_soft_targets_is_that_of_the_loss():
    generator = np.random.default_rng(0)
    logits, targets = (
        generator.normal(size=(3, 5)),
        generator.dirichlet([1, 1, 1], 5) * generator.random((5, 1)),
    )
    value, gradient = softmax.softmax_loss(logits, targets)
    chances = softmax.softmax(logits).T
    assert value == pytest.approx(-(targets * np.log(chances)).sum() / targets.sum())
    found = approx_fprime(
        logits.ravel(), lambda flat: softmax.softmax_loss(flat.reshape(3, 5), targets)[0], 1e-7
    )
    np.testing.assert_allclose(gradient.ravel(), found, atol=1e-5)


def test_length_is_a_regression_on_both_orders():
    train, _ = pairs(800)
    generator = np.random.default_rng(0)
    longer = train.lengths[:, 0] - train.lengths[:, 1]
    tie = generator.random(800) < 0.3
    labels = np.where(tie, 2, np.where(longer + generator.logistic(size=800) > 0, 0, 1))
    both = np.concatenate([longer, -longer])
    peer = LogisticRegression(C=1e6, max_iter=1000, tol=1e-10)
    peer.fit(
        np.column_stack([both, np.abs(both)]), np.concatenate([labels, np.array(SWAP)[labels]])
    )
    expected = peer.predict_proba(np.column_stack([longer, np.abs(longer)]))
    np.testing.assert_allclose(FITS["length"](train, labels).predict(train), expected, atol=0.003)
    assert FITS["length"](train, labels).parameters == 3


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.booleans())
def test_a_linear_model_of_blocks_is_one_of_their_columns_side_by_side(seed, thin):
    generator = np.random.default_rng(seed)
    wide = generator.normal(size=(60, 4)).astype(np.float32)
    blocks = [sparse.csr_array(wide[:, :2]) if thin else wide[:, :2], wide[:, 2:]]
    labels = generator.integers(0, 3, 60)
    one = fit_symmetric([wide], [np.abs(wide)], labels, 0.1)
    other = fit_symmetric(blocks, [abs(block) for block in blocks], labels, 0.1)
    found = other.predict(blocks, [abs(block) for block in blocks])
    np.testing.assert_allclose(found, one.predict([wide], [np.abs(wide)]), atol=1e-3)


def test_tfidf_is_that_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(tfidf, "RAREST", 1)
    texts = ["The cat sat. The cat ran.", "A dog ran", "é 漢字 cat", ""]
    counts = tfidf.count_ngrams(texts)
    weighed = tfidf.weigh_ngrams(counts, tfidf.inverse_frequencies([counts]))
    for block, found in zip(counts, weighed, strict=True):
        raw = block.copy()
        raw.data = np.exp(raw.data - 1)
        expected = TfidfTransformer(sublinear_tf=True).fit_transform(raw)
        used = np.flatnonzero(np.bincount(block.indices, minlength=tfidf.WIDTH))
        np.testing.assert_allclose(
            found.toarray(), expected[:, used].toarray(), rtol=1e-5, atol=1e-7
        )


def test_rare_ngrams_have_no_column_and_leave_no_trace():
    counts = tfidf.count_ngrams(["cat"] * tfidf.RAREST + ["cat unheard of"])
    weighed = tfidf.weigh_ngrams(counts, tfidf.inverse_frequencies([counts]))
    assert weighed[0].shape == (tfidf.RAREST + 1, 1)
    np.testing.assert_allclose(weighed[0].toarray(), 1)
    unknown = tfidf.weigh_ngrams(
        tfidf.count_ngrams(["entirely new"]), tfidf.inverse_frequencies([counts])
    )
    assert [block.nnz for block in unknown] == [0, 0]


def test_texts_without_a_frequent_ngram_leave_the_features_to_learn_from():
    train, labels = pairs(200)
    bare = PairRows(
        train.a,
        train.b,
        train.pair,
        train.lengths,
        train.groups,
        (tfidf.count_ngrams([""] * 200),) * 2,
    )
    assert np.isfinite(FITS["tfidf"](bare, labels).predict(bare)).all()


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name in FITS:
        run_baseline(name, data, folder, "holdout")
        run_baseline(name, data, folder, "all")
    return folder


@pytest.mark.parametrize("name", list(FITS))
def test_a_run_holds_what_a_trained_run_holds_less_the_model(name, runs: Path, processed: Dataset):
    run = Run.open(runs / f"baseline-{name}")
    assert (run.name, run.baseline) == (f"baseline-{name}", name)
    assert list(run.parts()) == [HOLDOUT, "fold0", "fold1", "fold2"]
    table = processed.train()
    truth = dict(zip(table[ID].to_pylist(), table[LABEL].to_pylist(), strict=True))
    for fold in (HOLDOUT, 0, 1, 2):
        valid, figures = (
            read_predictions(run.part(fold) / "valid.csv"),
            run.parts()[run.part(fold).name],
        )
        rows = processed.fold_rows(fold)[1]
        assert valid[ID].tolist() == table[ID].to_numpy()[rows].tolist()
        labels = valid[ID].map(truth).to_numpy()
        assert figures["log_loss"] == pytest.approx(
            log_loss(valid[list(CLASSES)].to_numpy(), labels), abs=1e-9
        )
        assert (figures["best_epoch"], figures["valid_rows"]) == (None, len(rows))
        assert figures["parameters"] >= 0 < figures["minutes"]
    oof, test = read_predictions(run.path / "oof.csv"), read_predictions(run.path / "test.csv")
    assert sorted(oof[ID]) == sorted(truth)
    assert test[ID].tolist() == processed.test()[ID].to_pylist()
    each = [
        read_predictions(run.part(fold) / "test.csv")[list(CLASSES)].to_numpy() for fold in range(3)
    ]
    np.testing.assert_allclose(test[list(CLASSES)].to_numpy(), np.mean(each, axis=0), rtol=1e-12)
    assert json.loads((run.path / "metrics.json").read_text())["oof"]["rows"] == len(oof)
    assert member_name(run.path / "oof.csv") == run.name


def test_no_fit_sees_a_validation_row_or_a_prompt_of_one(
    data: Path, processed: Dataset, tmp_path: Path, monkeypatch
):
    groups, labels = (processed.train()[name].to_numpy() for name in ("group", LABEL))
    seen = []

    def spy(train: PairRows, given_labels: np.ndarray) -> FittedBaseline:
        seen.append((sorted(train.groups.tolist()), sorted(given_labels.tolist())))
        return fit_uniform(train, given_labels)

    monkeypatch.setitem(FITS, "uniform", spy)
    run_baseline("uniform", data, tmp_path, "all")
    for fold, (train_groups, train_labels) in enumerate(seen):
        train, valid = processed.fold_rows(fold)
        assert (train_groups, train_labels) == (
            sorted(groups[train].tolist()),
            sorted(labels[train].tolist()),
        )
        assert not set(train_groups) & set(groups[valid].tolist())
    assert len(seen) == 3


def test_the_holdout_alone_gives_test_predictions_too(data: Path, tmp_path: Path):
    said: list[str] = []
    result = run_baseline("length", data, tmp_path, say=said.append)
    run = Path(result["run"])
    assert "oof" not in result
    pd.testing.assert_frame_equal(
        read_predictions(run / "test.csv"), read_predictions(run / HOLDOUT / "test.csv")
    )
    before = (run / HOLDOUT / "metrics.json").stat().st_mtime_ns
    run_baseline("length", data, tmp_path, say=said.append)
    assert "is done already" in said[-1]
    assert (run / HOLDOUT / "metrics.json").stat().st_mtime_ns == before


def test_test_rows_that_have_changed_since_are_not_averaged_with_others(raw: Path, tmp_path: Path):
    source, out, runs = tmp_path / "raw", tmp_path / "out", tmp_path / "runs"
    shutil.copytree(raw, source)
    table = pd.read_csv(raw / "test.csv", dtype=str, keep_default_na=False)
    (source / "sample_submission.csv").unlink()

    def fit(test: pd.DataFrame, fold: str) -> np.ndarray:
        test.to_csv(source / "test.csv", index=False)
        preprocess_files(source, out, folds=3, valid=0.2)
        run = Path(run_baseline("length", out, runs, fold)["run"])
        found = read_predictions(run / "test.csv")
        assert found[ID].tolist() == test["id"].astype(int).tolist()
        return found[list(CLASSES)].to_numpy()

    fit(table, "0")
    turned = fit(table[::-1], "1")
    each = [
        read_predictions(runs / "baseline-length" / f"fold{k}" / "test.csv")[
            list(CLASSES)
        ].to_numpy()
        for k in range(2)
    ]
    np.testing.assert_allclose(turned, (each[0][::-1] + each[1]) / 2, rtol=1e-12)
    others = table.assign(id=table["id"].astype(int) + 500_000)
    with pytest.raises(
        RunError, match=r"fold0, .*fold1: predictions of other test rows than"
    ) as caught:
        fit(others, "2")
    assert caught.value.hint == "Delete them and run `kit baseline length --fold all` again."
    for k in range(2):
        shutil.rmtree(runs / "baseline-length" / f"fold{k}")
    fit(others, "all")


def test_texts_are_read_once_for_all_folds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read, whole = pq.read_table, []

    def counted(path: Path, columns: list[str] | None = None, **more: object) -> object:
        whole.append(path.name) if columns is None or set(TEXTS) & set(columns) else None
        return read(path, columns=columns, **more)

    monkeypatch.setattr(pq, "read_table", counted)
    run_baseline("prior", data, tmp_path, "all")
    assert sorted(whole) == ["test.parquet", "train.parquet"]


def test_reports_take_a_baseline_like_any_run(runs: Path, data: Path):
    comparison = compare([runs / "baseline-length", runs / "baseline-tfidf"], data)
    lines = {line.name: line for line in comparison.lines}
    assert comparison.validation == "out-of-fold"  # the runs have both
    figures = Run.open(runs / "baseline-tfidf").parts()["fold0"]
    whole = json.loads((runs / "baseline-tfidf" / "metrics.json").read_text())["oof"]
    assert lines["baseline-tfidf"].valid.log_loss == pytest.approx(whole["log_loss"])
    assert (lines["baseline-tfidf"].best_epoch, lines["baseline-tfidf"].parameters) == (
        None,
        figures["parameters"],
    )


def test_a_report_without_common_rows_names_the_baseline_to_run(
    runs: Path, data: Path, tmp_path: Path
):
    run_baseline("uniform", data, tmp_path, "0")
    with pytest.raises(RunError, match="kit baseline uniform --fold holdout"):
        compare([runs / "baseline-length", tmp_path / "baseline-uniform"], data)


def test_a_baseline_has_no_recipe_and_no_model_to_predict_with(runs: Path):
    run = Run.open(runs / "baseline-prior")
    with pytest.raises(RunError, match="keeps no model"):
        run.require_parts()
    with pytest.raises(RunError, match=r"test\.csv"):
        _ = run.recipe


def test_a_folder_without_a_recipe_is_a_run_only_if_it_is_a_baseline(tmp_path: Path):
    write_json(tmp_path / "odd" / "origin.json", {"data": "x"})
    with pytest.raises(RunError, match="not a run directory"):
        Run.open(tmp_path / "odd")


def test_what_cannot_be_run_is_refused_before_anything_is_written(
    data: Path, runs: Path, tmp_path: Path
):
    with pytest.raises(KitError, match="no baseline 'bayes'"):
        run_baseline("bayes", data, tmp_path)
    for fold in ("3", "-1", "first"):
        with pytest.raises(RecipeError, match="have folds 0 to"):
            run_baseline("length", data, tmp_path, fold)
    assert list(tmp_path.iterdir()) == []
    origin = json.loads((runs / "baseline-uniform" / "origin.json").read_text())
    assert origin["data"] == open_dataset(data).digest("train")
    assert [origin[name] for name in ("text", "split", "folds", "valid", "seed")] == [
        "unicode",
        "grouped",
        3,
        0.2,
        0,
    ]
    write_json(tmp_path / "baseline-uniform" / "origin.json", origin | {"data": "other"})
    with pytest.raises(RunError, match="other rows"):
        run_baseline("uniform", data, tmp_path)
