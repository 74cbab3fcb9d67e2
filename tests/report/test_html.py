"""The page: everything is there, it agrees with the JSON to the digit, nothing is loaded, and no text is markup."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from made_runs import make_run
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensemble.blend import write_blend
from kit.ensemble.fit_blend import fit_blend
from kit.evaluation.truth import read_truth, restrict_truth
from kit.predictions import read_predictions
from kit.report import figures
from kit.report.comparison import ComparisonLine, ModelFigures
from kit.report.html import render_html
from kit.report.markdown import render_markdown
from kit.report.report import Report, build_report
from kit.sample.generate import write_sample
from kit.task import ID, RESPONSES

HOSTILE = "<script>alert(1)</script> <img src=https://example.com/x.png onerror=alert(2)>\u202etxt.exe\x1b[31m ``` | \\ &amp;"
NUMBER = re.compile(r"[+\u2212]?\d[\d,]*\.\d+")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Processed rows, every answer B of which wants to be more than text."""
    folder = tmp_path_factory.mktemp("hostile")
    write_sample(folder / "raw", rows=240, seed=5)
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(folder / "raw" / name, dtype=str, keep_default_na=False)
        table[RESPONSES[1]] = [
            json.dumps([HOSTILE, "second turn " * 200])[:-1] + f', "{i}"]' for i in table[ID]
        ]
        table["prompt"] = [json.dumps([json.loads(p)[0]] * 3) for p in table["prompt"]]
        table[RESPONSES[0]] = [json.dumps([json.loads(p)[0]] * 3) for p in table[RESPONSES[0]]]
        table.to_csv(folder / "raw" / name, index=False)
    preprocess_files(folder / "raw", folder / "processed", folds=3, valid=0.3)
    return open_dataset(folder / "processed")


