"""Estimate memory and hours of every shipped recipe on Kaggle's two T4.

    python benchmarks/plan.py [RECIPE …] [--gpus 2] [--json]

Nothing is measured: memory and operations are counted on the meta device, and hours follow from
them (see kit/plan.py). Target: every recipe fits.
"""

import argparse
import json
import sys
import warnings
from typing import Any

from kit.plan import (
    CONTEXT_GIB,
    FOLDS,
    MEMORY_LIMIT_GIB,
    SESSION_HOURS,
    estimate_hours,
    estimate_memory,
    sessions_needed,
)

from kit.recipe.load import load_recipe, shipped_recipes

COLUMNS = (
    "recipe", "params M", "tokens", "TFLOP/row", "training GiB", "evaluation GiB", "flat h/fold",
    "h/fold", "evaluations", f"h x{FOLDS}", "fits",
)  # fmt: skip


def plan_recipe(name: str, gpus: int) -> dict[str, Any]:
    """Return one row of the table."""
    recipe = load_recipe(name)
    memory = estimate_memory(recipe, gpus)
    time = estimate_hours(recipe, gpus=gpus)
    fits = memory.needed <= MEMORY_LIMIT_GIB
    sessions = sessions_needed(time.hours)
    verdict = (
        f"{sessions} session{'s' if sessions != 1 else ''}" if sessions else "a fold is too long"
    )
    if not fits:
        verdict = f"out of memory, needs {memory.needed:.1f} GiB"
    low, high = time.flat_hours
    values = (
        name,
        f"{memory.parameters / 1e6:.0f}",
        f"{time.mean_tokens:.0f}",
        f"{time.operations_per_row / 1e12:.2f}",
        f"{memory.training + CONTEXT_GIB:.1f}",
        f"{memory.evaluation + CONTEXT_GIB:.1f}",
        f"{low:.1f}-{high:.1f}",
        f"{time.hours:.1f}",
        f"{time.evaluation_hours / time.hours:.0%}",
        f"{FOLDS * time.hours:.1f}",
        verdict,
    )
    return dict(zip(COLUMNS, values, strict=True)) | {"met": fits}


def main() -> int:
    """Print the table; return 1 when a recipe does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    real = [name for name in shipped_recipes() if name != "default" and "tiny" not in name]
    parser.add_argument("recipes", nargs="*", default=real, metavar="RECIPE")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    results = []
    for number, name in enumerate(options.recipes):
        row = plan_recipe(name, options.gpus)
        results.append(row)
        if options.json:
            continue
        if not number:
            print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |")
        print(f"| {' | '.join(row[column] for column in COLUMNS)} |", flush=True)

    met = all(row["met"] for row in results)
    if options.json:
        print(json.dumps({"recipes": results, "met": met}, indent=1))
    else:
        print(
            f"\n{options.gpus} T4; GiB include {CONTEXT_GIB} for CUDA's context and NCCL; "
            f"a session is {SESSION_HOURS:g} hours.\ntarget: every recipe needs at most "
            f"{MEMORY_LIMIT_GIB:g} GiB: {'met' if met else 'missed'}"
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
