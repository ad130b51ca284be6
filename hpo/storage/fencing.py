"""Transactions that write only while an attempt holds its lease."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


class LeaseLost(Exception):
    """An attempt tried to write after it had lost its lease. Nothing was written."""


class _Fence(threading.local):
    """The statements that this thread adds to each of its transactions, and the last row that `check` returned."""

    check: sa.Executable | None = None
    link: sa.Executable | None = None
    row: sa.Row[Any] | None = None


_fence = _Fence()


@contextmanager
def fenced(check: sa.Executable, link: sa.Executable | None = None) -> Iterator[_Fence]:
    """Let this thread write only while `check` returns a row, which stays locked until the transaction ends.

    check: runs at the start of each transaction in the block. The block receives its last row as `row`.
    link: runs at the end of each transaction, and must change a row.

    Raises:
        LeaseLost: `check` returned no row, or `link` changed none. The transaction is rolled back.
    """
    _fence.check, _fence.link, _fence.row = check, link, None
    try:
        yield _fence
    finally:
        _fence.check = _fence.link = None


def run_check(connection: sa.Connection) -> None:
    """Run the check of this thread's fence. The engine calls this function when a transaction begins."""
    if _fence.check is not None:
        _fence.row = connection.execute(_fence.check).first()
        if _fence.row is None:
            raise LeaseLost


def run_link(connection: sa.Connection) -> None:
    """Run the link of this thread's fence. The engine calls this function before a transaction is committed."""
    if _fence.link is not None and not connection.execute(_fence.link).rowcount:
        raise LeaseLost
