"""List runs with their state, losses, minutes, size and age. Use `list_runs` and `find_run`.

A damaged run is listed too, with what is wrong in place of its state. Predictions are not read,
except those of the test rows where their labels are known.
"""

import dataclasses
import operator
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kit.errors import KitError, RunError
from kit.run import ORIGIN_FILE, Run, mean_over_rows, where_runs_are
from kit.storage.lock import lock_holder
from kit.task import HOLDOUT
from kit.tracking.differences import (
    FULL_NAMES,
    differing_keys,
    format_key,
    full_key,
    recipe_values,
)
from kit.tracking.tags import read_tags
from kit.wording import name_nearest

if TYPE_CHECKING:
    import pandas as pd

_PART = re.compile(rf"({HOLDOUT}|fold\d+)")
_CONDITION = re.compile(r"([\w.]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*)", re.DOTALL)
_ORDERS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True)
class RunLine:
    """What `kit runs` knows of a run.

    Attributes:
        state: "finished", "empty", or what is going on in the part that is not finished, such as
            "training fold1", "stopped in fold1" and "collapsed in fold1", where the training
            learned nothing or diverged; of a run that a sweep gave up, how: "pruned", "collapsed"
            or "failed"; of a damaged run, what is wrong.
        folds: how many folds the rows have.
        finished: names of the finished parts: "holdout", "fold0" and so on.
        oof, holdout, test: log losses, None where there is none.
        differs: the recipe keys that tell it from the others listed, see `differing_keys`.
        minutes: of training, over the finished parts.
        size: of all its files in bytes, with checkpoints on another disk.
        changed: when it was made, or a part of it last finished, in seconds since 1970.
        outdated: why the test rows should be predicted again, "" where they need not be.
        tags: words that the user has given it.
        kit: the version of kit that made it.
        recipe: every recipe key by its full name; of a baseline, none.
    """

    name: str
    path: Path
    state: str = ""
    folds: int = 0
    finished: tuple[str, ...] = ()
    oof: float | None = None
    holdout: float | None = None
    test: float | None = None
    differs: dict[str, Any] = field(default_factory=dict)
    minutes: float = 0.0
    size: int = 0
    changed: float = 0.0
    outdated: str = ""
    tags: tuple[str, ...] = ()
    kit: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def age(self) -> float:
        """Seconds since `changed`."""
        return max(0.0, time.time() - self.changed)

    @property
    def loss(self) -> float | None:
        """The out-of-fold loss, or that of the holdout where not every fold is finished."""
        return self.holdout if self.oof is None else self.oof

    def value(self, name: str) -> Any:
        """Return a column, or a recipe key, by its name: "oof", "train.lr", "lr".

        Raises:
            KitError: there is neither.
        """
        return getattr(self, name) if name in RUN_COLUMNS else self.recipe.get(full_key(name))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return dataclasses.asdict(self) | {"path": str(self.path), "loss": self.loss}


RUN_COLUMNS = (*(column.name for column in dataclasses.fields(RunLine)), "age", "loss")


