"""Retry calls of a storage while it is temporarily unavailable.

Retried: a locked or busy SQLite file and I/O errors on it; on Postgres lost or refused connections, deadlocks, too few
resources, and a server that shuts down or restarts. Not retried: a wrong password, a missing database, an invalid
statement, or a violated constraint. No error message contains a password.
"""

import functools
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
from hpo.storage.url import mask_passwords, masked_url, secrets_of

QUICK = 5.0  # seconds for which a command retries. Workers and launchers retry without limit once the study exists.
NOTE_S = 60.0  # seconds between two messages about one outage

# SQLite result codes of errors that end by themselves or by an administrator's action:
# SQLITE_BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN, PROTOCOL. https://www.sqlite.org/rescode.html
_SQLITE_TEMPORARY = {5, 6, 7, 10, 13, 14, 15}
_SQLITE_DAMAGED = {11, 26}  # SQLITE_CORRUPT, NOTADB
_DAMAGED = "it is damaged, or not a database: restore a copy of it, or use another --storage"
# Classes of SQLSTATE: connection exception, transaction rollback, insufficient resources, object not in prerequisite
# state, operator intervention, system error. PostgreSQL documentation, appendix "PostgreSQL Error Codes".
_POSTGRES_TEMPORARY = {"08", "40", "53", "55", "57", "58"}
_IDLE_IN_TRANSACTION = "25P03"  # this process was suspended inside a transaction, and the server ended the session
_FULL = re.compile(r"too many clients|too many connections|connection slots are reserved")
# A refused connection has no SQLSTATE, only the message of libpq.
_REFUSED = re.compile(
    r"authentication failed|no password|does not exist|pg_hba\.conf|not permitted|invalid (port|conn)"
)

_DRIVER_ERRORS = (PoolTimeout, sqlite3.Error)

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _Limit(threading.local):
    seconds = math.inf


_limit = _Limit()


def patience_limit() -> float:
    """Return for how many seconds a call of this thread may retry at most, regardless of its patience."""
    return _limit.seconds


@contextmanager
def limit_patience(seconds: float) -> Iterator[None]:
    """Limit the time for which each call of this thread retries inside the block."""
    before, _limit.seconds = _limit.seconds, min(seconds, _limit.seconds)
    try:
        yield
    finally:
        _limit.seconds = before


