"""Define the command `kit doctor`, which says what works on this machine."""

from pathlib import Path

import click

from kit.cli import options, output


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
@options.competition
@click.option("--all", "everything", is_flag=True, help="List every package, too.")
@options.as_json
def doctor_command(
    online: bool, raw: Path, data: Path, competition: str, everything: bool, as_json: bool
) -> None:
    """Check what works here: Python, packages, device, memory, disk, data, Kaggle.

    Exits with 1 when something that is needed is broken.

    \b
    Example:  kit doctor --online
    """
    from kit.doctor import examine_setup, main_findings

    findings = examine_setup(raw, data, online=online, competition=competition)
    if as_json:
        output.print_json([finding.as_dict() for finding in findings])
    else:
        output.print_findings(findings if everything else main_findings(findings))

    if any(finding.broken for finding in findings):
        raise SystemExit(1)
