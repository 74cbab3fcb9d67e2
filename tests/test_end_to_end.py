"""Check that the demo learns what it promises, and that the built wheel works elsewhere."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from packaging.requirements import Requirement

import kit
from kit.cli.progress import training_progress
from kit.demo import BACKBONES, run_demo
from kit.errors import KitError
from kit.reporting.report import Report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """Run the demo on fewer rows than `make demo` uses."""
    out = tmp_path_factory.mktemp("demo")
    return run_demo(out, 2400, log=lambda _: None, training=training_progress), out


def test_each_toy_backbone_closes_half_of_the_gap_to_the_bayes_floor(
    demo_report: tuple[Report, Path],
):
    lines = {
        line.name.rpartition("-")[0] or line.name: line.test.log_loss
        for line in demo_report[0].comparison.lines
    }
    prior = lines["class prior"]
    floor = lines["Bayes floor"]
    for backbone in BACKBONES:
        assert (prior - lines[backbone]) / (prior - floor) > 0.5, backbone


def test_the_ensemble_beats_the_best_of_its_members(demo_report: tuple[Report, Path]):
    members = [line.test.log_loss for line in demo_report[0].comparison.lines if line.parameters]
    assert len(members) == 3
    assert demo_report[0].comparison.lines[-1].test.log_loss < min(members)


def test_the_demo_leaves_a_valid_submission_and_the_table(demo_report: tuple[Report, Path]):
    report, out = demo_report
    submission = pd.read_csv(out / "ensemble-test.csv")
    assert submission["id"].tolist() == pd.read_csv(out / "raw" / "test.csv")["id"].tolist()

    written = [(out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    for line in report.comparison.lines:
        assert all(line.name in text for text in written)


def test_a_second_demo_trains_nothing_again(demo_report: tuple[Report, Path]):
    report, out = demo_report
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")}

    again = run_demo(out, 2400, log=lambda _: None, training=training_progress)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")} == before
    assert again.as_dict() == report.as_dict()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, because a stale build folder could hide a missing file."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "kit", source / "kit", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--wheel", "--no-isolation", "--outdir", str(folder)]
    build = [sys.executable, "-m", "build", *options, str(source)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path):
    """Import kit and its data files from an unpacked wheel."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")

    code = (
        "import json, pathlib, kit, kit.reporting;"
        "from kit.recipe.load import shipped_recipes;"
        "from kit.model.backbones import BACKBONES;"
        "report = pathlib.Path(kit.reporting.__file__).parent;"
        "page = sorted(file.name for file in report.glob('page.*'));"
        "sizes = BACKBONES['electra'].sizes;"
        "typed = (pathlib.Path(kit.__file__).parent / 'py.typed').is_file();"
        "print(json.dumps([kit.__file__, list(shipped_recipes()), sizes, page, typed]))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    file, recipes, sizes, page, typed = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path / "site")
    assert {"electra", "default", "tiny-roberta"} <= set(recipes)
    assert sizes["layers"] == 24
    assert page == ["page.css", "page.html.jinja", "page.js"]
    assert typed, "without py.typed, type checkers ignore kit's annotations"


def test_the_wheel_has_the_metadata_of_pyproject(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    metadata = texts["METADATA"]
    assert f"\nVersion: {kit.__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert set(map(Requirement, project["dependencies"])) <= set(map(Requirement, required))
    extras = re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)
    assert set(extras) == set(project["optional-dependencies"])
    assert "kit = kit.cli.main:main" in texts["entry_points.txt"]


def test_a_damaged_summary_of_the_sample_is_one_message(tmp_path: Path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/sample.json").write_text("{")
    with pytest.raises(KitError, match=r"sample\.json is damaged"):
        run_demo(tmp_path, 200, log=print, training=training_progress)
