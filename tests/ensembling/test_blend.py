"""Check that blend weights are recovered, useless members dropped, and saved blends exact."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import softmax

from kit.ensembling.blend import Blend, apply_blend, read_blend, write_blend
from kit.ensembling.calibration import Calibration
from kit.ensembling.fit_blend import fit_blend
from kit.ensembling.members import member_name, read_members
from kit.ensembling.serialize import write_fitted
from kit.ensembling.weights import (
    BlendRows,
    blend_objective,
    bootstrap_coefficients,
    fit_coefficients,
    fit_weights,
    select_members,
)
from kit.errors import DataError, KitError, RunError
from kit.evaluation.metrics import log_loss
from kit.predictions import make_predictions, write_predictions
from kit.storage.atomic import write_json
from kit.task import CLASSES


def make_members(rows: int, count: int, seed: int = 0, width: float = 1.3) -> np.ndarray:
    """Return probabilities (M, N, 3) of members that disagree."""
    logits = np.random.default_rng(seed).normal(size=(3, rows * count)) * width
    return softmax(logits, axis=0).T.reshape(count, rows, 3)


def draw_labels(truth: Blend, members: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return labels (N,) drawn from the probabilities that the blend gives."""
    uniform = np.random.default_rng(seed).random((members.shape[1], 1))
    return (uniform > truth.combine(members).cumsum(axis=1)).sum(axis=1).clip(0, 2)


def make_case(truth: Blend, rows: int, seed: int = 0, extra: int = 0, width: float = 1.3):
    """Return frames and names of the blend's members and of `extra` useless ones, and a truth."""
    members = make_members(rows, len(truth.members) + extra, seed, width)
    labels = draw_labels(truth, members[: len(truth.members)], seed + 1)
    ids = np.random.default_rng(seed).permutation(5 * rows)[:rows]
    table = pd.DataFrame({"id": ids, "label": labels, "group": np.arange(rows) // 2})
    names = [*truth.members, *(f"useless{i}" for i in range(extra))]
    return [make_predictions(ids, member) for member in members], names, table


def class_columns(table: pd.DataFrame) -> np.ndarray:
    return table[list(CLASSES)].to_numpy()


def blend_rows(frames: list[pd.DataFrame], table: pd.DataFrame) -> BlendRows:
    members = np.stack([class_columns(frame).T for frame in frames])
    labels = table["label"].to_numpy()
    groups = table["group"].to_numpy()
    return BlendRows(members, labels, groups, groups % 5)


def class_major(members: np.ndarray) -> np.ndarray:
    """Return (M, 3, N) of members (M, N, 3)."""
    return np.ascontiguousarray(members.transpose(0, 2, 1))


@pytest.mark.parametrize("pool", ["arithmetic", "geometric"])
def test_weights_and_temperature_are_recovered_to_two_decimals(pool):
    truth = Blend(("a", "b", "c"), (0.55, 0.3, 0.15), pool, Calibration(0.7))
    fit = fit_blend(*make_case(truth, 150_000, width=2.0), method=pool)
    assert fit.blend.members == truth.members
    assert fit.blend.weights == pytest.approx(truth.weights, abs=0.01)
    assert fit.blend.calibration.temperature == pytest.approx(0.7, abs=0.01)
    for member, weight in zip(fit.members, truth.weights, strict=True):
        assert member.low < weight < member.high
    assert fit.temperature[0] < 0.7 < fit.temperature[1]
    assert fit.gain.verdict == "better"


@pytest.mark.parametrize("pool", ["arithmetic", "geometric"])
def test_pool_that_generated_the_truth_is_chosen(pool):
    truth = Blend(("a", "b"), (0.6, 0.4), pool)
    assert fit_blend(*make_case(truth, 20_000, width=2.5)).method == pool


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "greedy"])
def test_useless_member_is_dropped_by_name(method):
    truth = Blend(("a", "b"), (0.6, 0.4), "geometric")
    frames, names, table = make_case(truth, 20_000, extra=1)
    coefficients = fit_weights(method, blend_rows(frames, table)).coefficients
    assert coefficients[2] / coefficients.sum() < 0.02

    fit = fit_blend(frames, names, table, method)
    assert (fit.blend.members, fit.blend.used) == (("a", "b", "useless0"), ("a", "b"))
    assert (fit.members[2].name, fit.members[2].weight) == ("useless0", 0)
    assert any("useless0 is dropped" in note for note in fit.notes)


