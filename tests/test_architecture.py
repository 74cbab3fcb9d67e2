"""The house rules: imports go one way, heavy packages stay in their rooms, the command line starts light."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "kit").rglob("*.py"))

# Each room may import those before it, and itself.
ROOMS = (
    ("task", "errors"),
    ("recipe", "storage", "attention"),
    ("predictions",),
    ("data", "sample", "evaluation"),
    ("model", "run"),
    ("predict", "training", "baselines", "ensembling"),
    ("reporting", "kaggle"),
    ("api",),
    ("demo", "doctor"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
FLOOR["__init__"] = len(ROOMS)  # the package's face: lazily, it exports what is in `api`
ONLY_IN = {
    "torch": {"attention", "model", "predict", "training"},
    "transformers": {"attention", "model", "training"},
    "accelerate": {"model", "predict", "training"},
    "peft": {"training"},
    "kaggle": set(),  # whose import logs in, prints and exits; kagglesdk is the same transport without that
    "kagglesdk": {"kaggle"},
    "requests": {"kaggle"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"reporting"},
    "jinja2": {"reporting"},
}


def room_of(module: Path) -> str:
    return module.relative_to(ROOT / "kit").parts[0].removesuffix(".py")


def imports(module: Path) -> set[str]:
    """Every imported module by its dotted name, wherever in the file; not those for annotations alone."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "kit" or node.module.count(".") == 1:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(module: Path) -> set[str]:
    parts = [name.split(".") for name in imports(module) if name.split(".")[0] == "kit"]
    return {each[1] for each in parts if len(each) > 1 and each[1] in FLOOR}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(module: Path):
    room = room_of(module)
    for other in rooms_imported(module) - {room}:
        assert FLOOR[other] < FLOOR[room], f"{room} imports {other}"


def modules_imported(module: Path) -> set[str]:
    """Every module of kit that a file imports, lazily or not, by its dotted name."""
    known = {name_of(path) for path in MODULES}
    return {name for name in imports(module) if name in known} - {name_of(module)}


def name_of(module: Path) -> str:
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_no_modules_import_each_other_in_a_circle():
    # The package's face reads the version and exports the API by name: it is no part of the graph.
    graph = {
        name_of(path): modules_imported(path) - {"kit"}
        for path in MODULES
        if name_of(path) != "kit"
    }
    list(TopologicalSorter(graph).static_order())


def test_public_names_mean_one_thing():
    owners: dict[str, list[str]] = {}
    for module in MODULES:
        tree = ast.parse(module.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(name_of(module))
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_stay_in_their_rooms(module: Path):
    packages = {name.split(".")[0] for name in imports(module)}
    for package, allowed in ONLY_IN.items():
        assert package not in packages or room_of(module) in allowed, (
            f"{package} in {room_of(module)}"
        )


def test_only_the_client_and_its_wire_import_kaggles_package():
    users = {m.name for m in MODULES if "kagglesdk" in {name.split(".")[0] for name in imports(m)}}
    assert users <= {"client.py", "wire.py"}


def test_kaggle_is_reached_without_torch():
    names = [
        f"kit.kaggle.{path.stem}"
        for path in (ROOT / "kit/kaggle").glob("*.py")
        if path.stem != "__init__"
    ]
    code = f"import importlib, sys; [importlib.import_module(n) for n in {names!r}]; print('torch' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )


def test_evaluation_knows_neither_data_nor_models():
    for module in (ROOT / "kit" / "evaluation").glob("*.py"):
        assert not rooms_imported(module) & {"data", "model", "training"}, module


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_why_it_exists(module: Path):
    text = module.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring or not text.strip()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_function_and_class_is_documented(module: Path):
    tree = ast.parse(module.read_text(encoding="utf-8"))
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled_or_evaluated(module: Path):
    banned = {"pickle", "joblib", "dill", "marshal", "shelve"}
    assert not {name.split(".")[0] for name in imports(module)} & banned
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not calls & {"eval", "exec", "compile"}


def test_the_command_line_loads_nothing_heavy():
    code = "import sys, kit.cli.main; print(sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    for package in (
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
    ):
        assert f"'{package}'" not in loaded


def test_the_linter_is_content():
    subprocess.run([sys.executable, "-m", "ruff", "check", "--quiet", "."], cwd=ROOT, check=True)
