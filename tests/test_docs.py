"""Check that the documentation is true: outputs, commands, names, tables, links and paths.

`pytest tests/test_docs.py --update` writes outdated outputs, tables and run names again. Insert `…`
for what differs from run to run by hand.
"""

import ast
import os
import re
from pathlib import Path

import click
import judge_tables
import pytest
import recipe_table
import snippets
from click.testing import CliRunner

import kit
from kit.cli.main import main
from kit.recipe.load import GENERAL, load_recipe, shipped_recipes

ROOT = snippets.ROOT

# The page whose commands make the files that other pages' commands use.
STORY = ROOT / "docs/concepts.md"

# tests/kaggle runs this page against a fake of Kaggle.
KAGGLE = ROOT / "docs/kaggle.md"

# The only page whose Python blocks are run.
PYTHON = ROOT / "docs/python.md"

# Its measurements keep the run names of their time.
RESULTS = ROOT / "docs/results.md"

BLOCKS = [block for page in snippets.PAGES for block in snippets.read_blocks(page)]
LANGUAGES = {"console", "python", "toml", "text", "markdown"}

# Programs other than kit that a console block may start.
OTHER_PROGRAMS = {"cd", "source", "make", "hf", "git", "python", "torchrun"}

Story = tuple[Path, list[snippets.Outcome]]


def page_name(page: Path) -> str:
    """Return the page's path in the repository, as the id of a test case."""
    return str(page.relative_to(ROOT))


def block_name(block: snippets.Block) -> str:
    """Return a block's page and line, as the id of a test case."""
    return f"{block.page.name}:{block.line}"


def blocks_in(language: str) -> list[snippets.Block]:
    """Return the blocks of all pages that are in one language."""
    return [block for block in BLOCKS if block.language == language]


