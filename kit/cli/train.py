"""Define the commands about models: backbones, recipes, baseline, train, predict."""

import dataclasses
import math
import time
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from kit.baselines import BASELINES
from kit.cli import options, output
from kit.cli.plan import print_dry_run
from kit.cli.progress import count_progress, stage_progress, training_progress
from kit.launcher import ignore_partial_launch
from kit.task import HOLDOUT, TEST_FILE
from kit.wording import counted

if TYPE_CHECKING:
    from kit.fold_dir import FoldDir


@click.command()
@options.wide
@options.as_json
def backbones_command(as_json: bool) -> None:
    """List the encoders and the judges: sizes, parameters, pretraining, licence.

    Any other encoder of the Hugging Face hub works too, by its id or as a folder.

    \b
    Example:  kit backbones
    """
    from kit.model.registry import BACKBONES

    records = list(BACKBONES.values())
    rows: list[dict[str, Any]] = [
        {
            "name": record.full_name,
            "short": record.name,
            "hub": record.hub_id,
            **record.parameters,
            **record.sizes,
            "pretraining": record.pretraining,
            "licence": record.licence,
            "precision": record.precision,
            "judge": record.judge and dataclasses.asdict(record.judge),
        }
        for record in records
    ]
    if as_json:
        return output.print_json(rows)

    judges = [row for row in rows if row["judge"]]
    rows = [row for row in rows if not row["judge"]]
    counts = ("total", "backbone", "embedding")
    columns = ["name", "hub", *counts, *records[0].sizes, "licence", "pretraining"]
    for row in rows:
        row |= {name: f"{row[name] / 1e6:.1f}M" for name in counts}
    table = [[row[name] for name in columns] for row in rows]
    heads = [name.replace("_", " ") for name in columns]
    output.print_table("Encoders, with their parameters: in total, layers, tables", heads, table)
    short = [f"{r.name} is {r.full_name}" for r in records if r.name != r.full_name]
    _print_judges(judges)
    output.print_note(f"Short names: {', '.join(short)}")


def _print_judges(rows: list[dict[str, Any]]) -> None:
    """Print the table of the decoders, with the parameters of their layers and embeddings."""
    table = []
    for row in rows:
        # What a licence forbids is a remark, so that all columns fit 80.
        licence, _, limit = row["licence"].partition(": ")
        remarks = [limit] if limit else []
        remarks += ["gated"] if row["judge"]["gated"] else []
        remarks += ["bf16 only"] if row["precision"].startswith("bf16 only") else []
        counts = (_format_billions(row[name]) for name in ("backbone", "embedding"))
        table.append([row["name"], *counts, licence, ", ".join(remarks)])
    columns = ["name", "layers", "embedding", "licence", "remarks"]
    output.print_table("Judges, which are language models (docs/judges.md)", columns, table)


def _format_billions(count: int) -> str:
    """Return a number of parameters in billions; that of a toy in millions."""
    return f"{count / 1e9:.2f}B" if count >= 5e6 else f"{count / 1e6:.1f}M"


@click.command()
@click.argument("name", required=False)
@click.option("--keys", is_flag=True, help="List every key: default, allowed values, meaning.")
@options.wide
@options.as_json
def recipes_command(name: str | None, keys: bool, as_json: bool) -> None:
    """List the shipped recipes, show one in full, or list what a recipe may hold.

    \b
    Example:  kit recipes electra
              kit recipes --keys
    """
    from kit.model.registry import find_record
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
        title = "Recipe keys, for --set KEY=VALUE"
        return output.print_table(
            title, columns, table, prose=("allowed", "meaning"), drop=(columns.index("allowed"),)
        )

    if name:
        recipe = load_recipe(name)
        if as_json:
            return output.print_json(dataclasses.asdict(recipe))
        return click.echo(output.escape_control(recipe.to_toml()), nl=False)

    recipes = [load_recipe(shipped) for shipped in shipped_recipes()]
    if as_json:
        return output.print_json([dataclasses.asdict(recipe) for recipe in recipes])
    records = {recipe.name: find_record(recipe.backbone) for recipe in recipes}
    names = {name: record.full_name if record else "" for name, record in records.items()}
    rows = [[recipe.name, names[recipe.name], recipe.purpose] for recipe in recipes]
    output.print_table("Recipes", ["name", "backbone", "purpose"], rows, prose=("purpose",))


