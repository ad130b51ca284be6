"""Open a storage for reading and writing with Optuna.

Optuna's tables and the tables of hpo share one database. Every call is retried while the storage is unavailable; see
`hpo.storage.retry`.
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
from hpo.optuna_internals.objects import cached_storage
from hpo.storage.engine import check_tables, columns_to_add, engine_options, set_up_sqlite
from hpo.storage.fencing import run_check, run_link
from hpo.storage.file_guard import FileGuard
from hpo.storage.locks import creation_lock
from hpo.storage.migrate import create_tables, optuna_url, update_schema
from hpo.storage.paused_cache import cache_paused_trials
from hpo.storage.retry import QUICK, patience_limit, retry
from hpo.storage.schema import SLOT
from hpo.storage.url import network_file_system, normalise_url, sqlite_file

# At its default level Optuna prints a line for each study and each trial.
optuna.logging.set_verbosity(optuna.logging.WARNING)

DASHBOARD_IDLE_TIMEOUT_MS = 300_000  # Optuna may take longer than a worker's limit to read thousands of trials

T = TypeVar("T")


@dataclass(eq=False)
class Store:
    """An open storage.

    rdb: Optuna's storage without retries. optuna: the same with retries and a cache of finished trials; pass it to
    Optuna's functions. patience: seconds for which each call retries; it may be changed. guard: notices that the SQLite
    file was removed or replaced, None for a server. lacks: see `Reader`; only the dashboard opens such a storage.
    """

    url: str
    rdb: RDBStorage
    optuna: BaseStorage
    patience: float
    guard: FileGuard | None = None
    lacks: frozenset[str] = frozenset()

    @property
    def engine(self) -> sa.Engine:
        """Return the engine that Optuna's storage uses; the tables of hpo are on it too."""
        return self.rdb.engine

    def retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with the patience of this storage; see `hpo.storage.retry.retry`."""
        return retry(call, *args, patience=self.patience, url=self.url, **kwargs)

    def check_file(self) -> None:
        """Check that the file of the storage is still the one that was opened; every transaction does so too.

        Raises:
            StorageError: The file was removed or replaced.
        """
        if self.guard is not None:
            self.guard.check()

    def create_new_trial(self, study_id: int, template: FrozenTrial) -> int:
        """Create a trial as Optuna's method does, without a retry: the caller retries a larger unit."""
        trial_id: int = type(self.optuna).create_new_trial(self.optuna, study_id, template)
        return trial_id

    def close(self) -> None:
        """Close all connections."""
        self.rdb.remove_session()
        self.engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str, create: bool = False, patience: float = QUICK) -> Store:
    """Open a storage for reading and writing.

    create: create missing tables. Several processes may do so at the same time.
    patience: seconds for which this call and each later one retry while the storage is unavailable.

    Raises:
        StorageError: There is no such storage, it does not answer, or it is not writable.
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
        if columns_to_add(url, patience):  # those that version 0.1 lacks
            update_schema(url, patience)
    rdb, guard = retry(_open_rdb, url, patience=patience, url=url)
    try:
        retry(_probe_write, rdb.engine, patience=patience, url=url)
    except BaseException:
        rdb.engine.dispose()
        raise
    store = Store(url, rdb, cached_storage(rdb), patience, guard)
    cache_paused_trials(store.optuna, rdb.engine)
    for name, method in vars(BaseStorage).items():
        if callable(method) and not name.startswith("_"):
            setattr(store.optuna, name, functools.partial(store.retry, getattr(store.optuna, name)))
    return store


def _check_writable(url: str) -> None:
    """Check the permissions of a SQLite file, because SQLite reports missing ones like a temporary failure."""
    file = sqlite_file(url)
    for path in (file.parent, file) if file and file.is_file() else ():
        if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            reason = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
            raise StorageError(f"storage: {path} cannot be written: {os.strerror(reason)}")


def _open_rdb(url: str) -> tuple[RDBStorage, FileGuard | None]:
    """Return Optuna's storage, with the fences of hpo on its transactions, and the guard of its file."""
    options = engine_options(url)
    rdb = RDBStorage(optuna_url(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "postgresql":
        sa.event.listen(rdb.engine, "begin", _limit_statements)
    guard = None
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # Optuna's constructor has opened a connection, which lacks our settings
        guard = set_up_sqlite(rdb.engine)
    sa.event.listen(rdb.engine, "begin", run_check)
    sa.event.listen(rdb.engine, "commit", run_link)
    return rdb, guard


def _limit_statements(connection: sa.Connection) -> None:
    """Let the server cancel a statement, for example one that waits for a lock, at the thread's limit of patience."""
    if patience_limit() < math.inf:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(1000 * patience_limit()))}")


def _probe_write(engine: sa.Engine) -> None:
    """Write without a change, so that a full disk or a missing permission is reported now and not after a training."""
    with engine.begin() as connection:
        if engine.name == "sqlite":
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            connection.exec_driver_sql(f"PRAGMA user_version = {version}")
        else:
            connection.execute(sa.update(SLOT).values(attempt=SLOT.c.attempt).where(sa.false()))


def open_dashboard(url: str, patience: float = QUICK) -> Store:
    """Open a storage for reading with Optuna. It takes no write lock, and the database refuses writes.

    Raises:
        StorageError: There is no such storage, or it does not answer.
    """
    url = normalise_url(url)
    lacks = check_tables(url, patience)
    options = engine_options(url, readonly=True)
    if not sqlite_file(url):
        idle = f" -c idle_in_transaction_session_timeout={DASHBOARD_IDLE_TIMEOUT_MS}"
        options["connect_args"]["options"] += idle
    rdb = RDBStorage(optuna_url(url), options, skip_compatibility_check=True, skip_table_creation=True)
    if rdb.engine.name == "sqlite":
        rdb.engine.dispose()  # as in _open_rdb
        set_up_sqlite(rdb.engine, readonly=True)
    return Store(url, rdb, cached_storage(rdb), patience, lacks=lacks)
