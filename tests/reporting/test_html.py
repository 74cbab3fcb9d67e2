"""Check that the page is complete, equals the JSON, loads nothing, and treats no text as markup.

The Markdown form is checked against the page.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from made_runs import make_run
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensembling.blend import write_blend
from kit.ensembling.fit_blend import fit_blend
from kit.evaluation.truth import read_truth, restrict_truth
from kit.predictions import read_predictions
from kit.reporting import figures
from kit.reporting.html import render_html
from kit.reporting.leaderboard import LeaderboardScore
from kit.reporting.markdown import render_markdown
from kit.reporting.report import Report, build_report
from kit.sample.generate import write_sample
from kit.task import ID, RESPONSES

HOSTILE = (
    "<script>alert(1)</script> <img src=https://example.com/x.png onerror=alert(2)>"
    "\u202etxt.exe\x1b[31m ``` | \\ &amp;"
)
SECTIONS = (
    "Comparison",
    "Significance",
    "Learning curves",
    "Recipes",
    "Reliability and confidence",
    "Confusion",
    "By length, turns and language",
    "Correlation between models",
    "Blends",
    "Local score against the leaderboard",
    "Worst rows of the best model",
    "Where models disagree most",
)
ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"[-+]?\d[\d,]*\.\d+")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Processed rows with markup and invisible characters in every answer B."""
    folder = tmp_path_factory.mktemp("hostile")
    write_sample(folder / "raw", rows=240, seed=5)
    for name in ("train.csv", "test.csv"):
        table = pd.read_csv(folder / "raw" / name, dtype=str, keep_default_na=False)
        table[RESPONSES[1]] = [
            json.dumps([HOSTILE, "second turn " * 200, str(number)]) for number in table[ID]
        ]
        # All texts of a row need the same number of turns.
        for column in ("prompt", RESPONSES[0]):
            table[column] = [json.dumps([json.loads(text)[0]] * 3) for text in table[column]]
        table.to_csv(folder / "raw" / name, index=False)
    preprocess_files(folder / "raw", folder / "processed", folds=3, valid=0.3)
    return open_dataset(folder / "processed")


