"""The documentation's console and Python blocks: read, run, and compared with what is shown.

A block below the line `<!-- run -->` is run; the others are parsed. What a Python block prints is shown in a text
block right below it. In what is shown, `…` stands for any text in its
line and, alone, for any lines; numbers with decimals may differ a little, since machines do; spacing is free.
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
    *sorted(ROOT.glob("[eks]*s/README.md")),
]
RUN = "<!-- run -->"
SLACK = 0.05  # of a toy's figures, between one machine's arithmetic and another's
NUMBER = re.compile(r"[-+]?\d+\.\d+")
BREAKS = re.compile(r"[;|&]+|\$\(|[()]|\bdo\b")


@dataclass(frozen=True)
class Step:
    """A command as a user types it, with the lines that are shown below it; `line` is where it stands in the page."""

    line: int
    command: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, whether it is to be run, its lines, and the number of the first."""

    page: Path
    line: int
    language: str
    runs: bool
    lines: tuple[str, ...]

    def steps(self) -> list[Step]:
        """The commands of a console block. What goes on over several lines is one command."""
        found: list[Step] = []
        command, shown, start = "", [], 0
        for number, line in enumerate((*self.lines, "$ "), self.line):
            if line.startswith("$ "):
                if command:
                    found.append(Step(start, command, tuple(shown)))
                command, shown, start = line[2:], [], number
            elif command.endswith("\\") or (
                command.startswith("for ") and not command.endswith("done")
            ):
                command += "\n" + line.strip()
            else:
                shown.append(line)
        return found


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    place = 0
    while place < len(lines):
        if fence := re.match(r"\s*```(\w*)", lines[place]):
            end = next(n for n in range(place + 1, len(lines)) if lines[n].strip() == "```")
            marked = place > 0 and lines[place - 1] == RUN
            found.append(Block(page, place + 2, fence[1], marked, tuple(lines[place + 1 : end])))
            place = end
        place += 1
    return found


def programs(command: str) -> list[list[str]]:
    """The programs that a shell command starts, in words: those in loops, pipes and `$(…)` too, without comments."""
    command = re.sub(r"(^|\s)#.*", "", command.replace("\\\n", " "), flags=re.MULTILINE)
    pieces = [""]
    for part in re.split(r"(\"[^\"]*\"|'[^']*')", command):  # what is quoted is not taken apart
        if part[:1] in ("'", '"'):
            pieces[-1] += part
        else:
            first, *rest = BREAKS.split(part.replace("\n", ";"))
            pieces[-1] += first
            pieces += rest
    words = [drop_assignments(shlex.split(piece)) for piece in pieces]
    return [each for each in words if each and each[0] not in ("for", "done")]


