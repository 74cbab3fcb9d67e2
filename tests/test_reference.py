"""Check that the toolkit reproduces the reference study's predictions for three test rows."""

import math
from pathlib import Path

import pandas as pd
import pytest
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.data.preprocess import preprocess_files
from kit.ensembling.pool import blend_predictions
from kit.predictions import read_predictions, write_predictions
from kit.reporting.html import render_html
from kit.reporting.report import Report, build_report
from kit.sample.generate import write_sample
from kit.task import CLASSES, ID

DATA = Path(__file__).parent / "golden"
NAMES = ("deberta", "roberta", "electra")

# By test row: A, B and tie of the three models, as printed in the study.
PUBLISHED = {
    136060: ((0.267, 0.234, 0.499), (0.033, 0.814, 0.153), (0.349, 0.335, 0.316)),
    211333: ((0.363, 0.335, 0.302), (0.298, 0.352, 0.349), (0.349, 0.335, 0.316)),
    1233961: ((0.412, 0.299, 0.289), (0.227, 0.470, 0.303), (0.349, 0.335, 0.316)),
}

# The classes that are bold in the study's table.
PREDICTED = {
    136060: ("tie", "B", "A"),
    211333: ("A", "B", "A"),
    1233961: ("A", "B", "A"),
}


def normalised(row: list[float]) -> list[float]:
    return [value / sum(row) for value in row]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Report]:
    """Report the three models as frames next to a baseline, on test rows with the study's ids."""
    folder = tmp_path_factory.mktemp("reference")
    raw = folder / "raw"
    write_sample(raw, rows=240, seed=1)

    # Give three test rows the study's ids. Their labels are not known, as on Kaggle.
    for name in ("test.csv", "sample_submission.csv"):
        table = pd.read_csv(raw / name, dtype=str, keep_default_na=False)[: len(PUBLISHED)]
        table[ID] = list(PUBLISHED)
        table.to_csv(raw / name, index=False)
    for name in ("truth.csv", "bayes.csv"):
        (raw / name).unlink()
    preprocess_files(raw, folder / "processed")
    run = run_baseline("length", folder / "processed", folder / "runs")["run"]

    files = [(name, DATA / f"reference_{name}.csv") for name in NAMES]
    members = [read_predictions(file) for _, file in files]
    for method in ("mean", "geometric"):
        write_predictions(blend_predictions(members, NAMES, method), folder / f"{method}.csv")
        files.append((method, folder / f"{method}.csv"))

    report = build_report([run], folder / "processed", frames=files)
    return Page(render_html(report)), report


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_page_shows_the_nine_predictions_as_published(page: tuple[Page, Report], row: int):
    rows = {cells[0]: cells[1:] for cells in page[0].tables[f"Predictions of test row {row}"].rows}
    assert rows["model"] == ["A", "B", "tie"]
    for name, published in zip(NAMES, PUBLISHED[row], strict=True):
        assert rows[name] == [f"{p:.3f}" for p in published]


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_page_makes_the_same_classes_bold_as_the_study(page: tuple[Page, Report], row: int):
    table = page[0].tables[f"Predictions of test row {row}"]
    bold_titles = {
        cells[0]: [title for title, strong in zip(table.rows[0], bold, strict=True) if strong]
        for cells, bold in zip(table.rows, table.bold, strict=True)
    }
    assert [bold_titles[name] for name in NAMES] == [[title] for title in PREDICTED[row]]


@pytest.mark.parametrize("row", PUBLISHED)
def test_mean_and_geometric_ensembles_match_a_plain_computation(
    page: tuple[Page, Report], row: int
):
    # One of the published rows sums to 0.999.
    members = [normalised(list(probabilities)) for probabilities in PUBLISHED[row]]
    mean = [sum(column) / 3 for column in zip(*members, strict=True)]
    roots = [math.prod(column) ** (1 / 3) for column in zip(*members, strict=True)]

    for name, expected in (("mean", mean), ("geometric", normalised(roots))):
        case = next(case for case in page[1].disagreements if case.id == row)
        assert case.probabilities[name] == pytest.approx(expected, abs=1e-12)


def test_the_ensembles_of_the_first_row_to_three_places(page: tuple[Page, Report]):
    rows = {cells[0]: cells[1:] for cells in page[0].tables["Predictions of test row 136060"].rows}
    # (.267 + .033 + .349) / 3, and so on.
    assert rows["mean"] == ["0.216", "0.461", "0.323"]
    # (.267 * .033 * .349) ** (1/3) = .1454 of .8340, and so on.
    assert rows["geometric"] == ["0.174", "0.479", "0.346"]


def test_the_rows_keep_their_order_and_are_not_scored(page: tuple[Page, Report]):
    cases = [case for case in page[1].disagreements if case.rows == "test"]
    assert [(case.id, case.label) for case in cases] == [(row, None) for row in PUBLISHED]
    assert all(line.test is None for line in page[1].comparison.lines)


def test_the_published_electra_predicts_a_constant():
    table = read_predictions(DATA / "reference_electra.csv")
    assert len(table[list(CLASSES)].drop_duplicates()) == 1