@pytest.fixture(scope="module")
def report(hostile: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Two runs, a baseline, a frame with markup in its name, and a blend, with test labels."""
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
        submissions=[
            LeaderboardScore("2026-01-02", "me/kernel/1", "<b>first", 1.01, 1.03, None),
            LeaderboardScore("2026-01-03", "blend.csv", "second", None, 1.02, 1.04),
        ],
    )


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return render_html(report)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def markdown(report: Report) -> str:
    return render_markdown(report)


def numbers_in(value: object) -> list[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list | tuple):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_every_section_is_there_with_its_tables(page: Page, report: Report):
    for title in SECTIONS:
        assert title in page.text

    # The models come first, the best at the top, then the references.
    table = page.table("All models")
    losses = [float(row[4].split()[0]) for row in table.rows[1:]]
    assert losses[:-3] == sorted(losses[:-3])
    assert {row[0] for row in table.rows[-3:]} == {"uniform", "class prior", "Bayes floor"}
    cells = table.row(report.inputs.models[3].name)
    assert [cell for cell in cells if cell][-4:] == ["0.010", "2.00", "1.2M", "1.5"]

    captions = " ".join(page.tables)
    assert "Against the best on 60 test rows" in captions
    assert f"All pairs on {report.inputs.rows['valid'].title}:" in captions
    for by in ("answer length", "turns", "script"):
        assert f"Log loss by {by}" in page.tables


def test_terms_are_explained(page: Page):
    for explanation in ("bootstrap interval: ", "Holdout rows are ", "cross-fitted one, "):
        assert page.text.count(explanation) == 1


def test_every_number_of_a_table_is_one_of_the_json(page: Page, report: Report):
    known = set()
    for number in numbers_in(json.loads(json.dumps(report.as_dict()))):
        for form in (".1f", ".2f", ".3f", ".4f", ",.1f"):
            known |= {format(number, sign + form) for sign in ("", "+")}

    checked = 0
    for caption, table in page.tables.items():
        for row in table.rows[1:]:
            for token in NUMBER.findall(" ".join(row[1:])):
                assert token in known, f"{caption}: {token} in {row}"
                checked += 1
    assert checked > 300


def test_the_numbers_are_in_the_lines_of_their_models(page: Page, report: Report):
    lines = {line.name: line for line in report.comparison.lines}
    for name, line in lines.items():
        if test := line.test:
            row = page.table("All models").row(name)
            assert row[3] == f"{test.log_loss:.4f} [{test.low:.4f}, {test.high:.4f}]"
            assert row[4:6] == [f"{test.accuracy:.3f}", f"{test.calibration_error:.3f}"]

    significance = report.significance[1]
    best = significance.best
    for row in page.tables[f"Against the best on 60 test rows, {best}"].rows[1:]:
        assert row[1] == significance.pair(row[0], best).verdict


def test_the_lowest_loss_of_all_models_is_bold(page: Page, report: Report):
    lines = [line for line in report.comparison.lines[3:] if line.valid]
    table = page.table("All models")
    bold = [row[0] for row, strong in zip(table.rows, table.bold, strict=True) if strong[1]]
    best = min(lines, key=lambda line: line.valid.log_loss).name
    assert [name.split()[0] for name in bold] == [best]


def test_only_the_most_probable_class_is_bold(page: Page, report: Report):
    for case in report.disagreements:
        table = page.tables[f"Predictions of test row {case.id}"]
        for row, bold in zip(table.rows[1:], table.bold[1:], strict=True):
            probabilities = case.probabilities[row[0]]
            strong = [i for i, is_strong in enumerate(bold[1:]) if is_strong]
            assert strong == [probabilities.index(max(probabilities))]


def test_texts_are_shown_and_never_run(page: Page, html: str):
    assert HOSTILE.partition("\u202e")[0] in page.text
    assert "⟨U+202E⟩txt.exe⟨U+001B⟩[31m" in page.text
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"img", "iframe", "object", "embed", "form", "b"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_nothing_is_loaded(page: Page, html: str):
    assert {address[:1] for address in page.addresses if address != "data:,"} == {"#"}
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert not re.search(r"@import|url\(", style)
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    policy = next(a["content"] for a in metas if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")

    # The one script is kit's own, and the policy allows no other.
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script.strip() == (Path(figures.__file__).parent / "page.js").read_text().strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy

    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(page.ids)


def test_ids_are_unique_and_figures_have_titles(page: Page):
    assert len(page.ids) == len(set(page.ids))
    svgs = [attributes for tag, attributes in page.tags if tag == "svg"]
    # Curves of two runs together and by themselves, reliability of five models, the leaderboard.
    assert len(svgs) == 3 + 5 + 1
    for svg in svgs:
        assert svg["role"] == "img"
        assert svg["aria-label"]
        assert "viewbox" in svg
    assert any(svg["aria-label"].startswith("<b>$x_1$|`: mean distance") for svg in svgs)


def test_the_answer_is_at_the_top(page: Page, report: Report, markdown: str):
    top = page.text.partition("All models")[0]
    answer = report.answer
    assert answer.best == report.significance[1].best
    pair = report.significance[1].pair(answer.best, answer.next)
    assert f"{answer.figures.log_loss:.4f} on 60 test rows" in top
    assert f"{-pair.mean:.4f} [" in top
    clear = "the lead is clear" if pair.verdict == "better" else "the lead is not clear"
    assert clear in top
    assert report.made in top
    assert f"kit report {report.inputs.models[3].run.path}" in top
    assert markdown.startswith(f"# {answer.best}")
    assert clear in markdown.partition("##")[0]


def test_bars_of_a_table_are_on_one_axis(html: str, report: Report):
    table = html.partition("<caption>All models")[2].partition("</table>")[0]
    bars = re.findall(r"--first: ([\d.]+)%;--point: ([\d.]+)%;--last: ([\d.]+)%", table)
    lines = [line for line in report.comparison.lines if line.name in report.ranking]
    figures = [each for line in lines for each in (line.valid, line.test) if each]
    # The references have bars too, at the end of the axis where they are outside.
    assert len(bars) == len(figures) + 6
    places = {(float(first), float(last)) for first, _, last in bars}
    low, high = min(each.low for each in figures), max(each.high for each in figures)
    for each in figures:
        expected = [
            100 * (value - low + 0.04 * (high - low)) / (1.08 * (high - low))
            for value in (each.low, each.high)
        ]
        assert any(place == pytest.approx(expected, abs=0.06) for place in places)


def test_cells_with_numbers_can_be_sorted(page: Page):
    values = [
        (attributes["data-value"], attributes)
        for tag, attributes in page.tags
        if tag in ("td", "th") and "data-value" in attributes
    ]
    assert len(values) > 100
    assert all(np.isfinite(float(value)) for value, _ in values)
    sortable = [attributes for tag, attributes in page.tags if tag == "table"]
    assert sum("data-sortable" in attributes for attributes in sortable) > 3


def test_the_page_is_accessible(page: Page):
    assert ("html", {"lang": "en"}) in page.tags
    tags = [tag for tag, _ in page.tags]
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert tags.count("table") == tags.count("caption")
    assert not page.open


def test_figures_take_the_colours_of_the_page(html: str):
    svgs = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert svgs
    for svg in svgs:
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?!\))", svg.replace('href="#', ""))

    bars = {"--shade", "--first", "--point", "--last", "--mark"}
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) - bars
    dark = html.partition("prefers-color-scheme: dark")[2].partition("* {")[0]
    for name in used:
        assert f"{name}:" in dark


def test_the_same_report_gives_the_same_bytes(report: Report, html: str, markdown: str):
    again = replace(report)
    assert render_html(again) == html
    assert render_markdown(again) == markdown


def test_settings_of_matplotlib_do_not_reach_the_page(report: Report, html: str):
    settings: dict[Any, Any] = {"font.size": 20, "axes.grid": True, "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        assert render_html(report) == html


def test_a_notebook_shows_the_page_in_a_frame_of_its_own(report: Report, html: str):
    shown = Page(report._repr_html_())
    ((tag, attributes),) = shown.tags  # one element, so that no style reaches the notebook
    assert tag == "iframe"
    assert not shown.text
    assert not shown.open
    assert int(attributes["height"]) > 400

    base = '<base href="about:srcdoc">'
    assert attributes["srcdoc"].replace(f"{base}\n", "") == html
    assert base in attributes["srcdoc"].partition("<style>")[0]


def test_markdown_has_the_tables_of_the_page(page: Page, markdown: str):
    grids = []
    for table in re.findall(r"((?:^\|.*\n)+)", markdown, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.strip().splitlines()]
        del lines[1]  # the rule below the head
        cells = [[cell.strip().replace("**", "") for cell in line] for line in lines]
        grids.append([[re.sub(r"\\(.)", r"\1", cell) for cell in line] for line in cells])
    assert grids == [grid.rows for grid in page.tables.values()]


def test_markdown_does_not_speak_of_figures(page: Page, markdown: str):
    words = re.compile(r"\b(dots?|diagonal|thin|axis|dotted)\b", re.IGNORECASE)
    assert not words.search(markdown)
    assert len(set(words.findall(page.text))) > 3
    over_confident = "Where fewer are true than was predicted, the model is over-confident."
    assert over_confident in markdown


def test_texts_in_markdown_cannot_leave_their_block(markdown: str):
    fence = ""
    inside = []
    for line in markdown.splitlines():
        if fence:
            inside.append(line)
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line.removesuffix("text")
        else:
            assert "<script" not in line.replace("\\<", "")
    assert not fence
    assert any("<script>alert(1)</script>" in line for line in inside)
    assert "\\<b\\>$x\\_1$\\|\\`" in markdown


def test_long_texts_are_folded(page: Page):
    folded = [tag for tag, _ in page.tags].count("details")
    # Beside texts, the two tables of numbers behind figures are folded.
    assert folded > 2
    assert "second turn second turn" in page.text


def test_a_page_is_drawn_whatever_backend_the_shell_names(hostile: Dataset, tmp_path: Path):
    raw = hostile.folder.parent / "raw"
    prior = pd.read_csv(raw / "sample_submission.csv")
    prior.to_csv(tmp_path / "prior.csv", index=False)
    arguments = ["--frame", "prior=prior.csv", "--truth", str(raw / "truth.csv")]
    done = subprocess.run(
        [sys.executable, "-m", "kit", "report", *arguments, "-o", "page.html"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "nope", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("named", "kept"), [("nope", False), ("svg", True), ("", False)])
def test_a_backend_that_matplotlib_knows_is_kept_for_the_users_figures(named: str, kept: bool):
    code = (
        "from kit.plotting import importing_matplotlib\n"
        "with importing_matplotlib():\n"
        "    import matplotlib\n"
        "import os\n"
        # As long as none was chosen, something else than a text is there.
        "backend = dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "print(backend if isinstance(backend, str) else None, os.environ['MPLBACKEND'])"
    )
    environment = {**os.environ, "MPLBACKEND": named, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.rstrip("\n") == f"{named if kept else None} {named}"
