"""Options that several commands share, so that they are called and explained the same everywhere."""

from pathlib import Path

import click

FILE = click.Path(path_type=Path)

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force = click.option("--force", is_flag=True, help="Overwrite what is there.")
data = click.option("--data", type=FILE, default=Path("data/processed"), show_default=True, help="Processed rows.")
runs = click.option("--runs", type=FILE, default=Path("runs"), show_default=True, help="Where run directories are.")
out_file = click.option("-o", "--out", type=FILE, required=True, help="The file to write.")
