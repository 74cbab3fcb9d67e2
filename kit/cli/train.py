"""Define the commands about models: backbones, recipes, baseline, train, predict."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import click

from kit.baselines import BASELINES
from kit.cli import options, output
from kit.launcher import ignore_partial_launch


@click.command()
@options.as_json
def backbones_command(as_json: bool) -> None:
    """List the encoders and the judges: sizes, parameters, pretraining, licence.

    \b
    Example:  kit backbones
    """
    from kit.model.backbones import BACKBONES
    from kit.model.encoder import count_parameters

    rows: list[dict[str, Any]] = [
        {
            "name": record.name,
            **record.sizes,
            **count_parameters(record.config),
            "hub": record.hub_id,
            "pretraining": record.pretraining,
            "licence": record.licence,
            "precision": record.precision,
            "judge": record.judge and dataclasses.asdict(record.judge),
        }
        for record in BACKBONES.values()
    ]
    if as_json:
        return output.print_json(rows)

    judges = [row for row in rows if row["judge"]]
    rows = [row for row in rows if not row["judge"]]
    columns = [name for name in rows[0] if name not in ("hub", "precision", "judge")]
    counts = ("backbone", "embedding", "total")
    table = [
        [f"{row[name] / 1e6:.1f}M" if name in counts else row[name] for name in columns]
        for row in rows
    ]
    output.print_table("Backbones (parameters: backbone, embedding, total)", columns, table)
    _print_judges(judges)


def _print_judges(rows: list[dict[str, Any]]) -> None:
    """Print the table of the decoders, in which layers and embeddings are counted in billions."""
    table = []
    for row in rows:
        remarks = ["gated"] if row["judge"]["gated"] else []
        remarks += ["bf16 only"] if row["precision"].startswith("bf16 only") else []
        counts = (f"{row[name] / 1e9:.2f}B" for name in ("backbone", "embedding"))
        table.append([row["name"], *counts, row["licence"], ", ".join(remarks)])
    columns = ["name", "layers", "embedding", "licence", "remarks"]
    output.print_table("Judges, which are language models (docs/judges.md)", columns, table)


@click.command()
@click.argument("name", required=False)
@click.option("--keys", is_flag=True, help="List every key: default, allowed values, meaning.")
@options.as_json
def recipes_command(name: str | None, keys: bool, as_json: bool) -> None:
    """List the shipped recipes, show one in full, or list what a recipe may hold.

    \b
    Example:  kit recipes electra
              kit recipes --keys
    """
    from kit.recipe.load import load_recipe, shipped_recipes
    from kit.recipe.spec import KEYS

    if keys:
        options.refuse_combination("--keys", "it lists the keys of every recipe.", name=name)
        rows = [
            {
                "key": key.name,
                "default": key.default,
                "allowed": key.allowed,
                "meaning": key.doc,
                "source": key.source,
            }
            for key in KEYS.values()
        ]
        if as_json:
            return output.print_json(rows)
        columns = ["key", "default", "allowed", "meaning"]
        table = [[key.name, key.default_text, key.allowed, key.doc] for key in KEYS.values()]
        return output.print_table("Recipe keys, for --set KEY=VALUE", columns, table)

    if name:
        recipe = load_recipe(name)
        if as_json:
            return output.print_json(dataclasses.asdict(recipe))
        return click.echo(output.escape_control(recipe.to_toml()), nl=False)

    recipes = [load_recipe(shipped) for shipped in shipped_recipes()]
    if as_json:
        return output.print_json([dataclasses.asdict(recipe) for recipe in recipes])
    rows = [[recipe.name, recipe.backbone, recipe.purpose] for recipe in recipes]
    output.print_table("Recipes", ["name", "backbone", "purpose"], rows)


@click.command()
@click.argument("name", type=click.Choice(BASELINES), default="tfidf")
@options.fold
@options.data
@options.runs
@options.as_json
def baseline_command(name: str, fold: str, data: Path, runs: Path, as_json: bool) -> None:
    """Fit a reference model on the same rows, with their soft labels and weights if they have any.

    \b
    Example:  kit baseline tfidf --fold all
    """
    from kit.baselines.run import run_baseline

    result = run_baseline(name, data, runs, fold, say=output.print_note)
    if as_json:
        return output.print_json(result)
    output.print_run(result)


@click.command()
@click.option("--backbone", help="A name from `kit backbones`, or a folder in Hugging Face layout.")
@click.option(
    "--recipe", help="A name from `kit recipes`, or a TOML file.  [default: the backbone's own]"
)
@options.fold
@options.overrides
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@options.restart
@click.option(
    "--guard/--no-guard",
    default=True,
    help="Stop a training that learns nothing.  [default: guard]",
)
@click.option(
    "--report-to",
    type=click.Choice(["tensorboard"]),
    help="Also write its curves to RUN/<fold>/tensorboard.",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(0, min_open=True),
    default=math.inf,
    help="End within this time.",
)
@click.option(
    "--scratch",
    type=options.FILE,
    envvar="KIT_SCRATCH",
    show_envvar=True,
    help="Keep the checkpoints of an unfinished fold here, as on a larger disk.",
)
@options.data
@options.runs
@options.as_json
def train_command(
    backbone: str | None,
    recipe: str | None,
    fold: str,
    overrides: tuple[str, ...],
    resume: bool,
    restart: int,
    guard: bool,
    report_to: str | None,
    max_hours: float,
    scratch: Path | None,
    data: Path,
    runs: Path,
    as_json: bool,
) -> None:
    """Fine-tune a backbone on the processed rows.

    \b
    Example:  kit train --backbone deberta --set train.lr=2e-5 --fold all
    """
    from kit.recipe.load import choose_recipe

    # A wrong recipe key is reported at once, before torch is imported.
    chosen = choose_recipe(backbone, recipe, overrides)

    import kit

    with output.training_progress(chosen.run_name) as on_progress:
        run = kit.train(
            recipe=chosen,
            data=data,
            runs=runs,
            fold=fold,
            resume=resume,
            guard=guard,
            restarts=restart,
            report_to=report_to,
            scratch=scratch,
            max_hours=max_hours,
            on_progress=on_progress,
            log=output.print_note,
        )
    if as_json:
        return output.print_json(run.metrics)
    output.print_run(run.metrics)
    output.print_note(f"Next: kit predict {run.path}")


@click.command()
@click.argument("run", type=options.FILE)
@click.option(
    "--split",
    type=click.Choice(["test", "valid", "oof"]),
    help="Which processed rows.  [default: test]",
)
@click.option(
    "--input", "input_file", type=options.FILE, help="Any CSV with test.csv's columns instead."
)
@click.option(
    "--swap/--no-swap",
    default=None,
    help="Average over both orders of the answers.  [default: the recipe's]",
)
@options.data
@click.option(
    "-o", "--out", type=options.FILE, help="The file to write.  [default: RUN/<split>.csv]"
)
@options.force
@options.as_json
def predict_command(
    run: Path,
    split: str | None,
    input_file: Path | None,
    swap: bool | None,
    data: Path,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write probabilities in submission form.

    \b
    Example:  kit predict runs/deberta-1a2b3c4d -o submissions/deberta.csv
    """
    if split and input_file:
        raise click.UsageError("--split and --input cannot be combined: choose one.")
    if input_file and not out:
        raise click.UsageError("--input needs -o FILE.")

    from kit.storage.atomic import refuse_overwrite

    if note := ignore_partial_launch():
        output.print_note(note)
    out = out or run / f"{split or 'test'}.csv"
    if output.LEADER:
        refuse_overwrite(out, force)

    from kit.predict import predict_input, predict_split
    from kit.predictions import write_predictions

    with output.count_progress(f"predict {run.name}") as progress:
        if input_file:
            predictions = predict_input(run, input_file, swap=swap, progress=progress)
        else:
            predictions = predict_split(run, split or "test", data, swap=swap, progress=progress)
    if output.LEADER:
        write_predictions(predictions, out)
    if as_json:
        return output.print_json({"file": str(out), "rows": len(predictions)})
    output.print_note(f"{len(predictions):,} rows in {out}")


COMMANDS = (backbones_command, recipes_command, baseline_command, train_command, predict_command)
