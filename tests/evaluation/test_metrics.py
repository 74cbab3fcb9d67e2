"""Scores agree with scikit-learn's, also where probabilities are 0 or 1."""

import json
import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.evaluation import metrics
from kit.task import CLASSES

PROBABILITY = st.one_of(
    st.floats(0, 1), st.sampled_from([0.0, 1.0, 5e-324, 1e-17, metrics.EPS, 1 - 1e-16])
)
ROWS = st.lists(
    st.tuples(PROBABILITY, PROBABILITY, PROBABILITY, st.integers(0, 2)), min_size=1, max_size=30
)


def predictions(rows=2000, seed=0):
    """Predictions that know something of their labels."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet([2, 2, 2], rows)
    labels = (generator.random(rows)[:, None] > probabilities.cumsum(axis=1)[:, :2]).sum(axis=1)
    return probabilities, labels


@settings(deadline=None, max_examples=150)
@given(ROWS)
def test_log_loss_is_that_of_scikit_learn(rows):
    table = np.array(rows)
    probabilities, labels = table[:, :3], table[:, 3].astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # these rows need not sum to 1
        expected = sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=0, abs=1e-12)


def test_log_loss_is_that_of_scikit_learn_on_a_full_sized_file():
    probabilities, labels = predictions(25_000)
    expected = sklearn.metrics.log_loss(labels, probabilities, labels=[0, 1, 2])
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected, rel=0, abs=1e-12)


def test_no_chance_given_to_the_truth_costs_what_it_costs_on_the_board():
    losses = metrics.row_losses(np.array([[0.0, 0.5, 0.5], [0.25, 0.25, 0.5]]), np.array([0, 2]))
    assert losses == pytest.approx([36.04365338911715, np.log(2)])


def test_uniform_predictions_lose_ln_3():
    _, labels = predictions(300)
    assert metrics.log_loss(np.full((300, 3), 1 / 3), labels) == pytest.approx(np.log(3))


def test_accuracy_is_that_of_scikit_learn_and_takes_the_first_of_equals():
    probabilities, labels = predictions()
    expected = sklearn.metrics.accuracy_score(labels, probabilities.argmax(axis=1))
    assert metrics.accuracy(probabilities, labels) == expected
    assert metrics.accuracy(np.full((4, 3), 1 / 3), np.array([0, 0, 0, 2])) == 0.75


def test_the_prior_counts_classes_that_never_occur():
    assert metrics.class_prior(np.array([0, 0, 1, 0])).tolist() == [0.75, 0.25, 0]


def test_no_constant_beats_the_class_prior():
    _, labels = predictions()
    prior = metrics.class_prior(labels)
    nudged = prior + np.array([0.01, -0.005, -0.005])
    rows = len(labels)
    assert metrics.log_loss(np.tile(prior, (rows, 1)), labels) < metrics.log_loss(
        np.tile(nudged, (rows, 1)), labels
    )


def test_calibration_error_of_a_worked_example():
    # two bins of 15: three rows at 0.9, one of them right; one row at 0.5, right
    probabilities = np.array([[0.9, 0.05, 0.05]] * 3 + [[0.25, 0.25, 0.5]])
    labels = np.array([0, 1, 2, 2])
    expected = 3 / 4 * abs(0.9 - 1 / 3) + 1 / 4 * abs(0.5 - 1)
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_calibration_bins_are_open_below_and_closed_above():
    count, confidence, correct = metrics.reliability_bins(
        np.array([[0.5, 0.3, 0.2], [0.51, 0.29, 0.2], [1.0, 0.0, 0.0]]), np.array([0, 1, 0]), bins=2
    )
    assert count.tolist() == [1, 2]
    assert confidence == pytest.approx([0.5, 0.755])
    assert correct == pytest.approx([1, 0.5])


def test_calibrated_predictions_have_a_small_error_and_sharpened_ones_a_large_one():
    probabilities, labels = predictions(20_000)
    sharpened = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    assert metrics.expected_calibration_error(probabilities, labels) < 0.02
    assert metrics.expected_calibration_error(sharpened, labels) > 0.15


def test_per_class_figures_are_those_of_scikit_learn():
    probabilities, labels = predictions()
    predicted = probabilities.argmax(axis=1)
    precision, recall, _, count = sklearn.metrics.precision_recall_fscore_support(
        labels, predicted, labels=[0, 1, 2]
    )
    figures = metrics.per_class(probabilities, labels)
    assert [f.name for f in figures] == list(CLASSES)
    assert [f.count for f in figures] == count.tolist()
    assert [f.precision for f in figures] == pytest.approx(precision)
    assert [f.recall for f in figures] == pytest.approx(recall)
    assert [f.mean_predicted for f in figures] == pytest.approx(probabilities.mean(axis=0))
    total = sum(f.log_loss * f.count for f in figures) / len(labels)
    assert total == pytest.approx(metrics.log_loss(probabilities, labels))


def test_a_class_without_rows_has_no_recall_rather_than_a_bad_one():
    figures = metrics.per_class(np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]]), np.array([0, 1]))
    assert (figures[2].count, figures[2].log_loss, figures[2].recall, figures[2].precision) == (
        0,
        None,
        None,
        None,
    )
    assert (figures[1].recall, figures[1].precision) == (0, None)


def test_a_score_holds_every_figure_and_goes_into_json():
    probabilities, labels = predictions()
    score = metrics.score_predictions(probabilities, labels)
    shares = np.bincount(labels) / len(labels)
    assert score.log_loss == metrics.log_loss(probabilities, labels)
    assert score.uniform_log_loss == pytest.approx(np.log(3))
    assert score.prior_log_loss == pytest.approx(-(shares * np.log(shares)).sum())
    back = json.loads(json.dumps(score.as_dict(), allow_nan=False))
    assert back["rows"] == 2000
    assert [one["name"] for one in back["per_class"]] == list(CLASSES)


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(12)))
def test_the_order_of_rows_does_not_matter(order):
    probabilities, labels = predictions(12)
    one, other = (
        metrics.score_predictions(probabilities, labels),
        metrics.score_predictions(probabilities[order], labels[order]),
    )
    assert one.log_loss == pytest.approx(other.log_loss)
    assert one.calibration_error == pytest.approx(other.calibration_error)
    assert one.accuracy == other.accuracy


def test_the_swap_gap_is_the_mean_distance_of_a_probability():
    as_given = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    assert metrics.swap_gap(as_given, as_given) == 0
    assert metrics.swap_gap(
        as_given, np.array([[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]])
    ) == pytest.approx(0.2 / 6)
