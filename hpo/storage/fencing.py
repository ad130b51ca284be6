"""Transactions that write only while an attempt holds its lease."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


class LeaseLost(Exception):
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


def check_fence(connection: sa.Connection) -> None:
    if _fence.check is not None:
        _fence.found = connection.execute(_fence.check).first()
        if _fence.found is None:
            raise LeaseLost


def write_link(connection: sa.Connection) -> None:
    if _fence.link is not None and not connection.execute(_fence.link).rowcount:
        raise LeaseLost
