"""The command line. Each command imports its code when it runs, so that reading a storage does not load torch."""

import errno
import io
import logging
import os
import signal
import sys
from contextlib import redirect_stdout
from typing import Annotated, Any, TextIO

import typer

from hpo.cli.compare import compare_commands
from hpo.cli.control import control_commands
from hpo.cli.evidence import evidence_commands
from hpo.cli.inspect import inspect_commands
from hpo.cli.panels import PanelGroup
from hpo.cli.replay import replay_commands
from hpo.cli.run import run_commands
from hpo.cli.setup import setup_commands
from hpo.cli.start import start_commands
from hpo.cli.transfer import transfer_commands
from hpo.console import say, show
from hpo.errors import Interruption, Problem, UserExit, raised_error

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
for commands in (
    run_commands,
    inspect_commands,
    compare_commands,
    control_commands,
    evidence_commands,
    transfer_commands,
    replay_commands,
    setup_commands,
    start_commands,
):
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


class _Output(io.FileIO):
    """Standard output, which remembers why a write failed."""

    failure: OSError | None = None

    def write(self, data: Any) -> Any:
        """Write bytes.

        Raises:
            OSError: the bytes cannot be written, for example because the disk is full.
        """
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


class _Messages(logging.Handler):
    """Prints the messages of loggers without a handler of their own, as all other messages."""

    def emit(self, record: logging.LogRecord) -> None:
        _say_error(self.format(record))


def main() -> None:
    """Run the command line. An error ends the process with a message on standard error and an exit status."""
    _open_closed_streams()
    logging.lastResort = _Messages(logging.WARNING)
    output = _Output(1, "w", closefd=False)
    stdout = _wrapped(output)
    with redirect_stdout(stdout):
        status = _run(output)
    for stream, number in ((stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # otherwise Python reports it when it ends
    if output.failure and output.failure.errno != errno.EPIPE:  # a reader such as `head` may have read enough
        say(f"hpo: standard output cannot be written: {output.failure.strerror}")
        status = status or 1
    sys.exit(status)


def _wrapped(output: _Output) -> TextIO:
    """Return a text stream that writes to `output`, or the current stream if that is not the standard output.

    An encoding that lacks a character gets an escape.
    """
    try:
        encoding = sys.stdout.encoding if sys.stdout.fileno() == 1 else None
    except (AttributeError, OSError):  # closed, or a stream in memory
        encoding = "utf-8" if sys.stdout is None else None
    if encoding is None:
        return sys.stdout
    buffer = io.BufferedWriter(output)
    return io.TextIOWrapper(buffer, encoding, "backslashreplace", line_buffering=output.isatty())


def _run(output: _Output) -> int:
    """Run a command and return its exit status."""
    from hpo.errors import StorageError

    try:
        return int(app(standalone_mode=False) or 0)
    except ClickException as error:
        text = io.StringIO()
        error.show(text)
        _say_error(text.getvalue().rstrip())
        return int(error.exit_code)
    except Problem as problem:
        _say_error(f"hpo: {problem}")
        return problem.status
    except StorageError as error:
        _say_error(f"hpo: {error}")
        return 4
    except (KeyboardInterrupt, Interruption):
        return 128 + signal.SIGINT
    except UserExit as error:
        if isinstance(raised_error(error), KeyboardInterrupt):
            return 128 + signal.SIGINT
        _say_error(f"hpo: the code that the study names ended the command with {error}")
        return 1
    except SystemExit as end:  # of Typer, if nobody reads standard output
        return 0 if output.failure else int(end.code or 0)
    except OSError:
        if output.failure is None:
            raise
        return 0  # `main` reports the error
    except Exception as error:
        damage = sys.modules.get("hpo.storage.damage")  # imported by the commands that open a storage
        if damage is None or (failure := damage.explain_failure(error)) is None:
            raise
        _say_error(f"hpo: {failure}")
        return 4


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
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