def pages_without(page: Path) -> list[Path]:
    """Return all pages except one."""
    return [other for other in snippets.PAGES if other != page]


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Return a folder in which the commands of `STORY` were run, with their outcomes."""
    folder = tmp_path_factory.mktemp("story")
    return folder, run_page(STORY, folder)


def run_page(page: Path, folder: Path) -> list[snippets.Outcome]:
    """Run the marked console blocks of a page in a folder."""

    def kit(words: list[str]) -> tuple[int, str]:
        result = CliRunner().invoke(main, words)
        return result.exit_code, result.output

    before = Path.cwd()
    os.chdir(folder)
    try:
        return snippets.run(page, kit)
    finally:
        os.chdir(before)


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    """Return whether outdated pages are to be written again."""
    return request.config.getoption("--update")


@pytest.mark.parametrize("page", pages_without(KAGGLE), ids=page_name)
def test_commands_print_what_the_page_shows(page: Path, story: Story, update: bool):
    folder, outcomes = story
    if page != STORY:
        outcomes = run_page(page, folder)
    if update:
        snippets.rewrite(page, outcomes)
    else:
        assert [outcome.problem for outcome in outcomes if outcome.problem] == []


def test_python_blocks_print_what_the_page_shows(
    update: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    outcomes = snippets.run_python(PYTHON)
    assert len(outcomes) >= 8
    if update:
        snippets.rewrite(PYTHON, outcomes)
    else:
        assert [outcome.problem for outcome in outcomes if outcome.problem] == []


@pytest.mark.parametrize("block", blocks_in("python"), ids=block_name)
def test_python_blocks_use_names_that_exist(block: snippets.Block):
    for node in ast.walk(ast.parse("\n".join(block.lines))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "kit":
            assert hasattr(kit, node.attr), f"kit.{node.attr}"


def test_the_python_page_explains_every_public_name():
    text = PYTHON.read_text(encoding="utf-8")
    assert [name for name in kit.__all__ if f"kit.{name}" not in text] == []


@pytest.mark.parametrize("page", pages_without(PYTHON), ids=page_name)
def test_python_blocks_are_marked_only_on_the_python_page(page: Path):
    blocks = snippets.read_blocks(page)
    assert not [block.line for block in blocks if block.is_run and block.language == "python"]


def test_the_pages_with_outputs_have_marked_blocks():
    steps = [
        step for block in snippets.read_blocks(STORY) if block.is_run for step in block.steps()
    ]
    assert len(steps) >= 10
    assert any(block.is_run for block in snippets.read_blocks(KAGGLE))


@pytest.mark.parametrize("block", blocks_in("console"), ids=block_name)
def test_commands_in_console_blocks_are_valid(block: snippets.Block):
    assert block.steps(), "a console block must show a command behind `$ `"
    for step in block.steps():
        for words in snippets.split_programs(step.command):
            check_program(words)


def check_program(words: list[str]) -> None:
    """Check one program of a console block: its options, its Make target or its file."""
    program = words[0]
    if program == "kit":
        # "…" and shell variables stand for words that are not known here.
        complete = not any("…" in word or "$" in word for word in words)
        snippets.check_command([word for word in words if word != "…"], complete)
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"no Make target {words[1]}"
    elif program == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()
    else:
        assert program in OTHER_PROGRAMS, f"{program} is not a program that pages may use"


@pytest.mark.parametrize("page", snippets.PAGES, ids=page_name)
def test_commands_in_sentences_exist(page: Path):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in re.findall(r"`(kit [^`]+)`", prose):
        programs = snippets.split_programs(span.replace("…", " "))
        words = [word for program in programs for word in program]
        try:
            snippets.check_command(words, complete=False)
        except click.UsageError as error:
            pytest.fail(f"`{span}`: {error.message}")


def test_every_block_has_a_language_that_is_checked():
    assert {block.language for block in BLOCKS} <= LANGUAGES


def test_commands_are_only_in_console_blocks():
    others = [block for block in BLOCKS if block.language != "console"]
    misplaced = [block for block in others if any("$ kit" in line for line in block.lines)]
    assert [block_name(block) for block in misplaced] == []


@pytest.mark.parametrize("block", blocks_in("toml"), ids=block_name)
def test_recipes_on_pages_can_be_loaded(block: snippets.Block, tmp_path: Path):
    (tmp_path / "mine.toml").write_text("\n".join(block.lines), encoding="utf-8")
    load_recipe(tmp_path / "mine.toml")


def test_tables_of_recipe_keys_are_up_to_date(update: bool):
    page = recipe_table.PAGE
    text = page.read_text(encoding="utf-8")
    expected = recipe_table.with_tables(text)
    if update:
        page.write_text(expected, encoding="utf-8")
    else:
        assert text == expected, "run: pytest tests/test_docs.py --update"


def test_the_tables_of_judges_are_up_to_date(update: bool):
    page = judge_tables.PAGE
    text = page.read_text(encoding="utf-8")
    expected = judge_tables.with_judges(text)
    if update:
        page.write_text(expected, encoding="utf-8")
    else:
        assert text == expected, "run: pytest tests/test_docs.py --update"


def current_run_name(name: str) -> str:
    """Return a run's name, such as "deberta-1a2b3c4d", with the hash that its recipe has now.

    A name that does not end with a shipped recipe's is returned as it is.
    """
    stem = name[:-9]
    recipes = [
        recipe
        for recipe in shipped_recipes()
        if recipe not in GENERAL and (stem == recipe or stem.endswith(f"-{recipe}"))
    ]
    return f"{stem}-{load_recipe(max(recipes, key=len)).hash}" if recipes else name


@pytest.mark.parametrize("page", pages_without(RESULTS), ids=page_name)
def test_run_names_on_pages_are_up_to_date(page: Path, update: bool):
    text = page.read_text(encoding="utf-8")
    run_name = r"\b[a-z]+(?:-[a-z]+)*-[0-9a-f]{8}\b"
    expected = re.sub(run_name, lambda match: current_run_name(match[0]), text)
    if update:
        page.write_text(expected, encoding="utf-8")
    else:
        assert text == expected, (
            "a recipe key or default has changed: run pytest tests/test_docs.py --update"
        )


def test_the_readme_links_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in (ROOT / "docs").glob("*.md")]
    assert [page for page in pages if f"(docs/{page})" not in readme] == []


def test_the_readme_lists_every_room_of_kit_and_existing_folders():
    [tree] = [
        block.lines
        for block in snippets.read_blocks(ROOT / "README.md")
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


@pytest.mark.parametrize("page", snippets.PAGES, ids=page_name)
def test_links_lead_to_existing_files(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", pages_without(RESULTS), ids=page_name)
def test_files_named_on_pages_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:kit|tests|benchmarks|supply)/[\w./-]+)`", text):
        assert (ROOT / path.replace("NAME", "deberta")).exists(), path


def test_the_newest_version_in_the_changelog_is_this_one():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", text, re.MULTILINE)
    assert newest
    assert newest[1] == kit.__version__


class TestSnippets:
    """Check that `snippets` finds what is wrong on a page."""

    @pytest.mark.parametrize(
        ("shown", "printed", "same"),
        [
            (["a 1.020 b"], "a   1.025 b\n", True),
            (["a 1.02 b"], "a 1.05 b", False),
            (["a -1.02 b"], "a +1.02 b", False),
            (["a 0.9… b"], "a 0.98 b", True),
            (["a 0.9… b"], "a 0.89 b", False),
            (["a … b"], "a x y b", True),
            (["first", "…", "last"], "first\n1\n2\nlast", True),
            (["first", "…", "last"], "first\nlast", True),
            (["first", "last"], "first\nmore\nlast", False),
            (["3 rows"], "4 rows", False),
            ([], "anything", True),
        ],
    )
    def test_outputs_are_compared(self, shown: list[str], printed: str, same: bool):
        assert (snippets.describe_difference(tuple(shown), printed) == "") == same

    def test_programs_in_substitutions_pipes_and_loops_are_found(self):
        command = (
            "T=$(kit kernels push train --backbone deberta --wait) # all; of it\n"
            'kit submit -m "a; b" | cat'
        )
        assert snippets.split_programs(command) == [
            ["kit", "kernels", "push", "train", "--backbone", "deberta", "--wait"],
            ["kit", "submit", "-m", "a; b"],
            ["cat"],
        ]

        loop = "for name in a b; do\nkit train --backbone $name\ndone"
        assert snippets.split_programs(loop) == [["kit", "train", "--backbone", "$name"]]

    @pytest.mark.parametrize(
        ("command", "complete"),
        [
            ("kit no-such-command", False),
            ("kit train --no-such-option", False),
            ("kit kernels push infer --no-such-option", False),
            ("kit score mine.csv", True),
            ("kit ensemble a.csv --method mode -o b.csv", True),
        ],
    )
    def test_invalid_commands_are_refused(self, command: str, complete: bool):
        with pytest.raises(click.UsageError):
            snippets.check_command(command.split(), complete)
