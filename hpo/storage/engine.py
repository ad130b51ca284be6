"""The database's address and how it is opened: SQLite serves one machine, Postgres several.

Commands that only look need no more than this: not Optuna, whose import alone would take half of their time.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.retry import QUICK, patience_limit, retry
from hpo.storage.schema import missing_columns
from hpo.storage.url import NETWORK_FILE_SYSTEMS, masked_url, normalise_url, sqlite_file

NETWORK_FILE_SYSTEMS |= {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"}

BUSY_TIMEOUT_S = 60.0  # for which SQLite waits for another process's lock


T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A storage opened to look at: it takes no write lock, so looking never slows a worker."""

    url: str
    engine: sa.Engine
    patience: float

    def retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with this reader's patience; see `patience.retry`."""
        return retry(call, *args, patience=self.patience, url=self.url, **kwargs)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()


def open_readonly(url: str, patience: float = QUICK) -> Reader:
    """Open the storage to look at it; writes are refused.

    Raises:
        StorageError: there is no such storage, or it does not answer.
    """
    url = normalise_url(url)
    check_tables(url, patience)
    engine = sa.create_engine(url, **engine_options(url, readonly=True))
    if engine.name == "sqlite":
        set_up_sqlite(engine, readonly=True)
    return Reader(url, engine, patience)


def engine_options(url: str, readonly: bool = False) -> dict[str, Any]:
    if sqlite_file(url):
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}
    # A worker that is stopped inside a transaction must not hold its locks against the others.
    options = "-c timezone=UTC -c idle_in_transaction_session_timeout=60000"
    options += " -c default_transaction_read_only=on" if readonly else ""
    given = sa.make_url(url).query.get("options", "")
    connect_args = {
        "connect_timeout": 5,
        "application_name": "hpo",
        "options": f"{given} {options}".strip(),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15000,  # ms; keepalives say nothing while sent data wait for their answer
    }
    # One connection for the work and one for the thread that renews leases.
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 0, "connect_args": connect_args}


def unpooled_options(url: str) -> dict[str, Any]:
    """Return the options of an engine that keeps no connection open."""
    return {"connect_args": engine_options(url)["connect_args"], "poolclass": sa.NullPool}


def check_tables(url: str, patience: float) -> None:
    file = sqlite_file(url)
    if file and not file.is_file():
        raise StorageError(f"no storage at {file}; `hpo launch` creates it", passing=True)
    engine = sa.create_engine(url, **unpooled_options(url))
    missing = retry(missing_columns, engine, patience=patience, url=url)
    if missing is None:
        raise StorageError(f"no study in {masked_url(url)}; `hpo launch` creates the tables", passing=True)
    if missing:
        raise StorageError(
            f"{masked_url(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}; "
            "`hpo doctor --fix` adds them"
        )


def set_up_sqlite(engine: sa.Engine, readonly: bool = False) -> None:
    """Begin every SQLite transaction IMMEDIATE.

    A deferred one that reads and then writes lets two processes both take the same trial: 42 of 200 measured.
    """

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        if readonly:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            connection.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # SQLite waits for a lock inside one call, where nothing else can end the wait.
        wait = min(BUSY_TIMEOUT_S, patience_limit())
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * wait)}")
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
