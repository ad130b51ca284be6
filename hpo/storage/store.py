"""The database that all workers share: opened safely, every call retried, no password ever shown.

SQLite serves one machine, Postgres several. Optuna's tables and one of ours (`SLOT`) share the database.
"""

import errno
import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial

from hpo.errors import StorageError
from hpo.optuna_internals import cached_storage
from hpo.storage.engine import check_tables, engine_options, set_up_sqlite
from hpo.storage.fencing import check_fence, write_link
from hpo.storage.locks import creation_lock
from hpo.storage.migrate import create_tables, optuna_url
from hpo.storage.retry import QUICK, patience_limit, retry
from hpo.storage.schema import SLOT
from hpo.storage.url import network_file_system, normalise_url, sqlite_file

# Optuna tells on standard error of every study made, opened and every trial.
optuna.logging.set_verbosity(optuna.logging.WARNING)


T = TypeVar("T")


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


def open_store(url: str, create: bool = False, patience: float = QUICK) -> Store:
    """Open the storage; `create` makes missing tables, also when several processes do so at once.

    patience: seconds for which this call and each later one wait for a storage that is away.

    Raises:
        StorageError: there is no such storage, it does not answer, or it cannot be written.
    """
    url = normalise_url(url)
    if (file := sqlite_file(url)) is not None and (kind := network_file_system(file)):
        raise StorageError(f"storage: {file} lies on {kind}, where SQLite's locks fail; use a local disk, or Postgres")
    if create:
        with creation_lock(url, patience):
            retry(create_tables, url, patience=patience, url=url)
    else:
        _check_writable(url)
        check_tables(url, patience)
    rdb = retry(_opened, url, patience=patience, url=url)
    retry(_write_probe, rdb.engine, patience=patience, url=url)
    cached = cached_storage(rdb)
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_"):
            setattr(cached, name, functools.partial(retry, getattr(cached, name), patience=patience, url=url))
    return Store(url, rdb, cached, patience)


def _check_writable(url: str) -> None:
    """Refuse a file on a read-only disk at once: SQLite says of it what it says of a file that is away for a moment."""
    file = sqlite_file(url)
    for path in (file.parent, file) if file and file.is_file() else ():
        if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            why = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise StorageError(f"storage: {path} cannot be written: {os.strerror(why)}")


def _opened(url: str) -> RDBStorage:
    options = engine_options(url)
    rdb = RDBStorage(optuna_url(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "postgresql":
        sa.event.listen(rdb.engine, "begin", _limit_statements)
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # Optuna's constructor has used it, and opens a second connection inside a transaction
        set_up_sqlite(rdb.engine)
    sa.event.listen(rdb.engine, "begin", check_fence)
    sa.event.listen(rdb.engine, "commit", write_link)
    return rdb


def _limit_statements(connection: sa.Connection) -> None:
    """Have the server end what waits longer than this thread may, such as for a lock."""
    if patience_limit() < math.inf:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(1000 * patience_limit()))}")


def _write_probe(engine: sa.Engine) -> None:
    """Write without a change, so that a full disk or missing rights show now and not after a training."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        else:
            connection.execute(sa.update(SLOT).values(attempt=SLOT.c.attempt).where(sa.false()))


def open_dashboard(url: str, patience: float = QUICK) -> Store:
    """Open the storage with Optuna's objects to look at it: no write lock is taken, writes are refused.

    Raises:
        StorageError: there is no such storage, or it does not answer.
    """
    url = normalise_url(url)
    check_tables(url, patience)
    options = engine_options(url, readonly=True)
    if not sqlite_file(url):  # thousands of trials take Optuna longer than a worker may be idle, and block nobody
        options["connect_args"]["options"] += " -c idle_in_transaction_session_timeout=300000"
    rdb = RDBStorage(optuna_url(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # as in _opened
        set_up_sqlite(rdb.engine, readonly=True)
    return Store(url, rdb, cached_storage(rdb), patience)
