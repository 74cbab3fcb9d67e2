"""Define `kit sweep`, and the commands run, push and show."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from kit.cli import options, output
from kit.cli.kaggle import connect
from kit.cli.progress import training_progress
from kit.cli.push import (
    dry_run_option,
    folder_option,
    print_outcomes,
    require_outcomes,
    session_hours,
    write_folders,
)
from kit.wording import counted

if TYPE_CHECKING:
    from kit.sweeps.ranking import RankedPoint
    from kit.sweeps.sweep import Sweep, SweepDefinition

SWEEPS = Path("sweeps")

_sweeps = click.option(
    "--sweeps", type=options.FILE, default=SWEEPS, show_default=True, help="Where sweeps are."
)

_SEARCH = (
    click.argument("recipe"),
    click.option(
        "--key",
        "keys",
        multiple=True,
        required=True,
        metavar="KEY=VALUES",
        shell_complete=options.complete_key,
        help="A recipe key and its values: LOW..HIGH, with :log for orders of magnitude or :STEP, "
        "or VALUE,VALUE; may repeat.",
    ),
    options.overrides,
    click.option(
        "--seeds",
        type=click.IntRange(1, 100),
        default=3,
        show_default=True,
        help="Trainings of each point, whose mean loss counts.",
    ),
    click.option(
        "--trials",
        type=click.IntRange(1, 10_000),
        default=20,
        show_default=True,
        help="Points in all, with those of earlier calls.",
    ),
    options.fold,
    click.option(
        "--sampler-seed",
        type=click.IntRange(0, 2**31 - 1),
        default=0,
        show_default=True,
        help="Seed of the points.",
    ),
    click.option(
        "--name", help="Its folder's name.  [default: the recipe's, and a hash of what is searched]"
    ),
    _sweeps,
    options.runs,
)


@dataclasses.dataclass(frozen=True)
class _Search:
    """What is searched, as the options that `run` and `push` share say it."""

    recipe: str
    keys: tuple[str, ...]
    overrides: tuple[str, ...]
    seeds: int
    trials: int
    fold: str
    sampler_seed: int
    name: str | None
    sweeps: Path
    runs: Path

    def define(self, prune: bool) -> "SweepDefinition":
        """Return what is searched, all of it checked, on rows that are not known yet."""
        from kit.sweeps.space import parse_keys
        from kit.sweeps.sweep import SweepDefinition, choose_base

        base, command = choose_base(self.recipe, self.overrides)
        output.print_backbone(self.recipe, base)
        return SweepDefinition(
            recipe=base,
            keys=parse_keys(self.keys, self.overrides),
            seeds=self.seeds,
            fold=self.fold,
            rows="",
            prune=prune,
            sampler_seed=self.sampler_seed,
            command=command,
        )

    def folder(self, definition: "SweepDefinition") -> Path:
        """Return the folder of the sweep."""
        return self.sweeps / (self.name or definition.default_name)


def _search_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the argument and the options of `_Search`, and hand them on as `search`."""
    names = [field.name for field in dataclasses.fields(_Search)]

    @functools.wraps(command)
    def with_search(**values: Any) -> object:
        search = _Search(**{name: values.pop(name) for name in names})
        return command(search=search, **values)

    for option in reversed(_SEARCH):
        with_search = option(with_search)
    return with_search


