"""Which errors of a storage are tried again, and for how long."""

import sqlite3
import time
from typing import Any

import optuna
import psycopg
import pytest
import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.retry import retry

SECRET = "s3cr3t"


def locked() -> sa.exc.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY  # type: ignore[misc]
    return sa.exc.OperationalError("SELECT 1", None, error)


def wrapped(error: Exception) -> optuna.exceptions.StorageInternalError:
    outer = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    outer.__cause__ = error
    return outer


PASSING = [
    locked(),
    wrapped(locked()),
    sa.exc.OperationalError("SELECT 1", None, psycopg.errors.AdminShutdown("terminating connection")),
    sa.exc.OperationalError("SELECT 1", None, psycopg.OperationalError("server closed the connection")),
    sa.exc.TimeoutError("QueuePool limit"),
    sa.exc.OperationalError("SELECT 1", None, psycopg.errors.IdleInTransactionSessionTimeout("terminating connection")),
]


LASTING = [
    sa.exc.OperationalError("SELECT 1", None, sqlite3.OperationalError("no such table: hpo_slot")),
    wrapped(sa.exc.ProgrammingError("SELECT 1", None, psycopg.errors.UndefinedTable("no hpo_slot"))),
    sa.exc.OperationalError("SELECT 1", None, psycopg.OperationalError(f"password authentication failed {SECRET}")),
]


def fails(n: int, error: Exception) -> Any:
    """Return a function that fails n times and then returns its argument."""
    failures = [error] * n

    def call(value: str) -> str:
        if failures:
            raise failures.pop()
        return value

    return call


@pytest.mark.parametrize("error", PASSING, ids=["locked", "wrapped", "shutdown", "closed", "pool", "frozen"])
def test_a_passing_error_is_tried_again(error: Exception) -> None:
    assert retry(fails(3, error), "done", patience=30) == "done"


@pytest.mark.parametrize("error", PASSING, ids=["locked", "wrapped", "shutdown", "closed", "pool", "frozen"])
def test_patience_ends_in_a_storage_error(error: Exception) -> None:
    with pytest.raises(StorageError, match=r"storage sqlite:///a\.db: "):
        retry(fails(10**6, error), "done", patience=0.2, url="sqlite:///a.db")


@pytest.mark.parametrize("error", LASTING, ids=["no table", "wrapped", "password"])
def test_a_lasting_error_is_not_tried_again(error: Exception) -> None:
    with pytest.raises(StorageError) as failure:
        retry(fails(1, error), "done", url=f"postgresql://u:{SECRET}@h/d")
    assert SECRET not in str(failure.value)


@pytest.mark.parametrize("error", [KeyError("study"), optuna.exceptions.UpdateFinishedTrialError("done")])
def test_what_is_not_the_storage_s_fault_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)):
        retry(fails(1, error), "done")


def test_waiting_grows_and_stays_within_patience() -> None:
    begin = time.monotonic()
    with pytest.raises(StorageError):
        retry(fails(10**6, locked()), "done", patience=1.0)
    assert time.monotonic() - begin < 20
