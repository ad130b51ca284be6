"""The lock that a process holds while it creates tables or studies."""

import errno
import logging
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.engine import unpooled_options
from hpo.storage.retry import retry
from hpo.storage.url import sqlite_file
from model.cache import SILENT_S, open_lock, wait_for_lock

_LOCK = 0x68706F  # "hpo": key of the advisory lock on Postgres

_log = logging.getLogger(__name__)


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
        name = Path(f"{file}.lock")
        lock = open_lock(name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise StorageError(f"storage: {file}.lock must be a file, got a symbolic link; remove it") from None
        raise StorageError(f"storage: {file.parent} cannot be written: {error.strerror}") from error
    try:
        text = "waiting for another process, which holds %s; `fuser %s` shows it"
        wait_for_lock(lock, lambda: _log.warning(text, name, shlex.quote(str(name))))
        yield
    finally:
        os.close(lock)


def _connect_locked(engine: sa.Engine) -> sa.Connection:
    """Return a connection that holds the lock; while another connection holds it, say so once."""
    connection = engine.connect()
    try:
        deadline = time.monotonic() + SILENT_S
        while not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({_LOCK})").scalar_one():
            if time.monotonic() > deadline:
                query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory'"
                _log.warning(
                    "waiting for another client, which holds the lock for creating studies; `%s` shows it", query
                )
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
                break
            time.sleep(0.05)
    except BaseException:
        connection.close()
        raise
    return connection
