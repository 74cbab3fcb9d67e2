"""The commands that put a notebook on Kaggle: kernels push train, kernels push infer."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.cli import options, show
from kit.cli.kaggle import connect

if TYPE_CHECKING:
    from kit.kaggle.job import Job

FOLDER = Path("kernels")
NEXT = {  # after a run has completed, by the kind of its job
    "train": "Next: kit kernels push infer --runs {ref}",
    "infer": 'Next: kit submit --kernel {ref} -m "what it is"',
    "": "Next: kit kernels output {ref}",
}

_gpu = click.option(
    "--gpu",
    type=click.Choice(["t4", "p100", "none"]),
    default="t4",
    show_default=True,
    help="A T4 session has two of them; Kaggle has retired the P100.",
)
_yes = click.option("--yes", is_flag=True, help="Take a T4 where the P100 was asked for.")
_title = click.option("--title", default="", help="Its name on Kaggle.  [default: what it does]")
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Write the notebook's folder and stop; Kaggle is not asked."
)
_wait = click.option("--wait", "follow", is_flag=True, help="Follow the run to its end.")
_out = click.option(
    "--out",
    type=options.FILE,
    default=FOLDER,
    show_default=True,
    help="Where the notebook's folder is written.",
)


def _max_hours(default: float, most: float) -> Any:
    hours = click.FloatRange(0, most, min_open=True)
    return click.option(
        "--max-hours", type=hours, default=default, show_default=True, help="The run's time budget."
    )


@click.group()
def push() -> None:
    """Push a notebook that trains or predicts.

    \b
    Example:  kit kernels push train --backbone deberta --dry-run
    """


@push.command()
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    help="A name from `kit backbones`; several with --fan-out.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="A name from `kit recipes`, or a TOML file; as --backbone.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a recipe key; may repeat.",
)
@click.option(
    "--fold", default="all", show_default=True, help="A fold's number, `all`, or `holdout`."
)
@options.preparing
@_gpu
@_yes
@_max_hours(9.0, 12)
@options.restart
@click.option(
    "--fan-out",
    is_flag=True,
    help="A kernel for each backbone and fold, two at once, brought home.",
)
@options.runs
@_title
@_dry_run
@_wait
@_out
@options.as_json
def train(
    backbones: tuple[str, ...],
    recipes: tuple[str, ...],
    overrides: tuple[str, ...],
    fold: str,
    gpu: str,
    yes: bool,
    max_hours: float,
    restart: int,
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
        raise click.UsageError(
            "--fan-out names its kernels and waits for them by itself: no --title, no --wait."
        )
    from kit.kaggle.job import train_job, train_jobs
    from kit.recipe.load import choose_recipe

    chosen = [
        choose_recipe(b, r, overrides) for r in recipes or (None,) for b in backbones or (None,)
    ]
    how = {"fold": fold, "gpu": _served(gpu, yes), "max_hours": max_hours, "restarts": restart}
    how |= {"preprocess": preprocess}
    if not fan_out:
        return _deliver(train_job(chosen[0], title=title, **how), dry_run, follow, out, as_json)
    jobs = train_jobs(chosen, **how)
    _write(jobs, out, as_json) if dry_run else _fan_out(jobs, runs, out, as_json)


@push.command()
@click.option(
    "--runs",
    multiple=True,
    metavar="RUN",
    help="A training kernel (OWNER/SLUG), or a run directory.",
)
@click.argument("more", nargs=-1, metavar="[RUN]...")
@click.option("--weights", type=options.NUMBERS, help="One number for each run, such as 2,1.")
@click.option(
    "--method",
    type=click.Choice(["mean", "geometric", "weights"]),
    help="How to blend.  [default: mean]",
)
@click.option(
    "--blend", type=options.FILE, help="A blend from `kit ensemble --save`; runs are found by name."
)
@click.option(
    "--calibration",
    type=options.FILE,
    help="What `kit calibrate --save` wrote, for what comes out.",
)
@click.option(
    "--dataset",
    "as_dataset",
    is_flag=True,
    help="Publish run directories as private datasets first.",
)
@_gpu
@_yes
@_max_hours(8.5, 9)
@options.local_score
@_title
@_dry_run
@_wait
@_out
@options.as_json
def infer(
    runs: tuple[str, ...],
    more: tuple[str, ...],
    weights: list[float] | None,
    method: str | None,
    blend: Path | None,
    calibration: Path | None,
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

    RUNs are training kernels, whose outputs are mounted, or run directories: those that came from
    Kaggle are mounted from there, others need --dataset.

    \b
    Example:  kit kernels push infer --runs runs/deberta-6b52c88c runs/roberta-6ba09c0d --weights
    2,1
              kit kernels push infer --runs runs/deberta-6b52c88c runs/roberta-6ba09c0d --blend
              blend.json
    """
    if not runs:
        raise click.UsageError("Name training kernels or run directories with --runs.")
    if more and len(runs) > 1:
        raise click.UsageError("Name all runs after one --runs, or each with a --runs of its own.")
    if blend and (weights or method or calibration):
        raise click.UsageError("--blend brings its own weights, method and calibration.")
    method = method or ("weights" if weights else "mean")
    if bool(weights) != (method == "weights"):
        raise click.UsageError("--weights goes with --method weights, and it with --weights.")
    from kit.ensemble.blend import read_blend
    from kit.ensemble.calibration import read_calibration
    from kit.kaggle.job import infer_job
    from kit.kaggle.matching import match_sources
    from kit.kaggle.sources import identified_source, named_source, resolve_sources

    names, gpu, how = (
        [*runs, *more],
        _served(gpu, yes),
        {"weights": weights, "as_dataset": as_dataset},
    )
    settings = {"method": method, "gpu": gpu, "max_hours": max_hours, "local_score": local_score}
    settings |= {
        "blend": blend and read_blend(blend),
        "calibration": calibration and read_calibration(calibration),
    }
    with nullcontext() if dry_run else connect() as client:
        found = named_source(names, client.owner() if client else _owner(), **how)
        if blend:
            found = identified_source(client, found) if client else found
            found = match_sources(settings["blend"], found, say=show.note)
        job = infer_job(
            found, **settings, title=title or "kit infer"
        )  # refuses before a dataset is published
        if client:
            resolve_sources(client, names, **how, say=show.note)
    _deliver(job, dry_run, follow, out, as_json)


