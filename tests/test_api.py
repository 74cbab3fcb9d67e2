"""Check that the Python API gives what the commands give, and one clear error for each mistake."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from made_runs import make_run
from quick_recipe import QUICK

import kit
from kit.baselines.models import baseline_run_name
from kit.cli.main import main
from kit.data.dataset import Dataset
from kit.ensembling.pool import blend_predictions
from kit.errors import DataError, KitError, RunError
from kit.predictions import read_predictions, write_predictions
from kit.recipe.load import load_recipe
from kit.task import CLASSES, ID, PREDICTION_COLUMNS, TEXTS

SHORT = (*QUICK, "train.max_steps=3")


def run_command(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def first(processed: Dataset, runs: Path) -> kit.Run:
    """A run with all folds, whose head is not symmetric."""
    overrides = (*SHORT, "model.head=fusion")
    return kit.train("tiny-roberta", overrides=overrides, data=processed, runs=runs, fold="all")


@pytest.fixture(scope="module")
def second(data: Path, runs: Path) -> kit.Run:
    return kit.train("tiny-electra", overrides=SHORT, data=data, runs=runs, fold="all")


@pytest.fixture(scope="module")
def ascii_run(raw: Path, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> kit.Run:
    """A holdout run that was trained on rows stripped to ASCII."""
    out = tmp_path_factory.mktemp("ascii") / "processed"
    dataset = kit.preprocess(raw, out, folds=3, valid=0.2, text="ascii")
    overrides = {"encode.max_tokens": 32, "train.batch_size": 16, "train.max_steps": 2}
    return kit.train("tiny-roberta", overrides=overrides, data=dataset, runs=runs)


@pytest.fixture(scope="module")
def kaggle_rows(raw: Path) -> pd.DataFrame:
    """Kaggle's file as pandas reads it: texts are lists in JSON."""
    return pd.read_csv(raw / "test.csv")


