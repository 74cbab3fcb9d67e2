"""Check that calibrations are recovered, none is invented, and losses are cross-fitted."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from kit.ensembling.calibration import (
    Calibration,
    apply_calibration,
    log_probabilities,
    read_calibration,
    write_calibration,
)
from kit.ensembling.fit_calibration import choose_calibration, fit_calibration, fit_scaling
from kit.ensembling.serialize import write_fitted
from kit.errors import DataError, KitError
from kit.evaluation.metrics import log_loss, row_losses
from kit.predictions import make_predictions
from kit.task import CLASSES


def make_rows(
    count: int, truth: Calibration, seed: int = 0, width: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return predictions (N, 3), labels drawn from their calibration by `truth`, groups of two."""
    generator = np.random.default_rng(seed)
    probabilities = softmax(generator.normal(size=(3, count)) * width, axis=0).T
    cumulative = truth.transform(probabilities).cumsum(axis=1)
    labels = (generator.random((count, 1)) > cumulative).sum(axis=1).clip(0, 2)
    return probabilities, labels, np.arange(count) // 2


@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_temperature_is_recovered_to_two_decimals(temperature):
    probabilities, labels, groups = make_rows(250_000, Calibration(temperature), width=2.5)
    fit = choose_calibration(probabilities, labels, groups, "temperature")
    assert fit.calibration.temperature == pytest.approx(temperature, abs=0.01)
    assert fit.calibration.bias == (0, 0, 0)
    assert fit.after.log_loss < fit.before.log_loss
    assert fit.after.calibration_error < 0.005 < fit.before.calibration_error


def test_temperature_and_biases_are_recovered_to_two_decimals():
    truth = Calibration(1.4, (0.3, -0.1, -0.2))
    fit = choose_calibration(*make_rows(250_000, truth, width=2.0))
    assert fit.method == "bias"
    assert fit.calibration.temperature == pytest.approx(1.4, abs=0.01)
    assert fit.calibration.bias == pytest.approx(truth.bias, abs=0.01)
    assert sum(fit.calibration.bias) == pytest.approx(0, abs=1e-12)


def test_biases_are_not_fitted_where_there_are_none():
    fits = [choose_calibration(*make_rows(2000, Calibration(1.5), seed)) for seed in range(10)]
    assert [fit.method for fit in fits].count("temperature") >= 9


def test_note_explains_why_biases_of_lower_loss_were_not_chosen():
    truth = Calibration(1.3, (0.06, -0.03, -0.03))
    seen = set()
    for seed in range(20):
        fit = choose_calibration(*make_rows(1500, truth, seed))
        temperature, bias = (trial.cross_fitted for trial in fit.tried)
        explained = fit.method == "temperature" and temperature - bias >= 5e-5
        seen.add(explained)
        note = (
            f"bias is lower by {temperature - bias:.4f}, which is not significant: "
            "temperature is kept"
        )
        assert fit.note == (note if explained else "")
    assert seen == {True, False}


def test_cross_fitted_loss_is_above_the_in_sample_loss_on_average():
    gaps = []
    for seed in range(30):
        fit = choose_calibration(*make_rows(400, Calibration(1.2), seed))
        gaps += [trial.cross_fitted - trial.in_sample for trial in fit.tried]
    assert np.mean(gaps) > 0
    assert np.mean(gaps) > 2 * np.std(gaps) / np.sqrt(len(gaps))


def test_fit_reaches_the_lowest_loss_of_a_grid():
    probabilities, labels, _ = make_rows(500, Calibration(1.3))
    calibration = fit_scaling(probabilities, labels, "temperature")

    grid = np.linspace(0.8, 2, 601)
    losses = [log_loss(Calibration(t).transform(probabilities), labels) for t in grid]
    assert log_loss(calibration.transform(probabilities), labels) <= min(losses)
    assert calibration.temperature == pytest.approx(grid[np.argmin(losses)], abs=0.002)


