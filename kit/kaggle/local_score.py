"""Find what a kernel's prediction scores on rows that its models have not seen.

Use `estimate_local_score`. Only the runs on this machine are read: those that the kernel's job
names, or that were collected from the kernels that it names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit.errors import KitError
from kit.kaggle.collect import fold_origins
from kit.run import ORIGIN_FILE, Run
from kit.task import HOLDOUT


def estimate_local_score(
    job: Mapping[str, Any], runs: str | Path, data: str | Path
) -> float | None:
    """Return the log loss of a job's blend on out-of-fold rows, or else on the holdout.

    Args:
        job: of an inference kernel, with its `sources`, `method` and perhaps `calibration`. A
            fitted blend has a loss of its own, which `kit kernels push infer` notes.
        runs: folder of run directories.
        data: the processed rows, with the labels that a blend of several runs needs.

    Returns:
        None where a run is not here, or has no such predictions.
    """
    if "blend" in job or "calibration" in job:
        return None
    try:
        members = _local_members(job, Path(runs))
        if not members:
            return None
        if len(members) == 1:
            return _run_loss(members[0][0])
        return _blend_loss(members, job.get("method", "mean"), Path(data))
    # A score that is not known is no reason to hold back a submission.
    except (KitError, OSError):
        return None


def _local_members(job: Mapping[str, Any], runs: Path) -> list[tuple[Run, float]]:
    """Return the runs of a job with their weights, none if one of them is not on this machine."""
    weights: dict[str, float] = {}
    for source in job.get("sources", []):
        names = source.get("runs") or _collected_from(source["ref"], runs)
        if not names or not all((runs / name / ORIGIN_FILE).is_file() for name in names):
            return []
        for name in names:
            weights[name] = weights.get(name, 0.0) + source["weight"] / len(names)
    return [(Run.open(runs / name), weight) for name, weight in weights.items()]


def _collected_from(ref: str, runs: Path) -> list[str]:
    """Return the names of the local runs of which a fold came from this kernel, OWNER/SLUG."""
    found = []
    for origin in sorted(runs.glob(f"*/{ORIGIN_FILE}")):
        kernels = fold_origins(origin.parent).values()
        if any(kernel == ref or kernel.startswith(f"{ref}/") for kernel in kernels):
            found.append(origin.parent.name)
    return found


def _run_loss(run: Run) -> float | None:
    """Return the out-of-fold loss of a run, or that of its holdout."""
    metrics = run.metrics
    scored = metrics.get("oof") or metrics["parts"].get(HOLDOUT)
    return scored["log_loss"] if scored else None


def _blend_loss(members: list[tuple[Run, float]], method: Any, data: Path) -> float | None:
    """Return the loss of several runs' blend on rows that all of them have predicted."""
    from kit.data.dataset import open_dataset
    from kit.ensembling.pool import blend_predictions
    from kit.evaluation.metrics import log_loss
    from kit.evaluation.truth import align_to_truth, read_truth, restrict_truth

    dataset = open_dataset(data)
    for run, _ in members:
        run.check_data(dataset.digest("train"))
    runs = [run for run, _ in members]
    if all(run.oof_path.is_file() for run in runs):
        frames = [run.oof for run in runs]
    elif all(run.fold(HOLDOUT).is_finished for run in runs):
        frames = [run.fold(HOLDOUT).predictions for run in runs]
    else:
        return None

    weights = [weight for _, weight in members] if method == "weights" else None
    blended = blend_predictions(frames, [run.name for run in runs], method, weights)
    truth = restrict_truth(read_truth(data / "train.parquet"), blended)
    return log_loss(*align_to_truth(blended, truth, "the blend"))