@pytest.fixture(scope="module")
def predicted(first: kit.Run, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What `kit predict --input` writes of these rows."""
    out = tmp_path_factory.mktemp("predicted") / "test.csv"
    run_command("predict", first.path, "--input", raw / "test.csv", "-o", out)
    return read_predictions(out)


@pytest.fixture(scope="module")
def made(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[kit.Run]:
    """Two runs with predictions of every row, made without training."""
    folder = tmp_path_factory.mktemp("made")
    return [
        kit.Run(make_run(folder, processed, seed=seed, parts=(0, 1, 2), skill=skill))
        for seed, skill in ((0, 1.0), (1, 1.5))
    ]


class TestImport:
    def test_importing_kit_loads_nothing_else(self):
        code = "import sys, kit; print([m for m in sys.modules if m.partition('.')[0] in sys.argv])"
        heavy = ("torch", "transformers", "pandas", "numpy", "pyarrow", "scipy", "sklearn", "click")
        command = [sys.executable, "-c", code, *heavy]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"

    def test_scoring_waits_neither_for_torch_nor_for_matplotlib(self):
        code = "import sys, kit; kit.score; print({'torch', 'matplotlib'} & set(sys.modules))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "set()\n"

    def test_dir_lists_the_public_names(self):
        assert set(kit.__all__) <= set(dir(kit))
        assert all(getattr(kit, name) for name in kit.__all__)

    def test_an_unknown_attribute_is_an_attribute_error(self):
        with pytest.raises(AttributeError, match="module 'kit' has no attribute 'tain'"):
            kit.tain  # noqa: B018


class TestPredictProba:
    def test_kaggles_file_gives_exactly_what_the_command_writes(
        self, first: kit.Run, kaggle_rows: pd.DataFrame, predicted: pd.DataFrame
    ):
        ours = kit.load(first).predict_proba(kaggle_rows)
        pd.testing.assert_frame_equal(ours, predicted, rtol=0, atol=0)
        assert list(ours.columns) == list(PREDICTION_COLUMNS)

    def test_lists_of_turns_give_the_same(
        self, first: kit.Run, kaggle_rows: pd.DataFrame, predicted: pd.DataFrame
    ):
        lists = kaggle_rows.assign(**{name: kaggle_rows[name].map(json.loads) for name in TEXTS})
        ours = kit.load(str(first.path)).predict_proba(lists)
        pd.testing.assert_frame_equal(ours, predicted, rtol=0, atol=0)

    def test_a_text_is_one_turn(self, first: kit.Run):
        predictor = kit.load(first)
        texts = pd.DataFrame(
            {"prompt": ["2+2?", ""], "response_a": ["4\r\n", "a"], "response_b": ["5", "b"]}
        )
        turns = texts.map(lambda text: [text])
        cells = texts.map(lambda text: json.dumps([text]))
        expected = predictor.predict_proba(turns)
        for frame in (texts, cells):
            pd.testing.assert_frame_equal(predictor.predict_proba(frame), expected)

    def test_an_answer_that_is_a_json_list_is_a_text(self, first: kit.Run):
        predictor = kit.load(first)
        answer = '["b", "a"]'
        texts = pd.DataFrame({"prompt": ["sort"], "response_a": [answer], "response_b": ["no"]})
        turns = texts.map(lambda text: [text])
        pd.testing.assert_frame_equal(
            predictor.predict_proba(texts), predictor.predict_proba(turns)
        )

    def test_ids_index_and_order_are_kept(
        self, first: kit.Run, kaggle_rows: pd.DataFrame, predicted: pd.DataFrame
    ):
        shuffled = kaggle_rows.sample(frac=1, random_state=0)
        ours = kit.load(first).predict_proba(shuffled)
        assert ours.index.equals(shuffled.index)
        pd.testing.assert_frame_equal(ours.sort_index(), predicted, rtol=0, atol=1e-6)

        numbered = kit.load(first).predict_proba(shuffled[list(TEXTS)].head(5))
        assert numbered[ID].tolist() == [0, 1, 2, 3, 4]
        assert numbered.index.equals(shuffled.index[:5])

    def test_a_run_on_ascii_rows_gets_ascii(self, ascii_run: kit.Run):
        frame = pd.DataFrame(
            {"prompt": ["Grüße, 世界"], "response_a": ["ü a"], "response_b": ["b"]}
        )
        stripped = pd.DataFrame({"prompt": ["Gre, "], "response_a": ["a"], "response_b": ["b"]})
        predictor = kit.load(ascii_run)
        expected = predictor.predict_proba(stripped)
        pd.testing.assert_frame_equal(predictor.predict_proba(frame), expected)

    def test_several_runs_are_averaged_each_with_its_own_form_of_the_texts(
        self, first: kit.Run, ascii_run: kit.Run, kaggle_rows: pd.DataFrame
    ):
        members = [first, ascii_run.path]
        frames = [kit.load(member).predict_proba(kaggle_rows) for member in members]
        ours = kit.load(members).predict_proba(kaggle_rows)
        pd.testing.assert_frame_equal(ours, blend_predictions(frames, ["a", "b"]), rtol=0, atol=0)

    def test_swap_can_be_chosen(self, first: kit.Run, kaggle_rows: pd.DataFrame):
        both = kit.load(first, swap=True).predict_proba(kaggle_rows)
        one = kit.load(first, swap=False).predict_proba(kaggle_rows)
        assert not np.allclose(both[list(CLASSES)], one[list(CLASSES)], atol=1e-4)

    def test_progress_ends_at_all_rows_of_all_models(
        self, first: kit.Run, ascii_run: kit.Run, kaggle_rows: pd.DataFrame
    ):
        calls: list[tuple[int, int]] = []
        rows = kaggle_rows.head(7)
        kit.load([first, ascii_run]).predict_proba(
            rows, on_progress=lambda done, total: calls.append((done, total))
        )
        assert calls == sorted(calls)
        assert calls[-1] == (4 * len(rows), 4 * len(rows))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.drop(columns="response_b"), "no column response_b"),
            (lambda f: f.assign(prompt=[np.nan, *f["prompt"][1:]]), "row 0: prompt is 'nan'"),
            (lambda f: f.assign(response_a=[[1], *f["prompt"][1:]]), r"row 0: response_a is '\[1"),
            (lambda f: f.head(0), "no rows"),
            (lambda f: f.assign(id=7), r"duplicate id 7 \(rows 0 and 1\)"),
            (lambda f: f.assign(id=f["id"].astype(str)), "id holds .*, not 64-bit whole numbers"),
            (lambda f: f.assign(id=np.array([2**63 + n for n in range(len(f))], np.uint64)), "id"),
            (
                lambda f: f.assign(id=pd.array([None, *range(len(f) - 1)], "Int64")),
                "row 0: id is empty",
            ),
            (
                lambda f: f.assign(prompt=["cut [", *f["prompt"][1:]]),
                "row 1 is in JSON.* but row 0 is not",
            ),
            (lambda f: pd.concat([f, f["prompt"]], axis=1), "prompt more than once"),
            (lambda f: f.to_dict(), "a pandas DataFrame is needed, not dict"),
        ],
    )
    def test_a_frame_that_cannot_be_used_is_one_clear_error(
        self, first: kit.Run, kaggle_rows: pd.DataFrame, change, message: str
    ):
        with pytest.raises(DataError, match=message) as caught:
            kit.load(first).predict_proba(change(kaggle_rows.head(4)))
        assert caught.value.hint


class TestLoad:
    def test_a_folder_with_runs_in_it_is_all_of_them(
        self, first: kit.Run, second: kit.Run, kaggle_rows: pd.DataFrame, tmp_path: Path
    ):
        for run in (first, second):
            shutil.copytree(run.path, tmp_path / "output" / "runs" / run.name)
        ours = kit.load(tmp_path / "output")
        assert {member.run.name for member in ours.members} == {first.name, second.name}
        assert first.name in repr(ours)

        rows = kaggle_rows.head(5)
        expected = kit.load(sorted([first.path, second.path])).predict_proba(rows)
        pd.testing.assert_frame_equal(ours.predict_proba(rows), expected)

    def test_a_saved_blend_is_loaded_with_its_members(
        self, first: kit.Run, second: kit.Run, data: Path, kaggle_rows: pd.DataFrame, tmp_path: Path
    ):
        fit = kit.ensemble(fit=[first, second.path], truth=data / "train.parquet")
        fit.save(tmp_path / "blend.json")

        rows = kaggle_rows.head(5)
        by_file = kit.load(tmp_path / "blend.json", runs=first.path.parent)
        by_runs = kit.load([second, first], blend=tmp_path / "blend.json")
        by_object = kit.load([first, second], blend=fit.blend)
        assert [member.run.name for member in by_file.members] == list(fit.blend.used)
        expected = by_file.predict_proba(rows)
        for predictor in (by_runs, by_object):
            pd.testing.assert_frame_equal(predictor.predict_proba(rows), expected)

        with pytest.raises(RunError, match="the blend needs the run"):
            kit.load(second if fit.blend.used[0] == first.name else first, blend=fit.blend)
        with pytest.raises(KitError, match="blend= names another"):
            kit.load(tmp_path / "blend.json", blend=fit.blend)

    def test_a_missing_run_names_those_that_are_there(self, first: kit.Run):
        with pytest.raises(RunError, match="not a run directory") as caught:
            kit.load(first.path.parent / "deberta-00000000")
        assert first.name in caught.value.hint

    def test_a_classical_model_loads_like_any_run(self, data: Path, tmp_path: Path):
        run_command("train", "--backbone", "prior", "--data", data, "--runs", tmp_path)
        frame = pd.DataFrame({"prompt": ["2+2?"], "response_a": ["4"], "response_b": ["5"]})
        assert kit.load(tmp_path / baseline_run_name("prior")).predict_proba(frame).shape == (1, 4)

    def test_nothing_to_load_is_an_error(self):
        with pytest.raises(RunError, match="no runs to load"):
            kit.load([])


class TestPreprocessAndTrain:
    def test_preprocess_returns_the_dataset_and_tells_whether_it_was_there(
        self, raw: Path, tmp_path: Path
    ):
        out = tmp_path / "processed"
        dataset = kit.preprocess(raw, out, folds=3)
        assert isinstance(dataset, kit.Dataset)
        assert (dataset.folds, dataset.reused) == (3, False)
        assert kit.preprocess(raw, out, folds=3).reused

        printed = json.loads(
            run_command("preprocess", "--raw", raw, "--out", out, "--folds", "3", "--json")
        )
        assert printed == {**dataset.manifest, "reused": True}

    def test_train_returns_the_run_with_its_figures(self, first: kit.Run, processed: Dataset):
        assert isinstance(first, kit.Run)
        assert set(first.metrics["parts"]) == {"fold0", "fold1", "fold2"}
        assert first.oof.index.equals(pd.RangeIndex(len(first.oof)))
        assert set(first.oof[ID]) == set(processed.train([ID])[ID].to_pylist())

        score = kit.score(first.oof, processed.folder / "train.parquet")
        assert score.log_loss == pytest.approx(first.metrics["oof"]["log_loss"])

    def test_out_of_fold_predictions_need_all_folds(self, ascii_run: kit.Run):
        with pytest.raises(RunError, match="not finished: fold0, fold1, fold2"):
            ascii_run.oof  # noqa: B018

    def test_progress_and_messages_are_handed_on(self, second: kit.Run, data: Path, tmp_path: Path):
        steps: list[int] = []
        kit.train(
            "tiny-electra",
            overrides=SHORT,
            data=data,
            runs=tmp_path,
            fold=1,
            on_progress=lambda progress: steps.append(progress.step),
        )
        assert steps[-1] == 3

        messages: list[str] = []
        again = kit.train(
            recipe=load_recipe("tiny-electra", SHORT),
            data=data,
            runs=second.path.parent,
            fold="all",
            log=messages.append,
        )
        assert again == second
        assert [message.endswith("is already finished") for message in messages] == [True] * 3

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "no backbone and no recipe given"),
            ({"backbone": "tiny-electra", "overrides": {"train.lr": "fast"}}, "is not a number"),
            ({"backbone": "tiny-electra", "overrides": {"train.rate": 1}}, "train.rate"),
            ({"backbone": "tiny-electra", "fold": 9}, "these rows have folds 0 to 2"),
        ],
    )
    def test_what_cannot_be_trained_is_one_clear_error(
        self, arguments: dict, message: str, data: Path, tmp_path: Path
    ):
        with pytest.raises(KitError, match=message):
            kit.train(data=data, runs=tmp_path, **arguments)
        assert list(tmp_path.iterdir()) == []

    def test_a_whole_recipe_takes_no_changes(self, data: Path, tmp_path: Path):
        recipe = load_recipe("tiny-electra")
        with pytest.raises(KitError, match="used as it is"):
            kit.train(recipe=recipe, overrides={"train.lr": 1e-3}, data=data, runs=tmp_path)


class TestEnsemble:
    def test_frames_files_runs_and_folders_blend_alike(self, made: list[kit.Run], tmp_path: Path):
        files = [run.test_path for run in made]
        frames = [read_predictions(file) for file in files]
        run_command("ensemble", *files, "--weights", "2,1", "-o", tmp_path / "blend.csv")
        expected = read_predictions(tmp_path / "blend.csv")
        folders = [run.path for run in made]
        run_command("ensemble", *folders, "--weights", "2,1", "-o", tmp_path / "folders.csv")
        assert (tmp_path / "folders.csv").read_bytes() == (tmp_path / "blend.csv").read_bytes()
        for members in (frames, files, made, [made[0].path, frames[1]]):
            ours = kit.ensemble(members, weights=[2, 1])
            pd.testing.assert_frame_equal(ours.predictions, expected, rtol=0, atol=0)

        mean = kit.ensemble(frames).predictions[list(CLASSES)]
        np.testing.assert_allclose(mean, (frames[0] + frames[1])[list(CLASSES)] / 2, atol=1e-12)

    def test_a_member_that_is_linked_counts_once(
        self, made: list[kit.Run], data: Path, tmp_path: Path
    ):
        """A link such as runs/best is caught by a pattern such as runs/*/test.csv."""
        folder = tmp_path / "best"
        folder.symlink_to(made[0].path)
        file = tmp_path / "copy.csv"
        file.hardlink_to(made[0].test_path)
        for twice in (folder, folder / "test.csv", file, made[0].path / "." / "test.csv"):
            with pytest.raises(DataError, match="are the same file"):
                kit.ensemble([*made, twice])
            with pytest.raises(DataError, match="are the same file"):
                kit.ensemble([*made, twice], weights=[1, 1, 1])

        truth = data / "train.parquet"
        with pytest.raises(DataError, match="are the same file"):
            kit.ensemble(fit=[*made, folder], truth=truth)
        for twice in (folder, made[0], made[0].path):
            with pytest.raises(DataError, match="are the same folder"):
                kit.load([made[0], twice])

    def test_a_member_that_is_copied_counts_once(
        self, made: list[kit.Run], data: Path, tmp_path: Path
    ):
        copy = Path(shutil.copytree(made[0].path, tmp_path / "backup"))
        for twice in (copy, copy / "test.csv"):
            with pytest.raises(DataError, match="have the same content"):
                kit.ensemble([*made, twice])
        with pytest.raises(DataError, match="have the same content"):
            kit.ensemble(fit=[*made, copy], truth=data / "train.parquet")
        with pytest.raises(DataError, match="have the same content"):
            kit.load([made[0], copy])

    def test_a_fit_to_runs_is_the_commands_fit(
        self, made: list[kit.Run], data: Path, tmp_path: Path
    ):
        truth = data / "train.parquet"
        words = [word for run in made for word in ("--fit", run.oof_path)]
        files = [run.test_path for run in made]
        out = tmp_path / "blend.csv"
        save = tmp_path / "blend.json"
        run_command("ensemble", *files, *words, "--truth", truth, "-o", out, "--save", save)

        ours = kit.ensemble(made, fit=True, truth=truth)
        pd.testing.assert_frame_equal(ours.predictions, read_predictions(out), rtol=0, atol=0)
        assert ours.fit.cross_fitted < max(kit.score(run.oof, truth).log_loss for run in made)
        ours.save(tmp_path / "ours.json")
        assert (tmp_path / "ours.json").read_bytes() == save.read_bytes()

        applied = kit.ensemble(made[::-1], blend=save)
        pd.testing.assert_frame_equal(
            applied.predictions.sort_values(ID), ours.predictions.sort_values(ID)
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"fit": True}, "fitting needs labels"),
            ({"fit": True, "weights": [1, 2], "truth": "t.csv"}, "more than one source of weights"),
            ({"weights": [1, 2, 3]}, "3 weights for 2 files"),
            ({"method": "median"}, "no blending method 'median'"),
            ({"blend": "none.json"}, "none.json"),
        ],
    )
    def test_what_cannot_be_blended_is_one_clear_error(
        self, arguments: dict, message: str, made: list[kit.Run]
    ):
        with pytest.raises(KitError, match=message):
            kit.ensemble(made, **arguments)

    def test_frames_have_no_names_for_a_fit(self, made: list[kit.Run], data: Path):
        frames = [run.oof for run in made]
        with pytest.raises(KitError, match="takes runs or files, not DataFrames"):
            kit.ensemble(frames, fit=True, truth=data / "train.parquet")
        with pytest.raises(DataError, match=r"members\[1\] has no column id"):
            kit.ensemble([frames[0], frames[1].drop(columns=ID)])
        with pytest.raises(KitError, match="nothing to blend"):
            kit.ensemble([])
        with pytest.raises(KitError, match="no blend to save"):
            kit.ensemble(frames).save("blend.json")

    def test_a_run_without_predictions_says_how_to_make_them(self, ascii_run: kit.Run):
        with pytest.raises(RunError, match="no test predictions") as caught:
            kit.ensemble([ascii_run, ascii_run])
        assert caught.value.hint == f"Run `kit predict {ascii_run.path}`."
        with pytest.raises(RunError, match="no out-of-fold predictions"):
            kit.calibrate(ascii_run, "train.parquet")

    def test_a_calibration_is_the_commands(self, made: list[kit.Run], data: Path, tmp_path: Path):
        run, truth = made[0], data / "train.parquet"
        out, save = tmp_path / "calibrated.csv", tmp_path / "t.json"
        words = ("calibrate", run.oof_path, "--truth", truth, "--json", "-o", out, "--save", save)
        printed = json.loads(run_command(*words))

        for predictions in (run, run.path, run.oof_path, run.oof):
            fit = kit.calibrate(predictions, truth)
            assert json.loads(json.dumps(fit.as_dict())) == printed
            assert fit.warnings == ()
        pd.testing.assert_frame_equal(fit.cross_fitted, read_predictions(out), rtol=0, atol=0)
        fit.save(tmp_path / "ours.json")
        assert (tmp_path / "ours.json").read_bytes() == save.read_bytes()

        run_command("calibrate", run.test_path, "--apply", save, "-o", tmp_path / "test.csv")
        applied = fit.apply(read_predictions(run.test_path))
        pd.testing.assert_frame_equal(applied, read_predictions(tmp_path / "test.csv"))

    def test_a_calibration_warns_of_rows_that_it_knows_little_about(
        self, made: list[kit.Run], processed: Dataset, tmp_path: Path
    ):
        write_predictions(made[0].oof, tmp_path / "mine.csv")
        labels = processed.train([ID, "label"]).to_pandas()
        outside, ungrouped = kit.calibrate(tmp_path / "mine.csv", labels).warnings
        assert outside.startswith("mine.csv is not in a run folder")
        assert ungrouped.startswith("the DataFrame does not tell which rows share a prompt")


class TestScoreAndReport:
    def test_a_score_is_what_the_command_prints(
        self, first: kit.Run, predicted: pd.DataFrame, raw: Path, tmp_path: Path
    ):
        file = tmp_path / "predicted.csv"
        write_predictions(predicted, file)
        truth = raw / "truth.csv"
        printed = json.loads(run_command("score", file, "--truth", truth, "--json"))

        labels = pd.read_csv(truth)
        numbered = labels[[ID]].assign(label=labels[list(CLASSES)].to_numpy().argmax(1))
        for predictions, answers in (
            (file, truth),
            (predicted, labels),
            (predicted.sample(frac=1, random_state=1), numbered),
        ):
            ours = kit.score(predictions, answers)
            assert json.loads(json.dumps(ours.as_dict())) == printed

        part = kit.score(predicted.head(20), truth, subset=True)
        assert part.rows == 20

    @pytest.mark.parametrize(
        ("predictions", "truth", "message"),
        [
            (lambda p: p.drop(columns=ID), lambda t: t, "the DataFrame has no column id"),
            (lambda p: p.head(5), lambda t: t, "the DataFrame lacks"),
            (lambda p: p, lambda t: t[[ID]], "neither the columns id and label nor"),
            (lambda p: p, lambda t: t.assign(label=3), "row 0: unknown label"),
            (lambda p: p, lambda t: t.assign(winner_tie=1), "exactly one class must be 1"),
            (lambda p: p, lambda t: t.assign(id=3), "duplicate id 3"),
            (lambda p: p.assign(winner_tie=2.0), lambda t: t, "not probabilities that sum to 1"),
        ],
    )
    def test_what_cannot_be_scored_is_one_clear_error(
        self, predictions, truth, message: str, predicted: pd.DataFrame, raw: Path
    ):
        with pytest.raises(DataError, match=message):
            kit.score(predictions(predicted), truth(pd.read_csv(raw / "truth.csv")))

    def test_a_report_shows_itself_in_a_notebook(
        self, first: kit.Run, processed: Dataset, predicted: pd.DataFrame, raw: Path, tmp_path: Path
    ):
        file = tmp_path / "predicted.csv"
        write_predictions(predicted, file)
        report = kit.report(first, data=processed, frames={"ours": file}, truth=raw / "truth.csv")
        assert {"ours", first.name} <= {line.name for line in report.comparison.lines}
        page = report._repr_html_()
        assert first.name in page
        assert "</iframe>" in page or "</html>" in page

        words = ("--frame", f"ours={file}", "--data", processed.folder)
        printed = run_command("report", first.path, *words, "--truth", raw / "truth.csv", "--json")
        assert json.loads(printed) == json.loads(json.dumps(report.as_dict()))
