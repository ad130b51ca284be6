"""The tables of hpo, which share a database with the tables of Optuna."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import ALEMBIC_TABLE, OPTUNA_TABLES, STUDIES, VERSION_TABLE

OURS = sa.MetaData()

# Marks columns that version 0.1 lacks. Commands that read do not need them, so that they open its storages unchanged.
# Commands that write add them.
ADDED = {"added": True}

# One row for each slot: a slot is one trial of the budget. A worker that runs the trial holds a lease on the slot.
SLOT = sa.Table(
    "hpo_slot",
    OURS,
    sa.Column("study_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),  # baseline | seed | arm | search | enqueued | retry
    sa.Column("state", sa.String(16), nullable=False, default="free"),  # free | leased | paused | done | skipped
    sa.Column("owner", sa.String(255)),  # the worker that claimed the slot last
    sa.Column("attempt", sa.Integer, nullable=False, default=0),  # number of claims so far
    sa.Column("lease_until", sa.Double, nullable=False, default=0.0),  # seconds since 1970, by the database's clock
    sa.Column("trial_id", sa.Integer),  # id of the Optuna trial; null until an attempt has created the trial
    sa.Column("fixed", sa.Text),  # JSON: the values that the trial must use; null: the sampler suggests them
    sa.Column("origin", sa.Integer),  # of a retry: the number of the trial that failed
    sa.Column("wish", sa.String(16), key="requested_action"),  # kill: the action that `hpo kill` requests
    sa.Column("rungs", sa.Integer, nullable=False, server_default="0"),  # trained, or reserved from a token budget
    # The uid of the study: study ids are reused on SQLite. Empty: an earlier version of hpo created the slot.
    sa.Column("study_uid", sa.String(32), nullable=False, server_default=sa.text("''"), info=ADDED),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # failed attempts since the last new rung
    # All attempts since the last new rung, and the length of the lease in seconds.
    sa.Column("interruptions", sa.Integer, nullable=False, server_default="0", info=ADDED),
    sa.Column("lease_s", sa.Double, nullable=False, server_default="60", info=ADDED),
)

# One row for each event of an attempt, a worker or the study. A row never changes.
EVENT = sa.Table(
    "hpo_event",
    OURS,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.Integer, nullable=False, index=True),
    sa.Column("at", sa.Double, nullable=False),  # seconds since 1970, by the database's clock
    sa.Column("word", sa.String(32), key="event_type", nullable=False),
    sa.Column("slot", sa.Integer),
    sa.Column("attempt", sa.Integer),
    sa.Column("owner", sa.String(255)),
    sa.Column("text", sa.Text),
)


N_COLUMNS = sum(len(table.columns) for table in OURS.tables.values())


def missing_columns(engine: sa.Engine) -> list[sa.Column[Any]] | None:
    """Return the columns of hpo's tables that a storage lacks, or None if it even lacks Optuna's tables."""
    inspector = sa.inspect(engine)
    if not inspector.has_table(VERSION_TABLE):
        return None
    names = set(inspector.get_table_names())
    existing = {
        table.name: {column["name"] for column in inspector.get_columns(table.name)}
        for table in OURS.tables.values()
        if table.name in names
    }
    return [c for table in OURS.tables.values() for c in table.columns if c.name not in existing.get(table.name, ())]


def needed_for_reading(columns: Iterable[sa.Column[Any]]) -> list[sa.Column[Any]]:
    """Return the columns that commands need that only read."""
    return [column for column in columns if "added" not in column.info]


def foreign_content(engine: sa.Engine) -> str:
    """Return what a database without tables of hpo holds of another program, "" if it holds nothing or has our tables.

    Without studies, a launch may have been interrupted between the tables of Optuna and those of hpo. On a server,
    programs may share a database if their tables have different names.
    """
    inspector = sa.inspect(engine)
    names = set(inspector.get_table_names())
    if names & OURS.tables.keys():
        return ""
    unknown = names - OPTUNA_TABLES - {ALEMBIC_TABLE} if engine.name == "sqlite" else set()
    unknown |= {ALEMBIC_TABLE} & names if VERSION_TABLE not in names else set()
    if STUDIES.name in names and "study_name" not in {column["name"] for column in inspector.get_columns(STUDIES.name)}:
        unknown.add(STUDIES.name)
    if unknown:
        return f"a database with the tables {', '.join(sorted(unknown)[:3])} of another program"
    if STUDIES.name not in names:
        return ""
    with engine.connect() as connection:
        studies = sorted(str(name) for name in connection.scalars(sa.select(STUDIES.c.study_name)))
    return f"a database of Optuna with {len(studies)} studies, such as {studies[0]!r}" if studies else ""


# Seconds since 1970 by the database's clock: the clocks of workers differ.
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def database_clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Return the database's clock in seconds since 1970, for use in a statement."""
    return sa.literal_column(_NOW[engine.name], sa.Double)


def insert_event(now: sa.ColumnElement[float], event_type: str, text: str, **values: Any) -> sa.Insert:
    """Return the statement that stores an event."""
    return sa.insert(EVENT).values(at=now, event_type=event_type, text=_storable(text) or None, **values)


def _storable(text: str) -> str:
    """Return text with escapes for what a storage refuses: NUL, and surrogates, which stand for bytes of file names."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
