"""A temperature that was put in is found again, none is invented, and what is reported was not fitted to its rows."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad

from kit.ensemble.calibrate import fit_calibration, fit_temperature, fit_temperature_rows
from kit.ensemble.calibration import (
    Calibration,
    apply_calibration,
    read_calibration,
    write_calibration,
)
from kit.ensemble.serialize import write_fitted
from kit.errors import DataError, KitError
from kit.evaluation import crossfit
from kit.evaluation.metrics import log_loss, row_losses
from kit.evaluation.softmax import log_probabilities, softmax, softmax_loss
from kit.predictions import make_predictions
from kit.task import CLASSES


def made(
    rows: int, truth: Calibration, seed: int = 0, width: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions (N, 3), labels drawn from their calibration by `truth`, and groups of two rows."""
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.normal(size=(3, rows)) * width).T
    labels = (
        (generator.random((rows, 1)) > truth.of(probabilities).cumsum(axis=1))
        .sum(axis=1)
        .clip(0, 2)
    )
    return probabilities, labels, np.arange(rows) // 2


def test_the_gradient_is_that_of_the_loss():
    labels = np.array([0, 2, 1, 1])
    logits = np.random.default_rng(0).normal(size=12)
    error = check_grad(
        lambda z: softmax_loss(z.reshape(3, 4), labels)[0],
        lambda z: softmax_loss(z.reshape(3, 4), labels)[1].ravel(),
        logits,
    )
    assert error < 1e-7
    each = softmax(logits.reshape(3, 4)).T
    assert softmax_loss(logits.reshape(3, 4), labels)[0] == pytest.approx(
        log_loss(each, labels), abs=1e-14
    )


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_a_temperature_is_recovered_to_two_decimals(temperature):
    probabilities, labels, groups = made(250_000, Calibration(temperature), width=2.5)
    found = fit_temperature(probabilities, labels, groups, "temperature")
    assert found.calibration.temperature == pytest.approx(temperature, abs=0.01)
    assert found.calibration.bias == (0, 0, 0)
    assert found.after.log_loss < found.before.log_loss
    assert found.after.calibration_error < 0.005 < found.before.calibration_error


def test_a_temperature_with_class_biases_is_recovered_to_two_decimals():
    truth = Calibration(1.4, (0.3, -0.1, -0.2))
    found = fit_temperature(*made(250_000, truth, width=2.0))
    assert found.method == "bias"
    assert found.calibration.temperature == pytest.approx(1.4, abs=0.01)
    assert found.calibration.bias == pytest.approx(truth.bias, abs=0.01)
    assert sum(found.calibration.bias) == pytest.approx(0, abs=1e-12)


def test_biases_are_left_out_where_there_are_none():
    methods = [fit_temperature(*made(2000, Calibration(1.5), seed)).method for seed in range(10)]
    assert methods.count("temperature") >= 9


def test_a_simpler_method_that_is_kept_though_biases_do_better_says_why():
    said = []
    for seed in range(20):
        found = fit_temperature(*made(1500, Calibration(1.3, (0.06, -0.03, -0.03)), seed))
        simple, bias = (trial.cross_fitted for trial in found.tried)
        lower = found.method == "temperature" and simple - bias >= 5e-5
        assert found.note == (
            f"bias is lower by {simple - bias:.4f}, which may be luck: the simpler one is kept"
            * lower
        )
        said.append(lower)
    assert {True, False} == set(said)


def test_the_cross_fitted_loss_is_not_below_the_one_in_sample_over_seeds():
    trials = [
        trial
        for seed in range(30)
        for trial in fit_temperature(*made(400, Calibration(1.2), seed)).tried
    ]
    gaps = [trial.cross_fitted - trial.in_sample for trial in trials]
    assert np.mean(gaps) > 0
    assert np.mean(gaps) > 2 * np.std(gaps) / np.sqrt(len(gaps))


def test_the_fit_is_the_lowest_loss_that_a_grid_finds():
    probabilities, labels, _ = made(500, Calibration(1.3))
    found = fit_temperature_rows(probabilities, labels, "temperature")
    grid = [log_loss(Calibration(t).of(probabilities), labels) for t in np.linspace(0.8, 2, 601)]
    assert log_loss(found.of(probabilities), labels) <= min(grid)
    assert found.temperature == pytest.approx(np.linspace(0.8, 2, 601)[np.argmin(grid)], abs=0.002)


