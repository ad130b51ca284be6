"""Notice that the file of a SQLite storage was removed or replaced, and save what an open connection still holds.

SQLite continues to write into an open file whose name was removed. All of it would be lost when the file is closed.
"""

import os
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from hpo.errors import StorageError


class FileGuard:
    """Remembers which file a storage opened."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()  # a relative path would change with the current folder
        self._identity: tuple[int, int] | None = None

    def remember(self) -> None:
        """Remember the file that is open. Later calls change nothing."""
        if self._identity is None:
            self._identity = self._read()

    def check(self) -> None:
        """Check that the path still leads to the file that was opened.

        Raises:
            StorageError: The file was removed or replaced.
        """
        if self.is_lost():
            happened = "replaced by another file" if self.file.exists() else "removed"
            raise StorageError(f"storage {self.file}: the file was {happened} while it was in use")

    def is_lost(self) -> bool:
        """Return whether the file was removed or replaced."""
        return self._identity is not None and self._read() != self._identity

    def _read(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.file)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # for example an I/O error, which says nothing about the file
            return self._identity
        return found.st_dev, found.st_ino


@contextmanager
def rescued(guard: FileGuard | None, command: str) -> Iterator[None]:
    """Save the content of a storage whose file is removed or replaced inside the block.

    command: continues the work, for the message.

    Raises:
        StorageError: The file was removed or replaced; the message says where its content is now.
    """
    if guard is None:  # a server
        yield
        return
    with closing(sqlite3.connect(guard.file, check_same_thread=False)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the write-ahead log too
        try:
            yield
        except StorageError as error:
            if not guard.is_lost():
                raise
            raise StorageError(f"{error}; {_save(connection, guard.file, command)}") from None


def _save(connection: sqlite3.Connection, file: Path, command: str) -> str:
    """Copy a storage into a new file beside its former place; return what to do next."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        names = [f"{file.name}.rescued", *(f"{file.name}.rescued-{n}" for n in range(2, 100))]
        saved = next(file.with_name(name) for name in names if not os.path.lexists(file.with_name(name)))
        with closing(sqlite3.connect(saved)) as copy:
            connection.backup(copy)
        if not file.exists():
            for suffix in ("-wal", "-shm"):  # SQLite would apply an old log to the file that takes the place
                Path(f"{file}{suffix}").unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as error:
        return f"its content could not be saved: {error}"
    move = shlex.join(["mv", str(saved), str(file)])
    return f"its content is saved in {saved}; to continue: {move}, then {command}"
