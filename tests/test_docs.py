"""The documentation is true: what it shows is what comes out, and every command in it can be typed."""

import ast
import os
import re
from pathlib import Path

import click
import pytest
import recipe_table
import snippets
from click.testing import CliRunner

import kit
from kit.cli.main import main
from kit.recipe.load import load_recipe, shipped_recipes

ROOT = snippets.ROOT
STORY = ROOT / "docs/concepts.md"
KAGGLE = ROOT / "docs/kaggle.md"  # run against a Kaggle that is none, in tests/kaggle
ALL = [block for page in snippets.PAGES for block in snippets.blocks(page)]
PYTHON = ROOT / "docs/python.md"
LANGUAGES = {"console", "python", "toml", "text", "markdown"}
OTHERS = {
    "cd",
    "source",
    "make",
    "hf",
    "git",
    "python",
}  # programs that are not kit and may stand in a console block
FROZEN = {ROOT / "docs/results.md"}  # what was measured keeps the names it had


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[snippets.Outcome]]:
    """A folder in which the concepts page was typed from its beginning, with what came of each command."""
    folder = tmp_path_factory.mktemp("story")
    return folder, typed(STORY, folder)


def typed(page: Path, folder: Path) -> list[snippets.Outcome]:
    def kit(words: list[str]) -> tuple[int, str]:
        result = CliRunner().invoke(main, words)
        return result.exit_code, result.output

    before = Path.cwd()
    os.chdir(folder)
    try:
        return snippets.run(page, kit)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("page", [p for p in snippets.PAGES if p != KAGGLE], ids=name_of)
def test_what_a_page_shows_is_what_comes_out(
    page: Path, story: tuple[Path, list[snippets.Outcome]], request: pytest.FixtureRequest
):
    outcomes = story[1] if page == STORY else typed(page, story[0])
    if request.config.getoption("--update"):
        snippets.rewrite(page, outcomes)
    else:
        assert [each.problem for each in outcomes if each.problem] == []


def test_the_python_page_prints_what_it_shows(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    outcomes = snippets.run_python(PYTHON)
    if request.config.getoption("--update"):
        snippets.rewrite(PYTHON, outcomes)
    assert [outcome.problem for outcome in outcomes if outcome.problem] == []
    assert len(outcomes) >= 8


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "python"], ids=lambda b: f"{b.page.name}:{b.line}"
)
def test_python_blocks_use_names_that_exist(block: snippets.Block):
    for node in ast.walk(ast.parse("\n".join(block.lines))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kit":
            assert hasattr(kit, node.attr), f"kit.{node.attr}"


def test_the_python_page_explains_every_public_name():
    text = PYTHON.read_text(encoding="utf-8")
    assert [name for name in kit.__all__ if f"kit.{name}" not in text] == []


@pytest.mark.parametrize("page", [p for p in snippets.PAGES if p != PYTHON], ids=name_of)
def test_python_is_run_on_its_own_page_only(page: Path):
    assert not [b.line for b in snippets.blocks(page) if b.runs and b.language == "python"]


def test_the_story_is_run():
    assert sum(len(block.steps()) for block in snippets.blocks(STORY) if block.runs) >= 10
    assert any(block.runs for block in snippets.blocks(KAGGLE))


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "console"], ids=lambda b: f"{b.page.name}:{b.line}"
)
def test_every_command_in_a_block_can_be_typed(block: snippets.Block):
    assert block.steps(), "a console block shows a command behind `$ `"
    for step in block.steps():
        for words in snippets.programs(step.command):
            if words[0] == "kit":
                whole = not any("…" in word or "$" in word for word in words)
                snippets.parse([word for word in words if word != "…"], whole)
            elif words[0] == "make":
                assert re.search(
                    rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
                )
            elif words[0] == "python" and words[1].endswith(".py"):
                assert (ROOT / words[1]).is_file()
            else:
                assert words[0] in OTHERS, f"{step.command}: neither run nor parsed"


@pytest.mark.parametrize("page", snippets.PAGES, ids=name_of)
def test_every_command_in_a_sentence_exists(page: Path):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in re.findall(r"`(kit [^`]+)`", prose):
        words = [w for command in snippets.programs(span.replace("…", " ")) for w in command]
        try:
            snippets.parse(words, whole=False)
        except click.UsageError as error:
            pytest.fail(f"`{span}`: {error.message}")


def test_no_block_escapes():
    """Each block is commands, a recipe, or a picture; a language of its own would be looked at by nobody."""
    assert {block.language for block in ALL} <= LANGUAGES
    loose = [
        f"{b.page.name}:{b.line}"
        for b in ALL
        if b.language != "console" and any("$ kit" in x for x in b.lines)
    ]
    assert loose == []


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "toml"], ids=lambda b: f"{b.page.name}:{b.line}"
)
def test_every_recipe_shown_can_be_loaded(block: snippets.Block, tmp_path: Path):
    (tmp_path / "mine.toml").write_text("\n".join(block.lines), encoding="utf-8")
    load_recipe(tmp_path / "mine.toml")