def test_cross_fitted_loss_is_above_the_in_sample_loss_on_average():
    truth = Blend(("a", "b"), (0.6, 0.4), "geometric", Calibration(1.3))
    gaps = []
    for seed in range(25):
        fit = fit_blend(*make_case(truth, 500, seed, extra=2), draws=2)
        gaps += [trial.cross_fitted - trial.in_sample for trial in fit.tried[2:]]
        gaps.append(fit.cross_fitted - fit.in_sample)
    assert np.mean(gaps) > 2 * np.std(gaps) / np.sqrt(len(gaps)) > 0


def test_too_few_rows_get_the_plain_mean_with_a_note():
    frames, names, table = make_case(Blend(("a", "b"), (0.9, 0.1), "arithmetic"), 150)
    fit = fit_blend(frames, names, table)
    assert (fit.method, fit.blend.weights) == ("mean", (0.5, 0.5))
    assert fit.blend.calibration.identity
    assert "150 rows are too few to fit 2 parameters: it takes 200" in fit.notes[0]

    mean = np.mean([class_columns(frame) for frame in frames], axis=0)
    np.testing.assert_allclose(fit.cross_fitted_probabilities, mean, rtol=1e-12)
    loss = log_loss(mean, table["label"].to_numpy())
    assert fit.in_sample == fit.cross_fitted == pytest.approx(loss)


def test_plain_mean_is_used_where_no_fit_is_better():
    truth = Blend(("a", "b", "c"), (1 / 3, 1 / 3, 1 / 3), "arithmetic")
    fits = [fit_blend(*make_case(truth, 400, seed), draws=2) for seed in range(8)]
    assert all(fit.cross_fitted <= fit.tried[1].cross_fitted for fit in fits)

    means = [fit for fit in fits if fit.method == "mean"]
    assert len(means) >= 4
    expected = "no weights are fitted, the plain mean is used: the best fit has "
    for fit in means:
        assert fit.blend == Blend(truth.members, (1 / 3, 1 / 3, 1 / 3), "arithmetic")
        assert fit.notes[0].startswith(expected)

    requested = fit_blend(*make_case(truth, 400), "geometric", draws=2)
    assert requested.method == "geometric"


@pytest.mark.parametrize("method", [None, "arithmetic", "geometric", "greedy"])
def test_saved_blend_reproduces_the_fit(tmp_path, method):
    truth = Blend(("a", "b", "c"), (0.5, 0.3, 0.2), "geometric", Calibration(1.2))
    frames, names, table = make_case(truth, 3000)
    fit = fit_blend(frames, names, table, method, draws=20)
    write_blend(fit.blend, tmp_path / "b.json", fit.fitted)
    saved = read_blend(tmp_path / "b.json")
    assert saved == fit.blend

    # Members and rows in another order than in the fit.
    order = [2, 0, 1]
    shuffled = [frames[i].sample(frac=1, random_state=i) for i in order]
    applied = apply_blend(saved, shuffled, [names[i] for i in order])
    assert applied["id"].tolist() == shuffled[0]["id"].tolist()

    aligned = class_columns(applied.set_index("id").loc[table["id"]])
    loss = log_loss(aligned, table["label"].to_numpy())
    assert loss == pytest.approx(fit.in_sample, abs=1e-12)
    expected = fit.blend.combine(np.stack([class_columns(frame) for frame in frames]))
    np.testing.assert_allclose(aligned, expected, rtol=1e-12)
    json.dumps(fit.as_dict(), allow_nan=False)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 50), st.permutations(range(3)))
