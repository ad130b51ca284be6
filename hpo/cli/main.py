"""The command line. Each command imports its code when it runs, so that reading a storage does not load torch."""

import os
import signal
import sys
from typing import Annotated

import typer

from hpo.cli.control import control_commands
from hpo.cli.evidence import evidence_commands
from hpo.cli.inspect import inspect_commands
from hpo.cli.panels import PanelGroup
from hpo.cli.run import run_commands
from hpo.cli.setup import setup_commands
from hpo.console import say
from hpo.errors import Problem

app = typer.Typer(
    cls=PanelGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Hyperparameter search for GPT training, built on Optuna.",
    epilog="`hpo COMMAND --help` shows the options of a command and an example.",
)
for commands in (run_commands, inspect_commands, control_commands, evidence_commands, setup_commands):
    app.add_typer(commands)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        print(f"hpo {version('hpo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that stand before a command."""


def main() -> None:
    """Run the command line. An error ends the process with a message on standard error and an exit status."""
    try:
        app()
    except Problem as problem:
        _fail(problem, problem.status)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `hpo trials | head`
    except Exception as error:
        from hpo.errors import StorageError

        if not isinstance(error, StorageError):
            raise
        _fail(error, 4)


def _fail(error: Exception, status: int) -> None:
    say(f"hpo: {error}")
    sys.exit(status)