class DefaultGroup(click.Group):
    """A group that takes `kit sweep RECIPE …` for `kit sweep run RECIPE …`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; options of the default command may come first."""
        if args and args[0].startswith("-") and args[0] not in self.get_help_option_names(ctx):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or the default one."""
        if args and args[0] in ("list", "ls"):
            ctx.fail(f"No such command '{args[0]}': `kit sweep show` lists the sweeps.")
        if args and args[0] not in self.commands:
            args = [self.default, *args]
        return super().resolve_command(ctx, args)


@click.group(cls=DefaultGroup)
def sweep_group() -> None:
    """Search recipe keys by trials, each an ordinary run.

    Without the name of a command, `run` is meant. Needs the extra [sweep].

    \b
    Example:  kit sweep deberta --key train.lr=1e-5..1e-4:log --trials 20
              kit sweep show
    """


@sweep_group.command("run")
@_search_options
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=math.inf,
    help="End within this time; no point is begun that would take longer.",
)
@click.option(
    "--prune/--no-prune",
    default=True,
    help="End points early that are worse than the median at an evaluation.  [default: prune]",
)
@options.data
@options.wide
@options.as_json
def run_command(search: _Search, hours: float, prune: bool, data: Path, as_json: bool) -> None:
    """Train points of the space, and learn from each where the next one should be.

    RECIPE is a name from `kit recipes` or `kit backbones`, a TOML file, a hub id or a folder. What
    counts is the mean validation log loss over the seeds. The same command continues a sweep that
    was interrupted.

    \b
    Example:  kit sweep run deberta --key train.lr=1e-5..1e-4:log --hours 4
              kit sweep run deberta --key model.head=symmetric,fusion --seeds 2
    """
    from kit.data.dataset import open_dataset
    from kit.run import parse_folds
    from kit.sweeps.study import require_optuna
    from kit.sweeps.sweep import Sweep

    # A wrong key is reported at once, before torch is imported.
    definition = search.define(prune)
    require_optuna()
    dataset = open_dataset(data)
    parse_folds(search.fold, dataset.folds)
    rows = dataset.digest("train")
    definition = dataclasses.replace(definition, rows=rows)
    sweep = Sweep.create(search.folder(definition), definition)
    _announce(sweep, search.trials)

    from kit.sweeps.run import run_sweep

    try:
        run_sweep(
            sweep,
            data,
            search.runs,
            trials=search.trials,
            max_hours=hours,
            display=training_progress,
            say=output.print_note,
        )
    except KeyboardInterrupt:
        output.print_note(f"{sweep.path} is not finished. Run the same command again to continue")
        raise
    _print_sweep(sweep, search.runs, as_json)


@sweep_group.command("push")
@_search_options
@options.preprocess_options
@session_hours(9.0, 12)
@dry_run_option
@folder_option
@options.wide
@options.as_json
def push_command(
    search: _Search, max_hours: float, dry_run: bool, out: Path, as_json: bool, **preprocess: Any
) -> None:
    """Train points on Kaggle's GPUs, a kernel for each seed, two at once, and collect the runs.

    The points are drawn up front and spread evenly; none is pruned. The same command continues.

    \b
    Example:  kit sweep push deberta --key train.lr=1e-5..1e-4:log --trials 8
    """
    from kit.kaggle.job import train_jobs
    from kit.kaggle.session_hours import plan_sessions
    from kit.sweeps.study import require_optuna
    from kit.sweeps.sweep import Sweep

    definition = search.define(prune=False)
    rows = " ".join(f"--{option} {value}" for option, value in preprocess.items())
    definition = dataclasses.replace(definition, rows=f"prepared on Kaggle with {rows}")
    require_optuna()
    from kit.sweeps.push import push_sweep, sweep_recipes

    path = search.folder(definition)
    recipes = sweep_recipes(Sweep(path, definition), search.trials)
    jobs = train_jobs(recipes, fold=search.fold, preprocess=preprocess, max_hours=max_hours)
    folds = preprocess["folds"]
    plans = [plan_sessions(recipe, search.fold, folds, max_hours) for recipe in recipes]
    kernels = len(jobs) // len(recipes)
    total = sum(plan.fold_hours for plan in plans) * kernels
    output.print_note(
        f"{counted(len(jobs), 'kernel')}, about {total:.1f} h on two T4 in all (estimated)"
    )
    if dry_run:
        return write_folders(jobs, out, as_json)

    with connect(attempts=40) as client:
        sweep = Sweep.create(path, definition)
        _announce(sweep, search.trials)
        outcomes = push_sweep(
            client, sweep, jobs, search.trials, search.runs, out, say=output.print_note
        )
    if not as_json:
        print_outcomes(outcomes)
    _print_sweep(sweep, search.runs, as_json)
    require_outcomes(outcomes)


@sweep_group.command("show")
@click.argument("name", required=False)
@_sweeps
@options.runs
@options.wide
@options.as_json
def show_sweep_command(name: str | None, sweeps: Path, runs: Path, as_json: bool) -> None:
    """Rank the points of a sweep by their mean log loss over seeds.

    NAME is a folder, a name in --sweeps, or a part of one; without it, all sweeps are listed where
    there are several.

    \b
    Example:  kit sweep show
              kit sweep show deberta-1a2b
    """
    from kit.sweeps.study import require_optuna
    from kit.sweeps.sweep import Sweep, find_sweep, list_sweeps

    require_optuna()
    if name:
        return _print_sweep(find_sweep(name, sweeps), runs, as_json)
    found = [Sweep.open(path) for path in list_sweeps(sweeps)]
    if len(found) == 1:
        return _print_sweep(found[0], runs, as_json)
    if as_json:
        return output.print_json([_as_dict(sweep, runs) for sweep in found])
    if not found:
        return output.print_note(
            f"No sweep in {sweeps}. Next: kit sweep deberta --key train.lr=1e-5..1e-4:log"
        )
    return _list_sweeps(found, runs)


def _announce(sweep: "Sweep", trials: int) -> None:
    """Say what is searched, and what decides."""
    from kit.sweeps.space import space_size

    definition = sweep.definition
    size = min(space_size(definition.keys), trials)
    points = counted(round(size), "point")
    seeds = counted(definition.seeds, "seed")
    output.print_note(
        f"{sweep.path}: {points} of {', '.join(key.text for key in definition.keys)}, "
        f"{seeds} each. What counts is the mean log loss on the rows of --fold {definition.fold}"
    )


def _print_sweep(sweep: "Sweep", runs: Path, as_json: bool) -> None:
    """Print the ranking of a sweep's points, and how to train the best one."""
    if as_json:
        return output.print_json(_as_dict(sweep, runs))
    from kit.sweeps.ranking import rank_points
    from kit.sweeps.space import value_text
    from kit.sweeps.study import FINISHED

    definition = sweep.definition
    ranked = rank_points(sweep, runs)
    names = [key.name for key in definition.keys]
    table = [
        [
            each.trial,
            each.mean,
            "" if each.low is None else f"[{each.low:.4f}, {each.high:.4f}]",
            *(value_text(each.point[name]) if name in each.point else "" for name in names),
            each.state,
            f"{each.minutes:.1f}",
            " ".join(each.runs),
        ]
        for each in ranked
    ]
    columns = [
        *("trial", "log loss", "95% of the mean"),
        *(name.rpartition(".")[2] for name in names),
        *("state", "min", "runs"),
    ]
    drop = [len(columns) - 1, len(columns) - 2, 2]
    title = f"{sweep.name}: {definition.fold}, {counted(definition.seeds, 'seed')}"
    output.print_table(title, columns, table, prose=("runs",), drop=drop)
    for each in ranked:
        if each.why:
            output.print_note(f"trial {each.trial}: {each.why}")
    if ranked and ranked[0].state == FINISHED:
        output.print_note(f"Next: {_train_command(sweep, ranked[0])} --fold all")


