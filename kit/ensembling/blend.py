"""Represent a fitted blend, apply it to predictions, and save it as JSON.

Use `apply_blend`, `read_blend` and `write_blend`; `fit_blend` finds one. A blend has members by
name, their weights, the pool that combines them, and a calibration of the result.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from kit.ensembling.calibration import Calibration, calibration_content, parse_calibration
from kit.ensembling.pool import (
    arithmetic_pool,
    geometric_pool,
    normalise_weights,
    stack_predictions,
)
from kit.ensembling.serialize import check_interval, check_number, read_fitted, write_fitted
from kit.errors import DataError
from kit.predictions import make_predictions

Pool = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Blend:
    """A fitted blend.

    Attributes:
        members: names, those dropped by the fit included.
        weights: convex weights in the same order; a dropped member has weight 0, and its
            predictions are not needed.
        pool: how members are combined.
        calibration: of the pooled probabilities.
        spread: by name, the 95% bootstrap interval of each weight that the fit left free.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    pool: Pool
    calibration: Calibration = field(default_factory=Calibration)
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)

    @property
    def used(self) -> tuple[str, ...]:
        """The members of weight above 0."""
        pairs = zip(self.members, self.weights, strict=True)
        return tuple(name for name, weight in pairs if weight > 0)

    def subset(self, names: Collection[str]) -> "Blend":
        """Return the blend of those members that are in `names`, with weights scaled to sum to 1.

        Pool and calibration stay as fitted. The intervals were those of the full blend and are
        dropped.

        Raises:
            KitError: none of the members has a weight.
        """
        weights = {
            name: weight
            for name, weight in zip(self.members, self.weights, strict=True)
            if weight > 0 and name in names
        }
        shares = normalise_weights(list(weights.values()), list(weights))
        return replace(self, members=tuple(weights), weights=tuple(shares.tolist()), spread={})

    def combine(self, members: np.ndarray) -> np.ndarray:
        """Return the blend (N, 3) of probabilities (M, N, 3), in the order of `members`."""
        pool = geometric_pool if self.pool == "geometric" else arithmetic_pool
        return self.calibration.transform(pool(members, np.array(self.weights)))


def apply_blend(
    blend: Blend,
    frames: Sequence[pd.DataFrame],
    names: Sequence[str],
    files: Sequence[object] | None = None,
) -> pd.DataFrame:
    """Blend prediction frames, matched to the members by name and to each other by id.

    Args:
        blend: as `read_blend` or a fit returns it.
        frames: prediction frames with the same ids in any order, one for each member that has a
            weight; frames of dropped members are ignored.
        names: of the frames, as `members.read_members` returns them.
        files: where the frames come from, for error hints.

    Returns:
        A prediction frame in the first used frame's order of rows.

    Raises:
        DataError: a member has no frame or several, or a frame belongs to no member; ids differ.
    """
    _check_names(blend, names)
    used = [i for i, name in enumerate(names) if name in blend.used]
    used_names = [names[i] for i in used]
    ids, members = stack_predictions(
        [frames[i] for i in used], used_names, files and [files[i] for i in used]
    )

    weight_of = dict(zip(blend.members, blend.weights, strict=True))
    weights = tuple(weight_of[name] for name in used_names)
    ordered = replace(blend, members=tuple(used_names), weights=weights)
    return make_predictions(ids, ordered.combine(members))


def _check_names(blend: Blend, names: Sequence[str]) -> None:
    """Raise DataError unless the names are the blend's members, each once; dropped are optional."""
    missing = [name for name in blend.used if name not in names]
    unknown = [name for name in names if name not in blend.members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    problems = []
    if missing:
        problems.append(f"no file is given for {', '.join(missing)}, which the blend needs")
    if unknown:
        problems.append(f"the blend does not know {', '.join(unknown)}")
    if repeated:
        problems.append(f"more than one file is given for {', '.join(repeated)}")
    if not problems:
        return

    dropped = [name for name in blend.members if name not in blend.used]
    known = f"Its members: {', '.join(blend.used)}"
    if dropped:
        known += f"; dropped: {', '.join(dropped)}"
    raise DataError(
        f"{'; '.join(problems)}. {known}",
        "Name one file for each member, such as RUN/test.csv, and no other; "
        "dropped members may be left out.",
    )


def blend_content(blend: Blend) -> dict[str, Any]:
    """Return the blend as plain values that JSON can hold and `parse_blend` takes."""
    members = []
    for name, weight in zip(blend.members, blend.weights, strict=True):
        member = {"name": name, "weight": weight}
        if name in blend.spread:
            low, high = blend.spread[name]
            member |= {"low": low, "high": high}
        members.append(member)
    return {
        "pool": blend.pool,
        "members": members,
        "calibration": calibration_content(blend.calibration),
    }


def write_blend(blend: Blend, path: str | Path, fitted: dict[str, Any]) -> None:
    """Write the blend as JSON, with a record of what it was `fitted` to."""
    write_fitted(path, "blend", blend_content(blend) | {"fitted": fitted})


def cross_fitted_loss(path: str | Path) -> float | None:
    """Return the loss of a saved blend on rows it was not fitted to; None if the file lacks it.

    Raises:
        DataError: the file is not a saved blend.
    """
    fitted = read_fitted(path, "blend").get("fitted")
    loss = fitted.get("log_loss_cross_fitted") if isinstance(fitted, dict) else None
    return loss if isinstance(loss, float) else None


def read_blend(path: str | Path) -> Blend:
    """Return a saved blend.

    Raises:
        DataError: the file is missing or is not one.
        KitError: all its weights are 0.
    """
    return parse_blend(path, read_fitted(path, "blend"))


def parse_blend(path: str | Path, content: dict[str, Any]) -> Blend:
    """Return the blend that a JSON object describes; `path` is for errors, as of `read_blend`."""
    hint = "The file was edited by hand; fit the blend again."
    pool = content.get("pool")
    calibration = content.get("calibration")
    if pool not in ("arithmetic", "geometric"):
        raise DataError(f"{path}: pool is {str(pool)[:40]!r}", hint)
    if not isinstance(calibration, dict):
        raise DataError(f"{path}: calibration is {str(calibration)[:40]!r}", hint)

    members = content.get("members")
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        members = []
    names = [member.get("name") for member in members]
    if (
        not names
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) < len(names)
    ):
        raise DataError(f"{path}: members are not a list of unique names with weights", hint)

    weights = [check_number(path, member.get("weight"), "weight", low=0) for member in members]
    # Raises where all weights are 0.
    normalise_weights(weights, names)
    intervals = {member["name"]: check_interval(path, member) for member in members}
    return Blend(
        members=tuple(names),
        weights=tuple(weights),
        pool=pool,
        calibration=parse_calibration(path, calibration),
        spread={name: interval for name, interval in intervals.items() if interval},
    )
