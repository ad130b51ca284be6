"""One process at a time writes a study to a tracker, whichever machine it runs on."""

import fcntl
import os
from contextlib import suppress

import sqlalchemy as sa

from hpo.storage.engine import unpooled_options
from hpo.storage.retry import OpenStorage
from hpo.storage.url import sqlite_file

_LOCK = 0x68706F74  # "hpot": first key of the advisory lock on Postgres
_PLACES = 16  # places of the lock for each study


class TrackerLock:
    """A lock that the operating system or the database frees when its process ends.

    On SQLite it is a byte of a file beside the database, on Postgres an advisory lock.
    """

    def __init__(self, store: OpenStorage, study_id: int, place: int) -> None:
        """place: number of the tracker."""
        self._store, self._key = store, study_id * _PLACES + place
        self._file: int | None = None
        self._connection: sa.Connection | None = None

    def is_held(self) -> bool:
        """Return whether this process holds the lock; take the lock if it is free.

        Raises:
            OSError: the file of the lock cannot be written.
            sqlalchemy.exc.DBAPIError: the storage is unreachable.
        """
        file = sqlite_file(self._store.url)
        if file is None:
            return self._is_held_on_postgres()
        if self._file is None:
            opened = os.open(f"{file}.track", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, self._key)
            except OSError:
                os.close(opened)
                return False
            self._file = opened
        return True

    def _is_held_on_postgres(self) -> bool:
        try:
            if self._connection is not None:
                self._connection.exec_driver_sql("SELECT 1")  # fails if the server was restarted and the lock is lost
                return True
            # A connection of its own, because those of the store are few.
            url = self._store.url
            connection = sa.create_engine(url, isolation_level="AUTOCOMMIT", **unpooled_options(url)).connect()
            query = f"SELECT pg_try_advisory_lock({_LOCK}, {self._key % 2**31})"
            if connection.exec_driver_sql(query).scalar_one():
                self._connection = connection
            else:
                connection.close()
            return self._connection is not None
        except sa.exc.DBAPIError:
            self.release()
            raise

    def release(self) -> None:
        """Free the lock."""
        if self._file is not None:
            os.close(self._file)
        if self._connection is not None:
            with suppress(sa.exc.DBAPIError):
                self._connection.close()
        self._file = self._connection = None
