"""The whole path as a user walks it, in separate commands, and what the demo promises about what it learns."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from kit import demo
from kit.cli import show
from kit.report.report import Report

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """The demo, on fewer rows than `make demo` takes."""
    out = tmp_path_factory.mktemp("demo")
    return demo.run(out, 2400, say=lambda _: None, training=show.training), out


def test_each_toy_backbone_closes_half_of_the_gap_to_the_floor(compared: tuple[Report, Path]):
    lines = {
        line.name.rpartition("-")[0] or line.name: line.test.log_loss
        for line in compared[0].comparison.lines
    }
    prior, floor = lines["class prior"], lines["Bayes floor"]
    for backbone in demo.BACKBONES:
        assert (prior - lines[backbone]) / (prior - floor) > 0.5, backbone


def test_the_ensemble_beats_the_best_of_its_members(compared: tuple[Report, Path]):
    members = [line.test.log_loss for line in compared[0].comparison.lines if line.parameters]
    assert len(members) == 3
    assert compared[0].comparison.lines[-1].test.log_loss < min(members)


def test_the_demo_leaves_a_valid_submission_and_the_table(compared: tuple[Report, Path]):
    out = compared[1]
    submission = pd.read_csv(out / "ensemble-test.csv")
    assert submission["id"].tolist() == pd.read_csv(out / "raw" / "test.csv")["id"].tolist()
    written = [(out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md")]
    for line in compared[0].comparison.lines:
        assert all(line.name in text for text in written)


def test_a_second_demo_trains_nothing_again(compared: tuple[Report, Path]):
    report, out = compared
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")}
    again = demo.run(out, 2400, say=lambda _: None, training=show.training)
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/holdout/*")} == before
    assert again.as_dict() == report.as_dict()


def test_the_wheel_works_outside_the_checkout(tmp_path: Path):
    """Recipes and configurations travel; the package is imported from the unpacked wheel, not from here."""
    source = (
        tmp_path / "source"
    )  # a copy, so that no stale build folder can stand in for what is packaged
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
        "import json, kit, kit.recipe.load as r, kit.model.backbones as b, kit.report as p, pathlib;"
        "page = sorted(f.name for f in pathlib.Path(p.__file__).parent.glob('page.*'));"
        "print(json.dumps([kit.__file__, list(r.shipped_recipes()), b.BACKBONES['electra'].sizes, page]))"
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
