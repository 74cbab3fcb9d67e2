"""Define `kit kernels push train` and `kit kernels push infer`, which put a notebook on Kaggle."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kit.baselines import BASELINES
from kit.cli import options, output
from kit.cli.kaggle import connect

if TYPE_CHECKING:
    from kit.kaggle.fan_out import JobOutcome
    from kit.kaggle.job import Job

FOLDER = Path("kernels")
UNKNOWN_OWNER = "OWNER"  # in the folder of a dry run without a credential

# The next step after a run has completed, by the kind of its job.
NEXT = {
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
_yes = click.option("--yes", is_flag=True, help="Accept the two T4 that Kaggle gives for a P100.")
_title = click.option(
    "--title", default="", help="Its title on Kaggle.  [default: made from the job]"
)
_docker_image = click.option(
    "--docker-image",
    default="",
    metavar="IMAGE",
    help="Run in this image, as a run's log names it.  [default: Kaggle's latest]",
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Write the notebook's folder, and send nothing to Kaggle."
)
_wait = click.option("--wait", "follow", is_flag=True, help="Follow the run to its end.")
folder_option = click.option(
    "--out",
    type=options.FILE,
    default=FOLDER,
    show_default=True,
    help="Where the notebook's folder is written.",
)


def session_hours(default: float, maximum: float) -> Any:
    """Return the option --max-hours of a kernel's run."""
    hours = click.FloatRange(0, maximum, min_open=True)
    return click.option(
        "--max-hours", type=hours, default=default, show_default=True, help="The run's time budget."
    )


@click.group()
def push_group() -> None:
    """Push a notebook that trains or predicts.

    \b
    Example:  kit kernels push train --backbone deberta --dry-run
    """


@push_group.command("train")
@click.option(
    "--backbone",
    "backbones",
    multiple=True,
    help="A name from `kit backbones`, a hub id, or a name of `kit baseline`, such as boosted;"
    " several with --fan-out.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="A name from `kit recipes`, or a TOML file; several with --fan-out.",
)
@options.overrides
@click.option(
    "--fold", default="all", show_default=True, help="A fold's number, `all`, or `holdout`."
)
@options.preprocess_options
@_gpu
@_yes
@session_hours(9.0, 12)
@options.restart
@click.option(
    "--fan-out",
    is_flag=True,
    help="One kernel per backbone and fold, two at once; collect their runs.",
)
@options.runs
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="SOURCE",
    help="Take the backbone's weights from a Kaggle Model"
    " (OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION]) or dataset (OWNER/SLUG[/VERSION]), not from the"
    " Hugging Face hub.",
)
@options.competition
@_docker_image
@_title
@dry_run_option
@_wait
@folder_option
@options.as_json
def push_train(
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
    models: tuple[str, ...],
    competition: str,
    docker_image: str,
    title: str,
    dry_run: bool,
    follow: bool,
    out: Path,
    as_json: bool,
    **preprocess: Any,
) -> None:
    """Push a training kernel.

    The rows are prepared on Kaggle, so the options of `kit preprocess` are options here. Where all
    folds do not fit into --max-hours, each gets a kernel of its own, as with --fan-out.

    \b
    Example:  kit kernels push train --backbone deberta --fold all --max-hours 9
              kit kernels push train --backbone deberta --fold all --fan-out
    """
    if max(len(backbones), len(recipes)) > 1 and not fan_out:
        raise click.UsageError("Several backbones or recipes need --fan-out.")
    if fan_out and (title or follow):
        raise click.UsageError(
            "--fan-out names its kernels and waits for them itself; leave out --title and --wait."
        )
    classical = [name for name in backbones if name in BASELINES]
    backbones = tuple(name for name in backbones if name not in BASELINES)
    if classical and not backbones:
        options.refuse_combination(
            f"--backbone {classical[0]}",
            "it is a classical model, fitted in one go and without a recipe.",
            recipe=recipes,
            set=overrides,
            model=models,
            restart=restart or None,
        )
    from kit.kaggle.job import baseline_job, train_job, train_jobs
    from kit.kaggle.session_hours import plan_sessions
    from kit.kaggle.sources import parse_weights
    from kit.recipe.load import choose_recipe

    # Without any name, the choice of a recipe says what to name.
    networks = backbones or (() if classical else (None,))
    chosen = [
        choose_recipe(backbone, recipe, overrides)
        for recipe in recipes or (None,)
        for backbone in networks
    ]
    for backbone, recipe in zip(backbones * len(recipes or (1,)), chosen, strict=False):
        output.print_backbone(backbone, recipe)
    job_options: dict[str, Any] = {
        "fold": fold,
        "gpu": _choose_gpu(gpu, yes),
        "max_hours": max_hours,
        "restarts": restart,
        "preprocess": preprocess,
        "weights": [parse_weights(model) for model in models],
        "competition": competition,
        "docker_image": docker_image,
    }
    folds = preprocess["folds"]
    shared = ("fold", "max_hours", "preprocess", "competition", "docker_image")
    shared_options = {name: job_options[name] for name in shared}
    fits = [baseline_job(name, title=title, **shared_options) for name in classical]
    for name in classical:
        output.print_note(f"{name}: minutes on Kaggle's CPU, without a GPU")
    if classical and not fan_out:
        return _push_or_write(fits[0], dry_run, follow, out, as_json)

    # A mistake in the job is reported before its hours are.
    jobs = [*train_jobs(chosen, **job_options), *fits]
    plans = [plan_sessions(recipe, fold, folds, max_hours, job_options["gpu"]) for recipe in chosen]
    for plan in plans:
        output.print_note(plan.summary)
    split = any(len(plan.folds) > 1 for plan in plans)
    if not fan_out and not split:
        job = train_job(chosen[0], title=title, **job_options)
        return _push_or_write(job, dry_run, follow, out, as_json)

    if title:
        raise click.UsageError(
            f"All {folds} folds do not fit into --max-hours {max_hours:g}, so each gets a kernel of"
            " its own, and --title cannot name them. Leave it out, or choose one --fold."
        )
    if dry_run:
        write_folders(jobs, out, as_json)
    else:
        _fan_out(jobs, runs, out, as_json)


