"""The lock under which tables and studies are created."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.engine import unpooled_options
from hpo.storage.retry import retry
from hpo.storage.url import sqlite_file

_LOCK = 0x68706F  # "hpo": the key of the advisory lock under which tables are created


@contextmanager
def creation_lock(url: str, patience: float) -> Iterator[None]:
    """Hold the lock under which tables and studies are created; without it processes that do so at once fail."""
    file = sqlite_file(url)
    if file is None:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", **unpooled_options(url))
        with retry(_locked, engine, patience=patience, url=url):
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


def _locked(engine: sa.Engine) -> sa.Connection:
    """Return a connection that holds the lock."""
    connection = engine.connect()
    try:
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
    except BaseException:
        connection.close()
        raise
    return connection
