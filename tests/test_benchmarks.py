"""Check that the benchmarks fit the code they measure: names, and a small run of kit's part."""

import ast
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.baselines.rows import FEATURE_NAMES

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(BENCHMARKS.rglob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_every_name_that_a_benchmark_imports_from_kit_exists(script: Path):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kit":
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_every_feature_of_the_trees_is_in_one_of_the_measured_groups(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    groups = dict(importlib.import_module("features").GROUPS)
    overlapping = groups.pop("style, as added after 0.1.0")
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(FEATURE_NAMES["sides"] + FEATURE_NAMES["pair"])
    assert set(overlapping) <= set(names)


@pytest.mark.parametrize("recipe", ["default", "judge"])
def test_kit_trains_and_predicts_in_the_benchmarks(
    recipe: str, fixed_backbone: Path, judge_base: Path, tmp_path: Path
):
    row = {"prompt": "What is 2 and 2?", "a": "It is 4.", "b": "I do not know. " * 3}
    rows = [row | {"label": number % 3} for number in range(8)]
    job = {
        "backbone": str(judge_base if recipe == "judge" else fixed_backbone),
        "tokens": 128,
        "batch": 4,
        "train": rows,
        "predict": rows,
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    options = {
        "precision": "fp32",
        "device": "cpu",
        "started": time.time(),
        "options": {"recipe": recipe},
    }
    script = BENCHMARKS / "contenders/ours.py"
    command = [sys.executable, str(script), str(file), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["train rows/s"] > 0
    assert report["predict rows/s"] > 0