@click.command()
@click.argument("name", type=click.Choice(BASELINES), default="tfidf")
@click.option(
    "--embed",
    metavar="BACKBONE",
    help="Also learn how near prompt and answers are in meaning, from this encoder of sentences: "
    "a folder or a hub id.",
)
@options.fold
@options.data
@options.runs
@options.as_json
def baseline_command(
    name: str, embed: str | None, fold: str, data: Path, runs: Path, as_json: bool
) -> None:
    """Fit a reference model on the same rows, with their soft labels and weights if they have any.

    Without a name, tfidf is fitted.

    \b
    Example:  kit baseline tfidf --fold all
              kit baseline boosted --embed sentence-transformers/all-MiniLM-L6-v2
    """
    _fit_baseline(name, fold, data, runs, as_json, embed)


def _fit_baseline(
    name: str, fold: str, data: Path, runs: Path, as_json: bool, embed: str | None = None
) -> None:
    from kit.baselines.run import run_baseline

    with stage_progress(f"baseline {name}") as progress:
        say = output.print_note
        result = run_baseline(name, data, runs, fold, say, progress, embed)
    if as_json:
        return output.print_json(result)
    output.print_run(result)
    # It has predicted the test rows already, and is there to be compared with.
    others = quote(str(Path(result["run"]).parent))
    output.print_note(f"Next: kit report {others}/*{output.repeat_data(data)}")


@click.command()
@click.option(
    "--backbone",
    help="A name from `kit backbones`, a folder in Hugging Face layout, a hub id, such as "
    "microsoft/deberta-v3-small, or a name of `kit baseline`, such as boosted.",
)
@click.option(
    "--recipe", help="A name from `kit recipes`, or a TOML file.  [default: the backbone's own]"
)
@options.fold
@options.overrides
@click.option(
    "--teacher",
    "teachers",
    type=options.FILE,
    multiple=True,
    metavar="RUN",
    help="Also learn from the out-of-fold predictions of this run or file; several are averaged.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted training.")
