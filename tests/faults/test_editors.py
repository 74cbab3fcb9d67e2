"""Check that what an editor or Excel does to a file changes nothing: byte order mark, line ends."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run

from kit.data.dataset import Dataset
from kit.data.rows import read_rows
from kit.ensembling.blend import Blend, read_blend, write_blend
from kit.ensembling.calibration import Calibration, read_calibration, write_calibration
from kit.evaluation.submission_csv import read_submission
from kit.evaluation.truth import read_truth
from kit.evaluation.validate import read_sample_ids, validate_submission
from kit.kaggle.credentials import find_credentials
from kit.kaggle.push import METADATA, written_kernels
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.recipe.load import load_recipe, shipped_recipes
from kit.run import Run
from kit.task import ID

ROOT = Path(__file__).parents[2]

# Modules whose files are part of kit, or are written by kit and never by a person.
OWN_FILES = {"html.py", "notebook.py", "registry.py", "session.py", "show.py", "tokenize.py"}


def mark(path: Path) -> Path:
    """Save a file as Excel does: with a byte order mark and CRLF."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    return path


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("train.csv", lambda path: read_rows(path, labelled=True).targets.labels.tolist()),
        ("test.csv", lambda path: read_rows(path, labelled=False).ids.tolist()),
        ("truth.csv", lambda path: read_truth(path).to_numpy().tolist()),
        ("sample_submission.csv", lambda path: read_sample_ids(path).tolist()),
        ("sample_submission.csv", lambda path: read_submission(path).frame[ID].tolist()),
        ("sample_submission.csv", lambda path: validate_submission(path).problems),
    ],
)
def test_a_marked_csv_file_reads_as_the_plain_one(
    name: str, read: Callable[[Path], object], raw: Path, tmp_path: Path
):
    copy = mark(Path(shutil.copy(raw / name, tmp_path)))
    assert read(copy) == read(raw / name)


def test_a_marked_prediction_file_reads_as_the_plain_one(tmp_path: Path):
    frame = make_predictions(np.arange(5), np.full((5, 3), 1 / 3))
    write_predictions(frame, tmp_path / "frame.csv")
    assert read_predictions(mark(tmp_path / "frame.csv")).equals(frame)


@pytest.mark.parametrize("name", ["deberta", "tiny-electra"])
def test_a_marked_recipe_reads_as_the_plain_one(name: str, tmp_path: Path):
    shutil.copy(shipped_recipes()[name], tmp_path / f"{name}.toml")
    assert load_recipe(mark(tmp_path / f"{name}.toml")) == load_recipe(name)


def test_a_run_with_marked_files_is_the_same_run(processed: Dataset, tmp_path: Path):
    run = Run.open(make_run(tmp_path, processed))
    before = (run.recipe, run.origin, run.metrics)
    for path in run.path.rglob("*"):
        if path.suffix in (".json", ".toml", ".csv"):
            mark(path)
    assert (run.recipe, run.origin, run.metrics) == before
    assert len(run.fold("holdout").predictions)


def test_a_marked_blend_and_calibration_read_as_the_plain_ones(tmp_path: Path):
    calibration = Calibration(1.25, (0.1, -0.05, -0.05))
    blend = Blend(("a", "b"), (0.25, 0.75), "geometric", calibration)
    write_blend(blend, tmp_path / "blend.json", {"rows": 40})
    write_calibration(calibration, tmp_path / "calibration.json", {"rows": 40})
    assert read_blend(mark(tmp_path / "blend.json")) == blend
    assert read_calibration(mark(tmp_path / "calibration.json")) == calibration


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("access_token", "KGAT_abc\n"),
        ("kaggle.json", '{"username": "me", "key": "abc"}\n'),
        ("credentials.json", '{"refresh_token": "abc", "username": "me"}\n'),
    ],
)
def test_a_marked_credential_is_found(name: str, text: str, tmp_path: Path):
    path = tmp_path / ".kaggle" / name
    path.parent.mkdir()
    path.write_text(text)
    path.chmod(0o600)
    mark(path)
    search = find_credentials({"HOME": str(tmp_path)})
    assert len(search.found) == 1
    assert search.problems == ()


def test_marked_metadata_of_a_kernel_is_read(tmp_path: Path):
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel" / METADATA).write_text(json.dumps({"id": "me/kit-infer"}) + "\n")
    mark(tmp_path / "kernel" / METADATA)
    (ref,) = written_kernels(tmp_path)
    assert str(ref) == "me/kit-infer"


def test_every_file_that_a_person_may_save_is_read_through_one_function():
    users = {
        path.name
        for path in (ROOT / "kit").rglob("*.py")
        if '.read_text(encoding="utf-8")' in path.read_text(encoding="utf-8")
    }
    assert users <= OWN_FILES, "use kit.storage.atomic.read_text_file"
