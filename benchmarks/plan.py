"""Count memory and time of every shipped recipe on Kaggle's two T4, and compare the formulas' time.

    python benchmarks/plan.py [RECIPE …] [--gpus 2] [--json]

Nothing is measured: memory, operations and kernels are counted on the meta device (see
kit/planning/counted.py). Hours are those of `kit plan` (kit/costs/estimate.py), and "formula" is
its time of a row as a share of the counted one. Targets: every recipe fits, and no formula is more
than 15 % off.
"""

import argparse
import json
import sys
import warnings
from typing import Any

from kit.costs.devices import T4
from kit.costs.estimate import estimate_training
from kit.costs.lengths import competition_lengths
from kit.costs.sessions import KAGGLE_HOURS, sessions_needed
from kit.costs.sizes import model_sizes
from kit.data.options import PreprocessOptions
from kit.model.backbones import resolve_backbone
from kit.planning.counted import CONTEXT_GIB, MEMORY_LIMIT_GIB, count_memory, count_time
from kit.recipe.load import GENERAL, load_recipe, shipped_recipes

FOLDS = PreprocessOptions.folds
TOLERANCE = 0.15

COLUMNS = (
    "recipe", "params M", "tokens", "TFLOP/row", "ms/row", "formula", "training GiB",
    "evaluation GiB", "h/fold", "evaluations", f"h x{FOLDS}", "fits",
)  # fmt: skip


def plan_recipe(name: str, gpus: int) -> dict[str, Any]:
    """Return one row of the table."""
    recipe = load_recipe(name)
    lengths = competition_lengths(recipe, FOLDS)
    memory = count_memory(recipe, gpus)
    counted = count_time(recipe, lengths.tokens, gpus)
    sizes = model_sizes(resolve_backbone(recipe.backbone).config)
    estimate = estimate_training(recipe, sizes, lengths, T4, gpus)
    share = estimate.seconds_per_row / counted.seconds_per_row

    fits = memory.needed <= MEMORY_LIMIT_GIB
    sessions = sessions_needed(estimate.hours, FOLDS)
    verdict = (
        f"{sessions} session{'s' if sessions != 1 else ''}" if sessions else "a fold is too long"
    )
    if not fits:
        verdict = f"out of memory, needs {memory.needed:.1f} GiB"
    values = (
        name,
        f"{memory.parameters / 1e6:.0f}",
        f"{lengths.mean_tokens:.0f}",
        f"{counted.operations_per_row / 1e12:.2f}",
        f"{1000 * counted.seconds_per_row:.0f}",
        f"{share:.0%}",
        f"{memory.training + CONTEXT_GIB:.1f}",
        f"{memory.evaluation + CONTEXT_GIB:.1f}",
        f"{estimate.hours:.1f}",
        f"{estimate.evaluation_hours / estimate.hours:.0%}",
        f"{FOLDS * estimate.hours:.1f}",
        verdict,
    )
    met = fits and abs(share - 1) <= TOLERANCE
    return dict(zip(COLUMNS, values, strict=True)) | {"met": met}


def main() -> int:
    """Print the table; return 1 when a recipe misses a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    real = [name for name in shipped_recipes() if name not in GENERAL and "tiny" not in name]
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
            f"a session is {KAGGLE_HOURS:g} hours.\ntarget: every recipe needs at most "
            f"{MEMORY_LIMIT_GIB:g} GiB, and formulas are within {TOLERANCE:.0%}: "
            f"{'met' if met else 'missed'}"
        )
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
