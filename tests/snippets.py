"""Read the console and Python blocks of the documentation, run them, and compare the output.

Use `run` for console blocks and `run_python` for Python blocks. A block below the line
`<!-- run -->` is run; other blocks are only parsed. The output of a Python block is shown in a text
block right below it.

In the output that a page shows, `…` stands for any text within its line. A line of `…` alone stands
for any number of lines. Numbers with decimals may differ by `TOLERANCE`, because machines round
differently, and spacing does not count.
"""

import contextlib
import io
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from kit.cli.main import main

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / folder / "README.md") for folder in ("examples", "kernels", "submissions")),
]

RUN = "<!-- run -->"
TOLERANCE = 0.01

# A number that goes on with "…" is text: only the digits that the page shows are compared.
NUMBER = re.compile(r"[-+]?\d+\.\d+(?![\d…])")

# What separates the programs of a shell command.
SEPARATORS = re.compile(r"[;|&]+|\$\(|[()]|\bdo\b")


@dataclass(frozen=True)
class Step:
    """A command as a user types it.

    Attributes:
        line: the line of the page that it begins in, counted from 1.
        command: its text, which may have several lines.
        shown: the lines of output that the page shows below it.
    """

    line: int
    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        line: the line of the page that its content begins in, counted from 1.
        language: the word behind the fence, such as "console".
        is_run: whether the page marks it with `RUN`.
        lines: its content.
    """

    page: Path
    line: int
    language: str
    is_run: bool
    lines: tuple[str, ...]

    def steps(self) -> list[Step]:
        """Return the commands of a console block."""
        steps: list[Step] = []
        command = ""
        start = 0
        shown: list[str] = []

        # The additional prompt at the end completes the last step.
        for number, line in enumerate((*self.lines, "$ "), self.line):
            if line.startswith("$ "):
                if command:
                    steps.append(Step(start, command, tuple(shown)))
                command = line[2:]
                start = number
                shown = []
            elif _is_continued(command):
                command += "\n" + line.strip()
            else:
                shown.append(line)
        return steps


def _is_continued(command: str) -> bool:
    is_open_loop = command.startswith("for ") and not command.endswith("done")
    return command.endswith("\\") or is_open_loop


def read_blocks(page: Path) -> list[Block]:
    """Return every fenced block of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks = []
    index = 0
    while index < len(lines):
        fence = re.match(r"\s*```(\w*)", lines[index])
        if fence:
            end = next(n for n in range(index + 1, len(lines)) if lines[n].strip() == "```")
            is_run = index > 0 and lines[index - 1] == RUN
            content = tuple(lines[index + 1 : end])
            blocks.append(Block(page, index + 2, fence[1], is_run, content))
            index = end
        index += 1
    return blocks


def split_programs(command: str) -> list[list[str]]:
    """Return the words of each program that a shell command starts.

    Programs in loops, pipes and `$(…)` count too. Comments and `NAME=value` are left out.
    """
    command = re.sub(r"(^|\s)#.*", "", command.replace("\\\n", " "), flags=re.MULTILINE)

    # A separator inside quotes separates nothing.
    pieces = [""]
    for part in re.split(r"(\"[^\"]*\"|'[^']*')", command):
        if part[:1] in ("'", '"'):
            pieces[-1] += part
        else:
            first, *rest = SEPARATORS.split(part.replace("\n", ";"))
            pieces[-1] += first
            pieces += rest

    programs = [_drop_assignments(shlex.split(piece)) for piece in pieces]
    return [words for words in programs if words and words[0] not in ("for", "done")]


