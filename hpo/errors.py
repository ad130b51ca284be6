"""Errors that the user can fix, and the exit status of each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

LONGEST = 900  # characters of a line of a message; a value in it may be of any length
TAIL = 200  # of these characters, the last ones, which hold the remedy


class Problem(Exception):
    """An error that the user can fix. Each line names the key, the rule, the value and the remedy; no traceback is
    shown. Longer lines are shortened in the middle."""

    status = 2

    def __init__(self, *lines: str) -> None:
        self.lines: Sequence[str] = tuple("\n".join(map(_shortened, text.split("\n"))) for text in lines)
        super().__init__("\n".join(self.lines))


class WorkFailed(Problem):
    """A run, a worker or a server failed."""

    status = 1


class Unwritable(WorkFailed):
    """A file of hpo cannot be written, because the disk is full or write permission is missing.

    path: the file. n_bytes: its size as far as it is known, so that a later test writes as much to the same place.
    """

    def __init__(self, message: str, path: Path, n_bytes: int = 0) -> None:
        super().__init__(message)
        self.path, self.n_bytes = path, n_bytes


class NothingFeasible(Problem):
    """No feasible trial has finished, so that there is no result to show."""

    status = 3


class StorageError(Exception):
    """The storage is unreachable or unsupported. The message contains no password.

    passing: whether the storage may become reachable later; it was unreachable for longer than the caller could wait.
    """

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def _shortened(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    left_out = f"... ({len(line):,} characters) ..."
    return line[: LONGEST - TAIL - len(left_out)] + left_out + line[-TAIL:]


def error_summary(text: str) -> str:
    """Return the type and the first line of the message of an exception, "" for an empty text.

    text: a traceback, whose last exception is described, a log that contains one, or a message.
    """
    lines = [line.removeprefix("  | ").rstrip() for line in text.strip("\n").splitlines()]  # "  | ": of a group
    if lines[1:2] == [SHORTENED]:
        return lines[0]
    starts = [i for i, line in enumerate(lines) if line.startswith(_TRACEBACK)]
    if starts[:1] == [0]:  # the message of an exception may quote the traceback of another process
        starts = [0, *(i for i in starts[1:] if "".join(lines[i - 2 : i]).startswith(_LINKS))]
    if starts:
        lines = lines[starts[-1] + 1 :]
    # The lines of the stack are indented. A message may start with an empty line.
    named = [line for line in lines if line and not line[0].isspace()] or [line.strip() for line in lines if line]
    if len(named) > 1 and named[0].endswith(":") and " " not in named[0]:
        return " ".join(named[:2])
    return named[0] if named else ""


SHORTENED = "..."  # second line of a shortened traceback, whose first line is its summary
_TRACEBACK = ("Traceback (most recent call last)", "  + Exception Group Traceback")
# Lines before the traceback of an exception that was raised because of another one, or while it was handled
_LINKS = ("The above exception was", "During handling of the above exception")


class Interruption(BaseException):
    """A signal or a time limit interrupts the code that is running.

    This is a BaseException, so that `except Exception` in a user's training function does not catch it. The signal
    handlers of a worker raise nothing else: every other exception out of a user's code is a failure of that code.
    """


class UserExit(Exception):
    """Code of the user raised something that is no Exception, which is the cause of this exception.

    Examples are SystemExit, which argparse raises too, KeyboardInterrupt and asyncio.CancelledError.
    """


@contextmanager
def user_code() -> Iterator[None]:
    """Run code of the user, so that only an `Interruption` of this process ends it as one.

    Raises:
        UserExit: the code raised something else that is no Exception.
    """
    try:
        yield
    except (Exception, Interruption):
        raise
    except BaseException as error:
        raise UserExit(f"{type(error).__name__}: {error}") from error


def raised_error(error: BaseException) -> BaseException:
    """Return what code of the user has raised: the cause of a `UserExit`, otherwise the error itself."""
    return error.__cause__ if isinstance(error, UserExit) and error.__cause__ is not None else error


class CommandFailed(RuntimeError):
    """The command of a study ended before its last rung. The message holds the last lines of its output.

    by_signal: whether a signal from outside ended it, so that another attempt may succeed.
    """

    def __init__(self, message: str, by_signal: bool = False) -> None:
        super().__init__(message)
        self.by_signal = by_signal