def test_order_of_members_and_rows_does_not_matter(seed, order):
    truth = Blend(("a", "b", "c"), (0.5, 0.3, 0.2), "arithmetic")
    frames, names, table = make_case(truth, 700, seed)
    fit = fit_blend(frames, names, table, "geometric", draws=5)
    shuffled = fit_blend(
        [frames[i].sample(frac=1, random_state=seed) for i in order],
        [names[i] for i in order],
        table.sample(frac=1, random_state=seed + 1),
        "geometric",
        draws=5,
    )
    weights = dict(zip(fit.blend.members, fit.blend.weights, strict=True))
    shuffled_weights = dict(zip(shuffled.blend.members, shuffled.blend.weights, strict=True))
    assert shuffled_weights == pytest.approx(weights, abs=1e-4)
    assert shuffled.cross_fitted == pytest.approx(fit.cross_fitted, abs=1e-6)


@pytest.mark.parametrize("pool", ["arithmetic", "geometric"])
def test_gradient_matches_finite_differences(pool):
    members = make_members(50, 3)
    labels = np.arange(50) % 3
    objective = blend_objective(pool, class_major(members), labels)
    for point in (np.array([0.2, 0.5, 0.9]), np.array([1.5, 0.01, 0.3])):
        loss, gradient = objective(point)
        expected = approx_fprime(point, lambda p: objective(p)[0], 1e-7)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)

        weights = tuple(point / point.sum())
        blend = Blend(("a", "b", "c"), weights, pool, Calibration(1 / point.sum()))
        assert loss == pytest.approx(log_loss(blend.combine(members), labels))


@pytest.mark.parametrize("pool", ["arithmetic", "geometric"])
def test_one_step_bootstrap_is_close_to_full_fits(pool):
    truth = Blend(("a", "b", "c"), (0.6, 0.3, 0.1), pool, Calibration(1.2))
    predictions = make_members(1200, 3)
    members = class_major(predictions)
    labels = draw_labels(truth, predictions)
    groups = np.arange(1200) // 2
    optimum = fit_coefficients(pool, members, labels)
    one_step = bootstrap_coefficients(pool, optimum, members, labels, groups, draws=40, seed=3)

    # The same draws of groups, each with a full search.
    generator = np.random.default_rng(3)
    full = []
    for _ in range(40):
        rows = (generator.integers(0, 600, 600)[:, None] * 2 + [0, 1]).ravel()
        full.append(fit_coefficients(pool, members[:, :, rows], labels[rows], optimum))
    for quick, exact in zip(one_step.T, np.array(full).T, strict=True):
        assert np.corrcoef(quick, exact)[0, 1] > 0.95
        assert np.std(quick) == pytest.approx(np.std(exact), rel=0.15)
    assert (one_step >= 0).all()


def test_greedy_selection_leaves_noise_out():
    truth = Blend(("a", "b"), (0.5, 0.5), "arithmetic")
    members = make_members(20_000, 12)
    labels = draw_labels(truth, members[:2])
    assert select_members(class_major(members), labels) == [0, 1]


def test_greedy_selection_is_tried_with_many_members():
    frames, names, table = make_case(Blend(("a", "b"), (0.5, 0.5), "arithmetic"), 3000, extra=7)
    fit = fit_blend(frames, names, table, draws=5)
    assert [trial.method for trial in fit.tried[2:]] == ["arithmetic", "geometric", "greedy"]
    assert fit.blend.used == ("a", "b")
    assert len(fit.members) == len(fit.blend.members) == 9


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "greedy"])
def test_members_that_are_all_harmful_make_a_flat_blend(method):
    members = make_members(2000, 2)
    labels = members.mean(axis=0).argmin(axis=1)
    ids = np.arange(2000)
    table = pd.DataFrame({"id": ids, "label": labels})
    frames = [make_predictions(ids, member) for member in members]
    fit = fit_blend(frames, ["a", "b"], table, method, draws=5)
    assert fit.cross_fitted < log_loss(members.mean(axis=0), labels)
    assert fit.cross_fitted == pytest.approx(np.log(3), abs=0.2)
    assert np.isfinite(fit.cross_fitted_probabilities).all()
    intervals = [(member.low, member.high) for member in fit.members if member.low is not None]
    assert np.isfinite(intervals).all()


