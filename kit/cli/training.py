"""Commands about models: backbones, recipes, train, predict."""

import math
from pathlib import Path

import click

from kit.cli import options, show


@click.command()
@options.as_json
def backbones(as_json: bool) -> None:
    """List the encoders: sizes, parameters, pretraining, licence.

    \b
    Example:  kit backbones
    """
    from kit.model.backbones import BACKBONES
    from kit.model.encoder import count_parameters

    rows = [
        {
            "name": b.name,
            **b.sizes,
            **count_parameters(b.config),
            "hub": b.hub_id,
            "pretraining": b.pretraining,
            "licence": b.licence,
            "precision": b.precision,
        }
        for b in BACKBONES.values()
    ]
    if as_json:
        return show.json_out(rows)
    millions = ("backbone", "embedding", "total")
    columns = [
        "name",
        "layers",
        "hidden",
        "heads",
        "ffn",
        "vocabulary",
        "max_tokens",
        *millions,
        "pretraining",
        "licence",
    ]
    table = [[f"{row[c] / 1e6:.1f}M" if c in millions else row[c] for c in columns] for row in rows]
    show.table("Backbones (parameters: backbone, embedding, total)", columns, table)


@click.command()
@click.argument("name", required=False)
@options.as_json
def recipes(name: str | None, as_json: bool) -> None:
    """List the shipped experiments, or show one in full.

    \b
    Example:  kit recipes electra
    """
    import dataclasses

    from kit.recipe.load import load_recipe, shipped_recipes

    if name:
        recipe = load_recipe(name)
        return (
            show.json_out(dataclasses.asdict(recipe))
            if as_json
            else click.echo(show.printable(recipe.to_toml()), nl=False)
        )
    all_of_them = [load_recipe(each) for each in shipped_recipes()]
    if as_json:
        return show.json_out([dataclasses.asdict(recipe) for recipe in all_of_them])
    show.table(
        "Recipes",
        ["name", "backbone", "purpose"],
        [[r.name, r.backbone, r.purpose] for r in all_of_them],
    )


@click.command()
@click.option("--backbone", help="A name from `kit backbones`, or a folder in Hugging Face layout.")
@click.option(
    "--recipe", help="A name from `kit recipes`, or a TOML file.  [default: the backbone's own]"
)
@click.option(
    "--fold", default="holdout", show_default=True, help="A fold's number, `all`, or `holdout`."
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a recipe key; may repeat.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted training.")
@options.restart
@click.option(
    "--guard/--no-guard",
    default=True,
    help="Stop a training that has learned nothing.  [default: guard]",
)
@click.option(
    "--report-to",
    type=click.Choice(["tensorboard"]),
    help="Curves for it in RUN/<part>/tensorboard, too.",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(0, min_open=True),
    default=math.inf,
    help="End within this time.",
)
@options.data
@options.runs
@options.as_json
def train(
    backbone: str | None,
    recipe: str | None,
    fold: str,
    overrides: tuple[str, ...],
    resume: bool,
    restart: int,
    guard: bool,
    report_to: str | None,
    max_hours: float,
    data: Path,
    runs: Path,
    as_json: bool,
) -> None:
    """Fine-tune a backbone on the processed rows.

    \b
    Example:  kit train --backbone deberta --set train.lr=2e-5 --fold all
    """
    from kit.recipe.load import choose_recipe

    chosen = choose_recipe(
        backbone, recipe, overrides
    )  # before torch is imported: a typing error shows at once
    from kit.training.train import train_recipe as run

    with show.training(chosen.run_name) as listen:
        options = {"resume": resume, "guard": guard, "restarts": restart, "report_to": report_to}
        result = run(
            chosen, data, runs, fold, **options, max_hours=max_hours, listen=listen, say=show.note
        )
    if as_json:
        return show.json_out(result)
    show.trained(result)
    show.note(f"Next: kit predict {result['run']}")


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
def predict(
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
        raise click.UsageError("--split and --input exclude each other.")
    if input_file and not out:
        raise click.UsageError("--input needs -o FILE.")
    from kit.storage.atomic import refuse_overwrite

    out = out or run / f"{split or 'test'}.csv"
    if show.LEADER:
        refuse_overwrite(out, force)
    from kit.predict import predict_input, predict_split
    from kit.predictions import write_predictions

    with show.counting(f"predict {run.name}") as progress:
        if input_file:
            predictions = predict_input(run, input_file, swap=swap, progress=progress)
        else:
            predictions = predict_split(run, split or "test", data, swap=swap, progress=progress)
    if show.LEADER:
        write_predictions(predictions, out)
    if as_json:
        return show.json_out({"file": str(out), "rows": len(predictions)})
    show.note(f"{len(predictions):,} rows in {out}")
