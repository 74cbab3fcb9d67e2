"""Define the options that several commands share, with one name and one explanation for each."""

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from kit.cli import output
from kit.data.options import SPLITS, TEXT_FORMS, PreprocessOptions
from kit.task import COMPETITION

FILE = click.Path(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force = click.option("--force", is_flag=True, help="Overwrite what is there.")
wide = click.option(
    "--wide",
    is_flag=True,
    expose_value=False,
    callback=lambda context, _, value: context.meta.update(
        {(output.WIDE, context.command_path): value}
    ),
    help="Show all columns, however narrow the terminal is.",
)
RUNS = Path("runs")
data = click.option(
    "--data", type=FILE, default=output.DATA, show_default=True, help="Processed rows."
)
runs = click.option(
    "--runs", type=FILE, default=RUNS, show_default=True, help="Where run directories are."
)
fold = click.option(
    "--fold", default="holdout", show_default=True, help="A fold's number, `all`, or `holdout`."
)
competition = click.option(
    "--competition", default=COMPETITION, show_default=True, help="Its name in its web address."
)
local_score = click.option(
    "--local-score",
    default="",
    help="Its log loss here, for the ledger.  [default: that of its runs or blend]",
)
restart = click.option(
    "--restart",
    type=click.IntRange(0, 10),
    default=0,
    flag_value=2,
    is_flag=False,
    metavar="[N]",
    help="Try again where a training collapses, up to N times (2 without N), at half the rates "
    "and with a new seed.",
)


# The labels of the sample's test rows, where `kit sample` writes them.
TRUTH = Path("data/raw/truth.csv")
TRUTH_DEFAULT = f"  [default: {TRUTH} where there is one]"


def find_truth() -> Path | None:
    """Return the file with the test rows' labels that is used where none is named, if there is."""
    return TRUTH if TRUTH.is_file() else None


def complete_key(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a recipe key in the shell, and after `=` its choices."""
    from kit.recipe.spec import KEYS

    name, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{key}=" for key in KEYS if key.startswith(name)]
    choices = KEYS[name].choices if name in KEYS else ()
    return [f"{name}={choice}" for choice in choices if choice.startswith(value)]


overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    shell_complete=complete_key,
    help="Change a recipe key (`kit recipes --keys`); may repeat.",
)

_PREPROCESS = (
    click.option(
        "--text",
        type=click.Choice(TEXT_FORMS),
        default=PreprocessOptions.text,
        show_default=True,
        help="Keep every language and newlines, or strip non-ASCII and collapse whitespace as the "
        "reference study does.",
    ),
    click.option(
        "--split",
        type=click.Choice(SPLITS),
        default=PreprocessOptions.split,
        show_default=True,
        help="Keep all rows of one prompt together, or split stratified by label as the reference "
        "study does.",
    ),
    click.option(
        "--folds",
        type=click.IntRange(2, 100),
        default=PreprocessOptions.folds,
        show_default=True,
        help="Cross-validation folds.",
    ),
    click.option(
        "--valid",
        type=click.FloatRange(0, 0.5, min_open=True),
        default=PreprocessOptions.valid,
        show_default=True,
        help="Share of rows in the holdout.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=PreprocessOptions.seed,
        show_default=True,
        help="Seed of the splits.",
    ),
)


def preprocess_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options that decide how rows are cleaned and split."""
    for option in reversed(_PREPROCESS):
        command = option(command)
    return command


def refuse_overwrites(paths: Iterable[Path | None], force: bool) -> None:
    """Raise KitError if a file cannot be written, or exists and --force was not given.

    Call it before anything is computed or written. A path may be None: no such file is asked for.
    """
    from kit.storage.atomic import refuse_overwrite, require_writable

    for path in filter(None, paths):
        require_writable(path)
        refuse_overwrite(path, force)


def refuse_one_file(first: str, one: Path | None, second: str, other: Path | None) -> None:
    """Raise UsageError if two options name the same file: the second would overwrite the first."""
    if one and other and one.resolve() == other.resolve():
        raise click.UsageError(f"{first} and {second} name the same file: {one}")


def refuse_combination(option: str, why: str, **others: object) -> None:
    """Raise UsageError if any of the `others` is given, which would have no effect with `option`.

    Args:
        why: the reason, which ends the message.
        others: values of other options by name; None, False and () mean that one is not given.
    """
    given = [f"--{name}" for name, value in others.items() if value not in (None, False, ())]
    if given:
        raise click.UsageError(f"{option} takes no {' and no '.join(given)}: {why}")


class Numbers(click.ParamType):
    """The type of an option that takes several numbers, such as 2,1,1."""

    name = "numbers"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[float]:
        """Return the numbers, or fail with a usage message."""
        try:
            return [float(part) for part in value.replace(",", " ").split()]
        except ValueError:
            self.fail(f"{value!r}: give numbers such as 2,1,1.", param, ctx)


NUMBERS = Numbers()
