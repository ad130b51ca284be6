"""What goes wrong in a way that the user can mend, and the exit status that says so."""

from collections.abc import Sequence


class Problem(Exception):
    """One or more lines for the user, each naming key, rule, value and remedy; never shown as a traceback."""

    status = 2

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines


class WorkFailed(Problem):
    """The work itself failed: a run, a worker, a server."""

    status = 1


class Unwritable(WorkFailed):
    """A file could not be written: the disk is full, or it may not be written."""


class NothingFeasible(Problem):
    """There is no finished trial to answer with."""

    status = 3


class StorageError(Exception):
    """The storage cannot be reached or is not one that we can use; the message holds no password.

    passing: it was away for longer than the caller could wait, and may be back later.
    """

    def __init__(self, message: str, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
