"""Turn what a user names with --runs into sources that Kaggle can mount.

Use `parse_sources` without asking Kaggle, `resolve_sources` to check that each can be mounted, and
`match_sources` to give each source its share of a saved blend.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from kit.ensembling.blend import Blend
from kit.ensembling.members import refuse_repeated_paths
from kit.errors import KitError
from kit.kaggle import kernels
from kit.kaggle.client import Client
from kit.kaggle.collect import fold_origins
from kit.kaggle.datasets import dataset_slug, publish_dataset
from kit.kaggle.errors import RefusedError
from kit.kaggle.job import Source, default_weights
from kit.kaggle.kernel_ref import KernelRef
from kit.kaggle.outputs import output_addresses
from kit.kaggle.push import METADATA
from kit.model.base import run_bases
from kit.run import ORIGIN_FILE, Run
from kit.storage.atomic import read_text_file
from kit.wording import counted


def parse_sources(
    runs: Sequence[str | Path],
    owner: str,
    *,
    weights: Sequence[float] | None = None,
    as_dataset: bool = False,
) -> list[Source]:
    """Return the sources for kernels and local run directories, without asking Kaggle.

    A run directory that came from Kaggle is mounted from the kernels that trained it, so its
    weights are not uploaded again. With `as_dataset` it is the private dataset that
    `resolve_sources` publishes it as.

    Args:
        runs: OWNER/SLUG of a kernel, the slug of one of the owner's, or a run directory.
        owner: the user's name on Kaggle.
        weights: one for each of `runs`; the kernels of one run share its weight.

    Raises:
        KitError: a run directory was trained on this machine or is not finished, a name is not that
            of a kernel, one is named twice, or the number of weights is wrong.
    """
    if weights is not None and len(weights) != len(runs):
        raise KitError(
            f"{counted(len(weights), 'weight')} for {counted(len(runs), 'run')}",
            "Give one weight for each run, in the same order.",
        )
    if as_dataset and not any(Path(run).is_dir() for run in runs):
        raise KitError(
            "--dataset publishes run directories, but there is none at"
            f" {', '.join(map(str, runs))}",
            "Check the path; `kit train` makes a run directory.",
        )

    # A copy of a run has its kernels, which are refused as one source named twice.
    folders = [run for run in runs if str(run) and Path(run).is_dir()]
    refuse_repeated_paths(folders, copies=False)

    sources: list[Source] = []
    for run, weight in zip(runs, weights or [1.0] * len(runs), strict=True):
        if not str(run) or not Path(run).is_dir():
            sources.append(_parse_kernel(run, owner, weight))
        elif as_dataset:
            local = Run.open(run)
            local.models()
            local.check_files(weights=False)
            ref = f"{owner}/{dataset_slug(local)}"
            sources.append(Source(ref, weight, "dataset", (local.name,)))
        else:
            name = Run.open(run).name
            trained_by = _kernels_of_run(Path(run))
            for ref, versions in trained_by.items():
                share = weight / len(trained_by)
                sources.append(Source(ref, share, runs=(name,), versions=versions))
    return sources


def resolve_sources(
    client: Client,
    runs: Sequence[str | Path],
    *,
    weights: Sequence[float] | None = None,
    as_dataset: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> list[Source]:
    """Return the sources of `parse_sources` once Kaggle can mount them, publishing datasets.

    A dataset is returned with the version that was published.

    Raises:
        RefusedError: a kernel has not completed, or another version than the latest was named.
        KaggleError: a kernel does not exist, or a dataset cannot be published.
        KitError: as `parse_sources`.
    """
    sources = parse_sources(runs, client.owner(), weights=weights, as_dataset=as_dataset)
    for source in sources:
        if source.kind == "kernel":
            _require_complete(client, source.ref)
            _require_latest(client, source)
    if not as_dataset:
        return sources

    published = [publish_dataset(client, run, say=say) for run in runs if Path(run).is_dir()]
    versions = {dataset.ref: (dataset.version,) for dataset in published}
    return [
        replace(source, versions=versions.get(source.ref, source.versions)) for source in sources
    ]


def parse_weights(name: str) -> Source:
    """Return the source of an encoder's weights: a dataset, or a variation of a Kaggle Model.

    Args:
        name: OWNER/SLUG[/VERSION] or OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION].

    Raises:
        KitError: it is neither.
    """
    path = name.removeprefix("https://www.kaggle.com/").strip("/")
    for prefix in ("models/", "datasets/"):
        path = path.removeprefix(prefix)
    parts = path.split("/")
    version = int(parts[-1]) if len(parts) in (3, 5) and parts[-1].isdecimal() else 0
    slugs = parts[:-1] if version else parts
    valid = all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug) for slug in slugs)
    if len(slugs) not in (2, 4) or not valid:
        raise KitError(
            f"{name[:80]!r} is neither a dataset nor a model of Kaggle",
            "Write OWNER/SLUG[/VERSION] for a dataset, and"
            " OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION] for a model.",
        )
    kind = "dataset" if len(slugs) == 2 else "model"
    return Source("/".join(slugs), kind=kind, versions=(version,) if version else ())


def base_sources(runs: Sequence[str | Path], kernels_folder: Path) -> list[Source]:
    """Return the models and datasets with the weights below these runs.

    A local run names its bases; of a kernel, the folder that it was pushed from names what it
    mounted.

    Args:
        runs: as of `parse_sources`.
        kernels_folder: where the folders of pushed kernels are.

    Raises:
        KitError: it is not known where on Kaggle a local run's base is.
    """
    found: list[Source] = []
    for run in runs:
        if str(run) and Path(run).is_dir():
            for reference in run_bases(Path(run)):
                known = default_weights(reference.name)
                if not known:
                    raise KitError(
                        f"{run}: the weights of {reference.name} below it would not be on Kaggle",
                        f"Upload their folder (they were {reference.source}) as a dataset, and name"
                        " it with --model OWNER/SLUG, beside the weights of all other runs: none is"
                        " looked up then.",
                    )
                found += known
            continue
        slug = str(run).split("/")[-1] if str(run).count("/") < 2 else str(run).split("/")[1]
        path = kernels_folder / slug / METADATA
        if path.is_file():
            metadata = json.loads(read_text_file(path))
            mounted = [*metadata.get("model_sources", []), *metadata.get("dataset_sources", [])]
            found += map(parse_weights, mounted)
    return list(dict.fromkeys(found))


def identify_runs(client: Client, sources: Sequence[Source]) -> list[Source]:
    """Return the sources, each kernel with the names of the runs in its output.

    Raises:
        RefusedError: a kernel has not completed, or its output has no run.
        KaggleError: a kernel does not exist.
    """
    return [
        replace(source, runs=_runs_of_kernel(client, source.ref))
        if source.kind == "kernel" and not source.runs
        else source
        for source in sources
    ]


def match_sources(
    blend: Blend, sources: Sequence[Source], *, say: Callable[[str], None] = lambda _: None
) -> list[Source]:
    """Return the sources that a blend needs, each with its share of its runs' weights.

    Members and runs are matched by the runs' names, never by order. The sources that hold one run,
    as the kernels of its folds do, share its weight equally. A source whose runs the blend has
    dropped is left out, with a message. Where the runs of a source are not known, as in a dry run,
    no member is missed; the notebook compares them again.

    Raises:
        KitError: no source has the run of a member, or a source has only runs that are no members.
    """
    # How many sources hold a run: its weight is shared among them.
    copies = Counter(run for source in sources for run in source.runs)
    unknown = [s for s in sources if s.runs and not set(s.runs) & set(blend.members)]
    if unknown:
        listed = ", ".join(f"{source.ref} ({_shorten(source.runs)})" for source in unknown)
        raise KitError(
            f"no member of the blend is in {listed}; its members are {', '.join(blend.used)}",
            "Leave it out, or fit the blend again with its out-of-fold predictions.",
        )

    missing = [name for name in blend.used if name not in copies]
    if missing and all(source.runs for source in sources):
        raise KitError(
            f"the blend needs {', '.join(missing)}, which no source has; the sources have"
            f" {_shorten(sorted(copies))}",
            "Add its kernel or run directory to --runs.",
        )

    weights = dict(zip(blend.members, blend.weights, strict=True))
    matched: list[Source] = []
    for source in sources:
        weight = sum(weights.get(run, 0.0) / copies[run] for run in source.runs)
        if not source.runs:
            say(f"{source.ref}: its runs will be compared with the blend when it is pushed")
            matched.append(source)
        elif weight:
            matched.append(replace(source, weight=weight))
        else:
            say(f"{source.ref} is not mounted: the blend gives {_shorten(source.runs)} no weight")
    return matched


def _parse_kernel(name: str | Path, owner: str, weight: float) -> Source:
    # A path may look like OWNER/SLUG. Where there are run directories beside it, it is a misspelt
    # run, and `Run.open` raises an error that lists them.
    folder = Path(name).parent
    if "/" in str(name) and (str(folder) == "runs" or any(folder.glob(f"*/{ORIGIN_FILE}"))):
        Run.open(name)

    ref = KernelRef.parse(str(name), owner)
    return Source(ref.name, weight, versions=(ref.version,) if ref.version else ())


def _kernels_of_run(run: Path) -> dict[str, tuple[int, ...]]:
    """Return the kernels, as owner/slug, that trained a local run's folds, with their versions."""
    origins = fold_origins(run)
    folds = [folder.name for folder in Run.open(run).models()]
    missing = [fold for fold in folds if fold not in origins]
    if missing:
        were, them = ("was", "it") if len(missing) == 1 else ("were", "them")
        raise KitError(
            f"{run}: {', '.join(missing)} {were} trained on this machine, so Kaggle does not have "
            f"{them}",
            "Add --dataset to publish the run as a private dataset.",
        )

    # A kernel that trained several folds is one source.
    versions: dict[str, tuple[int, ...]] = {}
    for fold in folds:
        ref = KernelRef.parse(origins[fold])
        versions[ref.name] = versions.get(ref.name, ()) + ((ref.version,) if ref.version else ())
    return versions


