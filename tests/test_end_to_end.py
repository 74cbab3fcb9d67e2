"""Check what the demo promises about what it learns, and that the built wheel works elsewhere."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from kit.cli import output
from kit.demo import BACKBONES, run_demo
from kit.reporting.report import Report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Run the demo on fewer rows than `make demo` uses."""
    out = tmp_path_factory.mktemp("demo")
    return run_demo(out, 2400, log=lambda _: None, training=output.training_progress), out


def test_each_toy_backbone_closes_half_of_the_gap_to_the_bayes_floor(
    demo_report: tuple[Report, Path],
):
    lines = {
        line.name.rpartition("-")[0] or line.name: line.test.log_loss
        for line in demo_report[0].comparison.lines
    }
    prior, floor = lines["class prior"], lines["Bayes floor"]
    for backbone in BACKBONES:
        assert (prior - lines[backbone]) / (prior - floor) > 0.5, backbone


def test_the_ensemble_beats_the_best_of_its_members(demo_report: tuple[Report, Path]):
    members = [line.test.log_loss for line in demo_report[0].comparison.lines if line.parameters]
    assert len(members) == 3
    assert demo_report[0].comparison.lines[-1].test.log_loss < min(members)


def test_the_demo_leaves_a_valid_submission_and_the_table(demo_report: tuple[Report, Path]):
    out = demo_report[1]
    submission = pd.read_csv(out / "ensemble-test.csv")
    assert submission["id"].tolist() == pd.read_csv(out / "raw" / "test.csv")["id"].tolist()
    written = [(out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    for line in demo_report[0].comparison.lines:
        assert all(line.name in text for text in written)


def test_a_second_demo_trains_nothing_again(demo_report: tuple[Report, Path]):
    report, out = demo_report
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")}

    again = run_demo(out, 2400, log=lambda _: None, training=output.training_progress)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")} == before
    assert again.as_dict() == report.as_dict()


def test_the_wheel_works_outside_the_checkout(tmp_path: Path):
    """Import kit and its data files from an unpacked wheel."""
    # Built from a copy, because a stale build folder could hide that a file is not packaged.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "kit", source / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)

    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    code = (
        "import json, pathlib, kit, kit.reporting;"
        "from kit.recipe.load import shipped_recipes;"
        "from kit.model.backbones import BACKBONES;"
        "report = pathlib.Path(kit.reporting.__file__).parent;"
        "page = sorted(file.name for file in report.glob('page.*'));"
        "sizes = BACKBONES['electra'].sizes;"
        "print(json.dumps([kit.__file__, list(shipped_recipes()), sizes, page]))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    file, recipes, sizes, page = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path / "site")
    assert {"electra", "default", "tiny-roberta"} <= set(recipes)
    assert sizes["layers"] == 24
    assert page == ["page.css", "page.html.jinja"]
