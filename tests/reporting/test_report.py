"""Check that a report is complete for any mix of inputs, as page, Markdown, JSON and command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from made_runs import make_run
from page_tables import Page

from kit.baselines.run import run_baseline
from kit.cli.main import main
from kit.data.dataset import Dataset, open_dataset
from kit.data.preprocess import preprocess_files
from kit.ensembling.blend import Blend, write_blend
from kit.errors import KitError, RunError
from kit.predictions import make_predictions, write_predictions
from kit.reporting.export import write_report
from kit.reporting.html import render_html
from kit.reporting.markdown import render_markdown
from kit.reporting.report import Report, build_report

FOLDS = (0, 1, 2)
BOTH = ("holdout", *FOLDS)


def render_all(report: Report) -> Page:
    """Render the JSON, the Markdown and the page, and return the page, which must parse."""
    json.dumps(report.as_dict(), allow_nan=False)
    assert render_markdown(report)
    return Page(render_html(report))


def test_one_run_without_test_predictions(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed, test=False)
    page = render_all(build_report([run], processed.folder))
    assert "Correlation between models" not in page.text
    assert "Where models disagree most" not in page.text
    assert not any("test" in title for title in page.table("All models").rows[0])
    # The only other model is the class prior.
    assert len(page.table("Against the best on").rows) == 2


def test_the_facts_say_which_labels_a_model_has_predicted(
    processed: Dataset, raw: Path, tmp_path: Path
):
    ids = processed.train(["id"])["id"].to_numpy()
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], len(ids))
    write_predictions(make_predictions(ids, probabilities), tmp_path / "oof.csv")
    preprocess_files(raw, tmp_path / "soft", folds=3, valid=0.2, soft_labels=[tmp_path / "oof.csv"])
    soft = open_dataset(tmp_path / "soft")

    warning = f"soft labels: {len(ids)} rows, predicted by models that may have seen validation"
    report = build_report([make_run(tmp_path / "one", soft)], soft.folder)
    assert warning in render_markdown(report)
    report = build_report([make_run(tmp_path / "two", processed)], processed.folder)
    assert "soft labels" not in render_markdown(report)


def test_runs_of_all_folds_have_a_curve_for_each_fold(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, parts=FOLDS) for seed in range(2)]
    report = build_report(runs, processed.folder)
    assert report.main_rows == "out-of-fold"
    page = render_all(report)
    assert page.text.count("Out-of-fold rows are ") == 1
    parts = [row[1] for row in page.tables["Trained parts"].rows[1:]]
    assert parts == ["fold0", "fold1", "fold2"] * 2
    # Each part kept the checkpoint of its second epoch, though the first of fold 1 and 2 is lower.
    losses = [row[4] for row in page.tables["Trained parts"].rows[1:]]
    assert losses == ["1.0000", "1.1000", "1.2000"] * 2

    line = report.comparison.lines[-1]
    sizes = [len(processed.fold_rows(fold)[1]) for fold in FOLDS]
    assert line.swap_gap == pytest.approx(np.average([0.01, 0.02, 0.03], weights=sizes))
    assert line.minutes == pytest.approx(4.5)


def test_baselines_alone_have_no_learning_curves(processed: Dataset, tmp_path: Path):
    runs = [run_baseline(name, processed.folder, tmp_path)["run"] for name in ("length", "prior")]
    report = build_report(runs, processed.folder)
    page = render_all(report)
    assert "Learning curves" not in page.text
    length, prior = report.comparison.lines[-2:]
    assert length.swap_gap == pytest.approx(0, abs=1e-6)
    shares = report.inputs.models[-1].predictions["valid"][0]
    assert prior.swap_gap == pytest.approx(2 * abs(shares[0] - shares[1]) / 3)

    correlations = page.tables["Correlation of predictions on the holdout rows"].rows
    row = next(row for row in correlations if "prior" in row[0])
    assert set(row[1:]) == {"constant"}


def test_published_scores_appear_beside_reference_runs_only(processed: Dataset, tmp_path: Path):
    ordinary = make_run(tmp_path, processed)
    report = build_report([ordinary], processed.folder)
    assert report.as_dict()["published"] == []
    assert "published, other" not in render_all(report).text

    reference = make_run(tmp_path, processed, recipe="roberta-reference")
    report = build_report([ordinary, reference], processed.folder)
    rows = render_all(report).table("All models").rows
    names = [f"{name} published, other rows" for name in ("RoBERTa-base", "ELECTRA-large")]
    assert [row[0] for row in rows[-2:]] == names
    assert rows[-2][1:3] == ["1.0492", "0.464"]
    assert [score["log_loss"] for score in report.as_dict()["published"]][1] == 1.0492


def test_the_page_has_no_column_that_no_model_fills(processed: Dataset, raw: Path, tmp_path: Path):
    frames = [("a", make_run(tmp_path, processed) / "test.csv")]
    report = build_report([], processed.folder, frames=frames, truth=raw / "truth.csv")
    page = render_all(report)
    head = page.table("All models on 60 test rows").rows[0]
    assert head == ["model", "test log loss [95%]", "test accuracy", "test calibration error"]
    # What no model has predicted is not explained either.
    assert "Out-of-fold rows are" not in page.text
    assert "Swap gap" not in page.text
    assert "recipe keys" not in page.text
    assert "out-of-fold rows" not in render_markdown(report).partition("##")[0]


def test_an_edited_recipe_does_not_stop_a_report(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed, recipe="roberta-reference")
    with (run / "recipe.toml").open("a") as file:
        file.write("\n[train2]\n")
    assert build_report([run], processed.folder).published == ()


def test_the_page_names_unlabelled_test_rows(processed: Dataset, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed) for seed in range(2)]
    report = build_report(runs, processed.folder)
    page = render_all(report)
    assert f"test row {report.disagreements[-1].id}" in page.text
    assert page.text.count("True class:") == len(report.worst) + 8


def test_ten_runs_have_all_their_pairs(processed: Dataset, raw: Path, tmp_path: Path):
    runs = [make_run(tmp_path, processed, seed, skill=seed / 3) for seed in range(10)]
    report = build_report(runs, processed.folder, truth=raw / "truth.csv")
    for significance in report.significance:
        # Ten runs and the class prior.
        assert len(significance.pairs) == 11 * 10
        split = "valid" if significance.rows == "holdout" else "test"
        lines = [line for line in report.comparison.lines if line.name in significance.models]
        lines.sort(key=lambda line: getattr(line, split).log_loss)
        assert list(significance.models) == [line.name for line in lines]

    html = render_html(report)
    Page(html)
    assert len(html) < 1_500_000


def test_the_page_says_what_the_validation_scores_of_blends_are(
    processed: Dataset, raw: Path, tmp_path: Path
):
    runs = [make_run(tmp_path, processed, seed, parts=BOTH) for seed in range(2)]
    blend = Blend(tuple(run.name for run in runs), (0.5, 0.5), "arithmetic")
    files = [tmp_path / "folds.json", tmp_path / "plain.json"]
    for file, method in zip(files, ("arithmetic", "mean"), strict=True):
        write_blend(blend, file, {"method": method})

    page = render_all(build_report(runs, processed.folder, blends=files))
    assert "“plain” is applied as it was saved, because its weights were not fitted" in page.text
    assert "The out-of-fold scores of folds are cross-fitted:" in page.text

    # The holdout has too few rows to fit the blend to.
    report = build_report(
        runs,
        processed.folder,
        blends=files,
        frames=[("mean", runs[0] / "holdout" / "valid.csv")],
        truth=raw / "truth.csv",
    )
    page = render_all(report)
    assert "“folds” has no validation scores: its weights may have been fitted" in page.text
    assert "are cross-fitted:" not in page.text
    holdout, test = report.significance
    assert "folds" not in holdout.models
    assert "folds" in test.models


def test_a_damaged_training_log_is_named(processed: Dataset, tmp_path: Path):
    run = make_run(tmp_path, processed)
    (run / "holdout" / "trainer_state.json").write_text('{"log_history": [1]}')
    with pytest.raises(RunError, match=r"trainer_state\.json: not the log of a training"):
        render_html(build_report([run], processed.folder))


def test_a_report_is_written_as_a_page_or_markdown(processed: Dataset, tmp_path: Path):
    report = build_report([make_run(tmp_path, processed)], processed.folder)
    write_report(report, tmp_path / "r.MD")
    assert (tmp_path / "r.MD").read_text(encoding="utf-8") == render_markdown(report)
    with pytest.raises(KitError, match=r"report\.pdf: .* \.html or \.md") as caught:
        write_report(report, tmp_path / "report.pdf")
    assert "report.html or report.md" in caught.value.hint
    assert not (tmp_path / "report.pdf").exists()


def test_the_command_writes_and_prints_a_report(processed: Dataset, tmp_path: Path):
    runner = CliRunner()
    run = make_run(tmp_path / "runs", processed)
    command = ["report", str(run), "--data", str(processed.folder)]
    page, markdown = tmp_path / "report.html", tmp_path / "report.md"

    shown = runner.invoke(main, [*command, "-o", str(page), "-o", str(markdown)])
    assert shown.exit_code == 0, shown.output
    assert "can't tell" in shown.stdout or "worse" in shown.stdout
    assert shown.stderr.splitlines()[-1] == f"Written: {page}, {markdown}"
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    printed = runner.invoke(main, [*command, "--markdown"])
    assert "Written" not in printed.stderr
    assert printed.stdout == markdown.read_text(encoding="utf-8")
    assert json.loads(runner.invoke(main, [*command, "--json"]).stdout)["validation"] == "holdout"


def test_every_number_has_the_minus_sign_of_a_keyboard(
    processed: Dataset, raw: Path, tmp_path: Path
):
    runs = [make_run(tmp_path, processed, seed, parts=FOLDS) for seed in range(2)]
    truth = raw / "truth.csv"
    command = ["report", *map(str, runs), "--data", str(processed.folder), "--truth", str(truth)]
    printed = CliRunner().invoke(main, command)
    assert printed.exit_code == 0, printed.output
    report = build_report(runs, processed.folder, truth=truth)
    for text in (printed.stdout, render_markdown(report), render_html(report)):
        assert "[-0." in text
        assert "\N{MINUS SIGN}" not in text


def test_the_command_refuses_wrong_outputs(processed: Dataset, tmp_path: Path):
    runner = CliRunner()
    run = make_run(tmp_path / "runs", processed)
    command = ["report", str(run), "--data", str(processed.folder)]
    page = tmp_path / "report.html"
    page.write_text("an older report")

    assert runner.invoke(main, [*command, "-o", str(page)]).exit_code == 1
    assert runner.invoke(main, [*command, "--json", "--markdown"]).exit_code == 2
    refused = runner.invoke(main, [*command, "-o", str(tmp_path / "report.pdf")])
    assert refused.exit_code == 1
    assert "report.html" in refused.stderr

    same = [str(tmp_path / "r.md"), str(tmp_path / "runs" / ".." / "r.md")]
    refused = runner.invoke(main, [*command, "-o", same[0], "-o", same[1]])
    assert refused.exit_code == 2
    assert "-o names the same file twice" in refused.stderr
    assert not (tmp_path / "r.md").exists()


def test_frames_alone_are_compared_by_the_same_bootstrap(
    processed: Dataset, raw: Path, tmp_path: Path
):
    runs = [make_run(tmp_path, processed, seed, parts=BOTH, skill=seed) for seed in range(2)]
    truth = raw / "truth.csv"

    def run_command(name: str, *options: str):
        files = [f"{model}={run / name}" for model, run in zip("xy", runs, strict=True)]
        frames = [word for file in files for word in ("--frame", file)]
        command = ["report", *frames, "--data", str(processed.folder), "--json", *options]
        return CliRunner().invoke(main, command)

    for name, rows, options in (
        ("oof.csv", "out-of-fold", ()),
        ("holdout/valid.csv", "holdout", ()),
        ("test.csv", "test", ("--truth", str(truth))),
    ):
        shown = run_command(name, *options)
        assert shown.exit_code == 0, shown.output
        content = json.loads(shown.stdout)
        assert content["note"] == ""
        (significance,) = content["significance"]
        assert significance["rows"] == rows
        pair = next(p for p in significance["pairs"] if (p["model"], p["other"]) == ("x", "y"))
        assert pair["low"] <= pair["mean"] <= pair["high"]

        # With the runs beside them, the frames' difference is the same.
        frames = [(model, run / name) for model, run in zip("xy", runs, strict=True)]
        report = build_report(runs, processed.folder, frames=frames, truth=truth)
        expected = next(each for each in report.significance if each.rows == rows).pair("x", "y")
        assert pair["mean"] == pytest.approx(expected.mean)
        assert pair["verdict"] == expected.verdict

    refused = run_command("test.csv")
    assert refused.exit_code == 1
    assert "test rows, whose labels are not known" in refused.stderr
    assert "--truth" in refused.stderr


def test_the_labels_of_the_sample_are_used_where_they_fit(
    processed: Dataset, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "runs", processed)
    truth = tmp_path / "data" / "raw" / "truth.csv"
    monkeypatch.chdir(tmp_path)

    def report(*arguments: object) -> tuple[dict[str, Any], str]:
        command = ["report", *map(str, arguments), "--json"]
        shown = CliRunner().invoke(main, command)
        assert shown.exit_code == 0, shown.output
        return json.loads(shown.stdout), shown.stderr

    whole = (run, "--data", processed.folder)
    content, notes = report(*whole)
    assert content["lines"][-1]["test"] is None
    assert "truth.csv" not in notes

    truth.parent.mkdir(parents=True)
    shutil.copy(raw / "truth.csv", truth)
    content, notes = report(*whole)
    assert content["lines"][-1]["test"]["rows"] == 60
    assert notes == "Labels: data/raw/truth.csv\n"
    # Files need no data folder beside it.
    content, notes = report("--frame", f"a={run / 'test.csv'}")
    assert content["rows"] == "60 rows of the truth file"
    assert notes == "Labels: data/raw/truth.csv\n"
    # It is not named where it scores nothing, and not where another is named.
    assert report("--frame", f"a={run / 'holdout/valid.csv'}", *whole[1:])[1] == ""
    assert report(*whole, "--truth", raw / "truth.csv")[1] == ""

    # Labels of other rows were named by nobody, so they stop no report.
    lines = truth.read_text().splitlines(keepends=True)
    truth.write_text("".join(lines[:-1]))
    content, notes = report(*whole)
    assert content["lines"][-1]["test"] is None
    assert notes == "data/raw/truth.csv is not used: it has other rows than test.csv\n"


def test_files_without_labels_are_told_to_name_them(
    processed: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path / "runs", processed)
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(main, ["report", "--frame", f"a={run / 'test.csv'}"])
    assert refused.exit_code == 1
    assert "Add --truth FILE" in refused.stderr
    assert "kit preprocess" not in refused.stderr

    # A run was trained on processed rows, which a truth cannot replace.
    refused = CliRunner().invoke(main, ["report", str(run)])
    assert "kit preprocess" in refused.stderr


def test_a_report_of_nothing_is_a_usage_error(processed: Dataset):
    refused = CliRunner().invoke(main, ["report", "--data", str(processed.folder)])
    assert refused.exit_code == 2
    assert "--frame NAME=FILE" in refused.stderr
