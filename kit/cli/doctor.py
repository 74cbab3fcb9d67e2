"""The command that says what works here: doctor."""

from pathlib import Path

import click

from kit.cli import options, show


@click.command()
@click.option(
    "--online",
    is_flag=True,
    help="Ask Kaggle too: does it accept the credential, what is left of quotas.",
)
@click.option(
    "--raw",
    type=options.FILE,
    default=Path("data/raw"),
    show_default=True,
    help="The competition's files.",
)
@options.data
@options.as_json
def doctor(online: bool, raw: Path, data: Path, as_json: bool) -> None:
    """Check what works here: Python, packages, device, memory, disk, data, Kaggle.

    Exits with 1 when something that is needed is broken.

    \b
    Example:  kit doctor --online
    """
    from kit.doctor import examine

    findings = examine(raw, data, online=online)
    show.json_out([f.as_dict() for f in findings]) if as_json else show.examined(findings)
    if any(f.broken for f in findings):
        raise SystemExit(1)
