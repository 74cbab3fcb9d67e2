"""Any file, however damaged: used rightly or refused in one message; no traceback, no hang, nothing swallowed."""

import csv
import io
import random
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from compare_runs import compare
from mutations import mutate

from kit.baselines.run import run_baseline as baseline
from kit.cli.main import main
from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.data.rows import read_rows
from kit.ensemble import blend, calibration
from kit.errors import KitError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.recipe.load import load_recipe, shipped_recipes
from kit.run import Run
from kit.sample.generate import write_sample
from kit.task import CLASSES, ID

PATIENCE_S = 20
SHARE = 0.02  # of the soak's minutes, for each target


@dataclass(frozen=True)
class Target:
    """A file that kit reads, and how.

    name: what it is, for the test's name.
    file: the good one, which is changed in place.
    use: reads it; raises KitError, or returns what has been understood.
    hashed: whatever is not refused must mean the very same.
    """

    name: str
    file: Path
    use: Callable[[Path], object]
    hashed: bool = False


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Small good files of every kind."""
    root = Path(tempfile.mkdtemp(prefix="kit-fuzz-"))
    try:
        write_sample(root / "raw", rows=60, seed=1)
        preprocess_files(root / "raw", root / "data", folds=2, valid=0.2)
        for name in ("uniform", "prior"):
            baseline(name, root / "data", root / "runs", "all")
        write_predictions(
            make_predictions(np.arange(40), np.random.default_rng(0).dirichlet([1, 1, 1], 40)),
            root / "frame.csv",
        )
        shutil.copyfile(shipped_recipes()["tiny-electra"], root / "recipe.toml")
        blend.write_blend(
            blend.Blend(
                ("a", "b"),
                (0.25, 0.75),
                "geometric",
                calibration.Calibration(1.25, (0.1, -0.05, -0.05)),
            ),
            root / "blend.json",
            {"rows": 40},
        )
        calibration.write_calibration(
            calibration.Calibration(0.8, (0.1, 0.0, -0.1)), root / "calibration.json", {"rows": 40}
        )
        yield root
    finally:
        shutil.rmtree(root)


def rows(path: Path) -> object:
    """Raw rows, compared with what Python's own csv and json make of ids and labels."""
    found = read_rows(path, labelled=True)
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"")
    text = data.decode("utf-8", "replace")  # in columns that nobody reads anything may stand
    every = [cells for cells in csv.reader(io.StringIO(text, newline=""), strict=True) if cells]
    at = {name: number for number, name in enumerate(every[0])}
    assert found.ids.tolist() == [int(cells[at[ID]]) for cells in every[1:]]
    flags = [[cells[at[name]] in ("1", "1.0", "True") for name in CLASSES] for cells in every[1:]]
    assert found.targets.labels.tolist() == [row.index(True) for row in flags]
    return found


def cli(*arguments: str) -> Callable[[Path], object]:
    """A command on the file, where {} stands for it; a refusal is a KitError again."""

    def use(path: Path) -> object:
        result = CliRunner().invoke(
            main, [str(path) if each == "{}" else each for each in arguments]
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), result.output
        _printable(result.output)
        if result.exit_code:
            raise KitError(result.output.strip() or "silence", "")
        return result.output

    return use


def run_of(path: Path) -> Run:
    return Run.open(path.parent if path.name == "origin.json" else path.parent.parent)


def used_run(path: Path) -> object:
    """Everything that reads a run's JSON."""
    run, data = run_of(path), path
    while not (data / "data").is_dir():
        data = data.parent
    processed = open_dataset(data / "data")
    run.check_data(processed.digest("train"))
    run.summarise(write=False)
    return compare([run.path], data / "data")


def targets(root: Path) -> list[Target]:
    """What is fuzzed."""
    run = root / "runs/baseline-prior"
    prediction = str(root / "raw/sample_submission.csv")
    return [
        Target("raw train.csv", root / "raw/train.csv", rows),
        Target("raw test.csv", root / "raw/test.csv", lambda path: read_rows(path, labelled=False)),
        Target("prediction frame", root / "frame.csv", read_predictions),
        Target("validate", root / "frame.csv", cli("validate", "{}", "--json")),
        Target("recipe", root / "recipe.toml", load_recipe),
        Target("recipes command", root / "recipe.toml", cli("recipes", "{}")),
        Target("blend", root / "blend.json", blend.read_blend),
        Target("calibration", root / "calibration.json", calibration.read_calibration),
        Target(
            "score", root / "raw/truth.csv", cli("score", prediction, "--truth", "{}", "--subset")
        ),
        Target(
            "manifest",
            root / "data/manifest.json",
            lambda path: open_dataset(path.parent).manifest,
            hashed=True,
        ),
        Target(
            "rows",
            root / "data/train.parquet",
            lambda path: open_dataset(path.parent).manifest,
            hashed=True,
        ),
        Target("origin", run / "origin.json", used_run),
        Target("metrics", run / "fold0/metrics.json", used_run),
        Target("valid.csv", run / "fold0/valid.csv", used_run),
    ]


NAMES = [target.name for target in targets(Path("/"))]


def _late(*_: object) -> None:
    raise TimeoutError(f"no answer after {PATIENCE_S} s")


def _printable(text: str) -> None:
    """No control character of the data may reach a terminal."""
    strange = {c for c in text if not c.isprintable() and c not in "\n\t"}
    assert not strange, f"control characters {strange} in {text[:400]!r}"


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_used_rightly_or_refused(
    name: str, place: Path, rounds: type, seed: int, soaking: bool, tally: Counter[str]
):
    target = next(each for each in targets(place) if each.name == name)
    good, chance = target.file.read_bytes(), random.Random(f"{seed} {name}")
    others = tuple(
        path.read_bytes()
        for path in (place / "frame.csv", place / "blend.json", place / "recipe.toml")
    )
    before = signal.signal(signal.SIGALRM, _late)
    expected = target.use(target.file)
    try:
        for number in rounds(800 if soaking else 25, SHARE):
            what, data = mutate(good, chance, others)
            target.file.write_bytes(data)
            signal.alarm(PATIENCE_S)
            try:
                result = target.use(target.file)
                told = ""
            except KitError as error:
                told = str(error)
                assert told.strip()
                _printable(told)
            except BaseException as error:
                kept = (
                    Path(tempfile.gettempdir())
                    / f"kit-fuzz-{name.replace(' ', '-')}{target.file.suffix}"
                )
                kept.write_bytes(data)
                raise AssertionError(
                    f"case {number}, {what}: {error!r}; the file is kept in {kept}"
                ) from error
            finally:
                signal.alarm(0)
            assert told or not target.hashed or result == expected, (
                f"case {number}, {what}: accepted in silence"
            )
            tally[f"damaged files, {'refused' if told else 'used'}"] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
        target.file.write_bytes(good)


def test_nesting_beyond_all_bounds_is_refused(place: Path):
    deep = "[" * 100_000 + "]" * 100_000
    (place / "deep.json").write_text(deep)
    (place / "deep.toml").write_text(f"name = {deep}")
    for read, file in (
        (blend.read_blend, "deep.json"),
        (calibration.read_calibration, "deep.json"),
        (load_recipe, "deep.toml"),
    ):
        with pytest.raises(KitError):
            read(place / file)
