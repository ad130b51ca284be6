"""Errors that the user can fix, and the exit status of each."""

from collections.abc import Sequence


class Problem(Exception):
    """An error that the user can fix. Each line names the key, the rule, the value and the remedy; no traceback is
    shown."""

    status = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class WorkFailed(Problem):
    """A run, a worker or a server failed."""

    status = 1


class Unwritable(WorkFailed):
    """A file cannot be written, because the disk is full or write permission is missing."""


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


def error_summary(text: str) -> str:
    """Return the type and the first line of the message of an exception, "" for an empty text.

    text: a traceback, whose last exception is described, or a message.
    """
    lines = [line.removeprefix("  | ").rstrip() for line in text.strip("\n").splitlines()]  # "  | ": of a group
    for i, line in enumerate(lines):
        if line.startswith(_TRACEBACK):
            lines[: i + 1] = [""] * (i + 1)
    # The lines of the stack are indented. A message may start with an empty line.
    named = [line for line in lines if line and not line[0].isspace()] or [line.strip() for line in lines if line]
    if len(named) > 1 and named[0].endswith(":") and " " not in named[0]:
        return " ".join(named[:2])
    return named[0] if named else ""


_TRACEBACK = ("Traceback", "  + Exception Group Traceback")
