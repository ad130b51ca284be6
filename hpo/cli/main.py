"""The command line. Each command imports its code when it runs, so that reading a storage does not load torch."""

import errno
import io
import os
import signal
import sys
from typing import Annotated, Any, TextIO

import typer

from hpo.cli.control import control_commands
from hpo.cli.evidence import evidence_commands
from hpo.cli.inspect import inspect_commands
from hpo.cli.panels import PanelGroup
from hpo.cli.run import run_commands
from hpo.cli.setup import setup_commands
from hpo.console import say, show
from hpo.errors import Problem

# The base class of the errors of the command line itself, for which Typer has no public name.
ClickException: type[Any] = typer.BadParameter.__mro__[2]

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

        show(f"hpo {version('hpo')}")
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
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the encoding of a terminal may lack characters
    status = _run()
    for stream in (sys.stdout, sys.stderr):
        if failure := _flush_error(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # otherwise Python reports it once more
            if stream is sys.stdout and failure.errno != errno.EPIPE:  # a reader such as `head` may have read enough
                say(f"hpo: standard output cannot be written: {failure.strerror}")
                status = status or 1
    sys.exit(status)


def _run() -> int:
    """Run a command and return its exit status."""
    from hpo.errors import StorageError

    try:
        return int(app(standalone_mode=False) or 0)
    except ClickException as error:
        text = io.StringIO()
        error.show(text)
        _say_error(text.getvalue().rstrip())
        return error.exit_code
    except Problem as problem:
        _say_error(f"hpo: {problem}")
        return problem.status
    except StorageError as error:
        _say_error(f"hpo: {error}")
        return 4
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError:
        if _flush_error(sys.stdout) is None:
            raise
        return 0  # `main` reports the error


def _say_error(text: str) -> None:
    """Print an error, which may quote a command line with a URL in the wrong place."""
    from hpo.storage.url import mask_passwords

    say(mask_passwords(text))


def _open_closed_streams() -> None:
    """Open a file for each standard stream that is closed, so that no other file, such as a database, takes its place.

    Writing to a closed standard output fails, and messages to a closed standard error are lost.
    """
    flags = {0: os.O_RDONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
    for number, flag in flags.items():
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, flag), number)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _flush_error(stream: TextIO) -> OSError | None:
    """Write what a stream holds back; return the error if that fails."""
    try:
        stream.flush()
    except OSError as error:
        return error
    return None
