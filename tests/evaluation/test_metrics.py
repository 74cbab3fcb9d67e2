"""Check that scores agree with scikit-learn's, also where probabilities are 0 or 1."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, check_grad
from scipy.special import softmax

from kit.evaluation import metrics
from kit.task import CLASSES

PROBABILITY = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 5e-324, 1e-17, metrics.EPS, 1 - 1e-16])
)
ROWS = st.lists(
    st.tuples(PROBABILITY, PROBABILITY, PROBABILITY, st.integers(0, 2)), min_size=1, max_size=30
)


def make_predictions(rows: int = 2000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (N, 3) and labels (N,) drawn from them."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([2, 2, 2], rows)
    labels = (generator.random(rows)[:, None] > probabilities.cumsum(axis=1)[:, :2]).sum(axis=1)
    return probabilities, labels


@settings(deadline=None, max_examples=150)
@given(ROWS)
def test_log_loss_equals_scikit_learn(rows):
    table = np.array(rows)
    probabilities = table[:, :3]
    labels = table[:, 3].astype(int)
    with warnings.catch_warnings():
        # scikit-learn warns of rows that do not sum to 1, as most of these do.
        warnings.simplefilter("ignore", UserWarning)
        expected = sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=0, abs=1e-12)


def test_log_loss_equals_scikit_learn_on_a_full_sized_file():
    probabilities, labels = make_predictions(25_000)
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=0, abs=1e-12)


def test_probability_0_on_the_truth_costs_what_it_costs_on_the_leaderboard():
    losses = metrics.row_losses(np.array([[0.0, 0.5, 0.5], [0.25, 0.25, 0.5]]), np.array([0, 2]))
    assert losses == pytest.approx([36.04365338911715, np.log(2)])


def test_uniform_predictions_have_log_loss_ln_3():
    _, labels = make_predictions(300)
    assert metrics.log_loss(np.full((300, 3), 1 / 3), labels) == pytest.approx(np.log(3))


def test_accuracy_equals_scikit_learn_and_takes_the_first_of_ties():
    probabilities, labels = make_predictions()
    expected = sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    assert metrics.accuracy(probabilities, labels) == expected
    assert metrics.accuracy(np.full((4, 3), 1 / 3), np.array([0, 0, 0, 2])) == 0.75


def test_class_prior_includes_classes_that_never_occur():
    assert metrics.class_prior(np.array([0, 0, 1, 0])).tolist() == [0.75, 0.25, 0]


def test_no_constant_beats_the_class_prior():
    _, labels = make_predictions()
    prior = metrics.class_prior(labels)
    nudged = prior + np.array([0.01, -0.005, -0.005])
    rows = len(labels)
    assert metrics.log_loss(np.tile(prior, (rows, 1)), labels) < metrics.log_loss(
        np.tile(nudged, (rows, 1)), labels
    )


def test_calibration_error_of_a_worked_example():
    # Two of 15 bins are filled: three rows at 0.9, one of them right, and one row at 0.5, right.
    probabilities = np.array([[0.9, 0.05, 0.05]] * 3 + [[0.25, 0.25, 0.5]])
    labels = np.array([0, 1, 2, 2])
    expected = 3 / 4 * abs(0.9 - 1 / 3) + 1 / 4 * abs(0.5 - 1)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_reliability_bins_are_open_below_and_closed_above():
    count, confidence, correct = metrics.reliability_bins(
        np.array([[0.5, 0.3, 0.2], [0.51, 0.29, 0.2], [1.0, 0.0, 0.0]]), np.array([0, 1, 0]), bins=2
    )
    assert count.tolist() == [1, 2]
    assert confidence == pytest.approx([0.5, 0.755])
    assert correct == pytest.approx([1, 0.5])


def test_calibration_error_is_small_if_calibrated_and_large_if_sharpened():
    probabilities, labels = make_predictions(20_000)
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert metrics.expected_calibration_error(probabilities, labels) < 0.02
    assert metrics.expected_calibration_error(sharpened, labels) > 0.15


def test_per_class_figures_equal_scikit_learn():
    probabilities, labels = make_predictions()
    predicted = probabilities.argmax(axis=1)
    precision, recall, _, count = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=[0, 1, 2]
    )

    figures = metrics.per_class(probabilities, labels)
    assert [score.name for score in figures] == list(CLASSES)
    assert [score.count for score in figures] == count.tolist()
    assert [score.precision for score in figures] == pytest.approx(precision)
    assert [score.recall for score in figures] == pytest.approx(recall)
    assert [score.mean_predicted for score in figures] == pytest.approx(probabilities.mean(axis=0))
    total = sum(score.log_loss * score.count for score in figures) / len(labels)
    assert total == pytest.approx(metrics.log_loss(probabilities, labels))


def test_class_without_rows_has_no_recall():
    figures = metrics.per_class(np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]]), np.array([0, 1]))
    tie = figures[2]
    assert tie.count == 0
    assert tie.log_loss is tie.recall is tie.precision is None
    assert (figures[1].recall, figures[1].precision) == (0, None)


def test_score_holds_every_figure_and_is_json_serialisable():
    probabilities, labels = make_predictions()
    score = metrics.score_predictions(probabilities, labels)
    shares = np.bincount(labels) / len(labels)
    assert score.log_loss == metrics.log_loss(probabilities, labels)
    assert score.uniform_log_loss == pytest.approx(np.log(3))
    assert score.prior_log_loss == pytest.approx(-(shares * np.log(shares)).sum())

    content = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert content["rows"] == 2000
    assert [entry["name"] for entry in content["per_class"]] == list(CLASSES)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_order_of_rows_does_not_matter(order):
    probabilities, labels = make_predictions(12)
    score = metrics.score_predictions(probabilities, labels)
    shuffled = metrics.score_predictions(probabilities[order], labels[order])
    assert score.log_loss == pytest.approx(shuffled.log_loss)
    assert score.calibration_error == pytest.approx(shuffled.calibration_error)
    assert score.accuracy == shuffled.accuracy


def test_swap_gap_is_the_mean_absolute_difference():
    as_given = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    swapped = np.array([[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]])
    assert metrics.swap_gap(as_given, as_given) == 0
    assert metrics.swap_gap(as_given, swapped) == pytest.approx(0.2 / 6)


def test_cross_entropy_and_its_gradient_match_log_loss():
    labels = np.array([0, 2, 1, 1])
    logits = np.random.default_rng(0).normal(size=12)
    error = check_grad(
        lambda z: metrics.softmax_cross_entropy(z.reshape(3, 4), labels)[0],
        lambda z: metrics.softmax_cross_entropy(z.reshape(3, 4), labels)[1].ravel(),
        logits,
    )
    assert error < 1e-7

    loss, _ = metrics.softmax_cross_entropy(logits.reshape(3, 4), labels)
    probabilities = softmax(logits.reshape(3, 4), axis=0).T
    assert loss == pytest.approx(metrics.log_loss(probabilities, labels), abs=1e-14)


def test_cross_entropy_takes_soft_labels_and_weights():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 5))
    targets = generator.dirichlet([1, 1, 1], 5) * generator.random((5, 1))

    loss, gradient = metrics.softmax_cross_entropy(logits, targets)
    log_probabilities = np.log(softmax(logits, axis=0).T)
    assert loss == pytest.approx(-(targets * log_probabilities).sum() / targets.sum())

    expected = approx_fprime(
        logits.ravel(),
        lambda flat: metrics.softmax_cross_entropy(flat.reshape(3, 5), targets)[0],
        1e-7,
    )
    np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-5)
