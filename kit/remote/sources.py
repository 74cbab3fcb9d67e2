"""What a user names with --runs, made into what Kaggle can mount: training kernels, or datasets of run directories."""

from collections.abc import Callable, Sequence
from pathlib import Path

from kit.errors import KitError
from kit.remote import dataset, harvest, kernels
from kit.remote.client import Client
from kit.remote.faults import RefusedError
from kit.remote.job import Source
from kit.remote.kernels import KernelRef
from kit.rundir import RunDir


def resolve(
    client: Client,
    runs: Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    as_dataset: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Source]:
    """The sources for kernels (OWNER/SLUG, or the slug of one of yours) and local run directories.

    A run directory that came from Kaggle is mounted from the kernels it came from, so its weights are not uploaded
    again; with `as_dataset` each run directory is published as a private dataset instead.

    Args:
        weights: one for each of `runs`; shared where one is several kernels.

    Raises:
        RefusedError: a kernel has not completed.
        KitError: a run directory is on this machine only, or the weights do not fit.
        KaggleError: a kernel is not there, a dataset cannot be published.
    """
    if weights is not None and len(weights) != len(runs):
        raise KitError(f"{len(weights)} weights for {len(runs)} runs", "Give one for each, in their order.")
    found: list[Source] = []
    for run, weight in zip(runs, weights or [1.0] * len(runs), strict=True):
        if not Path(run).is_dir():
            ref = KernelRef.parse(str(run), client.owner() if "/" not in str(run) else "")
            found.append(Source(_complete(client, ref), weight))
        elif as_dataset:
            found.append(Source(dataset.publish(client, run, say=say).ref, weight, "dataset"))
        else:
            refs = _came_from(Path(run))
            found += [Source(_complete(client, KernelRef.parse(ref)), weight / len(refs)) for ref in refs]
    return found


def _complete(client: Client, ref: KernelRef) -> str:
    """owner/slug, which mounts the latest version, once that is known to have an output."""
    state = kernels.status(client, KernelRef(ref.owner, ref.slug))
    if state.status != "COMPLETE":
        raise RefusedError(
            f"the latest version of {ref.owner}/{ref.slug} is {state.status}, so it has no runs to mount",
            f"`kit kernels wait {ref.owner}/{ref.slug}` follows it.",
        )
    return f"{ref.owner}/{ref.slug}"


def _came_from(run: Path) -> list[str]:
    """The kernels, as owner/slug, that the finished parts of a local run were brought home from."""
    known = harvest.origins(run)
    parts = [part.name for part in RunDir.open(run).require_parts()]
    missing = [part for part in parts if part not in known]
    if missing:
        raise KitError(
            f"{run}: {', '.join(missing)} was trained here, so Kaggle does not have it",
            "Add --dataset to publish the run as a private dataset.",
        )
    return list(dict.fromkeys("/".join(known[part].split("/")[:2]) for part in parts))
