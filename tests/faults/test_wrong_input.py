"""Check that a damaged file is used correctly or refused with one message, and never hangs kit."""

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

from kit.baselines.models import baseline_run_name
from kit.baselines.run import run_baseline
from kit.cli.main import main
from kit.data.dataset import open_dataset
from kit.data.preprocess import preprocess_files
from kit.data.rows import read_rows
from kit.ensembling import blend, calibration
from kit.errors import KitError
from kit.predictions import make_predictions, read_predictions, write_predictions
from kit.recipe.load import load_recipe, shipped_recipes
from kit.run import Run
from kit.sample.generate import write_sample
from kit.task import CLASSES, ID

TIMEOUT_S = 20

# Of the minutes of `make soak`, for each target.
SHARE = 0.02


@dataclass(frozen=True)
class Target:
    """A file that kit reads.

    name: the name in the test's id.
    file: a good file, which the test damages in place.
    use: reads the file; raises KitError, or returns what was read.
    hashed: what is not refused must be read as before.
    """

    name: str
    file: Path
    use: Callable[[Path], object]
    hashed: bool = False


@pytest.fixture(scope="module")
def good_files() -> Iterator[Path]:
    """Make small good files of every kind."""
    root = Path(tempfile.mkdtemp(prefix="kit-fuzz-"))
    try:
        write_sample(root / "raw", rows=60, seed=1)
        preprocess_files(root / "raw", root / "data", folds=2, valid=0.2)
        for name in ("uniform", "prior"):
            run_baseline(name, root / "data", root / "runs", "all")
        shutil.copyfile(shipped_recipes()["tiny-electra"], root / "recipe.toml")

        probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 40)
        write_predictions(make_predictions(np.arange(40), probabilities), root / "frame.csv")

        biased = calibration.Calibration(1.25, (0.1, -0.05, -0.05))
        blended = blend.Blend(("a", "b"), (0.25, 0.75), "geometric", biased)
        blend.write_blend(blended, root / "blend.json", {"rows": 40})

        softened = calibration.Calibration(0.8, (0.1, 0.0, -0.1))
        calibration.write_calibration(softened, root / "calibration.json", {"rows": 40})

        yield root
    finally:
        shutil.rmtree(root)


def read_train_rows(path: Path) -> object:
    """Read raw rows, and compare ids and labels with what Python's own csv makes of them."""
    found = read_rows(path, labelled=True)
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf").replace(b"\0", b"")
    # Columns that kit does not use may contain anything.
    text = data.decode("utf-8", "replace")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, *rows = [cells for cells in reader if cells]
    place = {name: number for number, name in enumerate(header)}

    assert found.ids.tolist() == [int(cells[place[ID]]) for cells in rows]
    flags = [
        [cells[place[name]].strip(" \t").lower() in ("1", "1.0", "true") for name in CLASSES]
        for cells in rows
    ]
    assert found.targets.labels.tolist() == [row.index(True) for row in flags]
    return found


def cli(*arguments: str) -> Callable[[Path], object]:
    """Return a reader that runs a command with the file in place of {}; exit code 1 is KitError."""

    def use(path: Path) -> object:
        words = [str(path) if word == "{}" else word for word in arguments]
        result = CliRunner().invoke(main, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 1, 2), result.output
        assert_printable(result.output)
        if result.exit_code:
            raise KitError(result.output.strip() or "no message", "")
        return result.output

    return use


def run_of(path: Path) -> Run:
    return Run.open(path.parent if path.name == "origin.json" else path.parent.parent)


def read_run(path: Path) -> object:
    """Call everything that reads a run's files."""
    run = run_of(path)
    root = next(folder for folder in path.parents if (folder / "data").is_dir())
    processed = open_dataset(root / "data")

    run.check_data(processed.digest("train"))
    run.summarise(write=False)
    return compare([run.path], root / "data")


def targets(root: Path) -> list[Target]:
    """Return everything that is damaged."""
    run = root / f"runs/{baseline_run_name('prior')}"
    prediction = str(root / "raw/sample_submission.csv")
    return [
        Target("raw train.csv", root / "raw/train.csv", read_train_rows),
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
        Target("origin", run / "origin.json", read_run),
        Target("metrics", run / "fold0/metrics.json", read_run),
        Target("valid.csv", run / "fold0/valid.csv", read_run),
    ]


NAMES = [target.name for target in targets(Path("/"))]


def raise_timeout(*_: object) -> None:
    raise TimeoutError(f"no answer after {TIMEOUT_S} s")


def assert_printable(text: str) -> None:
    """Check that no control character of the data reaches a terminal."""
    strange = {c for c in text if not c.isprintable() and c not in "\n\t"}
    assert not strange, f"control characters {strange} in {text[:400]!r}"


@pytest.fixture
def timeouts() -> Iterator[None]:
    """Let SIGALRM raise TimeoutError."""
    before = signal.signal(signal.SIGALRM, raise_timeout)
    yield
    signal.signal(signal.SIGALRM, before)


def use_or_refuse(target: Target, data: bytes, case: str) -> tuple[object, str]:
    """Read the damaged file; return what was read and "", or None and the message of KitError.

    On any other exception the damaged file is kept in the temporary folder.
    """
    target.file.write_bytes(data)
    signal.alarm(TIMEOUT_S)
    try:
        return target.use(target.file), ""
    except KitError as error:
        message = str(error)
        assert message.strip()
        assert_printable(message)
        return None, message
    except BaseException as error:
        name = f"kit-fuzz-{target.name.replace(' ', '-')}{target.file.suffix}"
        kept = Path(tempfile.gettempdir()) / name
        kept.write_bytes(data)
        raise AssertionError(f"{case}: {error!r}; the file is kept in {kept}") from error
    finally:
        signal.alarm(0)


@pytest.mark.usefixtures("timeouts")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_used_correctly_or_refused(
    name: str, good_files: Path, rounds: type, seed: int, soaking: bool, tally: Counter[str]
):
    target = next(target for target in targets(good_files) if target.name == name)
    good = target.file.read_bytes()
    others = tuple(
        (good_files / other).read_bytes() for other in ("frame.csv", "blend.json", "recipe.toml")
    )
    expected = target.use(target.file)
    rng = random.Random(f"{seed} {name}")

    try:
        for number in rounds(800 if soaking else 25, SHARE):
            damage, data = mutate(good, rng, others)
            case = f"case {number}, {damage}"
            result, message = use_or_refuse(target, data, case)

            accepted_unchanged = not target.hashed or result == expected
            assert message or accepted_unchanged, f"{case}: accepted without a message"
            tally[f"damaged files, {'refused' if message else 'used'}"] += 1
    finally:
        target.file.write_bytes(good)


def test_very_deep_nesting_is_refused(good_files: Path):
    deep = "[" * 100_000 + "]" * 100_000
    (good_files / "deep.json").write_text(deep)
    (good_files / "deep.toml").write_text(f"name = {deep}")

    for read, file in (
        (blend.read_blend, "deep.json"),
        (calibration.read_calibration, "deep.json"),
        (load_recipe, "deep.toml"),
    ):
        with pytest.raises(KitError):
            read(good_files / file)
