"""A fitted blend as it is kept: members by name, their weights, the pool they meet in, the temperature after it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from kit.ensemble import calibration
from kit.ensemble.calibration import Calibration
from kit.ensemble.pool import arithmetic_pool, geometric_pool, normalise_weights, stack_predictions
from kit.ensemble.serialize import check_interval, check_number, read_fitted, write_fitted
from kit.errors import DataError
from kit.predictions import make_predictions

Pool = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Blend:
    """Members' names, their convex weights in the same order, the pool, and the calibration of what comes out.

    A member that was tried and dropped has weight 0: its predictions are not needed. `spread` holds, by name, the
    interval of each weight that a fit left free: 95% of its bootstrap draws.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    pool: Pool
    calibration: Calibration = field(default_factory=Calibration)
    spread: Mapping[str, tuple[float, float]] = field(default_factory=dict, hash=False)

    @property
    def used(self) -> tuple[str, ...]:
        """The members with a weight."""
        return tuple(
            name for name, weight in zip(self.members, self.weights, strict=True) if weight > 0
        )

    def among(self, names: Collection[str]) -> "Blend":
        """The blend of those of its members that are in `names`, their weights scaled to sum to 1.

        Pool and calibration stay what they were fitted to be; the spread was that of all members, and goes.

        Raises:
            KitError: none of them has a weight.
        """
        weights = {
            n: w for n, w in zip(self.members, self.weights, strict=True) if w > 0 and n in names
        }
        shares = normalise_weights(list(weights.values()), list(weights))
        return replace(self, members=tuple(weights), weights=tuple(shares.tolist()), spread={})

    def of(self, members: np.ndarray) -> np.ndarray:
        """The blend of probabilities (M, N, 3), in the order of `members`: (N, 3)."""
        pooled = {"arithmetic": arithmetic_pool, "geometric": geometric_pool}[self.pool]
        return self.calibration.of(pooled(members, np.array(self.weights)))


def apply_blend(
    blend: Blend,
    frames: Sequence[pd.DataFrame],
    names: list[str],
    files: Sequence[object] | None = None,
) -> pd.DataFrame:
    """The blend of prediction frames, matched to its members by name and to each other by id; rows as in the first.

    Args:
        blend: what `read` or a fit gives.
        frames: prediction frames with the same ids in any order, one of each member that has a weight; those of
            dropped members are not looked at.
        names: what `members.read_members` calls them.
        files: where they come from, for errors.

    Raises:
        DataError: a member is missing or there twice, or a frame belongs to none; ids differ.
    """
    missing = [name for name in blend.used if name not in names]
    unknown = [name for name in names if name not in blend.members]
    if missing or unknown or len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        said = (
            [f"the blend needs {', '.join(missing)}, and no file is of {_it(missing)}"]
            if missing
            else []
        )
        said += [f"the blend does not know {', '.join(unknown)}"] if unknown else []
        said += (
            [f"the blend takes each member once, and {', '.join(twice)} is there again"]
            if twice
            else []
        )
        dropped = [name for name in blend.members if name not in blend.used]
        known = f"Its members: {', '.join(blend.used)}" + f"; dropped: {', '.join(dropped)}" * bool(
            dropped
        )
        raise DataError(
            f"{'; '.join(said)}. {known}",
            "Name one file for each member, such as RUN/test.csv, and no other; dropped members may be left out.",
        )
    given = [name for name in names if name in blend.used]
    places = [names.index(name) for name in given]
    ids, members = stack_predictions(
        [frames[i] for i in places], given, files and [files[i] for i in places]
    )
    weights = dict(zip(blend.members, blend.weights, strict=True))
    return make_predictions(
        ids,
        replace(blend, members=tuple(given), weights=tuple(map(weights.get, given))).of(members),
    )


def _it(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def blend_content(blend: Blend) -> dict[str, Any]:
    """The blend as plain values that JSON can hold and `parse` takes."""
    shares = [
        {"name": n, "weight": w}
        | (dict(zip(("low", "high"), blend.spread[n], strict=True)) if n in blend.spread else {})
        for n, w in zip(blend.members, blend.weights, strict=True)
    ]
    return {
        "pool": blend.pool,
        "members": shares,
        "calibration": calibration.calibration_content(blend.calibration),
    }


def write_blend(blend: Blend, path: str | Path, fitted: dict[str, Any]) -> None:
    """Writes the blend, and what it was `fitted` to, as JSON that `read` takes."""
    write_fitted(path, "blend", blend_content(blend) | {"fitted": fitted})


def read_blend(path: str | Path) -> Blend:
    """A saved blend.

    Raises:
        DataError: the file is missing or is not one.
        KitError: all its weights are 0.
    """
    return parse_blend(path, read_fitted(path, "blend"))


def parse_blend(path: str | Path, content: dict[str, Any]) -> Blend:
    """The blend that a JSON object describes; `path` is for errors, which are those of `read`."""
    by_hand = "The file was changed by hand; fit the blend again."
    members, after = content.get("members"), content.get("calibration")
    if content.get("pool") not in get_args(Pool) or not isinstance(after, dict):
        raise DataError(f"{path}: pool is {str(content.get('pool'))[:40]!r}", by_hand)
    whole = isinstance(members, list) and members and all(isinstance(m, dict) for m in members)
    names = tuple(m.get("name") for m in members) if whole else ()
    if (
        not names
        or not all(isinstance(name, str) for name in names)
        or len(set(names)) != len(names)
    ):
        raise DataError(
            f"{path}: members are not a list of names, each once, with weights", by_hand
        )
    weights = tuple(check_number(path, m.get("weight"), "weight", low=0) for m in members)
    normalise_weights(weights, names)  # raises where all are 0
    intervals = {m["name"]: check_interval(path, m) for m in members}
    spread = {name: interval for name, interval in intervals.items() if interval}
    return Blend(
        names, weights, content["pool"], calibration.parse_calibration(path, after), spread
    )