@push_group.command("infer")
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
    help="How to blend the runs.  [default: mean]",
)
@click.option(
    "--blend",
    type=options.FILE,
    help="A blend from `kit ensemble --save`; its members are matched by name.",
)
@click.option(
    "--calibration",
    type=options.FILE,
    help="A calibration from `kit calibrate --save`, applied to the result.",
)
@click.option(
    "--dataset",
    "as_dataset",
    is_flag=True,
    help="Publish run directories as private datasets first.",
)
@_gpu
@_yes
@session_hours(8.5, 9)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="SOURCE",
    help="A Kaggle Model or dataset with the weights below a run, as of a judge's adapters."
    "  [default: those that the runs' bases have on Kaggle]",
)
@options.local_score
@options.competition
@_docker_image
@_title
@dry_run_option
@_wait
@folder_option
@options.as_json
def push_infer(
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
    models: tuple[str, ...],
    local_score: str,
    competition: str,
    docker_image: str,
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
    Example:  kit kernels push infer --runs me/kit-a me/kit-b --weights 2,1
              kit kernels push infer --runs me/kit-a me/kit-b --blend blend.json
    """
    if not runs:
        raise click.UsageError("Name training kernels or run directories with --runs.")
    if more and len(runs) > 1:
        raise click.UsageError("Name all runs after one --runs, or each with its own --runs.")
    if blend and (weights or method or calibration):
        raise click.UsageError(
            "--blend has its own weights, method and calibration; leave out --weights, --method and"
            " --calibration."
        )
    method = method or ("weights" if weights else "mean")
    if bool(weights) != (method == "weights"):
        raise click.UsageError("--method weights and --weights need each other.")
    from kit.ensembling.blend import cross_fitted_loss, read_blend
    from kit.ensembling.calibration import read_calibration
    from kit.kaggle.job import infer_job, pin_datasets
    from kit.kaggle.sources import (
        base_sources,
        identify_runs,
        match_sources,
        parse_sources,
        parse_weights,
        resolve_sources,
    )

    names = [*runs, *more]
    gpu = _choose_gpu(gpu, yes)
    fitted = read_blend(blend) if blend else None
    if blend and not local_score and (loss := cross_fitted_loss(blend)) is not None:
        local_score = f"{loss:.5f}"
    with nullcontext() if dry_run else connect() as client:
        owner = client.owner() if client else _owner()
        sources = parse_sources(names, owner, weights=weights, as_dataset=as_dataset)
        if fitted:
            if client:
                sources = identify_runs(client, sources)
            sources = match_sources(fitted, sources, say=output.print_note)

        # Made before the sources are resolved: a job that is refused must not publish a dataset.
        job = infer_job(
            sources,
            method=method,
            blend=fitted,
            calibration=read_calibration(calibration) if calibration else None,
            gpu=gpu,
            max_hours=max_hours,
            title=title or "kit infer",
            competition=competition,
            docker_image=docker_image,
            local_score=local_score,
            weights=[parse_weights(model) for model in models] or base_sources(names, FOLDER),
        )
        if client:
            resolved = resolve_sources(
                client, names, weights=weights, as_dataset=as_dataset, say=output.print_note
            )
            job = pin_datasets(job, resolved)
    _push_or_write(job, dry_run, follow, out, as_json)


def _choose_gpu(gpu: str, yes: bool) -> str:
    """Return the GPU to ask Kaggle for, with a note if it is not the one that the user chose."""
    from kit.kaggle.job import choose_gpu

    name, remark = choose_gpu(gpu, accept_t4=yes)
    if remark:
        output.print_note(remark)
    return name


def _owner() -> str:
    """Return the account of a dry run's notebook, without asking Kaggle."""
    from kit.kaggle import credentials

    return credentials.username() or UNKNOWN_OWNER


def _push_or_write(job: "Job", dry_run: bool, follow: bool, out: Path, as_json: bool) -> None:
    """Push one job and follow it if asked to; in a dry run only write its folder."""
    if dry_run:
        return write_folders([job], out, as_json)
    from kit.kaggle.kernels import wait_for_kernel
    from kit.kaggle.push import push_kernel

    with connect() as client:
        pushed = push_kernel(client, job, out / job.slug, say=output.print_note)
    result = {"kernel": str(pushed.ref), "url": pushed.url, "folder": str(pushed.folder)}
    output.print_note(f"pushed {pushed.ref}, see {pushed.url}")

    # A new connection, because hours of waiting need more attempts than a single command.
    if follow:
        with connect(attempts=40) as client:
            state = wait_for_kernel(client, pushed.ref, follow_log=True, say=output.print_note)
            result["status"] = state.status

    if as_json:
        output.print_json([result])
    else:
        click.echo(result["kernel"])
    next_step = NEXT[job.kind] if follow else "Next: kit kernels wait {ref}"
    output.print_note(next_step.format(ref=pushed.ref))


def write_folders(jobs: "list[Job]", out: Path, as_json: bool) -> None:
    """Write the folders of these jobs without pushing them."""
    from kit.kaggle.push import write_kernel_folder

    owner = _owner()
    folders = [write_kernel_folder(job, owner, out / job.slug) for job in jobs]
    if as_json:
        pairs = zip(jobs, folders, strict=True)
        return output.print_json(
            [{"kernel": f"{owner}/{job.slug}", "folder": str(folder)} for job, folder in pairs]
        )

    for folder in folders:
        click.echo(folder)
    if owner == UNKNOWN_OWNER:
        output.print_note(
            f"No Kaggle credential names your account, so {owner} is written in its place"
        )
        first = "make a token (see `kit doctor`)"
    else:
        first = "look at it"
    output.print_note(f"Written, not pushed. Next: {first}, then run this again without --dry-run")


def print_outcomes(outcomes: "list[JobOutcome]") -> None:
    """Print what became of each job."""
    cells = [[outcome.title, outcome.status, str(outcome.ref or "")] for outcome in outcomes]
    output.print_table("", ["job", "status", "kernel"], cells)


def require_outcomes(outcomes: "list[JobOutcome]") -> None:
    """Say why jobs failed, and exit with 1 if one did."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        output.print_note(f"{outcome.title}: {outcome.problem}")
    if failed:
        output.print_note("Next: run the same command again; it pushes only what is missing")
        raise SystemExit(1)


def _fan_out(jobs: "list[Job]", runs: Path, out: Path, as_json: bool) -> None:
    """Run all jobs and collect their folds; the exit code is 1 if one of them failed."""
    from kit.kaggle.fan_out import fan_out

    with connect(attempts=40) as client:
        outcomes = fan_out(client, jobs, runs, out, say=output.print_note)

    if as_json:
        output.print_json([outcome.as_dict() for outcome in outcomes])
    else:
        print_outcomes(outcomes)
    require_outcomes(outcomes)

    folders = sorted({str(runs / str(job.settings["run_name"])) for job in jobs})
    output.print_note(f"Next: kit kernels push infer --runs {' '.join(folders)}")
