"""Check that no command loses its work, or ends in a traceback, because of its printing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run

from kit.cli import output
from kit.data.dataset import Dataset
from kit.predictions import read_predictions

KIT = f"{sys.executable} -m kit"
# All that a table may hold: letters of other scripts, signs, and what rich would make an emoji.
NOTES = "naïve – “模型” 🙂 :+1: [bold]"


@pytest.fixture(scope="module")
def run(processed: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), processed)


def shell(
    command: str, folder: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command line in bash, with the exit code of kit even before a pipe."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(environment or {})},
        timeout=180,
    )


@pytest.mark.parametrize("where", ["<&- >&- 2>&-", "2>&1 | true"])
def test_a_training_whose_output_is_gone_is_finished(where: str, data: Path, tmp_path: Path):
    quick = "--set train.max_steps=2 --set train.evals_per_epoch=1 --no-guard"
    done = shell(f"{KIT} train --backbone tiny-electra {quick} --data {data} {where}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    (metrics,) = tmp_path.glob("runs/*/holdout/metrics.json")
    assert metrics.is_file()

    # Nothing that was printed went into a file that took the closed descriptor's number.
    for path in tmp_path.rglob("*.json"):
        assert path.read_bytes().lstrip().startswith((b"{", b"["))


@pytest.mark.parametrize("command", ["recipes", "doctor", "score {test} --truth {truth}"])
@pytest.mark.parametrize("where", [">&-", "| true"])
def test_a_reader_that_ends_is_no_error(
    command: str, where: str, run: Path, raw: Path, tmp_path: Path
):
    words = command.format(test=run / "test.csv", truth=raw / "truth.csv")
    done = shell(f"{KIT} {words} {where}", tmp_path)
    expected = shell(f"{KIT} {words}", tmp_path)
    assert (done.returncode, done.stderr) == (expected.returncode, expected.stderr)


def test_a_full_disk_under_standard_output_is_an_error(tmp_path: Path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    done = shell(f"{KIT} recipes > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().strip() == "Error: standard output: No space left on device"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_an_encoding_without_a_character_spells_it_out(
    environment: dict[str, str], run: Path, data: Path, tmp_path: Path
):
    recipe = f'name = "other"\nbackbone = "tiny-electra"\npurpose = "{NOTES}"\n'
    (tmp_path / "other.toml").write_text(recipe, encoding="utf-8")
    for command in (
        "recipes",
        "recipes other.toml",
        f"report {run} --frame '{NOTES}'={run}/holdout/valid.csv --data {data}",
    ):
        done = shell(f"{KIT} {command}", tmp_path, environment)
        assert done.returncode == 0, (command, done.stderr)
        assert b"Traceback" not in done.stderr


def test_a_blend_is_written_where_nothing_can_be_printed(run: Path, tmp_path: Path):
    done = shell(f"{KIT} ensemble {run}/test.csv -o blend.csv >&- 2>&-", tmp_path)
    assert done.returncode == 0
    assert len(read_predictions(tmp_path / "blend.csv")) == 60


@pytest.mark.parametrize("text", [":+1:", ":smile: [bold]x[/bold]", "[link=x]y", "\\[red]"])
def test_a_table_shows_data_as_it_is(text: str, capsys: pytest.CaptureFixture[str]):
    """rich would turn some of it into emoji and colours."""
    output.print_table(f"title {text}", [f"column {text}"], [[f"cell {text}"]])
    printed = capsys.readouterr().out
    for part in ("title", "column", "cell"):
        assert f"{part} {text}" in printed