@pytest.mark.parametrize(
    ("rows", "per_group", "words"),
    [
        (60, 1, "60 rows are too few to fit 1 parameter: it takes 100"),
        (400, 50, "8 distinct prompts are too few"),
    ],
)
def test_few_rows_or_prompts_are_left_as_they_are_and_told_so(rows, per_group, words):
    probabilities, labels, _ = made(rows, Calibration(2.0))
    found = fit_temperature(probabilities, labels, np.arange(rows) // per_group)
    assert (found.calibration.identity, found.method, found.tried) == (True, "none", ())
    assert words in found.note
    assert found.after == found.before


def test_a_calibrated_prediction_is_not_made_worse():
    found = [fit_temperature(*made(150, Calibration(), seed)) for seed in range(12)]
    kept = [one for one in found if one.method == "none"]
    assert kept
    assert all("left as it is: the log loss would be" in one.note for one in kept)
    assert all(one.after.log_loss <= one.before.log_loss for one in found)


def test_labels_of_one_class_fit_nothing():
    probabilities, _, groups = made(500, Calibration())
    assert "not every class" in fit_temperature(probabilities, np.zeros(500, np.int64), groups).note


def test_rows_are_matched_to_the_truth_by_id_and_their_order_is_free():
    probabilities, labels, groups = made(600, Calibration(1.8))
    ids = np.random.default_rng(1).permutation(10_000)[:600]
    truth = pd.DataFrame({"id": ids, "label": labels, "group": groups})
    predicted = make_predictions(ids, probabilities)
    found = fit_calibration(predicted, truth, "oof.csv")
    shuffled = fit_calibration(predicted.sample(frac=1, random_state=0), truth, "oof.csv")
    assert found.calibration == shuffled.calibration
    direct = fit_temperature(probabilities, labels, groups)
    assert found.calibration.temperature == pytest.approx(direct.calibration.temperature, abs=1e-9)
    with pytest.raises(DataError, match=r"oof\.csv lacks 1 id"):
        fit_calibration(predicted.iloc[1:], truth, "oof.csv")
    with pytest.raises(KitError, match="no calibration 'isotonic'"):
        fit_calibration(predicted, truth, "oof.csv", "isotonic")


@settings(deadline=None, max_examples=50)
@given(st.floats(0.5, 10), st.tuples(*[st.floats(-2, 2)] * 3), st.integers(0, 100))
def test_applying_keeps_rows_probabilities_and_a_temperature_keeps_their_order(
    temperature, bias, seed
):
    probabilities = np.random.default_rng(seed).dirichlet([2] * 3, 20)
    applied = Calibration(temperature, bias).of(probabilities)
    np.testing.assert_allclose(applied.sum(axis=1), 1, rtol=1e-12)
    cooled = Calibration(temperature).of(probabilities)
    assert (cooled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    np.testing.assert_allclose(
        Calibration(1 / temperature).of(cooled), probabilities, rtol=1e-6, atol=1e-9
    )


def test_a_zero_is_calibrated_without_a_fault():
    applied = Calibration(2.0).of(np.array([[0.0, 0.0, 1.0]]))
    assert np.isfinite(log_probabilities(applied)).all()
    assert row_losses(applied, np.array([0]))[0] == pytest.approx(36.04 / 2, abs=0.01)


def test_a_saved_calibration_does_what_the_fitted_one_does(tmp_path):
    probabilities, labels, groups = made(3000, Calibration(1.6, (0.2, -0.3, 0.1)))
    found = fit_temperature(probabilities, labels, groups, "bias")
    write_calibration(found.calibration, tmp_path / "c.json", found.fitted)
    again = read_calibration(tmp_path / "c.json")
    assert again == found.calibration
    predicted = make_predictions(np.arange(3000)[::-1], probabilities)
    applied = apply_calibration(again, predicted)
    assert applied["id"].tolist() == predicted["id"].tolist()
    np.testing.assert_allclose(
        applied[list(CLASSES)], found.calibration.of(probabilities), rtol=1e-12
    )
    assert (
        json.loads((tmp_path / "c.json").read_text())["fitted"]["log_loss_cross_fitted"]
        == found.after.log_loss
    )
    json.dumps(found.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a saved calibration"),
        ('{"kit": "blend", "format": 1}', "not a saved calibration"),
        ('{"kit": "calibration", "format": 2}', "format '2'"),
        (
            '{"kit": "calibration", "format": 1, "temperature": 0, "bias": [0, 0, 0]}',
            "temperature is '0'",
        ),
        (
            '{"kit": "calibration", "format": 1, "temperature": NaN, "bias": [0, 0, 0]}',
            "temperature is 'nan'",
        ),
        (
            '{"kit": "calibration", "format": 1, "temperature": true, "bias": [0, 0, 0]}',
            "temperature is 'True'",
        ),
        ('{"kit": "calibration", "format": 1, "temperature": 1, "bias": [0, 0]}', "bias is 'None'"),
        (
            '{"kit": "calibration", "format": 1, "temperature": 1, "bias": [0, 0, "x"]}',
            "bias is 'x'",
        ),
    ],
)
def test_a_file_that_is_no_calibration_is_refused_by_name(tmp_path, text, words):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_calibration(tmp_path / "c.json")
    assert words in caught.value.problem
    assert "c.json" in caught.value.problem
    assert caught.value.hint


def test_a_blend_given_for_a_calibration_is_sent_to_the_right_command(tmp_path):
    write_fitted(tmp_path / "b.json", "blend", {})
    with pytest.raises(DataError, match="kit ensemble --apply"):
        read_calibration(tmp_path / "b.json")
    with pytest.raises(DataError, match="No such file"):
        read_calibration(tmp_path / "absent.json")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(2, 6), st.integers(0, 50))
def test_folds_keep_groups_whole_in_whatever_order_the_rows_come(groups, number, seed):
    groups = np.array(groups)
    fold = crossfit.crossfit_folds(groups, number, seed)
    assert all(len(set(fold[groups == group])) == 1 for group in groups)
    assert set(fold) <= set(range(number))
    order = np.random.default_rng(seed).permutation(len(groups))
    assert (crossfit.crossfit_folds(groups[order], number, seed) == fold[order]).all()


def test_folds_are_of_even_size():
    sizes = np.bincount(crossfit.crossfit_folds(np.arange(57_477) // 3, 5))
    assert sizes.max() - sizes.min() <= 6


def test_cross_fitting_never_shows_a_fit_the_rows_it_predicts():
    fold = crossfit.crossfit_folds(np.arange(40) // 2, 4)

    def remember(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        assert not set(fold[train]) & set(fold[rows])
        assert len(train) + len(rows) == 40
        return np.repeat(rows[:, None], 3, axis=1)

    assert (crossfit.cross_fit(fold, remember)[:, 0] == np.arange(40)).all()
