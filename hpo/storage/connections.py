"""Count the connections that a Postgres server has left.

max_connections limits client backends only: background workers, autovacuum and WAL senders have slots of their own.
The last superuser_reserved_connections and reserved_connections of them are kept for special roles.
Source: PostgreSQL documentation, section "Connections and Authentication".
"""

from typing import NamedTuple

import sqlalchemy as sa

from hpo.errors import StorageError
from hpo.storage.retry import OpenStorage

PER_WORKER = 2  # connections of a worker: one for its work, one for the thread that renews leases
RESERVE = 10  # connections left for launchers, the dashboard and other programs

_ALLOWED = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           - coalesce(current_setting('reserved_connections', true)::int, 0)
"""
# To a role without the privilege pg_read_all_stats, backend_type is null for the sessions of other roles.
_USED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' OR (backend_type IS NULL AND datid IS NOT NULL)
"""


class Connections(NamedTuple):
    """allowed: connections that an ordinary role may open. used: connections that are open."""

    allowed: int
    used: int

    @property
    def n_workers(self) -> int:
        """Number of workers that can still connect."""
        return max(0, (self.allowed - self.used - RESERVE) // PER_WORKER)


def read_connections(store: OpenStorage) -> Connections:
    """Return the connections of a Postgres server."""

    def read() -> Connections:
        with store.engine.connect() as connection:
            allowed, used = (connection.execute(sa.text(query)).scalar_one() for query in (_ALLOWED, _USED))
            return Connections(int(allowed), int(used))

    connections: Connections = store.retry(read)
    return connections


def check_connections(store: OpenStorage, n_workers: int) -> None:
    """Check that the server has enough connections left for `n_workers` new workers. SQLite has no limit.

    Raises:
        StorageError: The server does not have enough connections.
    """
    if store.engine.name == "sqlite":
        return
    connections = read_connections(store)
    if n_workers > connections.n_workers:
        needed = n_workers * PER_WORKER + RESERVE
        raise StorageError(
            f"storage: {n_workers} worker{'s need' if n_workers > 1 else ' needs'} {n_workers} x {PER_WORKER} + "
            f"{RESERVE} = {needed} connections, the server allows {connections.allowed} and {connections.used} are in "
            f"use; start at most {connections.n_workers} workers, or raise max_connections",
            passing=True,
        )