@options.restart
@click.option(
    "--guard/--no-guard",
    default=True,
    help="Stop a training that learns nothing.  [default: guard]",
)
@click.option(
    "--log",
    "--report-to",
    "report_to",
    metavar="NAMES",
    help="Send its curves to tensorboard, wandb or mlflow, too; several with commas.",
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
@click.option(
    "--dry-run", is_flag=True, help="Say what it takes, take two steps, and leave nothing behind."
)
@click.option("--no-steps", is_flag=True, help="With --dry-run: load no model, take no steps.")
@options.data
@options.runs
@options.as_json
def train_command(
    backbone: str | None,
    recipe: str | None,
    fold: str,
    overrides: tuple[str, ...],
    teachers: tuple[Path, ...],
    resume: bool,
    restart: int,
    guard: bool,
    report_to: str | None,
    max_hours: float,
    scratch: Path | None,
    dry_run: bool,
    no_steps: bool,
    data: Path,
    runs: Path,
    as_json: bool,
) -> None:
    """Fine-tune a backbone on the processed rows.

    \b
    Example:  kit train --backbone deberta --set train.lr=2e-5 --fold all
              kit train --backbone deberta --dry-run
    """
    if no_steps and not dry_run:
        raise click.UsageError("--no-steps needs --dry-run.")
    if backbone in BASELINES:
        options.refuse_combination(
            f"--backbone {backbone}",
            "it is a classical model, fitted in one go and without a recipe.",
            recipe=recipe,
            set=overrides,
            restart=restart or None,
            scratch=scratch,
            **{"report-to": report_to, "max-hours": max_hours if max_hours < math.inf else None},
        )
        return _fit_baseline(backbone, fold, data, runs, as_json)

    from kit.recipe.load import choose_recipe

    # A wrong recipe key is reported at once, before torch is imported.
    chosen = choose_recipe(backbone, recipe, overrides)
    output.print_backbone(backbone, chosen)

    import kit

    if dry_run:
        plan = kit.plan(
            recipe=chosen,
            data=data,
            fold=fold,
            gpu="here",
            max_hours=None if math.isinf(max_hours) else max_hours,
            steps=not no_steps,
            log=output.print_note,
        )
        return print_dry_run(plan, runs, as_json)

    try:
        with training_progress(chosen.run_name) as on_progress:
            run = kit.train(
                recipe=chosen,
                data=data,
                runs=runs,
                fold=fold,
                teachers=teachers,
                resume=resume,
                guard=guard,
                restarts=restart,
                report_to=report_to,
                scratch=scratch,
                max_hours=max_hours,
                on_progress=on_progress,
                log=output.print_note,
            )
    except KeyboardInterrupt:
        path = runs / chosen.run_name
        if any(path.glob("*/checkpoints/checkpoint-*")):
            again = "Run the same command again" + (" with --resume" * (not resume))
            output.print_note(f"{path} is not finished. {again} to continue")
        raise
    if as_json:
        return output.print_json(run.metrics)
    output.print_run(run.metrics)
    output.print_note(f"Next: kit predict {quote(str(run.path))}{output.repeat_data(data)}")


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
@click.option(
    "--max-hours",
    type=click.FloatRange(0, min_open=True),
    help="Within this time, read rows in the second order of their answers, too: the least decided"
    " first. For judges and cross-encoders.  [default: all rows]",
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
    max_hours: float | None,
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
    if split == "oof" and (not out or out.resolve() == (run / "oof.csv").resolve()):
        raise click.UsageError(
            "--split oof needs another -o FILE: the run's oof.csv stays as its training wrote it."
        )

    if note := ignore_partial_launch():
        output.print_note(note)
    is_own = not (out or input_file) and split in (None, "test")
    out = out or run / f"{split or 'test'}.csv"
    models: list[FoldDir] = []
    outdated = ""
    if is_own:
        from kit.run import Run

        trained = Run.open(run)
        models = trained.models()
        outdated = trained.outdated_test
    if outdated:
        output.print_note(f"{outdated}: it is replaced")
    if output.LEADER:
        options.refuse_overwrites((out,), force or bool(outdated))
    if models and len(models) < trained.option("folds", int) and models[0].name != HOLDOUT:
        names = ", ".join(model.name for model in models)
        output.print_note(f"Not every fold is finished: the models of {names} alone predict")

    time_limit: dict[str, Any] = {"log": output.print_note}
    if max_hours:
        time_limit["deadline"] = time.monotonic() + 3600 * max_hours
    with count_progress(f"predict {run.name}") as progress:
        from kit.predict import predict_input, predict_split
        from kit.predictions import write_predictions

        if input_file:
            predictions = predict_input(run, input_file, swap=swap, progress=progress, **time_limit)
        else:
            predictions = predict_split(
                run, split or "test", data, swap=swap, progress=progress, **time_limit
            )
    if output.LEADER and is_own:
        trained.write_test(predictions, models)
    elif output.LEADER:
        write_predictions(predictions, out)
    if as_json:
        return output.print_json({"file": str(out), "rows": len(predictions)})
    output.print_note(f"{counted(len(predictions), 'row')} in {out}")
    if (split or "test") == "test" and not input_file:
        output.print_note(f"Next: {_propose_after_predict(run, out)}")


def _propose_after_predict(run: Path, file: Path) -> str:
    """Return the next command: a blend of the runs' test predictions, or a check of the file."""
    others = list(run.parent.glob(f"*/{TEST_FILE}"))
    if file.parent != run or len(others) < 2:
        return output.propose_check(file)
    return f"kit ensemble {quote(str(run.parent))}/*/{TEST_FILE} -o submissions/submission.csv"


COMMANDS = (backbones_command, recipes_command, baseline_command, train_command, predict_command)