class _Outages:
    """Periods in which the storage did not answer this process, across all of its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: float | None = None
        self._durations: list[float] = []
        self._reason = ""
        self._noted_at = -math.inf

    def start(self, reason: str) -> None:
        """Record that a call has failed. The first failure starts an outage."""
        with self._lock:
            self._since, self._reason = self._since or time.monotonic(), reason

    def is_ongoing(self) -> bool:
        """Return whether the last call has failed."""
        return self._since is not None

    def note(self) -> str:
        """Return a message about the outage, "" if it is younger than two seconds or NOTE_S have not passed."""
        with self._lock:
            now = time.monotonic()
            if self._since is None or now - self._since < 2.0 or now - self._noted_at < NOTE_S:
                return ""
            self._noted_at = now
            return f"{self._reason}; waiting for the storage, which has been unreachable for {now - self._since:.0f} s"

    def end(self) -> None:
        """Record that a call has succeeded, which ends an outage."""
        if self._since is not None:
            with self._lock:
                self._durations += [time.monotonic() - self._since] if self._since is not None else []
                self._since = None

    def pop_durations(self) -> list[float]:
        """Return the duration of each outage that has ended since the last call, in seconds."""
        with self._lock:
            durations, self._durations = self._durations, []
        return durations


outages = _Outages()


class _Waiting:
    """Whether the main thread waits without limit for an unreachable storage."""

    now = False


def is_waiting() -> bool:
    """Return whether the main thread waits without limit for an unreachable storage, so that a signal may end it."""
    return _Waiting.now


def retry(call: Callable[..., T], *args: Any, patience: float = QUICK, url: str = "", **kwargs: Any) -> T:
    """Call until the storage answers. Every call of a storage goes through this function.

    A call may take effect although its answer is lost. The retry then takes effect a second time, so a call must
    tolerate this.

    patience: seconds after which to give up; see also `limit_patience`. url: of the storage, for messages. While a call
    waits, a message is logged every NOTE_S.

    Raises:
        StorageError: The error is permanent, or it lasted longer than `patience`.
    """
    deadline = time.monotonic() + min(patience, patience_limit())
    try:
        return _retry_until(deadline, functools.partial(call, *args, **kwargs), url)
    finally:
        if threading.current_thread() is threading.main_thread():
            _Waiting.now = False


def _retry_until(deadline: float, call: Callable[[], T], url: str) -> T:
    for attempt in itertools.count():
        try:
            result = call()
            outages.end()
            return result
        except UnicodeDecodeError as error:  # of a value, or of SQLite's message, which quotes a damaged schema
            raise StorageError(f"storage {masked_url(url)}: text in it is not UTF-8; {_DAMAGED}") from error
        except _storage_errors() as error:
            cause = _cause(error)
            # Random, so that workers that lost the server at the same time do not reconnect at the same time.
            pause = random.uniform(0.5, 1.0) * min(5.0, 0.05 * 2 ** min(attempt, 10))
            temporary = _is_temporary(cause)
            explanation = _explanation(cause, url)
            if temporary:
                outages.start(explanation)
            if not temporary or time.monotonic() + pause > deadline:
                raise StorageError(explanation, temporary) from error
            if attempt >= 5 and (note := outages.note()):
                _log.warning(note)
            if deadline == math.inf and threading.current_thread() is threading.main_thread():
                _Waiting.now = True
            time.sleep(pause)
    raise AssertionError


def _storage_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that a storage raises; Optuna's only if it is imported, because its import takes 0.3 s."""
    errors = (DBAPIError, PoolTimeout, sqlite3.Error)
    optuna = sys.modules.get("optuna.exceptions")
    return (*errors, optuna.StorageInternalError) if optuna else errors


def _cause(error: BaseException) -> BaseException:
    """Return the error of the database driver that SQLAlchemy and Optuna wrap."""
    if isinstance(error, DBAPIError) and error.orig:
        return error.orig
    if not isinstance(error, _DRIVER_ERRORS) and error.__cause__:
        return _cause(error.__cause__)  # of Optuna's StorageInternalError
    return error


def _is_temporary(cause: BaseException) -> bool:
    """Return whether a retry may help."""
    if isinstance(cause, sqlite3.Error):
        return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_TEMPORARY
    if state := getattr(cause, "sqlstate", None):
        return state[:2] in _POSTGRES_TEMPORARY or state == _IDLE_IN_TRANSACTION
    return not _REFUSED.search(str(cause))


def _explanation(cause: BaseException, url: str) -> str:
    """Return the message of an error without passwords."""
    text = " ".join(str(cause).split())
    if url:
        for secret in secrets_of(url):
            text = text.replace(secret, "***")
    is_damaged = getattr(cause, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DAMAGED
    if is_damaged or text.startswith("Could not decode to UTF-8"):
        text += f"; {_DAMAGED}"
    if _FULL.search(text):
        text += "; every connection of the server is in use: end programs that use it, or raise max_connections"
    return f"storage {masked_url(url)}: {mask_passwords(text)}"


class OpenStorage(Protocol):
    """An open storage: a `Reader` for reading, or a `Store` for reading and writing."""

    @property
    def url(self) -> str: ...
    @property
    def patience(self) -> float: ...
    @property
    def engine(self) -> sa.Engine: ...
    @property
    def retry(self) -> Any: ...
    @property
    def lacks(self) -> frozenset[str]: ...


def transact(store: OpenStorage, work: Callable[[sa.Connection], T], patience: float | None = None) -> T:
    """Call `work` in a transaction, and again in a new one while the storage is unavailable.

    patience: seconds after which to give up, as in `retry`. None: the patience of the store.
    """

    def once() -> T:
        with store.engine.begin() as connection:
            return work(connection)

    return retry(once, patience=store.patience if patience is None else patience, url=store.url)
