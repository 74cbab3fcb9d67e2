"""A saved blend's members matched, by the names of their runs, to the sources that Kaggle mounts; never by order."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from kit.ensemble.blend import Blend
from kit.errors import KitError
from kit.kaggle.job import Source


def match_sources(
    blend: Blend, sources: Sequence[Source], *, say: Callable[[str], None] = lambda _: None
) -> list[Source]:
    """The sources that the blend needs, each with its part of its runs' weights.

    A run's weight is shared by the sources that hold it, as the kernels of its folds do. A source whose runs the blend
    has dropped is not mounted, and said. Where it is not known which runs a source holds, as in a dry run, nothing is
    missed; the notebook compares again.

    Raises:
        KitError: no source holds a member's run, or a source holds none that the blend knows.
    """
    homes = Counter(run for source in sources for run in source.runs)
    strange = [s for s in sources if s.runs and not set(s.runs) & set(blend.members)]
    if strange:
        raise KitError(
            f"the blend does not know {', '.join(f'{s.ref} ({_listed(s.runs)})' for s in strange)}: "
            f"it is one of {', '.join(blend.used)}",
            "Leave it out, or fit the blend again with its out-of-fold predictions.",
        )
    missing = [name for name in blend.used if name not in homes]
    if missing and all(source.runs for source in sources):
        baseline = any(name.startswith("baseline-") for name in missing)
        raise KitError(
            f"the blend needs {', '.join(missing)}, which no source holds (they hold {_listed(sorted(homes))})",
            "A baseline keeps no model that Kaggle could run: fit the blend without it."
            if baseline
            else "Name its kernel or run directory with --runs, too.",
        )
    weights, found = dict(zip(blend.members, blend.weights, strict=True)), []
    for source in sources:
        weight = sum(weights.get(run, 0.0) / homes[run] for run in source.runs)
        if not source.runs:
            say(f"{source.ref}: which runs it holds is compared with the blend when it is pushed")
            found.append(source)
        elif weight:
            found.append(replace(source, weight=weight))
        else:
            say(f"{source.ref} is not mounted: the blend gives {_listed(source.runs)} no weight")
    return found


def _listed(runs: Sequence[str], most: int = 8) -> str:
    return ", ".join(runs[:most]) + (f" and {len(runs) - most} more" if len(runs) > most else "")
