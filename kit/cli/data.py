"""Define the commands about rows: sample, preprocess."""

from pathlib import Path
from shlex import quote
from typing import Any

import click

from kit.cli import options, output
from kit.cli.progress import stage_progress


@click.command()
@click.option(
    "--rows", type=click.IntRange(1), default=2400, show_default=True, help="Training rows."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The same seed gives the same files.",
)
@click.option(
    "--out",
    type=options.FILE,
    default=Path("data/raw"),
    show_default=True,
    help="Folder to write to.",
)
@options.force
@options.as_json
def sample_command(rows: int, seed: int, out: Path, force: bool, as_json: bool) -> None:
    """Write the embedded sample in Kaggle's exact file format.

    \b
    Example:  kit sample --rows 57477 --out data/raw
    """
    from kit.sample.generate import write_sample

    summary = write_sample(out, rows=rows, seed=seed, force=force)
    if as_json:
        return output.print_json(summary)

    train, test = summary["train"]["rows"], summary["test"]["rows"]
    output.print_note(f"{train:,} training and {test:,} test rows in {out}")
    output.print_note(f"Next: kit preprocess --raw {quote(str(out))}")


@click.command()
@click.option(
    "--raw",
    type=options.FILE,
    default=Path("data/raw"),
    show_default=True,
    help="Folder with train.csv and test.csv.",
)
@click.option(
    "--extra",
    type=options.FILE,
    multiple=True,
    help="Another training file with the same columns; may repeat.",
)
@click.option(
    "--soft-labels",
    type=options.FILE,
    multiple=True,
    help="Predictions to learn from, by id: of train.csv, or of --extra rows without labels; may "
    "repeat. Their models have seen labels that validation uses, so a student's validation scores "
    "are too good.",
)
@options.preprocess_options
@click.option(
    "--allow-test-prompts", is_flag=True, help="Keep --extra rows whose prompt is in test.csv."
)
@click.option(
    "--out",
    type=options.FILE,
    default=Path("data/processed"),
    show_default=True,
    help="Folder to write to.",
)
@options.as_json
def preprocess_command(raw: Path, out: Path, as_json: bool, **choices: Any) -> None:
    """Clean, label and split the rows.

    \b
    Example:  kit preprocess --extra more_votes.csv --folds 5
    """
    import kit
    from kit.data.dataset import TRAIN_TABLE, read_manifest

    before = read_manifest(out)

    # The names of the options are the parameters of `kit.preprocess`.
    with stage_progress(f"preprocess {raw}") as progress:
        dataset = kit.preprocess(raw, out, progress=progress, **choices)
    manifest: dict[str, Any] = {**dataset.manifest, "reused": dataset.reused}
    if as_json:
        return output.print_json(manifest)
    output.print_preprocessed(manifest, out)
    if before and before["outputs"][TRAIN_TABLE] != manifest["outputs"][TRAIN_TABLE]:
        output.print_note(
            f"{out} held other rows before: {before['counts']['train_rows']:,} to train on, in "
            f"{before['options']['folds']} folds. Runs that were trained on them cannot be "
            "continued with these"
        )
    train = f"kit train --backbone deberta-xsmall{output.repeat_data(out)}"
    output.print_note(f"Next: {train}, or with tiny-deberta to try the path")