def test_the_recipe_keys_are_all_explained(request: pytest.FixtureRequest):
    page = recipe_table.PAGE
    text = page.read_text(encoding="utf-8")
    if request.config.getoption("--update"):
        page.write_text(recipe_table.with_tables(text), encoding="utf-8")
        return
    assert text == recipe_table.with_tables(text), "run: pytest tests/test_docs.py --update"
    assert recipe_table.unexplained(text) == []


def current(name: str) -> str:
    """A run's name of letters, words and eight hex digits, with the hash that its recipe has now."""
    stem = name[:-9]
    known = [
        each
        for each in shipped_recipes()
        if each != "default" and (stem == each or stem.endswith(f"-{each}"))
    ]
    return f"{stem}-{load_recipe(max(known, key=len)).hash}" if known else name


@pytest.mark.parametrize("page", [p for p in snippets.PAGES if p not in FROZEN], ids=name_of)
def test_runs_have_the_names_that_the_commands_give_them(
    page: Path, request: pytest.FixtureRequest
):
    text = page.read_text(encoding="utf-8")
    true = re.sub(r"\b[a-z]+(?:-[a-z]+)*-[0-9a-f]{8}\b", lambda match: current(match[0]), text)
    if request.config.getoption("--update"):
        page.write_text(true, encoding="utf-8")
    else:
        assert text == true, (
            "a recipe key was added or a default changed: pytest tests/test_docs.py --update"
        )


def test_every_page_is_linked_from_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in readme
    ] == []


def test_the_readme_maps_every_folder_and_room():
    """The tree in the README has each tracked folder, and each room of kit, once."""
    (tree,) = [
        block.lines
        for block in snippets.blocks(ROOT / "README.md")
        if block.language == "text" and block.lines[0] == "kit/"
    ]
    rooms = [line.split()[0] for line in tree if line.startswith("  ")]
    folders = [line.split()[0] for line in tree if not line.startswith(" ")]

    expected = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "kit").iterdir()
        if not path.name.startswith("_") and path.suffix != ".typed"
    }
    assert sorted(rooms) == sorted(expected)
    assert all((ROOT / folder).is_dir() for folder in folders)
    assert {"kit/", "tests/", "docs/", "examples/", "benchmarks/"} <= set(folders)


@pytest.mark.parametrize("page", snippets.PAGES, ids=name_of)
def test_links_and_paths_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [p for p in snippets.PAGES if p not in FROZEN], ids=name_of)
def test_files_of_the_project_exist_where_a_page_names_them(page: Path):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:kit|tests|benchmarks|supply)/[\w./-]+)`", text):
        assert (ROOT / path.replace("NAME", "deberta")).exists(), path


def test_the_version_is_in_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", text, re.MULTILINE)
    assert newest
    assert newest[1] == kit.__version__


class TestReading:
    """The reader itself: it must not be content with what is wrong."""

    @pytest.mark.parametrize(
        ("shown", "printed", "same"),
        [
            (["a 1.02 b"], "a   1.03 b\n", True),
            (["a 1.02 b"], "a 1.12 b", False),
            (["a … b"], "a x y b", True),
            (["first", "…", "last"], "first\n1\n2\nlast", True),
            (["first", "…", "last"], "first\nlast", True),
            (["first", "last"], "first\nmore\nlast", False),
            (["3 rows"], "4 rows", False),
            ([], "anything", True),
        ],
    )
    def test_what_is_shown_is_compared(self, shown: list[str], printed: str, same: bool):
        assert (not snippets.differs(tuple(shown), printed)) == same

    def test_commands_are_found_wherever_they_stand(self):
        command = 'T=$(kit kernels push train --backbone deberta --wait) # all; of it\nkit submit -m "a; b" | cat'
        assert snippets.programs(command) == [
            ["kit", "kernels", "push", "train", "--backbone", "deberta", "--wait"],
            ["kit", "submit", "-m", "a; b"],
            ["cat"],
        ]
        loop = "for name in a b; do\nkit train --backbone $name\ndone"
        assert snippets.programs(loop) == [["kit", "train", "--backbone", "$name"]]

    @pytest.mark.parametrize(
        ("words", "whole"),
        [
            ("kit no-such-command", False),
            ("kit train --no-such-option", False),
            ("kit kernels push infer --no-such-option", False),
            ("kit score mine.csv", True),
            ("kit ensemble a.csv --method mode -o b.csv", True),
        ],
    )
    def test_what_cannot_be_typed_is_refused(self, words: str, whole: bool):
        with pytest.raises(click.UsageError):
            snippets.parse(words.split(), whole)