@pytest.fixture(scope="module")
def made(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two runs, a baseline, a frame with a name to beware of, and a saved blend, with the truth of the test rows."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder, hostile, seed, skill=1 + seed) for seed in range(2)]
    runs.append(Path(run_baseline("length", hostile.folder, folder)["run"]))
    frames = [read_predictions(run / "holdout" / "valid.csv") for run in runs[:2]]
    truth = restrict_truth(read_truth(hostile.folder / "train.parquet"), frames[0])
    fitted = fit_blend(frames, [run.name for run in runs[:2]], truth, "geometric", draws=2)
    write_blend(fitted.blend, folder / "blend.json", fitted.fitted)
    return build_report(
        runs,
        hostile.folder,
        frames=[("<b>$x_1$|`", runs[0] / "test.csv")],
        blends=[folder / "blend.json"],
        truth=hostile.folder.parent / "raw" / "truth.csv",
    )


@pytest.fixture(scope="module")
def text(made: Report) -> str:
    return render_html(made)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def leaves(value: object) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in leaves(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in leaves(each)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_section_is_there_with_what_it_promises(page: Page, made: Report):
    titles = "Comparison|Significance|Learning curves|Reliability|Confusion|By length, turns and language|"
    titles += "Correlation between models|Blend weights|Where models disagree most"
    for title in titles.split("|"):
        assert title in page.text
    table = page.tables["All models"]
    names = [row[0] for row in table.rows[1:]]
    assert names[:3] == ["uniform", "class prior", "Bayes floor"]
    assert names[3:6] == [model.name for model in made.evidence.models[3:6]]
    assert names[6:] == [
        "<b>$x_1$|`", "blend", *(f"{n}, on other rows" for n in ("DeBERTa-v3-xsmall", "RoBERTa-base", "ELECTRA-large"))
    ]  # fmt: skip
    by_name = {row[0]: row for row in table.rows}
    assert by_name["RoBERTa-base, on other rows"][1:3] == ["1.0492", "0.464"]
    assert [cell for cell in by_name[names[3]] if cell][-4:] == [
        "0.010",
        "2.00",
        "1,234,567",
        "1.5",
    ]
    captions = " ".join(page.tables)
    for each in (
        "Against the best on test rows",
        "All pairs on holdout rows",
        "answer length",
        "turns",
        "script",
    ):
        assert each in captions


def test_every_number_of_a_table_is_one_of_the_json(page: Page, made: Report):
    known = set()
    for number in leaves(json.loads(json.dumps(made.as_dict()))):
        for form in (".1f", ".2f", ".3f", ".4f", ",.1f"):
            known |= {format(number, sign + form).replace("-", "\u2212") for sign in ("", "+")}
    checked = 0
    for caption, table in page.tables.items():
        for row in table.rows[1:]:
            for token in NUMBER.findall(" ".join(row[1:])):
                assert token in known, f"{caption}: {token} in {row}"
                checked += 1
    assert checked > 300


def test_a_figure_stands_where_it_belongs(page: Page, made: Report):
    lines = {line.name: line for line in made.comparison.lines}
    for row in page.tables["All models"].rows[1:]:
        if row[0] in lines and (test := lines[row[0]].test):
            assert row[4] == f"{test.log_loss:.4f} [{test.low:.4f}, {test.high:.4f}]"
            assert row[5:7] == [f"{test.accuracy:.3f}", f"{test.calibration_error:.3f}"]
    test = made.significance[1]
    for row in page.tables[f"Against the best on test rows, {test.best}"].rows[1:]:
        assert row[1] == test.pair(row[0], test.best).verdict


def test_the_lowest_loss_of_all_models_is_bold(page: Page, made: Report):
    lines = [line for line in made.comparison.lines[3:] if line.valid]
    table = page.tables["All models"]
    bold = [row[0] for row, strong in zip(table.rows, table.bold, strict=True) if strong[1]]
    assert bold == [min(lines, key=lambda line: line.valid.log_loss).name]


def test_the_most_probable_class_is_bold_and_no_other(page: Page, made: Report):
    for case in made.cases:
        table = page.tables[f"Predictions of test row {case.id}"]
        for row, bold in zip(table.rows[1:], table.bold[1:], strict=True):
            probabilities = case.probabilities[row[0]]
            assert [place for place, strong in enumerate(bold[1:]) if strong] == [
                probabilities.index(max(probabilities))
            ]


def test_texts_are_shown_and_never_run(page: Page, text: str):
    assert (
        "<script>alert(1)</script> <img src=https://example.com/x.png onerror=alert(2)>"
        in page.text
    )
    assert "⟨U+202E⟩txt.exe⟨U+001B⟩[31m" in page.text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "b"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_nothing_is_loaded(page: Page, text: str):
    assert {address[:1] for address in page.addresses if address != "data:,"} == {"#"}
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"@import|url\(", style)
    policy = next(
        a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'")
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(page.ids)


def test_ids_are_unique_and_figures_say_what_they_show(page: Page):
    assert len(page.ids) == len(set(page.ids))
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert (
        len(figures) == 2 + 2 + 5
    )  # intervals of two splits, curves of two runs, reliability of five models
    assert all(
        each["role"] == "img" and each["aria-label"] and "viewbox" in each for each in figures
    )
    assert any("Reliability of <b>$x_1$|`" in each["aria-label"] for each in figures)


def test_names_stand_left_of_the_intervals_they_belong_to():
    names = [
        "short",
        "tiny-electra-6f3a2b1c",
        "a-name-much-longer-than-two-lines-can-hold-whatever-they-are-6f3a2b1c",
    ]
    each = ModelFigures(
        rows=9, log_loss=1.0, low=0.9, high=1.05, accuracy=0.4, calibration_error=0.1
    )
    svg = figures.plot_intervals(
        [ComparisonLine(name, valid=each) for name in names], "valid", "holdout"
    ).svg
    labels = re.findall(r'text-anchor: end[^"]*" x="([\d.]+)"[^>]*>([^<]*)', svg)
    shown = [text for _, text in labels if not text.startswith("log loss")]
    assert shown[:2] == names[:2]
    assert shown[2].startswith("a-name-much")
    assert shown[3].endswith("6f3a2b1c")
    drawn = [float(x) for x in re.findall(r'd="M ([\d.]+) [\d.]+  L', svg)]
    assert max(float(x) for x, text in labels if text in shown) < min(x for x in drawn if x > 9)


def test_it_can_be_read_by_machine_and_by_ear(page: Page):
    assert ("html", {"lang": "en"}) in page.tags
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert [tag for tag, _ in page.tags].count("table") == [tag for tag, _ in page.tags].count(
        "caption"
    )
    assert not page.open


def test_colours_are_the_pages_in_light_and_in_dark(text: str):
    figures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert figures
    for figure in figures:
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!\))", figure.replace('href="#', ""))
    used = set(re.findall(r"var\((--[a-z]+)\)", text)) - {"--shade"}
    dark = text.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    for name in used:
        assert f"{name}:" in dark


def test_the_same_report_gives_the_same_bytes(made: Report, text: str):
    again = Report(made.evidence)
    assert render_html(again) == text
    assert render_markdown(again) == render_markdown(made)


def test_markdown_says_the_same_as_the_page(page: Page, made: Report):
    text = render_markdown(made)
    tables = re.findall(r"((?:^\|.*\n)+)", text, re.MULTILINE)
    found = []
    for table in tables:
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()]
        found.append(
            [
                [re.sub(r"\\(.)", r"\1", cell.strip().strip("*")) for cell in row]
                for row in rows[:1] + rows[2:]
            ]
        )
    assert found == [grid.rows for grid in page.tables.values()]


def test_markdown_speaks_of_no_picture(page: Page, made: Report):
    text = render_markdown(made)
    pictured = r"\b(dots?|diagonal|thin|strong|dotted)\b"
    assert not re.search(pictured, text, re.IGNORECASE)
    assert len(set(re.findall(pictured, page.text))) > 3
    assert "Where the accuracy is below the confidence, the model is over-confident." in text
    assert "over-confident" in page.text


def test_texts_in_markdown_cannot_leave_their_block(made: Report):
    fence, inside = "", []
    for line in render_markdown(made).splitlines():
        if fence:
            inside.append(line)
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            assert "<script" not in line.replace("\\<", "")
    assert not fence
    assert any("<script>alert(1)</script>" in line for line in inside)
    assert "\\<b\\>$x\\_1$\\|\\`" in render_markdown(made)


def test_a_long_text_is_folded_and_a_very_long_one_cut(page: Page):
    folded = [tag for tag, _ in page.tags].count("details")
    assert folded > 2  # the two tables of numbers behind figures, and texts
    assert "second turn second turn" in page.text
