"""A fitted blend as it is kept: members by name, their weights, the pool they meet in, the temperature after it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from kit import frame as prediction
from kit.errors import DataError
from kit.scoring import saved
from kit.scoring.calibration import Calibration, parse
from kit.scoring.ensemble import arithmetic_pool, convex, geometric_pool, stack

Pool = Literal["arithmetic", "geometric"]


@dataclass(frozen=True)
class Blend:
    """Members' names, their convex weights in the same order, the pool, and the calibration of what comes out.

    A member that was tried and dropped has weight 0: its predictions are not needed.
    """

    members: tuple[str, ...]
    weights: tuple[float, ...]
    pool: Pool
    calibration: Calibration = field(default_factory=Calibration)

    @property
    def used(self) -> tuple[str, ...]:
        """The members with a weight."""
        return tuple(name for name, weight in zip(self.members, self.weights, strict=True) if weight > 0)

    def of(self, members: np.ndarray) -> np.ndarray:
        """The blend of probabilities (M, N, 3), in the order of `members`: (N, 3)."""
        pooled = {"arithmetic": arithmetic_pool, "geometric": geometric_pool}[self.pool]
        return self.calibration.of(pooled(members, np.array(self.weights)))


def apply(blend: Blend, frames: Sequence[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """The blend of prediction frames, matched to its members by name and to each other by id; rows as in the first.

    Args:
        blend: what `read` or a fit gives.
        frames: prediction frames with the same ids in any order, one of each member that has a weight; those of
            dropped members are not looked at.
        names: what `members.read_members` calls them.

    Raises:
        DataError: a member is missing or there twice, or a frame belongs to none; ids differ.
    """
    missing = [name for name in blend.used if name not in names]
    unknown = [name for name in names if name not in blend.members]
    if missing or unknown or len(set(names)) != len(names):
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"does not know {', '.join(unknown)}"] if unknown else []
        raise DataError(
            f"the blend {' and '.join(said) or 'takes each member once'}: it is one of {', '.join(blend.used)}",
            "Name one file for each member, such as RUN/test.csv, and no other; dropped members may be left out.",
        )
    given = [name for name in names if name in blend.used]
    ids, members = stack([frames[names.index(name)] for name in given], given)
    weights = dict(zip(blend.members, blend.weights, strict=True))
    return prediction.make(
        ids, replace(blend, members=tuple(given), weights=tuple(map(weights.get, given))).of(members)
    )


def write(blend: Blend, path: str | Path, fitted: dict[str, Any]) -> None:
    """Writes the blend, and what it was `fitted` to, as JSON that `read` takes."""
    shares = [{"name": n, "weight": w} for n, w in zip(blend.members, blend.weights, strict=True)]
    content = {"pool": blend.pool, "members": shares, "calibration": asdict(blend.calibration), "fitted": fitted}
    saved.write(path, "blend", content)


def read(path: str | Path) -> Blend:
    """A saved blend.

    Raises:
        DataError: the file is missing or is not one.
        KitError: all its weights are 0.
    """
    content = saved.read(path, "blend")
    by_hand = "The file was changed by hand; fit the blend again."
    members, calibration = content.get("members"), content.get("calibration")
    if content.get("pool") not in get_args(Pool) or not isinstance(calibration, dict):
        raise DataError(f"{path}: pool is {str(content.get('pool'))[:40]!r}", by_hand)
    whole = isinstance(members, list) and members and all(isinstance(m, dict) for m in members)
    names = tuple(m.get("name") for m in members) if whole else ()
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DataError(f"{path}: members are not a list of names, each once, with weights", by_hand)
    weights = tuple(saved.number(path, m.get("weight"), "weight", low=0) for m in members)
    convex(weights, names)  # raises where all are 0
    return Blend(names, weights, content["pool"], parse(path, calibration))
