"""The database that all workers share: opened safely, every call retried, no password ever shown.

SQLite serves one machine, Postgres several. Optuna's tables and one of ours (`SLOT`) share the database.
"""

import errno
import fcntl
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from hpo.storage.engine import (
    OURS,
    SLOT,
    check_present,
    engine_options,
    file_of,
    hook,
    missing_columns,
    network_of,
    normalise,
    unpooled,
)
from hpo.storage.retry import QUICK, StorageError, limit, retry, shown

# Optuna tells on standard error of every study made, opened and every trial.
optuna.logging.set_verbosity(optuna.logging.WARNING)

_LOCK = 0x68706F  # "hpo": the key of the advisory lock under which tables are created

T = TypeVar("T")


class Lost(Exception):
    """A write of an attempt that no longer holds its lease; nothing of it was written."""


class _Fence(threading.local):
    """What must hold at the beginning of each transaction of this thread, and what is written at its end."""

    check: sa.Executable | None = None
    link: sa.Executable | None = None
    found: sa.Row[Any] | None = None


_fence = _Fence()


@contextmanager
def fenced(check: sa.Executable, link: sa.Executable | None = None) -> Iterator[_Fence]:
    """Let this thread write only while `check` finds a row, which stays locked to the end of each transaction.

    link: made part of each transaction, so that it is written with it or not at all; it must change a row. The row
    found last is yielded as `found`.

    Raises:
        Lost: it finds none.
    """
    _fence.check, _fence.link, _fence.found = check, link, None
    try:
        yield _fence
    finally:
        _fence.check = _fence.link = None


@dataclass(frozen=True)
class Store:
    """An open storage: `optuna` for Optuna's objects, retrying by itself; `engine` for our own table."""

    url: str
    rdb: RDBStorage
    optuna: BaseStorage
    patience: float

    @property
    def engine(self) -> sa.Engine:
        """Return the engine that Optuna's storage works on."""
        return self.rdb.engine

    def retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with this storage's patience; see `retry`."""
        return retry(call, *args, patience=self.patience, url=self.url, **kwargs)

    def create_new_trial(self, study_id: int, template: FrozenTrial) -> int:
        """Make a trial's row as Optuna's method does, with no patience but its own: the caller knows what to retry."""
        made: int = type(self.optuna).create_new_trial(self.optuna, study_id, template)
        return made

    def close(self) -> None:
        """Close all connections."""
        self.rdb.remove_session()
        self.engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(url: str, create: bool = False, patience: float = QUICK) -> Store:
    """Open the storage; `create` makes missing tables, also when several processes do so at once.

    patience: seconds for which this call and each later one wait for a storage that is away.

    Raises:
        StorageError: there is no such storage, it does not answer, or it cannot be written.
    """
    url = normalise(url)
    if (file := file_of(url)) is not None and (kind := network_of(file)):
        raise StorageError(f"storage: {file} lies on {kind}, where SQLite's locks fail; use a local disk, or Postgres")
    if create:
        with exclusive(url, patience):
            retry(_create, url, patience=patience, url=url)
    else:
        _check_writable(url)
        check_present(url, patience)
    rdb = retry(_opened, url, patience=patience, url=url)
    retry(_write_probe, rdb.engine, patience=patience, url=url)
    cached = optuna.storages.get_storage(rdb)
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_"):
            setattr(cached, name, functools.partial(retry, getattr(cached, name), patience=patience, url=url))
    return Store(url, rdb, cached, patience)


def _check_writable(url: str) -> None:
    """Refuse a file on a read-only disk at once: SQLite says of it what it says of a file that is away for a moment."""
    file = file_of(url)
    for path in (file.parent, file) if file and file.is_file() else ():
        if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            why = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise StorageError(f"storage: {path} cannot be written: {os.strerror(why)}")


def check_connections(store: Store, workers: int) -> None:
    """Check that the server has connections left for so many workers (2 each) and 10 for everything else.

    Raises:
        StorageError: it has not.
    """
    if store.engine.name == "sqlite":
        return
    total, used = store.retry(_connections, store.engine)
    if workers * 2 + 10 > total - used:
        raise StorageError(
            f"storage: {workers} workers need {workers} x 2 + 10 = {workers * 2 + 10} connections, "
            f"the server allows {total} and {used} are in use; "
            f"start at most {max(0, (total - used - 10) // 2)} workers, or raise max_connections"
        )


