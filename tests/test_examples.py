"""Check that the example notebooks run from top to bottom, and are stored without outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

# Each cell is compiled by itself, so that a traceback names it.
RUNNER = """
import json, sys
namespace = {"__name__": "__main__"}
for number, source in enumerate(json.load(sys.stdin)):
    exec(compile(source, f"code cell {number}", "exec"), namespace)
print("page:", namespace["report"]._repr_html_()[:7], "loss:", namespace["score"].log_loss)
"""


def code_cells(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_in_an_empty_folder(notebook: Path, tmp_path: Path):
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(sources),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "page: <" in done.stdout
    assert float(done.stdout.rpartition("loss:")[2]) < 1.0986


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs(notebook: Path):
    assert [cell["outputs"] for cell in code_cells(notebook) if cell["outputs"]] == []
    assert {cell["execution_count"] for cell in code_cells(notebook)} == {None}


def test_every_notebook_is_described():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert [path.name for path in NOTEBOOKS if f"({path.name})" not in text] == []