def _runs_of_kernel(client: Client, ref: str) -> tuple[str, ...]:
    _require_complete(client, ref)
    files = map(PurePosixPath, output_addresses(client, KernelRef.parse(ref)))
    runs = tuple(sorted({file.parent.name for file in files if file.name == ORIGIN_FILE}))
    if not runs:
        raise RefusedError(
            f"the output of {ref} holds no run directory",
            f"Run `kit kernels logs {ref}` to see why.",
        )
    return runs


def _require_complete(client: Client, ref: str) -> None:
    """Raise unless the latest version, the one that Kaggle mounts, has an output."""
    status = kernels.kernel_status(client, KernelRef.parse(ref)).status
    if status != "COMPLETE":
        hint = (
            f"Run `kit kernels wait {ref}` to follow it."
            if status in kernels.ACTIVE
            else f"Run `kit kernels logs {ref}` to see why."
        )
        raise RefusedError(
            f"the latest version of {ref} is {status}, so it has no runs to mount", hint
        )


def _require_latest(client: Client, source: Source) -> None:
    """Raise where another version than the latest was named, since only that can be mounted."""
    if not source.versions:
        return
    latest = kernels.look_up_kernel(client, KernelRef.parse(source.ref)).latest
    older = next((version for version in source.versions if latest and version != latest), None)
    if older is None:
        return

    problem = f"Kaggle mounts only the latest version of {source.ref}, version {latest}"
    hint = (
        f"Add --dataset to publish the run directory itself, or name {source.ref} to use its latest"
        " version."
    )
    if source.runs:
        raise RefusedError(f"{problem}, but {source.runs[0]} is from version {older}", hint)
    raise RefusedError(
        f"{problem}, but version {older} was named",
        f"Download it with `kit kernels output {source.ref}/{older} --runs runs`. {hint}",
    )


def _shorten(runs: Sequence[str], limit: int = 8) -> str:
    """Return the first names of a list, and how many more there are."""
    rest = len(runs) - limit
    return ", ".join(runs[:limit]) + (f" and {rest} more" if rest > 0 else "")
