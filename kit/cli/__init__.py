"""The command line, in pipeline order. Each command parses, calls one function and prints; no logic, no heavy import.

`kit --help` must answer at once, so everything but click is imported inside the commands.
"""

import sys
from typing import Any

import click

from kit import __version__
from kit.cli import blending, data, doctor, kaggle, kernels, scoring, show, training
from kit.errors import KitError


class Cli(click.Group):
    """Commands in the order they are added, and the exit codes: 0 done, 1 the user can fix it, 2 usage, 130 Ctrl-C."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Pipeline order instead of the alphabet."""
        return list(self.commands)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Reads the arguments and runs the command; Ctrl-C while they are being read ends as it does later."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            code = super().main(*args, standalone_mode=False, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> object:
        """Runs the command; what a user can cause becomes one message without a traceback."""
        try:
            return super().invoke(ctx)
        except (KitError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            if isinstance(
                error, BrokenPipeError
            ):  # the reader of our output, such as `head`, has gone
                sys.stderr.close()
                ctx.exit(0)
            text = (
                str(error)
                if isinstance(error, KitError)
                else f"{error.filename or 'the system'}: {error.strerror or error}"
            )
            click.secho(f"Error: {show.printable(text)}", fg="red", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)


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
    doctor.doctor,
    data.sample,
    kaggle.download,
    data.preprocess,
    training.backbones,
    training.recipes,
    blending.baseline,
    training.train,
    training.predict,
    *blending.COMMANDS,
    *scoring.COMMANDS,
    kernels.kernels,
    kaggle.submit,
    kaggle.submissions,
    scoring.demo,
)
for command in COMMANDS:
    main.add_command(command)