def _connections(engine: sa.Engine) -> tuple[int, int]:
    count = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    with engine.begin() as connection:
        total = connection.exec_driver_sql("SELECT current_setting('max_connections')::int").scalar_one()
        return int(total), int(connection.exec_driver_sql(count).scalar_one())


def _template(url: str) -> str:
    """Return the URL as Optuna wants it: it fills in {SCHEMA_VERSION}, so braces are doubled."""
    return url.replace("{", "{{").replace("}", "}}")


@contextmanager
def exclusive(url: str, patience: float) -> Iterator[None]:
    """Hold the lock under which tables and studies are created; without it processes that do so at once fail."""
    file = file_of(url)
    if file is None:
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", **unpooled(url))
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


def _create(url: str) -> None:
    """Create what is missing of Optuna's tables and ours, and check that Optuna's are of this version."""
    try:
        rdb = RDBStorage(_template(url), engine_kwargs=unpooled(url))
    except RuntimeError as error:  # tables of another version of Optuna
        raise StorageError(f"{shown(url)}: {error}") from error
    OURS.create_all(rdb.engine)
    add_columns(rdb.engine)


def schema_problem(url: str, patience: float = QUICK) -> str | None:
    """Return what is wrong with the tables of a storage that is there, None where nothing is.

    Raises:
        StorageError: there is no storage, or it does not answer.
    """
    file = file_of(url)
    if file and not file.is_file():
        raise StorageError(f"no storage at {file}; `hpo launch` creates it")
    engine = sa.create_engine(url, **unpooled(url))
    missing = retry(missing_columns, engine, patience=patience, url=url)
    if missing is None:
        raise StorageError(f"no study in {shown(url)}; `hpo launch` creates the tables")
    if missing:
        return f"{shown(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}"
    try:
        retry(RDBStorage, _template(url), engine_kwargs=unpooled(url), skip_table_creation=True, patience=patience)
    except RuntimeError as error:  # Optuna's tables are of another version
        return f"{shown(url)}: {error}"
    return None


def update_schema(url: str) -> None:
    """Add what our tables lack; Optuna's own are for `optuna storage upgrade`."""
    with exclusive(url, QUICK):
        retry(_create, url, patience=QUICK, url=url)


def add_columns(engine: sa.Engine) -> None:
    """Add what tables of an earlier version lack."""
    for column in missing_columns(engine) or []:
        kind = column.type.compile(engine.dialect)
        default = f" DEFAULT {column.server_default.arg}" if isinstance(column.server_default, sa.DefaultClause) else ""
        with engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {column.name} {kind}{default}")


def _opened(url: str) -> RDBStorage:
    options = engine_options(url)
    rdb = RDBStorage(_template(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "postgresql":
        sa.event.listen(rdb.engine, "begin", _limit_statements)
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # Optuna's constructor has used it, and opens a second connection inside a transaction
        hook(rdb.engine)
    sa.event.listen(rdb.engine, "begin", _check_fence)
    sa.event.listen(rdb.engine, "commit", _write_link)
    return rdb


def _limit_statements(connection: sa.Connection) -> None:
    """Have the server end what waits longer than this thread may, such as for a lock."""
    if limit() < math.inf:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(1000 * limit()))}")


def _check_fence(connection: sa.Connection) -> None:
    if _fence.check is not None:
        _fence.found = connection.execute(_fence.check).first()
        if _fence.found is None:
            raise Lost


def _write_link(connection: sa.Connection) -> None:
    if _fence.link is not None and not connection.execute(_fence.link).rowcount:
        raise Lost


def _write_probe(engine: sa.Engine) -> None:
    """Write without a change, so that a full disk or missing rights show now and not after a training."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        else:
            connection.execute(sa.update(SLOT).values(attempt=SLOT.c.attempt).where(sa.false()))


def browse(url: str, patience: float = QUICK) -> Store:
    """Open the storage with Optuna's objects to look at it: no write lock is taken, writes are refused.

    Raises:
        StorageError: there is no such storage, or it does not answer.
    """
    url = normalise(url)
    check_present(url, patience)
    options = engine_options(url, readonly=True)
    if not file_of(url):  # thousands of trials take Optuna longer than a worker may be idle, and block nobody
        options["connect_args"]["options"] += " -c idle_in_transaction_session_timeout=300000"
    rdb = RDBStorage(_template(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # as in _opened
        hook(rdb.engine, readonly=True)
    return Store(url, rdb, optuna.storages.get_storage(rdb), patience)
