"""Check that a saved blend is cross-fitted on validation rows and applied as it is to test rows."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import predictions

from kit.ensembling import blend as blends
from kit.ensembling.fit_blend import BlendFit, fit_blend
from kit.ensembling.weights import BlendRows, fit_weights
from kit.errors import DataError
from kit.evaluation.metrics import log_loss
from kit.predictions import make_predictions
from kit.reporting.blend_models import measure_gains, read_blend_model
from kit.reporting.models import ReportModel
from kit.reporting.rows import ReportRows
from kit.task import GROUP, ID, LABEL

ROWS = 1500


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    labels = np.random.default_rng(0).integers(0, 3, ROWS)
    return pd.DataFrame({ID: np.arange(ROWS), LABEL: labels, GROUP: np.arange(ROWS) // 2})


@pytest.fixture(scope="module")
def models(truth: pd.DataFrame) -> list[ReportModel]:
    """Two models with some skill, and a third without any."""
    generator = np.random.default_rng(1)
    models = []
    for name, skill in (("a", 1.0), ("b", 0.8), ("none", 0.0)):
        valid = predictions(generator, truth[LABEL].to_numpy(), skill)
        models.append(ReportModel(name, {"valid": valid, "test": valid[:10]}))
    return models


@pytest.fixture(scope="module", params=["arithmetic", "geometric"])
def fitted(
    request: pytest.FixtureRequest, models: list[ReportModel], truth: pd.DataFrame
) -> BlendFit:
    frames = [make_predictions(truth[ID], model.predictions["valid"]) for model in models]
    return fit_blend(frames, [model.name for model in models], truth, request.param, draws=2)


def report_rows(truth: pd.DataFrame) -> ReportRows:
    ids, groups, labels = (truth[name].to_numpy() for name in (ID, GROUP, LABEL))
    return ReportRows("out-of-fold", ids, groups, labels)


def read_fitted_model(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, path: Path
) -> ReportModel:
    """Save the blend, and read it as a model of a report."""
    blends.write_blend(fitted.blend, path, fitted.fitted)
    return read_blend_model(path, models, report_rows(truth))


def test_validation_predictions_are_cross_fitted(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    model = read_fitted_model(fitted, models, truth, tmp_path / "my.blend.json")
    assert model.name == "my.blend"
    assert fitted.blend.weights[2] == 0
    loss = log_loss(model.predictions["valid"], truth[LABEL].to_numpy())
    assert loss == pytest.approx(fitted.cross_fitted, abs=1e-5)
    assert loss > fitted.in_sample


def test_test_predictions_equal_those_of_apply(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    model = read_fitted_model(fitted, models[::-1], truth, tmp_path / "blend.json")
    frames = [make_predictions(np.arange(10), other.predictions["test"]) for other in models[:2]]
    applied = blends.apply_blend(fitted.blend, frames, ["a", "b"])
    expected = applied.iloc[:, 1:].to_numpy()
    np.testing.assert_allclose(model.predictions["test"], expected, rtol=1e-12)


def test_a_split_that_a_member_lacks_is_left_out(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    without_test = ReportModel("a", {"valid": models[0].predictions["valid"]})
    model = read_fitted_model(fitted, [without_test, *models[1:]], truth, tmp_path / "blend.json")
    assert set(model.predictions) == {"valid"}


def test_missing_and_ambiguous_members_are_named(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    path = tmp_path / "blend.json"
    with pytest.raises(DataError, match=r"blend\.json: .* predictions of a, .* has none called a"):
        read_fitted_model(fitted, models[1:], truth, path)
    with pytest.raises(DataError, match=r"blend\.json: .* predictions of b, .* has 2 called b"):
        read_fitted_model(fitted, [*models, models[1]], truth, path)


def test_a_blend_that_was_not_fitted_is_applied_as_it_is(
    models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    path = tmp_path / "mean.json"
    blends.write_blend(blends.Blend(("a", "b"), (0.5, 0.5), "arithmetic"), path, {"method": "mean"})
    model = read_blend_model(path, models, report_rows(truth))
    expected = (models[0].predictions["valid"] + models[1].predictions["valid"]) / 2
    np.testing.assert_allclose(model.predictions["valid"], expected, rtol=1e-12)
    assert not model.saved.cross_fitted
    assert model.saved.note.startswith("is applied as it was saved, because its weights were not")


def test_a_share_of_the_fitted_rows_is_cross_fitted_too(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    """The holdout is such a share: its rows are also out-of-fold rows."""
    share = truth[:600]
    members = [
        ReportModel(model.name, {"valid": model.predictions["valid"][:600]}) for model in models
    ]
    model = read_fitted_model(fitted, members, share, tmp_path / "blend.json")
    frames = [make_predictions(share[ID], other.predictions["valid"]) for other in members[:2]]
    refitted = fit_blend(frames, ["a", "b"], share, fitted.method, draws=2)
    loss = log_loss(model.predictions["valid"], share[LABEL].to_numpy())
    assert model.saved.cross_fitted
    assert loss == pytest.approx(refitted.cross_fitted, abs=1e-5)
    assert loss > refitted.in_sample


def test_too_few_rows_for_a_fit_give_no_validation_predictions(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    members = [
        ReportModel(
            model.name,
            {"valid": model.predictions["valid"][:40], "test": model.predictions["test"]},
        )
        for model in models
    ]
    model = read_fitted_model(fitted, members, truth[:40], tmp_path / "blend.json")
    assert set(model.predictions) == {"test"}
    assert model.saved.note.startswith("has no validation scores: its weights may have been fitted")
    assert "40 rows" in model.saved.note


def test_the_gain_of_a_member_is_the_loss_of_the_blend_without_it(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    blend = read_fitted_model(fitted, models, truth, tmp_path / "blend.json")
    rows = report_rows(truth)
    gains = {gain.member: gain for gain in measure_gains([*models, blend], rows, "valid")}
    assert gains.keys() == {"a", "b"}  # the member without skill was dropped
    loss = log_loss(blend.predictions["valid"], rows.labels)
    other = models[1].predictions["valid"][None]
    alone = fit_weights(fitted.method, BlendRows.from_predictions(other, rows.labels, rows.groups))
    assert gains["a"].gain == pytest.approx(alone.log_loss - loss, abs=1e-5)
    assert gains["a"].low < gains["a"].gain < gains["a"].high
    assert gains["a"].gain > gains["b"].gain > 0


def test_a_file_that_names_no_rows_is_cross_fitted_too(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    path = tmp_path / "blend.json"
    blends.write_blend(fitted.blend, path, {"method": fitted.method})
    model = read_blend_model(path, models, report_rows(truth))
    loss = log_loss(model.predictions["valid"], truth[LABEL].to_numpy())
    assert loss == pytest.approx(fitted.cross_fitted, abs=1e-5)
