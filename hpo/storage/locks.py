"""The lock that a process holds while it creates tables or studies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.engine import unpooled_options
from hpo.storage.retry import retry
from hpo.storage.url import sqlite_file

_LOCK = 0x68706F  # "hpo": key of the advisory lock on Postgres


@contextmanager
def creation_lock(url: str, patience: float) -> Iterator[None]:
    """Hold the lock for creating tables and studies, which fail if two processes create them at the same time.

    On SQLite the lock is on a file beside the database, on Postgres it is an advisory lock.
    """
    file = sqlite_file(url)
    if file is None:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", **unpooled_options(url))
        with retry(_connect_locked, engine, patience=patience, url=url):
            yield  # closing the connection frees the lock
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(f"{file}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise StorageError(f"storage: {file.parent} cannot be written: {error.strerror}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _connect_locked(engine: sa.Engine) -> sa.Connection:
    """Return a connection that holds the lock."""
    connection = engine.connect()
    try:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
    except BaseException:
        connection.close()
        raise
    return connection