def list_runs(
    folder: str | Path = "runs",
    *,
    conditions: Iterable[str] = (),
    sort: str = "age",
    reverse: bool = False,
    truth: str | Path | None = None,
) -> list[RunLine]:
    """Return the runs in a folder.

    Args:
        conditions: such as "state=finished", "oof<1.02", "lr>=2e-5", "tags=best" or "name~deberta",
            where `~` means "contains"; all have to hold.
        sort: a column or a recipe key; runs that have none come last.
        reverse: begin with the highest value instead of the lowest.
        truth: labels of the test rows, for `test`.

    Raises:
        KitError: there is no such folder or column, or a condition cannot be read.
        DataError: the labels cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise KitError(
            f"{folder}: no such folder", "`kit train` makes it; name another one with --runs."
        )
    labels = _read_labels(truth) if truth else None
    filters = [_parse_condition(text) for text in conditions]
    _check_column(sort)

    paths = sorted(origin.parent for origin in folder.glob(f"*/{ORIGIN_FILE}"))
    lines = [_describe(Run(path), labels) for path in paths]
    lines = [line for line in lines if all(holds(line) for holds in filters)]
    keys = differing_keys([line.path for line in lines])
    lines = [dataclasses.replace(line, differs=own) for line, own in zip(lines, keys, strict=True)]

    known = [line for line in lines if line.value(sort) is not None]
    known.sort(key=lambda line: _sort_key(line.value(sort)), reverse=reverse)
    return known + [line for line in lines if line.value(sort) is None]


def find_run(name: str | Path, runs: str | Path = "runs") -> Run:
    """Return a run by its path, its name in `runs`, or a part of that name that no other run has.

    Raises:
        RunError: there is no such run, or more than one.
    """
    for path in (Path(name), Path(runs) / name):
        if (path / ORIGIN_FILE).is_file():
            return Run.open(path)

    names = sorted(origin.parent.name for origin in Path(runs).glob(f"*/{ORIGIN_FILE}"))
    matching = [known for known in names if str(name) in known]
    if len(matching) == 1:
        return Run.open(Path(runs) / matching[0])
    if matching:
        raise RunError(f"{name} may be {', '.join(matching)}", "Write more of the name.")
    hint = name_nearest(str(name), names, where_runs_are(Path(runs)))
    raise RunError(f"no run {name} in {runs}", hint)


def unfinished_parts(run: Run) -> dict[str, str]:
    """Return the parts of a run that were begun and are not finished, with who trains them now."""
    done = {part.name for part in run.finished()}
    names = {path.name for path in run.path.glob("*/")} - done
    names |= {path.name[1:].removesuffix(".lock") for path in run.path.glob(".*.lock")}
    parts = {name: lock_holder(run.path, name) for name in sorted(names) if _PART.fullmatch(name)}
    return {name: holder for name, holder in parts.items() if holder or name not in done}


def describe_run(run: Run, truth: str | Path | None = None) -> RunLine:
    """Return what `kit runs` knows of one run, which is compared with no other.

    Raises:
        DataError: the labels in `truth` cannot be read.
    """
    return _describe(run, _read_labels(truth) if truth else None)


def _describe(run: Run, labels: "pd.DataFrame | None") -> RunLine:
    """Return what is known of a run, with what is wrong as its state if it is damaged."""
    sizes, times = _measure_files(run)
    line = RunLine(run.name, run.path, size=sizes, changed=times)
    try:
        parts = {part.name: part for part in run.finished()}
        folds = run.option("folds", int)
        line = dataclasses.replace(
            line,
            state=_describe_state(run, len(parts)),
            folds=folds,
            finished=tuple(parts),
            minutes=sum(part.figure("minutes") for part in parts.values()),
            tags=read_tags(run.path),
            kit=str(run.origin.get("kit", "")),
            recipe=recipe_values(run),
        )
        numbered = [part for part in parts.values() if part.name != HOLDOUT]
        outdated = run.outdated_test
        return dataclasses.replace(
            line,
            outdated=outdated,
            oof=mean_over_rows(numbered, "log_loss") if len(numbered) == folds else None,
            holdout=parts[HOLDOUT].figure("log_loss") if HOLDOUT in parts else None,
            test=None if labels is None or outdated else _test_loss(run, labels),
        )
    except KitError as error:
        return dataclasses.replace(line, state=f"damaged: {error.problem}")


def _describe_state(run: Run, finished: int) -> str:
    unfinished = unfinished_parts(run)
    held = [name for name, holder in unfinished.items() if holder]
    if held:
        return f"training {' and '.join(held)}"
    if unfinished:
        collapsed = [name for name in unfinished if run.fold(name).collapse_path.is_file()]
        stopped = [name for name in unfinished if name not in collapsed]
        states = {"stopped": stopped, "collapsed": collapsed}
        return ", ".join(
            f"{state} in {' and '.join(names)}" for state, names in states.items() if names
        )
    return "finished" if finished else run.ended or "empty"


def _measure_files(run: Run) -> tuple[int, float]:
    """Return the bytes of all files, and when the run was made or a part of it finished."""
    size = 0
    changed = 0.0
    # Checkpoints may be on another disk, to which there is a link.
    for place, _, names in os.walk(run.path, followlinks=True):
        for name in names:
            try:
                stat = Path(place, name).stat()
            except OSError:
                # A training removes old checkpoints at the same time.
                continue
            size += stat.st_size
            if name in (ORIGIN_FILE, run.metrics_path.name):
                changed = max(changed, stat.st_mtime)
    return size, changed


def _read_labels(truth: str | Path) -> "pd.DataFrame":
    from kit.evaluation.truth import read_truth

    return read_truth(truth)


def _test_loss(run: Run, labels: "pd.DataFrame") -> float | None:
    """Return the loss of a run's test predictions, None if it has none of these rows."""
    if not run.test_path.is_file():
        return None
    from kit.evaluation.metrics import log_loss
    from kit.evaluation.truth import align_to_truth
    from kit.predictions import read_predictions

    try:
        return log_loss(*align_to_truth(read_predictions(run.test_path), labels, run.name))
    except KitError:
        return None


def _check_column(name: str) -> None:
    """Raise KitError unless it is a column or a recipe key."""
    if name in RUN_COLUMNS:
        return
    try:
        full_key(name)
    except KitError as error:
        where = f"Columns: {', '.join(RUN_COLUMNS)}. `kit recipes --keys` lists the keys."
        raise KitError(
            f"{name!r} is neither a column of `kit runs` nor a recipe key",
            name_nearest(name, (*RUN_COLUMNS, *FULL_NAMES), where),
        ) from error


def _parse_condition(text: str) -> Callable[[RunLine], bool]:
    """Return a function that says whether a condition such as "oof<1.02" holds for a run."""
    match = _CONDITION.fullmatch(text.strip())
    if not match:
        raise KitError(
            f"{text!r} is not a condition", "For example: state=finished, oof<1.02, name~deberta."
        )
    name, sign, wanted = match.groups()
    _check_column(name)
    return lambda line: _holds(line.value(name), sign, wanted)


def _holds(value: Any, sign: str, wanted: str) -> bool:
    """Return whether a value is equal to what is wanted, less, and so on, as the sign says."""
    if sign == "!=":
        return not _holds(value, "=", wanted)
    if sign == "~":
        return wanted.lower() in str(value).lower()
    if value is None:
        return False
    if isinstance(value, tuple | Mapping):
        return sign == "=" and wanted in value

    try:
        left, right = float(value), float(wanted)
    except ValueError:
        left, right = format_key(value), wanted
    return left == right if sign == "=" else bool(_ORDERS[sign](left, right))


def _sort_key(value: Any) -> tuple[bool, Any]:
    """Return a key by which numbers come before texts."""
    is_number = isinstance(value, int | float)
    return (not is_number, value if is_number else str(value))
