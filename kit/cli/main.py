"""Join all commands in pipeline order, and turn errors into messages and exit codes. Use `main`.

Each command parses, calls one function and prints: no logic, and no heavy import outside its body,
so that `kit --help` answers at once.
"""

import sys
from typing import Any

import click

from kit import __version__
from kit.cli import (
    data,
    doctor,
    ensemble,
    evaluate,
    kaggle,
    kernels,
    output,
    plan,
    runs,
    sweep,
    train,
    use,
)
from kit.cli.streams import make_streams_lasting, output_error, reader_is_gone
from kit.errors import KitError


class Cli(click.Group):
    """Keep commands in the order they are added, and decide the exit code.

    0 on success, 1 for what the user can fix, 2 for wrong usage, 130 after Ctrl-C.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in pipeline order instead of the alphabet's."""
        return list(self.commands)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Read the arguments and run the command, and exit with its code if `standalone_mode`."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        make_streams_lasting()
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            sys.exit(130)

        # A reader that ends, such as `head`, has got what it wanted; on a full disk output is lost.
        failure = output_error()
        if failure and not reader_is_gone():
            click.echo(f"Error: standard output: {failure.strerror}", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error that a user can mend becomes one message without traceback."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
        except (KitError, OSError) as error:
            if ctx.params.get("debug"):
                raise

            if isinstance(error, KitError):
                text = str(error)
            else:
                text = f"{error.filename or 'the system'}: {error.strerror or error}"
            click.secho(f"Error: {output.escape_control(text)}", fg="red", err=True)
            ctx.exit(1)


@click.group(
    cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="kit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """From Kaggle's LLM Classification Finetuning files to a validated, scored, blended submission.

    \b
    Try it:  kit demo
    Begin:   kit download && kit preprocess && kit train --backbone deberta
    """


COMMANDS = (
    doctor.doctor_command,
    data.sample_command,
    kaggle.download_command,
    data.preprocess_command,
    plan.plan_command,
    *train.COMMANDS,
    sweep.sweep_group,
    runs.runs_group,
    *ensemble.COMMANDS,
    *evaluate.COMMANDS,
    *use.COMMANDS,
    kernels.kernels_group,
    kaggle.submit_command,
    kaggle.submissions_command,
    evaluate.demo_command,
)
for command in COMMANDS:
    main.add_command(command)
