"""Patience with a storage: passing faults are waited for, others said at once, no password ever shown."""

import itertools
import logging
import math
import random
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from hpo.errors import StorageError
from hpo.storage.url import masked_url

PATIENCE = 300.0  # seconds that a worker waits for a storage that is away, such as a server being restarted
QUICK = 5.0  # the same for commands that a person waits for

# What time or an administrator cures: busy, locked, nomem, ioerr, full, cantopen, protocol.
_SQLITE_PASSING = {5, 6, 7, 10, 13, 14, 15}
# Classes of SQLSTATE: connection, transaction rollback, resources, in use, operator intervention, system.
_POSTGRES_PASSING = {"08", "40", "53", "55", "57", "58"}
_FROZEN = "25P03"  # this process stood still inside a transaction, and the server ended that
# A refused connection carries no SQLSTATE, only libpq's words.
_REFUSED = re.compile(
    r"authentication failed|no password|does not exist|pg_hba\.conf|not permitted|invalid (port|conn)"
)

_DRIVER = (PoolTimeout, sqlite3.Error)

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _Limit(threading.local):
    seconds = math.inf


_limit = _Limit()


def patience_limit() -> float:
    """Return how many seconds this thread may wait for a storage, whatever its patience."""
    return _limit.seconds


@contextmanager
def limit_patience(seconds: float) -> Iterator[None]:
    """Have this thread wait no longer than this for a storage, in each call inside."""
    before, _limit.seconds = _limit.seconds, min(seconds, _limit.seconds)
    try:
        yield
    finally:
        _limit.seconds = before


class _Outages:
    """How long a storage did not answer this process, whichever of its threads asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._over: list[float] = []

    def start(self) -> None:
        with self._lock:
            self._since = self._since or time.monotonic()

    def end(self) -> None:
        if self._since is not None:
            with self._lock:
                self._over += [time.monotonic() - self._since] if self._since is not None else []
                self._since = None

    def pop_durations(self) -> list[float]:
        """Return the seconds of each outage that has ended since this was last asked."""
        with self._lock:
            found, self._over = self._over, []
        return found


outages = _Outages()


def retry(call: Callable[..., T], *args: Any, patience: float = PATIENCE, url: str = "", **kwargs: Any) -> T:
    """Call until the storage answers, at most for `patience` seconds. Every storage call goes through here.

    A call may have taken effect although its answer was lost, so it may be made twice.

    Raises:
        StorageError: the failure is one that does not pass, or it did not pass in time.
    """
    deadline = time.monotonic() + min(patience, patience_limit())
    for attempt in itertools.count():
        try:
            found = call(*args, **kwargs)
            outages.end()
            return found
        except _faults() as error:
            cause = _cause(error)
            # jitter: workers that lost the server together must not come back together
            pause = random.uniform(0.5, 1.0) * min(5.0, 0.05 * 2 ** min(attempt, 10))
            passing = _passes(cause)
            if passing:
                outages.start()
            if not passing or time.monotonic() + pause > deadline:
                raise StorageError(_explanation(cause, url), passing) from error
            if attempt == 5:
                _log.warning("%s; trying again for %.0f s", _explanation(cause, url), deadline - time.monotonic())
            time.sleep(pause)
    raise AssertionError


def _faults() -> tuple[type[Exception], ...]:
    """Return what a storage raises. Optuna's own error only where Optuna is in use: importing it takes 0.3 s."""
    optuna = sys.modules.get("optuna.exceptions")
    ours = (DBAPIError, PoolTimeout, sqlite3.Error)
    return (*ours, optuna.StorageInternalError) if optuna else ours


def _cause(error: BaseException) -> BaseException:
    """Return the driver's own error from under SQLAlchemy's and Optuna's."""
    if isinstance(error, DBAPIError) and error.orig:
        return error.orig
    if not isinstance(error, _DRIVER) and error.__cause__:
        return _cause(error.__cause__)  # Optuna's StorageInternalError
    return error


def _passes(cause: BaseException) -> bool:
    """Tell whether trying again may help."""
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_PASSING
    if state := getattr(cause, "sqlstate", None):
        return state[:2] in _POSTGRES_PASSING or state == _FROZEN
    return not _REFUSED.search(str(cause))


def _explanation(cause: BaseException, url: str) -> str:
    text = " ".join(str(cause).split())
    if url:
        parsed = sa.make_url(url)
        for secret in {parsed.password, parsed.query.get("password")} - {None, ""}:
            text = text.replace(str(secret), "***")
    return f"storage {masked_url(url)}: {text}"


class OpenStorage(Protocol):
    """A storage that is open, to look at or to work with."""

    @property
    def url(self) -> str: ...
    @property
    def patience(self) -> float: ...
    @property
    def engine(self) -> sa.Engine: ...
    @property
    def retry(self) -> Any: ...


def transact(store: OpenStorage, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
    """Do some work in one transaction, made again while the storage is away."""

    def once() -> T:
        with store.engine.begin() as connection:
            return work(connection)

    return retry(once, patience=store.patience if patience is None else patience, url=store.url)
