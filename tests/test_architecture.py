"""Check the rules of the code: order of imports, heavy packages, docstrings, a quick start."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "kit").rglob("*.py"))

# A room is a folder or a file of kit. Each may import itself and the rooms of the lines above it.
ROOMS = (
    ("task", "errors", "wording", "launcher", "plotting"),
    ("storage", "attention"),
    ("recipe",),
    ("predictions",),
    ("data", "sample", "evaluation", "costs", "fold_dir"),
    ("model", "run"),
    ("export", "training", "baselines", "ensembling"),
    ("predict", "planning", "tracking"),
    ("reporting", "kaggle"),
    ("api", "predictor", "sweeps"),
    ("demo", "doctor"),
    ("cli",),
    ("__main__",),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

# kit/__init__.py exports the functions of `api` and `predictor`, and imports them lazily.
LEVELS["__init__"] = len(ROOMS)

# The rooms that may import a package.
ALLOWED_ROOMS = {
    "torch": {"attention", "export", "model", "planning", "predict", "training"},
    "transformers": {"attention", "model", "training"},
    "accelerate": {"model", "predict", "training"},
    "peft": {"model"},
    # Importing kaggle logs in, prints and may exit. kagglesdk sends the same requests without that.
    "kaggle": set(),
    "kagglesdk": {"kaggle"},
    "requests": {"kaggle"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"plotting", "reporting", "kaggle"},
    "jinja2": {"reporting"},
    "optuna": {"sweeps"},
    "sqlalchemy": {"sweeps"},
}

# Packages that `kit --help` must not load.
SLOW_PACKAGES = {
    "torch",
    "transformers",
    "pandas",
    "numpy",
    "sklearn",
    "rich",
    "kagglesdk",
    "requests",
    "pyarrow",
    "matplotlib",
    "optuna",
}


def short_path(path: Path) -> str:
    """Return a file's path in the repository, as the id of a test case."""
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def room_of(path: Path) -> str:
    """Return the room that a module belongs to."""
    return path.relative_to(ROOT / "kit").parts[0].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def public_definitions(path: Path) -> list[ast.FunctionDef | ast.ClassDef]:
    """Return the public functions and classes at the top level of a module."""
    return [
        node
        for node in parse(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def imported_names(path: Path) -> set[str]:
    """Return the dotted names that a module imports anywhere, also inside functions.

    Imports under TYPE_CHECKING are left out: they are never run.
    """
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []

    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # In `from kit import task` and `from kit.kaggle import job` a module is imported.
            if node.module == "kit" or node.module.count(".") == 1:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(path: Path) -> set[str]:
    """Return the packages that a module imports, such as {"kit", "numpy"}."""
    return {name.split(".")[0] for name in imported_names(path)}


def imported_modules(path: Path) -> set[str]:
    """Return the other modules of kit that a module imports, by their dotted names."""
    known = {module_name(module) for module in MODULES}
    return (imported_names(path) & known) - {module_name(path)}


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms of kit that a module imports."""
    parts = [name.split(".") for name in imported_names(path) if name.startswith("kit.")]
    return {names[1] for names in parts if names[1] in LEVELS}


def run_python(code: str) -> str:
    """Return the output of a fresh Python process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("path", MODULES, ids=short_path)
def test_rooms_import_only_rooms_below_them(path: Path):
    room = room_of(path)
    for other in imported_rooms(path) - {room}:
        assert LEVELS[other] < LEVELS[room], f"{room} imports {other}"


def test_no_modules_import_each_other():
    # kit/__init__.py exports names lazily, so it is not part of the graph.
    graph = {
        module_name(path): imported_modules(path) - {"kit"}
        for path in MODULES
        if module_name(path) != "kit"
    }
    # This raises CycleError for a cycle.
    list(TopologicalSorter(graph).static_order())


def test_no_two_modules_define_the_same_public_name():
    modules_by_name: dict[str, list[str]] = {}
    for path in MODULES:
        for node in public_definitions(path):
            modules_by_name.setdefault(node.name, []).append(module_name(path))
    assert {name: found for name, found in modules_by_name.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", MODULES, ids=short_path)
def test_heavy_packages_are_imported_only_by_their_rooms(path: Path):
    for package in imported_packages(path) & ALLOWED_ROOMS.keys():
        assert room_of(path) in ALLOWED_ROOMS[package], f"{room_of(path)} imports {package}"


def test_only_the_client_imports_kagglesdk():
    users = [path.name for path in MODULES if "kagglesdk" in imported_packages(path)]
    assert users == ["client.py"]


def test_what_a_push_needs_does_not_load_torch():
    paths = [*(ROOT / "kit/kaggle").glob("*.py"), *(ROOT / "kit/costs").glob("*.py")]
    names = [module_name(path) for path in paths]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code) == "False\n"


@pytest.mark.parametrize("path", MODULES, ids=short_path)
def test_every_module_has_a_docstring(path: Path):
    assert ast.get_docstring(parse(path)) or not path.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("path", MODULES, ids=short_path)
def test_every_public_function_and_class_has_a_docstring(path: Path):
    assert [node.name for node in public_definitions(path) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", MODULES, ids=short_path)
def test_nothing_is_pickled_or_evaluated(path: Path):
    assert not imported_packages(path) & {"pickle", "joblib", "dill", "marshal", "shelve"}

    calls = {
        node.func.id
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile"}


def test_the_command_line_loads_no_slow_package():
    code = "import sys, kit.cli.main\nprint(*{name.split('.')[0] for name in sys.modules})"
    assert not SLOW_PACKAGES & set(run_python(code).split())


def test_the_linter_finds_nothing():
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "."], cwd=ROOT, check=True)