def _drop_assignments(words: list[str]) -> list[str]:
    """Return the words behind `NAME=value`, which set a variable for them."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def check_command(words: list[str], complete: bool) -> None:
    """Parse a `kit …` command as Click does, without running it.

    Args:
        words: the command, "kit" first.
        complete: whether required arguments and values must be there. Otherwise only the names of
            commands and options are checked, and a group such as `kit kernels push …` may stand
            for any of its commands.

    Raises:
        click.UsageError: there is no such command or option, or a value is not allowed.
    """
    command: click.Command = main
    context = click.Context(main, info_name="kit")
    rest = words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, command, rest = command.resolve_command(context, rest)
        context = click.Context(command, info_name=name, parent=context)

    if complete:
        command.make_context(context.info_name, list(rest), parent=context.parent)
        return

    candidates = [command]
    if isinstance(command, click.Group):
        candidates += command.commands.values()
    errors = [_find_usage_error(candidate, list(rest)) for candidate in candidates]
    if all(errors):
        raise errors[0]


def _find_usage_error(command: click.Command, words: list[str]) -> click.UsageError | None:
    try:
        command.make_parser(click.Context(command)).parse_args(words)
    except click.BadOptionUsage:
        # A sentence may name an option without its value.
        return None
    except click.UsageError as error:
        return error
    return None


def expand_words(step: Step) -> list[str]:
    """Return the words of a step with one program, its patterns replaced by matching files."""
    [words] = split_programs(step.command)
    expanded = []
    for word in words:
        matches = sorted(map(str, Path().glob(word))) if "*" in word else []
        expanded += matches or [word]
    return expanded


def describe_difference(shown: tuple[str, ...], printed: str) -> str:
    """Return both outputs if they differ, or "" if they agree or the page shows no output."""
    expected = [_normalise(line) for line in shown if line.strip()]
    actual = [_normalise(line) for line in printed.splitlines() if line.strip()]
    if not expected or _lines_match(expected, actual):
        return ""
    return "shown:\n" + "\n".join(expected) + "\nprinted:\n" + "\n".join(actual)


def _normalise(line: str) -> str:
    """Return a line with single spaces, and rules of tables at one length."""
    return re.sub(r"─+", "─", " ".join(line.split()))


def _lines_match(expected: list[str], actual: list[str]) -> bool:
    if not expected or not actual:
        return not actual and all(line == "…" for line in expected)
    if expected[0] == "…":
        return any(_lines_match(expected[1:], actual[skip:]) for skip in range(len(actual) + 1))
    return _line_matches(expected[0], actual[0]) and _lines_match(expected[1:], actual[1:])


def _line_matches(expected: str, actual: str) -> bool:
    """Return whether the texts around the numbers are equal, and the numbers nearly so."""
    texts = [re.escape(text).replace("…", ".*") for text in NUMBER.split(expected)]
    match = re.fullmatch(f"({NUMBER.pattern})".join(texts), actual)
    if not match:
        return False

    numbers = map(float, NUMBER.findall(expected))
    pairs = zip(map(float, match.groups()), numbers, strict=True)
    return all(abs(found - number) <= TOLERANCE for found, number in pairs)


@dataclass(frozen=True)
class Outcome:
    """The result of a step: its output, and the problem if it is not as the page shows, or ""."""

    step: Step
    printed: str
    problem: str


def run(page: Path, kit: Callable[[list[str]], tuple[int, str]]) -> list[Outcome]:
    """Run the page's marked console blocks, one step after another.

    A step that shows an error must exit with 1, any other with 0.

    Args:
        page: a Markdown file.
        kit: runs the words behind `kit`, and returns the exit code and the output.
    """
    outcomes = []
    blocks = [block for block in read_blocks(page) if block.is_run and block.language == "console"]
    for step in [step for block in blocks for step in block.steps()]:
        code, printed = kit(expand_words(step)[1:])

        shows_error = any(line.startswith(("Error:", "problem:")) for line in step.shown)
        if code == int(shows_error):
            problem = describe_difference(step.shown, printed)
        else:
            problem = f"exit code {code}:\n{printed}"
        if problem:
            problem = f"{page.name}:{step.line}: $ {step.command}\n{problem}"
        outcomes.append(Outcome(step, printed, problem))
    return outcomes


def run_python(page: Path) -> list[Outcome]:
    """Run the page's marked Python blocks in one namespace, in the current folder.

    Returns:
        An outcome for each block. Its step is the text block below it, if there is one.
    """
    outcomes = []
    namespace: dict[str, object] = {"__name__": page.stem}
    blocks = read_blocks(page)
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if not block.is_run or block.language != "python":
            continue

        # The output is shown if the next block begins right below this one.
        fence = block.line + len(block.lines) + 1
        shown = following.lines if following is not None and following.line == fence + 1 else ()

        # The blank lines give tracebacks the line numbers of the page.
        code = compile("\n" * (block.line - 1) + "\n".join(block.lines), str(page), "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, namespace)  # noqa: S102

        printed = output.getvalue()
        problem = describe_difference(shown, printed)
        if problem:
            problem = f"{page.name}:{block.line}:\n{problem}"
        outcomes.append(Outcome(Step(fence, "", shown), printed, problem))
    return outcomes


def rewrite(page: Path, outcomes: list[Outcome]) -> None:
    """Write the real output into the page where it shows another; insert `…` again by hand."""
    lines = page.read_text(encoding="utf-8").splitlines()

    # From the end, so that the line numbers of earlier steps stay right.
    for outcome in reversed(outcomes):
        if outcome.problem:
            first = outcome.step.line + outcome.step.command.count("\n")
            printed = [line.rstrip() for line in outcome.printed.splitlines() if line.strip()]
            lines[first : first + len(outcome.step.shown)] = printed
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
