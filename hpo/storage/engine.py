"""Open a storage for reading, and the engine options that all connections share.

SQLite serves the workers of one machine. Its file uses write-ahead logging, so readers do not block the writer, and
one write transaction runs at a time. Postgres serves several machines. Each worker holds at most two connections.

This module does not import Optuna, whose import takes half the time of a command such as `hpo status`.
"""

import functools
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.damage import check_damage
from hpo.storage.file_guard import FileGuard
from hpo.storage.retry import QUICK, patience_limit, retry
from hpo.storage.schema import N_COLUMNS, foreign_content, missing_columns, needed_for_reading
from hpo.storage.url import masked_url, normalise_url, sqlite_file

BUSY_TIMEOUT_S = 60.0  # how long SQLite waits for the lock of another process
IDLE_TIMEOUT_MS = 60_000  # a suspended worker must not hold its locks, so Postgres ends its transaction

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A storage opened for reading. It takes no write lock, so it never slows down a worker.

    lacks: names of columns that later versions of hpo have added, and that this storage does not have.
    """

    url: str
    engine: sa.Engine
    patience: float
    lacks: frozenset[str] = frozenset()

    def retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with the patience of this reader; see `hpo.storage.retry.retry`."""
        return retry(call, *args, patience=self.patience, url=self.url, **kwargs)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()


def open_readonly(url: str, patience: float = QUICK) -> Reader:
    """Open a storage for reading. The database refuses writes.

    patience: seconds for which this call and later ones retry.

    Raises:
        StorageError: There is no such storage, or it does not answer.
    """
    url = normalise_url(url)
    lacks = check_tables(url, patience)
    engine = sa.create_engine(url, **engine_options(url, readonly=True))
    if engine.name == "sqlite":
        set_up_sqlite(engine, readonly=True)
    return Reader(url, engine, patience, lacks)


def engine_options(url: str, readonly: bool = False) -> dict[str, Any]:
    """Return the arguments of `sqlalchemy.create_engine`."""
    if file := sqlite_file(url):
        if readonly and is_frozen(file):
            # No pool, so that each connection checks again whether the file is frozen.
            return {"creator": functools.partial(_connect_frozen, file), "poolclass": sa.NullPool}
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    options = f"-c timezone=UTC -c idle_in_transaction_session_timeout={IDLE_TIMEOUT_MS}"
    options += " -c default_transaction_read_only=on" if readonly else ""
    own_options = sa.make_url(url).query.get("options", "")
    connect_args = {
        "connect_timeout": 5,
        "application_name": "hpo",
        "options": f"{own_options} {options}".strip(),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15000,  # ms; keepalives do not detect a lost peer while sent data is unacknowledged
    }
    # One connection for the work and one for the thread that renews leases.
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 0, "connect_args": connect_args}


def unpooled_options(url: str, readonly: bool = False) -> dict[str, Any]:
    """Return the arguments of `sqlalchemy.create_engine` for an engine that keeps no connection open."""
    options = engine_options(url, readonly)
    kept: dict[str, Any] = {key: options[key] for key in ("connect_args", "creator") if key in options}
    return {**kept, "poolclass": sa.NullPool}


def is_frozen(file: Path) -> bool:
    """Return whether the folder of a SQLite file cannot be written, for example on a read-only mount.

    Readers and writers of the file share files beside it, so SQLite can then read it only if no process writes to it.
    """
    return file.is_file() and not os.access(file.parent, os.W_OK)


def is_read_only(url: str) -> bool:
    """Return whether a storage is a file that cannot be written."""
    file = sqlite_file(normalise_url(url))
    return file is not None and is_frozen(file)


def _connect_frozen(file: Path) -> sqlite3.Connection:
    """Open a SQLite file that nobody can write.

    Raises:
        sqlite3.Error: The file cannot be read.
        StorageError: Its last writer did not close it, so that a part of its content is in another file.
    """
    log = Path(f"{file}-wal")
    frozen = not (log.is_file() and log.stat().st_size)
    if not frozen and not Path(f"{file}-shm").is_file():
        raise StorageError(
            f"storage: {file} was not closed, and its last changes in {log} cannot be read in a folder that is not "
            "writable; copy both files to a writable folder"
        )
    options = "mode=ro&immutable=1" if frozen else "mode=ro"
    address = f"file:{quote(str(file.absolute()))}?{options}"
    return sqlite3.connect(address, BUSY_TIMEOUT_S, uri=True, check_same_thread=False)


def no_storage(file: Path) -> StorageError:
    return StorageError(f"no storage at {file}; `hpo launch` creates it", passing=True)


def no_tables(url: str) -> StorageError:
    return StorageError(f"no study in {masked_url(url)}; `hpo launch` creates the tables", passing=True)


def columns_to_add(url: str, patience: float) -> list[sa.Column[Any]]:
    """Return the columns that the tables of an existing storage lack.

    Raises:
        StorageError: There is no storage, it holds no study, or it does not answer.
    """
    file = sqlite_file(url)
    if file and not file.is_file():
        raise no_storage(file)
    engine = sa.create_engine(url, **unpooled_options(url, readonly=True))
    check_damage(engine, url, patience)
    missing = retry(missing_columns, engine, patience=patience, url=url)
    check_no_foreign_tables(engine, url, patience)
    if missing is None or len(missing) == N_COLUMNS:
        raise no_tables(url)
    return missing


def check_no_foreign_tables(engine: sa.Engine, url: str, patience: float) -> None:
    """Check that no other program created the tables of a storage.

    Raises:
        StorageError: The storage has tables of another program, or studies of Optuna, but no table of hpo.
    """
    if content := retry(foreign_content, engine, patience=patience, url=url):
        rule = f"must be a database that `hpo launch` created, got {content}"
        raise StorageError(f"{masked_url(url)}: {rule}; hpo does not change it: use another --storage", passing=True)


def check_tables(url: str, patience: float) -> frozenset[str]:
    """Check that a storage has the tables and columns that a command needs for reading; return the others it lacks.

    Raises:
        StorageError: It lacks some, there is no such storage, or it does not answer.
    """
    lacks = columns_to_add(url, patience)
    if missing := needed_for_reading(lacks):
        raise StorageError(
            f"{masked_url(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}; "
            "`hpo doctor --fix` adds them"
        )
    return frozenset(column.name for column in lacks)


def set_up_sqlite(engine: sa.Engine, readonly: bool = False) -> FileGuard:
    """Use write-ahead logging, and begin every write transaction with BEGIN IMMEDIATE; return the guard of the file.

    A deferred transaction that reads and then writes lets two processes claim the same trial: 42 of 200 measured.
    No transaction begins after the file was removed or replaced.
    """
    guard = FileGuard(Path(str(engine.url.database)))

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        if readonly:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            # A power failure may undo the last transactions, but damages nothing: see bench/durability.py.
            connection.execute("PRAGMA synchronous = NORMAL")
        guard.remember()

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        guard.check()
        # SQLite waits for a lock inside one call, which nothing else can interrupt.
        timeout = min(BUSY_TIMEOUT_S, patience_limit())
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * timeout)}")
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return guard
