"""Commands about Kaggle kernels: push a training or an inference, then status, wait, logs, output."""

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.cli import options, show
from kit.cli.kaggle import connect

if TYPE_CHECKING:
    from kit.remote.client import Client
    from kit.remote.job import Job

FOLDER = Path("kernels")
NEXT = {
    "train": "Next: kit kernels push infer --runs {ref}",
    "infer": 'Next: kit submit --kernel {ref} -m "what it is"',
}

gpu_option = click.option(
    "--gpu",
    type=click.Choice(["t4", "p100", "none"]),
    default="t4",
    show_default=True,
    help="A T4 session has two of them; Kaggle has retired the P100.",
)
yes = click.option("--yes", is_flag=True, help="Take a T4 where the P100 was asked for.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Write the notebook's folder and stop; Kaggle not asked.")
wait_option = click.option("--wait", "follow", is_flag=True, help="Follow the run to its end.")
title_option = click.option("--title", default="", help="Its name on Kaggle.  [default: what it does]")
folder_option = click.option(
    "--out", type=options.FILE, default=FOLDER, show_default=True, help="Where the notebook's folder is written."
)


def max_hours_option(default: float) -> Any:
    """The time budget of a session, which Kaggle ends after 12 hours."""
    hours = click.FloatRange(0, 12, min_open=True)
    return click.option("--max-hours", type=hours, default=default, show_default=True, help="The run's time budget.")


@click.group()
def kernels() -> None:
    """Train and predict on Kaggle's GPUs.

    \b
    Example:  kit kernels push train --backbone deberta --wait
    """


@kernels.group()
def push() -> None:
    """Push a notebook that trains or predicts.

    \b
    Example:  kit kernels push train --backbone deberta --dry-run
    """


@push.command()
@click.option("--backbone", "backbones", multiple=True, help="A name from `kit backbones`; several with --fan-out.")
@click.option("--recipe", "recipes", multiple=True, help="A name from `kit recipes`, or a TOML file; as --backbone.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a recipe key; may repeat.")
@click.option("--fold", default="all", show_default=True, help="A fold's number, `all`, or `holdout`.")
@options.preparing
@gpu_option
@yes
@max_hours_option(9.0)
@click.option("--fan-out", is_flag=True, help="A kernel for each backbone and fold, two at once, brought home.")
@options.runs
@title_option
@dry_run_option
@wait_option
@folder_option
@options.as_json
def train(
    backbones: tuple[str, ...],
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    fold: str,
    gpu: str,
    yes: bool,
    max_hours: float,
    fan_out: bool,
    runs: Path,
    title: str,
    dry_run: bool,
    follow: bool,
    out: Path,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Push a training kernel.

    The rows are prepared on Kaggle, so the options of `kit preprocess` are options here.

    \b
    Example:  kit kernels push train --backbone deberta --fold all --max-hours 9
              kit kernels push train --backbone deberta --backbone roberta --fan-out
    """
    if max(len(backbones), len(recipes)) > 1 and not fan_out:
        raise click.UsageError("Several backbones or recipes need --fan-out.")
    if fan_out and (title or follow):
        raise click.UsageError("--fan-out names its kernels and waits for them by itself: no --title, no --wait.")
    from kit.recipes import choose
    from kit.remote.job import train_job, train_jobs

    chosen = [choose(b, r, overrides) for r in recipes or (None,) for b in backbones or (None,)]
    options_ = {"fold": fold, "gpu": _gpu(gpu, yes), "max_hours": max_hours, "preprocess": preprocess}
    if not fan_out:
        return _deliver(train_job(chosen[0], title=title, **options_), dry_run, follow, out, as_json)
    jobs = train_jobs(chosen, **options_)
    _write(jobs, out, as_json) if dry_run else _fan_out(jobs, runs, out, as_json)


@push.command()
@click.option("--runs", multiple=True, metavar="RUN", help="A training kernel (OWNER/SLUG), or a run directory.")
@click.argument("more", nargs=-1, metavar="[RUN]...")
@click.option("--weights", type=options.NUMBERS, help="One number for each run, such as 2,1.")
@click.option("--method", type=click.Choice(["mean", "geometric", "weights"]), help="How to blend.  [default: mean]")
@click.option("--dataset", "as_dataset", is_flag=True, help="Publish run directories as private datasets first.")
@gpu_option
@yes
@max_hours_option(8.5)
@options.local_score
@title_option
@dry_run_option
@wait_option
@folder_option
@options.as_json
def infer(
    runs: tuple[str, ...],
    more: tuple[str, ...],
    weights: list[float] | None,
    method: str | None,
    as_dataset: bool,
    gpu: str,
    yes: bool,
    max_hours: float,
    local_score: str,
    title: str,
    dry_run: bool,
    follow: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Push an inference kernel, which leaves a submission.

    RUNs are training kernels, whose outputs are mounted, or run directories: those that came from Kaggle are mounted
    from there, others need --dataset.

    \b
    Example:  kit kernels push infer --runs runs/deberta-6b52c88c runs/roberta-6ba09c0d --weights 2,1
    """
    if more and len(runs) > 1:
        raise click.UsageError("Name all runs after one --runs, or each with a --runs of its own.")
    method = method or ("weights" if weights else "mean")
    if bool(weights) != (method == "weights"):
        raise click.UsageError("--weights goes with --method weights, and it with --weights.")
    from kit.remote import sources
    from kit.remote.job import infer_job

    names, gpu, how = [*runs, *more], _gpu(gpu, yes), {"weights": weights, "as_dataset": as_dataset}
    if dry_run:
        found = sources.named(names, _owner(), **how)
    else:
        with connect() as client:
            found = sources.resolve(client, names, **how, say=show.note)
    settings = {"method": method, "gpu": gpu, "max_hours": max_hours, "local_score": local_score}
    _deliver(infer_job(found, **settings, title=title or "kit infer"), dry_run, follow, out, as_json)


@kernels.command()
@click.argument("names", nargs=-1, metavar="[OWNER/SLUG[/VERSION]]...")
@options.as_json
def status(names: tuple[str, ...], as_json: bool) -> None:
    """Show the state of kernels, by default of those in kernels/.

    \b
    Example:  kit kernels status kit-infer
    """
    from kit.remote import kernels as remote
    from kit.remote.push import written

    with connect() as client:
        refs = [remote.KernelRef.parse(name, client.owner()) for name in names] or written(FOLDER)
        states = [remote.status(client, ref) if names else remote.glance(client, ref) for ref in refs]
    if as_json:
        show.json_out([{"kernel": str(s.ref), "status": s.status, "failure": s.failure, "url": s.ref.url} for s in states])
    else:
        show.table("", ["kernel", "status", "failure"], [[str(s.ref), s.status, s.failure] for s in states])
    if not states:
        show.note("No kernels in kernels/. Next: kit kernels push train --backbone deberta")
    failed = [s.ref for s in states if s.status in remote.FAILURES]
    for ref in failed:
        show.note(f"{ref}: `kit kernels logs {ref}` shows why")
    if failed:
        raise SystemExit(1)
