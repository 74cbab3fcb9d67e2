"""What a user names with --runs, made into what Kaggle can mount: training kernels, or datasets of run directories."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from kit.errors import KitError
from kit.kaggle import kernels
from kit.kaggle.client import Client
from kit.kaggle.collect import fold_origins
from kit.kaggle.datasets import dataset_slug, publish_dataset
from kit.kaggle.errors import RefusedError
from kit.kaggle.job import Source
from kit.kaggle.kernels import KernelRef
from kit.kaggle.outputs import output_addresses
from kit.run import Run


def resolve_sources(
    client: Client,
    runs: Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    as_dataset: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Source]:
    """What `named` says, known to be there: kernels have completed, datasets are published.

    Raises:
        RefusedError: a kernel has not completed, or has a later version than the one that was meant.
        KaggleError: a kernel is not there, a dataset cannot be published.
        KitError: as `named`.
    """
    found = named_source(runs, client.owner(), weights=weights, as_dataset=as_dataset)
    for source in found:
        if source.kind == "kernel":
            _require_complete(client, source.ref)
            _require_latest(client, source)
    if as_dataset:
        for run in (run for run in runs if Path(run).is_dir()):
            publish_dataset(client, run, say=say)
    return found


def named_source(
    runs: Sequence[str | Path],
    owner: str,
    *,
    weights: Sequence[float] | None = None,
    as_dataset: bool = False,
) -> list[Source]:
    """The sources for kernels (OWNER/SLUG, or the slug of one of yours) and local run directories; asks nobody.

    A run directory that came from Kaggle is mounted from the kernels it came from, so its weights are not uploaded
    again; with `as_dataset` it is the private dataset that it will be published as.

    Args:
        owner: the user's name.
        weights: one for each of `runs`; shared where one is several kernels.

    Raises:
        KitError: a run directory is on this machine only or not finished, a name is none, the weights do not fit.
    """
    if weights is not None and len(weights) != len(runs):
        raise KitError(
            f"{len(weights)} weights for {len(runs)} runs", "Give one for each, in their order."
        )
    if as_dataset and not any(Path(run).is_dir() for run in runs):
        raise KitError(
            f"--dataset publishes run directories, and there is none at {', '.join(map(str, runs))}",
            "Check the path; `kit train` makes a run directory.",
        )
    found: list[Source] = []
    for run, weight in zip(runs, weights or [1.0] * len(runs), strict=True):
        if not str(run) or not Path(run).is_dir():
            folder = Path(run).parent
            if "/" in str(run) and (str(folder) == "runs" or any(folder.glob("*/origin.json"))):
                Run.open(run)  # a path misspelt, not a kernel: this names the runs that are there
            ref = KernelRef.parse(str(run), owner)
            found.append(
                Source(
                    f"{ref.owner}/{ref.slug}",
                    weight,
                    versions=(ref.version,) if ref.version else (),
                )
            )
        elif as_dataset:
            run_dir = Run.open(run)
            run_dir.require_parts()
            found.append(
                Source(f"{owner}/{dataset_slug(run_dir)}", weight, "dataset", (run_dir.name,))
            )
        else:
            homes, name = _came_from(Path(run)), Run.open(run).name
            found += [
                Source(ref, weight / len(homes), runs=(name,), versions=homes[ref]) for ref in homes
            ]
    return found


def identified_source(client: Client, found: Sequence[Source]) -> list[Source]:
    """The sources, every kernel with the names of the runs in its output.

    Raises:
        RefusedError: a kernel has not completed, or left no run.
        KaggleError: it is not there.
    """
    return [
        replace(source, runs=_runs_of(client, source.ref))
        if source.kind == "kernel" and not source.runs
        else source
        for source in found
    ]


def _runs_of(client: Client, ref: str) -> tuple[str, ...]:
    _require_complete(client, ref)
    files = map(PurePosixPath, output_addresses(client, KernelRef.parse(ref)))
    runs = tuple(sorted({file.parent.name for file in files if file.name == "origin.json"}))
    if not runs:
        raise RefusedError(
            f"the output of {ref} holds no run directory", f"`kit kernels logs {ref}` shows why."
        )
    return runs


def _require_complete(client: Client, ref: str) -> None:
    """Raises unless the latest version, which is the one that Kaggle mounts, is known to have an output."""
    status = kernels.kernel_status(client, KernelRef.parse(ref)).status
    if status != "COMPLETE":
        what = "follows it" if status in kernels.ACTIVE else "shows why"
        command = "wait" if status in kernels.ACTIVE else "logs"
        raise RefusedError(
            f"the latest version of {ref} is {status}, so it has no runs to mount",
            f"`kit kernels {command} {ref}` {what}.",
        )


def _require_latest(client: Client, source: Source) -> None:
    """Raises where another version was meant than the latest, since no other can be mounted."""
    latest = (
        kernels.look_up_kernel(client, KernelRef.parse(source.ref)).latest if source.versions else 0
    )
    other = next((version for version in source.versions if latest and version != latest), None)
    if other is not None:
        what = f"{source.runs[0]} is from" if source.runs else "what was named is"
        home = (
            ""
            if source.runs
            else f"`kit kernels output {source.ref}/{other} --runs runs` brings it home. "
        )
        raise RefusedError(
            f"Kaggle mounts the latest version of {source.ref}, {latest}, and {what} version {other}",
            f"{home}Add --dataset to publish the run directory itself, or name {source.ref} for its latest version.",
        )


def _came_from(run: Path) -> dict[str, tuple[int, ...]]:
    """The kernels, as owner/slug, that the finished parts of a local run are from, with the versions of these."""
    known = fold_origins(run)
    parts = [part.name for part in Run.open(run).require_parts()]
    missing = [part for part in parts if part not in known]
    if missing:
        raise KitError(
            f"{run}: {', '.join(missing)} was trained here, so Kaggle does not have it",
            "Add --dataset to publish the run as a private dataset.",
        )
    homes: dict[str, tuple[int, ...]] = {}
    for ref in (KernelRef.parse(known[part]) for part in parts):
        name = f"{ref.owner}/{ref.slug}"
        homes[name] = homes.get(name, ()) + ((ref.version,) if ref.version else ())
    return homes
