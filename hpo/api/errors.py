"""Errors in the words of Python: about "--seeds" of the command line, a function says "seeds"."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hpo.errors import Problem, StorageError, UserExit, WorkFailed, raised_error
from hpo.storage.url import mask_passwords

# The options of the command line that have another name in Python
_ARGUMENTS = {"as": "name", "set": "overrides"}
_OPTION = re.compile(r"(?<![\w-])--([a-z]+(?:-[a-z]+)*)")
_COMMAND = re.compile(r"(`hpo [^`]*`)")  # stays as it is typed into a shell


@contextmanager
def python_errors() -> Iterator[None]:
    """Raise the errors of a command as errors of a function: arguments instead of options, no passwords.

    Raises:
        Problem: the user can fix the error.
        StorageError: the storage is unreachable or damaged.
    """
    try:
        yield
    except Problem as problem:
        problem.lines = tuple(map(in_python, problem.lines))
        problem.args = ("\n".join(problem.lines),)
        raise
    except StorageError as error:
        error.args = (in_python(str(error)),)
        raise
    except UserExit as error:
        if isinstance(raised_error(error), KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise WorkFailed(f"the code that the study names ended with {error}") from error
    except Exception as error:
        from hpo.storage.damage import explain_failure

        if (failure := explain_failure(error)) is None:
            raise
        raise failure from error


def in_python(message: str) -> str:
    """Return a message about options of the command line as a message about arguments of a function."""
    parts = _COMMAND.split(mask_passwords(message))
    return "".join(part if i % 2 else _OPTION.sub(_argument, part) for i, part in enumerate(parts))


def _argument(match: re.Match[str]) -> str:
    return _ARGUMENTS.get(match[1], match[1].replace("-", "_"))