def test_frames_of_different_rows_are_refused():
    frames, names, table = make_case(Blend(("a", "b"), (0.5, 0.5), "arithmetic"), 300)
    with pytest.raises(DataError, match=r"b lacks 1 id"):
        fit_blend([frames[0], frames[1].iloc[1:]], names, table)
    with pytest.raises(DataError, match=r"a lacks 1 id .* of the truth"):
        fit_blend([frame.iloc[1:] for frame in frames], names, table)
    with pytest.raises(DataError, match="two prediction files or more"):
        fit_blend(frames[:1], names[:1], table)
    with pytest.raises(KitError, match="no fitting method 'stacking'"):
        fit_blend(frames, names, table, "stacking")


def test_blend_takes_each_of_its_members_exactly_once():
    blend = Blend(("a", "b"), (0.5, 0.5), "arithmetic")
    a, b = (make_predictions(np.array([1, 2]), member) for member in make_members(2, 2))

    unknown = r"no file is given for b, .*; the blend does not know c\. Its members: a, b\n"
    with pytest.raises(DataError, match=unknown):
        apply_blend(blend, [a, b], ["a", "c"])
    with pytest.raises(DataError, match="no file is given for b, which the blend needs"):
        apply_blend(blend, [a], ["a"])
    with pytest.raises(DataError, match="more than one file is given for b"):
        apply_blend(blend, [a, b, b], ["a", "b", "b"])


def test_error_lists_members_and_dropped_members():
    blend = Blend(("a", "b", "c"), (0.5, 0.5, 0.0), "geometric")
    frame = make_predictions(np.array([1, 2]), make_members(2, 1)[0])
    expected = r"for a, b, which the blend needs\. Its members: a, b; dropped: c"
    with pytest.raises(DataError, match=expected) as raised:
        apply_blend(blend, [frame], ["c"])
    assert "may be left out" in raised.value.hint


def test_invalid_member_gets_a_hint_to_validate_its_file():
    blend = Blend(("a", "b"), (0.5, 0.5), "arithmetic")
    frames, names, table = make_case(blend, 300)
    frames[1].loc[4, list(CLASSES)] = 0.9
    files = ["runs/a/oof.csv", "runs/b/oof.csv"]
    hint = "Run `kit validate runs/b/oof.csv` for every problem at once."

    with pytest.raises(DataError, match="b: id ") as raised:
        fit_blend(frames, names, table, files=files)
    assert raised.value.hint == hint
    with pytest.raises(DataError, match="b: id ") as raised:
        apply_blend(blend, frames[::-1], names[::-1], files[::-1])
    assert raised.value.hint == hint


def test_subset_is_suggested_only_where_it_helps():
    frames, names, table = make_case(Blend(("a", "b"), (0.5, 0.5), "arithmetic"), 300)
    with pytest.raises(DataError, match=r"b lacks 1 id .* of a") as raised:
        fit_blend([frames[0], frames[1][1:]], names, table)
    assert "--subset" not in raised.value.hint
    with pytest.raises(DataError, match=r"a lacks 1 id .* of the truth") as raised:
        fit_blend([frame[1:] for frame in frames], names, table)
    assert "add --subset" in raised.value.hint


def test_weight_that_no_draw_can_move_has_no_interval():
    frames, names, table = make_case(Blend(("a", "b"), (0.5, 0.5), "arithmetic"), 3000, extra=1)
    fit = fit_blend(frames, names, table, "arithmetic", draws=20)
    assert [member.low is None for member in fit.members] == [False, False, True]
    assert set(fit.blend.spread) == {"a", "b"}

    # Labels that the first member predicts exactly leave it alone in the blend.
    exact = table.assign(label=class_columns(frames[0]).argmax(axis=1))
    single = fit_blend([frames[2], frames[0]], ["useless", "a"], exact)
    assert (single.blend.used, single.blend.spread) == (("a",), {})
    assert {member.low for member in single.members} == {None}

    unfitted = fit_blend([frame[:100] for frame in frames[:2]], names[:2], table[:100])
    assert (unfitted.temperature, unfitted.blend.spread) == (None, {})
    assert {member.low for member in unfitted.members} == {None}


