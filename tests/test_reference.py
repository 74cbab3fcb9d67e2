"""The reference study's nine predictions for the three visible test rows, through the toolkit and by hand."""

import math
from pathlib import Path

import pandas as pd
import pytest
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.data.preprocess import preprocess_files
from kit.ensemble.pool import blend_predictions
from kit.predictions import read_predictions, write_predictions
from kit.report.html import render_html
from kit.report.report import Report, build_report
from kit.sample.generate import write_sample
from kit.task import CLASSES, ID

DATA = Path(__file__).parent / "golden"
NAMES = ("deberta", "roberta", "electra")
PUBLISHED = {  # A, B, tie, as printed
    136060: ((0.267, 0.234, 0.499), (0.033, 0.814, 0.153), (0.349, 0.335, 0.316)),
    211333: ((0.363, 0.335, 0.302), (0.298, 0.352, 0.349), (0.349, 0.335, 0.316)),
    1233961: ((0.412, 0.299, 0.289), (0.227, 0.470, 0.303), (0.349, 0.335, 0.316)),
}
SAID = {
    136060: ("tie", "B", "A"),
    211333: ("A", "B", "A"),
    1233961: ("A", "B", "A"),
}  # bold in the study's table


def normalised(row: list[float]) -> list[float]:
    return [value / sum(row) for value in row]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Report]:
    """The three models as frames beside a baseline, on test rows that have the study's ids."""
    folder = tmp_path_factory.mktemp("reference")
    write_sample(folder / "raw", rows=240, seed=1)
    for name in ("test.csv", "sample_submission.csv"):
        table = pd.read_csv(folder / "raw" / name, dtype=str, keep_default_na=False)[
            : len(PUBLISHED)
        ]
        table[ID] = list(PUBLISHED)
        table.to_csv(folder / "raw" / name, index=False)
    for name in ("truth.csv", "bayes.csv", "summary.json"):
        (folder / "raw" / name).unlink(missing_ok=True)
    preprocess_files(folder / "raw", folder / "processed")
    run = run_baseline("length", folder / "processed", folder / "runs")["run"]
    files = [(name, DATA / f"reference_{name}.csv") for name in NAMES]
    members = [read_predictions(file) for _, file in files]
    for method in ("mean", "geometric"):
        write_predictions(blend_predictions(members, NAMES, method), folder / f"{method}.csv")
        files.append((method, folder / f"{method}.csv"))
    found = build_report([run], folder / "processed", frames=files)
    return Page(render_html(found)), found


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_page_shows_the_nine_predictions_as_published(page: tuple[Page, Report], row: int):
    rows = {cells[0]: cells[1:] for cells in page[0].tables[f"Predictions of test row {row}"].rows}
    assert rows["model"] == ["A", "B", "tie"]
    for name, published in zip(NAMES, PUBLISHED[row], strict=True):
        assert rows[name] == [f"{p:.3f}" for p in published]


@pytest.mark.parametrize("row", PUBLISHED)
def test_the_same_classes_are_bold(page: tuple[Page, Report], row: int):
    table = page[0].tables[f"Predictions of test row {row}"]
    said = {
        cells[0]: [title for title, strong in zip(table.rows[0], bold, strict=True) if strong]
        for cells, bold in zip(table.rows, table.bold, strict=True)
    }
    assert [said[name] for name in NAMES] == [[title] for title in SAID[row]]


@pytest.mark.parametrize("row", PUBLISHED)
def test_mean_and_geometric_ensembles_are_what_a_hand_computes(page: tuple[Page, Report], row: int):
    members = [normalised(list(each)) for each in PUBLISHED[row]]  # one of them sums to 0.999
    mean = [sum(column) / 3 for column in zip(*members, strict=True)]
    roots = [math.prod(column) ** (1 / 3) for column in zip(*members, strict=True)]
    for name, expected in (("mean", mean), ("geometric", normalised(roots))):
        case = next(case for case in page[1].cases if case.id == row)
        assert case.probabilities[name] == pytest.approx(expected, abs=1e-12)


def test_the_ensembles_of_the_first_row_to_three_places(page: tuple[Page, Report]):
    rows = {cells[0]: cells[1:] for cells in page[0].tables["Predictions of test row 136060"].rows}
    assert rows["mean"] == ["0.216", "0.461", "0.323"]  # (.267 + .033 + .349) / 3, and so on
    assert rows["geometric"] == [
        "0.174",
        "0.479",
        "0.346",
    ]  # (.267 * .033 * .349) ** (1/3) = .1454 of .8340


def test_the_rows_are_in_their_order_and_not_scored(page: tuple[Page, Report]):
    cases = [case for case in page[1].cases if case.rows == "test"]
    assert [(case.id, case.label) for case in cases] == [(row, None) for row in PUBLISHED]
    assert all(line.test is None for line in page[1].comparison.lines)


def test_electra_is_a_constant():
    table = read_predictions(DATA / "reference_electra.csv")
    assert len(table[list(CLASSES)].drop_duplicates()) == 1
