"""The database's address and how it is opened: SQLite serves one machine, Postgres several.

Commands that only look need no more than this: not Optuna, whose import alone would take half of their time.
"""

import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from hpo.storage.retry import QUICK, StorageError, limit, retry, shown

OURS = sa.MetaData()  # our own tables, beside Optuna's

# A row a trial of the budget: who runs it, until when by the database's clock, as which Optuna trial.
SLOT = sa.Table(
    "hpo_slot",
    OURS,
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),  # baseline | search | enqueued | retry
    sa.Column("state", sa.String(16), nullable=False, default="free"),  # free | leased | done
    sa.Column("owner", sa.String(255)),  # who claimed it last
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("lease_until", sa.Double, nullable=False, default=0.0),  # seconds since 1970
    sa.Column("trial_id", sa.Integer),
    sa.Column("fixed", sa.Text),  # JSON: parameters that this slot must run with
    sa.Column("origin", sa.Integer),  # number of the trial that this one tries again
    sa.Column("wish", sa.String(16)),  # kill: what a person wants of the trial
    sa.Column("rungs", sa.Integer, nullable=False, server_default="0"),  # trained, or set aside of a budget in tokens
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # attempts lost since its last new rung
)

# What happened to attempts, workers and the study, in one word each; a row is never changed.
EVENT = sa.Table(
    "hpo_event",
    OURS,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    sa.Column("at", sa.Double, nullable=False),  # seconds since 1970, by the database's clock
    sa.Column("word", sa.String(32), nullable=False),
    sa.Column("slot", sa.Integer),
    sa.Column("attempt", sa.Integer),
    sa.Column("owner", sa.String(255)),
    sa.Column("text", sa.Text),
)