def test_saved_intervals_are_optional_and_checked(tmp_path):
    intervals = {"a": (0.4, 0.6), "b": (0.4, 0.6)}
    blend = Blend(("a", "b", "c"), (0.5, 0.5, 0.0), "geometric", spread=intervals)
    write_blend(blend, tmp_path / "b.json", {})
    assert read_blend(tmp_path / "b.json") == blend

    content = json.loads((tmp_path / "b.json").read_text())
    with_interval = ["high", "low", "name", "weight"]
    keys = [sorted(member) for member in content["members"]]
    assert keys == [with_interval, with_interval, ["name", "weight"]]

    content["members"][0] |= {"low": 0.7}
    write_json(tmp_path / "edited.json", content)
    with pytest.raises(DataError, match=r"edited.json: high is '0.6'"):
        read_blend(tmp_path / "edited.json")

    for member in content["members"]:
        member.pop("low", None)
        member.pop("high", None)
    write_json(tmp_path / "plain.json", content)
    assert read_blend(tmp_path / "plain.json").spread == {}


def test_dropped_member_may_be_given_or_left_out():
    blend = Blend(("a", "b", "c"), (0.5, 0.5, 0.0), "geometric")
    a, b, c = (make_predictions(np.array([1, 2]), member) for member in make_members(2, 3))
    pd.testing.assert_frame_equal(
        apply_blend(blend, [c, b, a], ["c", "b", "a"]), apply_blend(blend, [b, a], ["b", "a"])
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": "median"}, "pool is 'median'"),
        ({"members": []}, "not a list of unique names"),
        ({"members": [{"name": "a", "weight": 1}] * 2}, "not a list of unique names"),
        ({"members": [{"name": "a", "weight": -1}]}, "weight is '-1'"),
        (
            {"members": [{"name": "a", "weight": 0}]},
            "weights must be 0 or more, and one of them above 0",
        ),
        ({"calibration": None}, "calibration is 'None'"),
        ({"calibration": {"temperature": -1, "bias": [0, 0, 0]}}, "temperature is '-1'"),
    ],
)
def test_blend_with_invalid_values_is_refused(tmp_path, change, words):
    valid = {
        "pool": "arithmetic",
        "members": [{"name": "a", "weight": 1.0}],
        "calibration": {"temperature": 1.0, "bias": [0, 0, 0]},
    }
    write_fitted(tmp_path / "b.json", "blend", valid | change)
    with pytest.raises(KitError, match=words):
        read_blend(tmp_path / "b.json")


def write_member(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(make_predictions(np.arange(3), make_members(3, 1, seed)[0]), path)
    return path


def test_members_are_named_by_their_run_or_their_file(tmp_path):
    run = tmp_path / "deberta-1a2b3c4d"
    write_json(run / "origin.json", {"data": "x"})
    files = [
        write_member(run / "oof.csv"),
        write_member(run / "fold0" / "valid.csv", seed=2),
        write_member(tmp_path / "roberta.v2.csv", seed=1),
    ]
    expected = ["deberta-1a2b3c4d", "deberta-1a2b3c4d", "roberta.v2"]
    assert [member_name(file) for file in files] == expected

    names, frames = read_members([files[0], files[2]])
    assert (names, len(frames)) == (["deberta-1a2b3c4d", "roberta.v2"], 2)
    with pytest.raises(DataError, match="same member name, 'deberta-1a2b3c4d'"):
        read_members(files[:2])


def test_runs_of_different_data_are_not_blended(tmp_path):
    files = []
    for seed, (name, data) in enumerate((("one", "x"), ("two", "y"))):
        write_json(tmp_path / name / "origin.json", {"data": data})
        files.append(write_member(tmp_path / name / "oof.csv", seed))
    with pytest.raises(RunError, match="two was trained on different rows or folds than"):
        read_members(files)
