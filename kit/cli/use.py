"""Define the commands that use one trained run: compare and export."""

from pathlib import Path
from shlex import quote

import click

from kit.cli import options, output


@click.command()
@click.argument("run", type=options.FILE)
@click.option("--prompt", required=True, help="What both answers are to; @FILE reads it.")
@click.option("--a", "answer_a", required=True, help="The first answer; @FILE reads it.")
@click.option("--b", "answer_b", required=True, help="The second answer; @FILE reads it.")
@options.as_json
def compare_command(run: Path, prompt: str, answer_a: str, answer_b: str, as_json: bool) -> None:
    """Ask a run which of two answers people would prefer.

    \b
    Example:  kit compare runs/deberta-1a2b3c4d --prompt "2+2?" --a 4 --b Five.
    """
    import pandas as pd

    import kit
    from kit.task import CLASSES

    texts = [_read_text(text) for text in (prompt, answer_a, answer_b)]
    frame = pd.DataFrame([texts], columns=["prompt", "response_a", "response_b"])
    probabilities = kit.load(run).predict_proba(frame)[list(CLASSES)].iloc[0]
    if as_json:
        return output.print_json({name: float(probabilities[name]) for name in CLASSES})
    names = ("A is preferred", "B is preferred", "tie")
    rows = list(zip(names, probabilities.round(4), strict=True))
    output.print_table("", ["verdict", "probability"], rows)


@click.command()
@click.argument("run", type=options.FILE)
@click.option(
    "-o", "--out", type=options.FILE, required=True, help="The folder for a folder of each model."
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp16", "fp32"]),
    default="bf16",
    show_default=True,
    help="The type of the weights.",
)
@options.as_json
def export_command(run: Path, out: Path, dtype: str, as_json: bool) -> None:
    """Write a run's whole weights in Hugging Face layout, with its adapters merged into them.

    \b
    Example:  kit export runs/qwen2.5-0.5b-1a2b3c4d -o exported
    """
    from kit.export import export_run

    folders = export_run(run, out, dtype)
    if as_json:
        return output.print_json([str(folder) for folder in folders])
    for folder in folders:
        click.echo(folder)
    output.print_note(f"Next: kit train --backbone {quote(str(folders[0]))}")


def _read_text(text: str) -> str:
    """Return an argument, or with @FILE the content of the file."""
    from kit.storage.atomic import read_text_file

    return read_text_file(Path(text[1:])) if text.startswith("@") else text


COMMANDS = (compare_command, export_command)