_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "9p", "afs"}
_NETWORK |= {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs"}

BUSY_S = 60.0  # for which SQLite waits for another process's lock

_FILES = (".db", ".sqlite", ".sqlite3")
_POSTGRES = {"postgres", "postgresql"} | {f"postgresql+{driver}" for driver in ("psycopg", "psycopg2", "psycopg2cffi")}

# Storages that Optuna knows and that cannot carry leases, each with its reason.
_REFUSED = {
    "grpc": "Optuna's gRPC proxy has no transactions for leases, and one process does the work of all workers",
    "journal": "Optuna's journal storage has no transactions for leases, and a torn line makes its file unreadable",
    "redis": "a journal in Redis has no transactions for leases",
    "mysql": "MySQL cannot return what an update changed, which claiming a trial needs, and is not tested",
    "mariadb": "MariaDB is not tested",
}

T = TypeVar("T")


def _of_file(url: str) -> str | None:
    """Return why a file that Optuna would take for a journal is refused."""
    return _REFUSED["journal"] if url.endswith((".log", ".journal", ".jsonl")) else None


@dataclass(frozen=True)
class Reader:
    """A storage opened to look at: it takes no write lock, so looking never slows a worker."""

    url: str
    engine: sa.Engine
    patience: float

    def retry(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call with this reader's patience; see `patience.retry`."""
        return retry(call, *args, patience=self.patience, url=self.url, **kwargs)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.dispose()


def look(url: str, patience: float = QUICK) -> Reader:
    """Open the storage to look at it; writes are refused.

    Raises:
        StorageError: there is no such storage, or it does not answer.
    """
    url = normalise(url)
    check_present(url, patience)
    engine = sa.create_engine(url, **engine_options(url, readonly=True))
    if engine.name == "sqlite":
        hook(engine, readonly=True)
    return Reader(url, engine, patience)


def default_url(flag: str | None) -> str:
    """Return the URL from the command line, else from HPO_STORAGE, else the file of this folder."""
    return flag or os.environ.get("HPO_STORAGE") or "sqlite:///runs/hpo.db"


def normalise(url: str) -> str:
    """Return the URL with the driver that we use; a path that ends in .db, .sqlite or .sqlite3 is a file.

    Raises:
        StorageError: the URL names another kind of storage.
    """
    if "://" not in url and url.endswith(_FILES):
        return sa.URL.create("sqlite", database=str(Path(url).expanduser())).render_as_string()
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):  # a port that is no number, perhaps half of a password
        parsed = sa.URL.create("unknown")
    if parsed.drivername in _POSTGRES:
        return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    if parsed.drivername in ("sqlite", "sqlite+pysqlite") and not parsed.host:
        if parsed.database in (None, "", ":memory:"):
            raise StorageError(f"storage: must be a file that workers can share, got {shown(url)}")
        return parsed.set(drivername="sqlite").render_as_string()
    if reason := _REFUSED.get(url.partition(":")[0].partition("+")[0].lower()) or _of_file(url):
        raise StorageError(f"storage: {reason}, got {shown(url)}; use SQLite on one machine, Postgres between machines")
    raise StorageError(
        f"storage: must be a file that ends in {', '.join(_FILES)}, sqlite:///FILE or "
        f"postgresql://USER@HOST/DATABASE, got {shown(url)}"
    )


def file_of(url: str) -> Path | None:
    """Return the file of a SQLite URL, None for a server."""
    parsed = sa.make_url(url)
    return Path(str(parsed.database)) if parsed.drivername == "sqlite" else None


def network_of(file: Path) -> str | None:
    """Return the kind of file system a file lies on where it is another machine's, as /proc/mounts says."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # not a Linux
        return None
    path = str(file.absolute().resolve())
    under = [(folder, kind) for folder, kind in mounts if path == folder or path.startswith(folder.rstrip("/") + "/")]
    kind = max(under, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind in _NETWORK else None


def engine_options(url: str, readonly: bool = False) -> dict[str, Any]:
    if file_of(url):
        return {"connect_args": {"timeout": BUSY_S}}
    # A worker that is stopped inside a transaction must not hold its locks against the others.
    options = "-c timezone=UTC -c idle_in_transaction_session_timeout=60000"
    options += " -c default_transaction_read_only=on" if readonly else ""
    given = sa.make_url(url).query.get("options", "")
    connect_args = {
        "connect_timeout": 5,
        "application_name": "hpo",
        "options": f"{given} {options}".strip(),
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15000,  # ms; keepalives say nothing while sent data wait for their answer
    }
    # One connection for the work and one for the thread that renews leases.
    return {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 0, "connect_args": connect_args}


def unpooled(url: str) -> dict[str, Any]:
    """Return the options of an engine that keeps no connection open."""
    return {"connect_args": engine_options(url)["connect_args"], "poolclass": sa.NullPool}


def check_present(url: str, patience: float) -> None:
    file = file_of(url)
    if file and not file.is_file():
        raise StorageError(f"no storage at {file}; `hpo launch` creates it", passing=True)
    engine = sa.create_engine(url, **unpooled(url))
    missing = retry(missing_columns, engine, patience=patience, url=url)
    if missing is None:
        raise StorageError(f"no study in {shown(url)}; `hpo launch` creates the tables", passing=True)
    if missing:
        raise StorageError(
            f"{shown(url)}: its tables are of another version of hpo, without {', '.join(map(str, missing))}; "
            "`hpo doctor --fix` adds them"
        )


def missing_columns(engine: sa.Engine) -> list[sa.Column[Any]] | None:
    """Return the columns of our tables that a storage has not; None where it has not even Optuna's tables."""
    inspector = sa.inspect(engine)
    if not inspector.has_table("version_info"):
        return None
    tables = set(inspector.get_table_names())
    have = {
        t.name: {c["name"] for c in inspector.get_columns(t.name)} for t in OURS.tables.values() if t.name in tables
    }
    return [c for t in OURS.tables.values() for c in t.columns if c.name not in have.get(t.name, ())]


def hook(engine: sa.Engine, readonly: bool = False) -> None:
    """Begin every SQLite transaction IMMEDIATE.

    A deferred one that reads and then writes lets two processes both take the same trial: 42 of 200 measured.
    """

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        if readonly:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")  # readers and the writer do not wait for each other
            connection.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # SQLite waits for a lock inside one call, where nothing else can end the wait.
        wait = min(BUSY_S, limit())
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(1000 * wait)}")
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")
