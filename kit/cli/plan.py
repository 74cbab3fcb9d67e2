"""Define `kit plan`, and print a plan."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from kit.cli import options, output
from kit.cli.runs import format_size

if TYPE_CHECKING:
    from kit.planning.plan import Plan


@click.command()
@click.argument("recipe", required=False)
@click.option("--backbone", help="A name from `kit backbones`, or a folder in Hugging Face layout.")
@click.option(
    "--fold", default="all", show_default=True, help="A fold's number, `all`, or `holdout`."
)
@options.overrides
@click.option(
    "--gpu",
    default="t4",
    show_default=True,
    metavar="DEVICE",
    help="t4 (Kaggle's two), l4, rtx-3090, rtx-4090, a100, h100, with x4 for four of them; cpu; or"
    " `here` for what this machine trains on.",
)
@click.option(
    "--data",
    type=options.FILE,
    help="Processed rows, or `kaggle` for as many as the competition has.  [default: "
    "data/processed, or `kaggle` if it is not there]",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(0, min_open=True),
    help="The time of a session.  [default: 9 on t4]",
)
@options.as_json
def plan_command(
    recipe: str | None,
    backbone: str | None,
    fold: str,
    overrides: tuple[str, ...],
    gpu: str,
    data: Path | None,
    max_hours: float | None,
    as_json: bool,
) -> None:
    """Say what a training takes, without training: rows, steps, hours, memory, disk.

    RECIPE is a name from `kit recipes`, or a TOML file. Nothing is downloaded but a tokenizer.

    \b
    Example:  kit plan deberta-large
              kit plan --backbone deberta --set encode.max_tokens=512 --gpu cpu
    """
    from kit.recipe.load import choose_recipe

    # A wrong recipe key is reported at once, before torch is imported.
    chosen = choose_recipe(backbone, recipe, overrides)

    import kit

    plan = kit.plan(recipe=chosen, data=data, fold=fold, gpu=gpu, max_hours=max_hours)
    if as_json:
        return output.print_json(plan.as_dict())
    print_plan(plan)
    if data is None and plan.rows_from == "counted":
        output.print_note(
            f"For the rows in {output.DATA}. For as many as the competition has, add --data kaggle"
        )


def print_plan(plan: "Plan") -> None:
    """Print a plan as a table: what, how much, and whether it is counted or estimated."""
    several = plan.folds > 1
    fold = "a fold" if several else "the fold"
    hours = format_hours(plan.fold_hours)
    if several:
        hours += f"; {format_hours(plan.hours)} for all {plan.folds}"
    memory = "unknown"
    if plan.memory_gib is not None:
        memory = f"{plan.memory_gib:.1f} of {plan.memory_limit_gib:.1f} GiB"
    prediction = format_hours(plan.both_orders_hours)
    if plan.one_order_hours < plan.both_orders_hours:
        prediction += f" in both orders, {format_hours(plan.one_order_hours)} in one"

    output_size = format_size(1e9 * plan.output_gb)
    checkpoints = format_size(1e9 * plan.checkpoints_gb)

    rows = [
        ["rows of " + fold, f"{plan.train_rows:,}, {plan.valid_rows:,} validate", plan.rows_from],
        [
            "tokens",
            f"{plan.sequences} x {plan.mean_tokens:.0f} a row, at most {plan.max_tokens} each",
            plan.tokens_from,
        ],
        ["steps of " + fold, f"{plan.steps:,}", "counted"],
        [
            "parameters",
            f"{format_millions(plan.parameters)}, {format_millions(plan.trained)} trained",
            "calculated",
        ],
        ["TFLOP a row", f"{plan.operations_per_row / 1e12:.2g}", "calculated"],
        ["time of " + fold, hours, "estimated"],
        ["memory", memory, plan.memory_from],
        [
            "disk",
            f"{output_size}; {checkpoints} during a fold",
            "calculated",
        ],
        [f"{plan.predicted_rows:,} predictions", f"{prediction}, of each model", "estimated"],
        ["verdict", plan.verdict, ""],
    ]
    output.print_table(f"{plan.run} on {plan.device}", ["", "figure", "how known"], rows)


def print_dry_run(plan: "Plan", runs: Path, as_json: bool) -> None:
    """Print what a training here takes, what its two steps took, and what it would write."""
    writes = [str(runs / plan.run / part) for part in plan.parts]
    if as_json:
        return output.print_json({**plan.as_dict(), "writes": writes})
    print_plan(plan)

    tried = plan.tried
    if tried:
        rate = tried.tokens_per_second / (plan.sequences * plan.mean_tokens)
        hours = plan.steps * plan.batch_size / rate / 3600
        output.print_note(
            f"Two steps on the longest rows: {tried.seconds[0]:.1f} and {tried.seconds[1]:.1f} s, "
            f"at most {tried.peak_gib:.1f} GiB in use ({tried.device}). By the second, about "
            f"{rate:.1f} rows/s and {format_hours(hours)} a fold, without evaluations"
        )
    output.print_note(f"Nothing is written. A training would write {', '.join(writes)}")


def format_millions(count: int) -> str:
    """Return a number of parameters in millions, or from one billion on in billions."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def format_hours(hours: float) -> str:
    """Return a duration: in hours, below one hour in minutes."""
    if hours < 1 / 60:
        return "under 1 min"
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