def drop_assignments(words: list[str]) -> list[str]:
    """The words behind `NAME=value`, which set a variable for what follows."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def parse(words: list[str], whole: bool) -> None:
    """Goes through a `kit …` command as Click would, and stops before it runs.

    Args:
        words: it, in words.
        whole: whether nothing may be missing; else only commands and options have to be there.

    Raises:
        click.UsageError: there is no such command or option, or a value is none of the choices.
    """
    command, context, rest = main, click.Context(main, info_name="kit"), words[1:]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, command, rest = command.resolve_command(context, rest)
        context = click.Context(command, info_name=name, parent=context)
    if whole:
        command.make_context(context.info_name, list(rest), parent=context.parent)
        return
    inner = [command, *command.commands.values()] if isinstance(command, click.Group) else [command]
    refusals = [
        _refusal(each, list(rest)) for each in inner
    ]  # `kit kernels push … --dry-run` is said of them all
    if all(refusals):
        raise refusals[0]


def _refusal(command: click.Command, words: list[str]) -> click.UsageError | None:
    try:
        command.make_parser(click.Context(command)).parse_args(words)
    except click.BadOptionUsage:
        return None  # a sentence may name an option without its value
    except click.UsageError as error:
        return error
    return None


def words_of(step: Step) -> list[str]:
    """The words of a step that is run, its patterns replaced by the files they match, as a shell does."""
    ((*words,),) = programs(step.command)
    expanded = [
        sorted(map(str, Path().glob(word))) or [word] if "*" in word else [word] for word in words
    ]
    return [word for each in expanded for word in each]


def differs(shown: tuple[str, ...], real: str) -> str:
    """Where what a command printed is not what the page shows, or nothing."""
    expected, printed = (
        [_plain(line) for line in lines if line.strip()] for lines in (shown, real.splitlines())
    )
    if not expected or _matches(expected, printed):
        return ""
    return "shown:\n" + "\n".join(expected) + "\nprinted:\n" + "\n".join(printed)


def _matches(expected: list[str], printed: list[str]) -> bool:
    if not expected or not printed:
        return all(line == "…" for line in expected) and not printed
    if expected[0] == "…":
        return any(_matches(expected[1:], printed[skip:]) for skip in range(len(printed) + 1))
    return _same(expected[0], printed[0]) and _matches(expected[1:], printed[1:])


def _same(expected: str, printed: str) -> bool:
    pattern, numbers, end = "", [], 0
    for number in NUMBER.finditer(expected):
        pattern += re.escape(expected[end : number.start()]) + f"({NUMBER.pattern})"
        numbers.append(float(number[0]))
        end = number.end()
    found = re.fullmatch((pattern + re.escape(expected[end:])).replace("…", ".*"), printed)
    return bool(found) and all(
        abs(float(a) - b) <= SLACK for a, b in zip(found.groups(), numbers, strict=True)
    )


def _plain(line: str) -> str:
    return re.sub(r"─+", "─", " ".join(line.split()))


@dataclass(frozen=True)
class Outcome:
    """What became of a step: what it printed, and what is not as the page shows it, or nothing."""

    step: Step
    printed: str
    problem: str


def run(page: Path, kit: Callable[[list[str]], tuple[int, str]]) -> list[Outcome]:
    """Runs the page's marked blocks, one step after another.

    What shows an error has to fail with exit code 1, everything else to succeed.

    Args:
        page: a Markdown file.
        kit: runs the words behind `kit`: its exit code, and what it printed.
    """
    outcomes = []
    consoles = [block for block in blocks(page) if block.runs and block.language == "console"]
    for step in (step for block in consoles for step in block.steps()):
        code, printed = kit(words_of(step)[1:])
        expected = int(any(line.startswith(("Error:", "problem:")) for line in step.shown))
        problem = (
            differs(step.shown, printed) if code == expected else f"exit code {code}:\n{printed}"
        )
        outcomes.append(
            Outcome(
                step, printed, problem and f"{page.name}:{step.line}: $ {step.command}\n{problem}"
            )
        )
    return outcomes


def run_python(page: Path) -> list[Outcome]:
    """Run the page's marked Python blocks in one namespace, one after another, in the current folder.

    Returns:
        An outcome for each block, whose step is the text block below it, if there is one.
    """
    outcomes = []
    namespace: dict[str, object] = {"__name__": page.stem}
    found = blocks(page)
    for block, following in zip(found, [*found[1:], None], strict=True):
        if not block.runs or block.language != "python":
            continue
        has_output = following is not None and following.line == block.line + len(block.lines) + 2
        shown = following.lines if following is not None and has_output else ()

        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + "\n".join(block.lines), str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)  # noqa: S102

        problem = differs(shown, printed.getvalue())
        fence = block.line + len(block.lines) + 1
        outcomes.append(
            Outcome(
                Step(fence, "", shown),
                printed.getvalue(),
                problem and f"{page.name}:{block.line}:\n{problem}",
            )
        )
    return outcomes


def rewrite(page: Path, outcomes: list[Outcome]) -> None:
    """Puts what was printed into the page where something else is shown; `…` has to be put in again by hand."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for outcome in reversed([each for each in outcomes if each.problem]):
        first = outcome.step.line + outcome.step.command.count("\n")
        printed = [line.rstrip() for line in outcome.printed.splitlines() if line.strip()]
        lines[first : first + len(outcome.step.shown)] = printed
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
