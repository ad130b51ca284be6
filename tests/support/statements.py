"""The statements that a block of a test executes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa


@contextmanager
def executed_statements(engine: sa.Engine) -> Iterator[list[str]]:
    """Yield a list that grows by each statement that an engine executes."""
    statements: list[str] = []

    def append(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0] in ("SELECT", "INSERT", "UPDATE"):
            statements.append(statement)

    sa.event.listen(engine, "before_cursor_execute", append)
    yield statements
    sa.event.remove(engine, "before_cursor_execute", append)