def _served(gpu: str, yes: bool) -> str:
    """The GPU that Kaggle will give for the one asked for."""
    from kit.kaggle.job import gpu_name as served

    name, remark = served(gpu, yes)
    if remark:
        show.note(remark)
    return name


def _owner() -> str:
    """Whose notebook a dry run writes, without asking Kaggle."""
    from kit.kaggle import credentials

    return credentials.username() or "OWNER"


def _deliver(job: "Job", dry_run: bool, follow: bool, out: Path, as_json: bool) -> None:
    """Pushes one job, and follows it if asked to."""
    if dry_run:
        return _write([job], out, as_json)
    from kit.kaggle.kernels import wait_for_kernel
    from kit.kaggle.push import push_kernel as run

    with connect() as client:
        pushed = run(client, job, out / job.slug, say=show.note)
    result = {"kernel": str(pushed.ref), "url": pushed.url, "folder": str(pushed.folder)}
    show.note(f"pushed {pushed.ref}, see {pushed.url}")
    if follow:
        with connect(attempts=40) as client:
            result["status"] = wait_for_kernel(client, pushed.ref, say=show.note).status
    show.json_out([result]) if as_json else click.echo(result["kernel"])
    show.note(
        NEXT[job.kind].format(ref=pushed.ref) if follow else f"Next: kit kernels wait {pushed.ref}"
    )


def _write(jobs: "list[Job]", out: Path, as_json: bool) -> None:
    """Writes the folders, and pushes nothing."""
    from kit.kaggle.push import write_folder

    owner = _owner()
    folders = [write_folder(job, owner, out / job.slug) for job in jobs]
    if as_json:
        return show.json_out(
            [
                {"kernel": f"{owner}/{j.slug}", "folder": str(f)}
                for j, f in zip(jobs, folders, strict=True)
            ]
        )
    for folder in folders:
        click.echo(folder)
    if owner == "OWNER":
        show.note(
            "No credential here names your account, so OWNER stands for it in what is written"
        )
    first = "make a token (`kit doctor` says how), then" if owner == "OWNER" else "look at it, then"
    show.note(f"Written, not pushed. Next: {first} the same command without --dry-run")


def _fan_out(jobs: "list[Job]", runs: Path, out: Path, as_json: bool) -> None:
    """Runs all jobs, brings their runs home, and fails if one of them did."""
    from kit.kaggle.fan_out import fan_out

    with connect(attempts=40) as client:
        outcomes = fan_out(client, jobs, runs, out, say=show.note)
    rows = [
        {"title": o.title, "status": o.status, "kernel": str(o.ref or ""), "problem": o.problem}
        for o in outcomes
    ]
    if as_json:
        show.json_out(rows)
    else:
        show.table(
            "", ["job", "status", "kernel"], [[r["title"], r["status"], r["kernel"]] for r in rows]
        )
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        show.note(f"{row['title']}: {row['problem']}")
    if failed:
        show.note("Next: the same command again; it pushes only what is missing")
        raise SystemExit(1)
    folders = sorted({str(runs / str(job.settings["run_name"])) for job in jobs})
    show.note(f"Next: kit kernels push infer --runs {' '.join(folders)}")