@pytest.mark.parametrize(
    ("rows", "per_group", "words"),
    [
        (60, 1, "60 rows are too few to fit 1 parameter: it takes 100"),
        (400, 50, "8 distinct prompts are too few"),
    ],
)
def test_too_few_rows_or_prompts_are_not_calibrated(rows, per_group, words):
    probabilities, labels, _ = make_rows(rows, Calibration(2.0))
    fit = choose_calibration(probabilities, labels, np.arange(rows) // per_group)
    assert (fit.calibration.identity, fit.method, fit.tried) == (True, "none", ())
    assert words in fit.note
    assert fit.after == fit.before


def test_calibrated_predictions_are_not_made_worse():
    fits = [choose_calibration(*make_rows(150, Calibration(), seed)) for seed in range(12)]
    kept = [fit for fit in fits if fit.method == "none"]
    assert kept
    expected = "not calibrated: the cross-fitted log loss would be"
    assert all(expected in fit.note for fit in kept)
    assert all(fit.after.log_loss <= fit.before.log_loss for fit in fits)


def test_labels_of_one_class_are_not_fitted():
    probabilities, _, groups = make_rows(500, Calibration())
    fit = choose_calibration(probabilities, np.zeros(500, np.int64), groups)
    assert "not every class" in fit.note


def test_rows_are_matched_to_the_truth_by_id_in_any_order():
    probabilities, labels, groups = make_rows(600, Calibration(1.8))
    ids = np.random.default_rng(1).permutation(10_000)[:600]
    truth = pd.DataFrame({"id": ids, "label": labels, "group": groups})
    predictions = make_predictions(ids, probabilities)

    fit = fit_calibration(predictions, truth, "oof.csv")
    shuffled = fit_calibration(predictions.sample(frac=1, random_state=0), truth, "oof.csv")
    assert fit.calibration == shuffled.calibration
    direct = choose_calibration(probabilities, labels, groups)
    assert fit.calibration.temperature == pytest.approx(direct.calibration.temperature, abs=1e-9)

    with pytest.raises(DataError, match=r"oof\.csv lacks 1 id"):
        fit_calibration(predictions.iloc[1:], truth, "oof.csv")
    with pytest.raises(KitError, match="no calibration 'isotonic'"):
        fit_calibration(predictions, truth, "oof.csv", "isotonic")


@settings(deadline=None, max_examples=50)
@given(st.floats(0.5, 10), st.tuples(*[st.floats(-2, 2)] * 3), st.integers(0, 100))
def test_transform_keeps_probabilities_and_a_temperature_keeps_their_order(temperature, bias, seed):
    probabilities = np.random.default_rng(seed).dirichlet([2] * 3, 20)
    transformed = Calibration(temperature, bias).transform(probabilities)
    np.testing.assert_allclose(transformed.sum(axis=1), 1, rtol=1e-12)

    scaled = Calibration(temperature).transform(probabilities)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    restored = Calibration(1 / temperature).transform(scaled)
    np.testing.assert_allclose(restored, probabilities, rtol=1e-6, atol=1e-9)


def test_probability_of_zero_is_clipped_before_scaling():
    scaled = Calibration(2.0).transform(np.array([[0.0, 0.0, 1.0]]))
    assert np.isfinite(log_probabilities(scaled)).all()
    assert row_losses(scaled, np.array([0]))[0] == pytest.approx(36.04 / 2, abs=0.01)


def test_saved_calibration_equals_the_fitted_one(tmp_path):
    probabilities, labels, groups = make_rows(3000, Calibration(1.6, (0.2, -0.3, 0.1)))
    fit = choose_calibration(probabilities, labels, groups, "bias")
    path = tmp_path / "c.json"
    write_calibration(fit.calibration, path, fit.fitted)
    saved = read_calibration(path)
    assert saved == fit.calibration

    predictions = make_predictions(np.arange(3000)[::-1], probabilities)
    applied = apply_calibration(saved, predictions)
    assert applied["id"].tolist() == predictions["id"].tolist()
    expected = fit.calibration.transform(probabilities)
    np.testing.assert_allclose(applied[list(CLASSES)], expected, rtol=1e-12)

    record = json.loads(path.read_text())["fitted"]
    assert record["log_loss_cross_fitted"] == fit.after.log_loss
    json.dumps(fit.as_dict(), allow_nan=False)


def saved_text(**values: str) -> str:
    """Return the JSON text of a saved calibration, each value given as it is written."""
    entries = {"kit": '"calibration"', "format": "1"} | values
    return "{" + ", ".join(f'"{name}": {value}' for name, value in entries.items()) + "}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "not a saved calibration"),
        ('{"kit": "blend", "format": 1}', "not a saved calibration"),
        (saved_text(format="2"), "a saved calibration of format '2'"),
        (saved_text(temperature="0", bias="[0, 0, 0]"), "temperature is '0'"),
        (saved_text(temperature="NaN", bias="[0, 0, 0]"), "temperature is 'nan'"),
        (saved_text(temperature="true", bias="[0, 0, 0]"), "temperature is 'True'"),
        (saved_text(temperature="1", bias="[0, 0]"), "bias is 'None'"),
        (saved_text(temperature="1", bias='[0, 0, "x"]'), "bias is 'x'"),
    ],
)
def test_file_that_is_no_calibration_is_refused_by_name(tmp_path, text, words):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_calibration(tmp_path / "c.json")
    assert words in caught.value.problem
    assert "c.json" in caught.value.problem
    assert caught.value.hint


def test_blend_given_for_a_calibration_gets_a_hint_to_the_right_command(tmp_path):
    write_fitted(tmp_path / "b.json", "blend", {})
    with pytest.raises(DataError, match="kit ensemble --apply"):
        read_calibration(tmp_path / "b.json")
    with pytest.raises(DataError, match="No such file"):
        read_calibration(tmp_path / "absent.json")