def _train_command(sweep: "Sweep", best: "RankedPoint") -> str:
    """Return the command that trains a point, without its folds."""
    from kit.sweeps.space import value_text

    keys = (f"--set {quote(f'{n}={value_text(v)}')}" for n, v in best.point.items())
    return " ".join([sweep.definition.command, *keys])


def _as_dict(sweep: "Sweep", runs: Path) -> dict[str, Any]:
    """Return a sweep and its ranked points as plain values."""
    from kit.sweeps.ranking import rank_points

    definition = sweep.definition
    return {
        "sweep": sweep.name,
        "folder": str(sweep.path),
        "recipe": definition.recipe.name,
        "keys": [key.text for key in definition.keys],
        "seeds": definition.seeds,
        "fold": definition.fold,
        "points": [dataclasses.asdict(point) for point in rank_points(sweep, runs)],
    }


def _list_sweeps(sweeps: "list[Sweep]", runs: Path) -> None:
    """Print all sweeps with their best loss."""
    from kit.sweeps.ranking import rank_points
    from kit.sweeps.study import FINISHED

    rows = []
    for sweep in sweeps:
        ranked = [point for point in rank_points(sweep, runs) if point.state == FINISHED]
        keys = " ".join(key.text for key in sweep.definition.keys)
        rows.append([sweep.name, ranked[0].mean if ranked else None, len(ranked), keys])
    columns = ["sweep", "best log loss", "finished", "keys"]
    output.print_table("Sweeps, the newest first", columns, rows, prose=("keys",))
    output.print_note(f"Next: kit sweep show {sweeps[0].name}")
