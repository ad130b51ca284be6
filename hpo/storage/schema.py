"""Our tables beside Optuna's."""

from typing import Any

import sqlalchemy as sa

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
    sa.Column("wish", sa.String(16), key="requested_action"),  # kill: what a person wants of the trial
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
    sa.Column("word", sa.String(32), key="event_type", nullable=False),
    sa.Column("slot", sa.Integer),
    sa.Column("attempt", sa.Integer),
    sa.Column("owner", sa.String(255)),
    sa.Column("text", sa.Text),
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


TRIALS = sa.table("trials", sa.column("trial_id"), sa.column("study_id"), sa.column("state"))


# Seconds since 1970 by the clock of the database; the clocks of workers differ.
NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())::double precision",
}


def clock(engine: sa.Engine) -> sa.ColumnElement[float]:
    """Return the database's clock, in seconds since 1970, as a part of a statement."""
    return sa.literal_column(NOW[engine.name], sa.Double)
