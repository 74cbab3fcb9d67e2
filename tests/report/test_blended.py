"""A saved blend beside its members: as it is on test rows, cross-fitted on the rows its weights have seen."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_runs import predictions

from kit.ensemble import blend as blends
from kit.ensemble.fit_blend import BlendFit, fit_blend
from kit.errors import DataError
from kit.evaluation.metrics import log_loss
from kit.predictions import make_predictions
from kit.report.blended import blended_models
from kit.report.models import ReportModel
from kit.task import GROUP, ID, LABEL

ROWS = 1500


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    labels = np.random.default_rng(0).integers(0, 3, ROWS)
    return pd.DataFrame({ID: np.arange(ROWS), LABEL: labels, GROUP: np.arange(ROWS) // 2})


@pytest.fixture(scope="module")
def models(truth: pd.DataFrame) -> list[ReportModel]:
    """Two that know something, and a third that knows nothing."""
    generator = np.random.default_rng(1)
    found = []
    for name, skill in (("a", 1.0), ("b", 0.8), ("none", 0.0)):
        valid = predictions(generator, truth[LABEL].to_numpy(), skill)
        found.append(ReportModel(name, {"valid": valid, "test": valid[:10]}))
    return found


@pytest.fixture(scope="module", params=["arithmetic", "geometric"])
def fitted(
    request: pytest.FixtureRequest, models: list[ReportModel], truth: pd.DataFrame
) -> BlendFit:
    frames = [
        make_predictions(truth[ID].to_numpy(), model.predictions["valid"]) for model in models
    ]
    return fit_blend(frames, [model.name for model in models], truth, request.param, draws=2)


def of(fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, path: Path) -> ReportModel:
    blends.write_blend(fitted.blend, path, fitted.fitted)
    return blended_models(path, models, truth[LABEL].to_numpy(), truth[GROUP].to_numpy())


def test_its_validation_loss_is_the_cross_fitted_one(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    model = of(fitted, models, truth, tmp_path / "my.blend.json")
    assert model.name == "my.blend"
    assert fitted.blend.weights[2] == 0
    found = log_loss(model.predictions["valid"], truth[LABEL].to_numpy())
    assert found == pytest.approx(fitted.cross_fitted, abs=1e-5)
    assert found > fitted.in_sample


def test_its_test_predictions_are_what_applying_it_gives(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    model = of(fitted, models[::-1], truth, tmp_path / "blend.json")
    frames = [make_predictions(np.arange(10), each.predictions["test"]) for each in models[:2]]
    applied = blends.apply_blend(fitted.blend, frames, ["a", "b"])
    np.testing.assert_allclose(
        model.predictions["test"], applied.iloc[:, 1:].to_numpy(), rtol=1e-12
    )


def test_rows_that_a_member_lacks_are_left_out(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    lacking = [ReportModel("a", {"valid": models[0].predictions["valid"]}), *models[1:]]
    assert set(of(fitted, lacking, truth, tmp_path / "blend.json").predictions) == {"valid"}


def test_a_missing_member_and_namesakes_are_named(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    with pytest.raises(DataError, match=r"blend\.json: blends a, of which"):
        of(fitted, models[1:], truth, tmp_path / "blend.json")
    with pytest.raises(
        DataError, match=r"blend\.json: blends b, of which the report has 2 predictions"
    ):
        of(fitted, [*models, models[1]], truth, tmp_path / "blend.json")


def test_a_blend_that_was_not_fitted_stays_as_it_is(
    models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    plain = blends.Blend(("a", "b"), (0.5, 0.5), "arithmetic")
    blends.write_blend(plain, tmp_path / "mean.json", {"method": "mean"})
    model = blended_models(
        tmp_path / "mean.json", models, truth[LABEL].to_numpy(), truth[GROUP].to_numpy()
    )
    expected = (models[0].predictions["valid"] + models[1].predictions["valid"]) / 2
    np.testing.assert_allclose(model.predictions["valid"], expected, rtol=1e-12)
    assert model.saved.note == "is applied as it was saved: its weights were not fitted"


def test_on_a_share_of_the_rows_it_was_fitted_to_it_is_cross_fitted_too(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    """As on the holdout, whose rows are among those out of fold."""
    share = [ReportModel(each.name, {"valid": each.predictions["valid"][:600]}) for each in models]
    model = of(fitted, share, truth[:600], tmp_path / "blend.json")
    frames = [make_predictions(np.arange(600), each.predictions["valid"]) for each in share[:2]]
    there = fit_blend(frames, ["a", "b"], truth[:600], fitted.method, draws=2)
    found = log_loss(model.predictions["valid"], truth[LABEL].to_numpy()[:600])
    assert model.saved.note == ""
    assert found == pytest.approx(there.cross_fitted, abs=1e-5)
    assert found > there.in_sample


def test_on_too_few_rows_it_has_no_validation_predictions(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    some = [
        ReportModel(
            each.name, {"valid": each.predictions["valid"][:40], "test": each.predictions["test"]}
        )
        for each in models
    ]
    model = of(fitted, some, truth[:40], tmp_path / "blend.json")
    assert set(model.predictions) == {"test"}
    assert model.saved.note.startswith(
        "has no validation figures: its weights may have seen these labels, and 40 rows"
    )


def test_a_file_that_tells_no_rows_is_cross_fitted_like_any(
    fitted: BlendFit, models: list[ReportModel], truth: pd.DataFrame, tmp_path: Path
):
    blends.write_blend(fitted.blend, tmp_path / "blend.json", {"method": fitted.method})
    model = blended_models(
        tmp_path / "blend.json", models, truth[LABEL].to_numpy(), truth[GROUP].to_numpy()
    )
    assert log_loss(model.predictions["valid"], truth[LABEL].to_numpy()) == pytest.approx(
        fitted.cross_fitted, abs=1e-5
    )
