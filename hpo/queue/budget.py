"""The slots of a study: one row for each trial of its budget."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.queue.inspect import SlotTable
from hpo.storage.schema import EVENT, SLOT

_c = SLOT.c

Fixed = Mapping[str, Any] | None  # parameters that a slot must run with; None: the sampler chooses


ADDED = 1_000_000  # slots from here on were added by hand, beside those of the budget


def as_json(fixed: Fixed) -> str | None:
    return None if fixed is None else json.dumps(dict(fixed))


def delete_slots(slots: SlotTable) -> None:
    """Delete all slots and events."""

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.delete(SLOT).where(slots.of_study))
        connection.execute(sa.delete(EVENT).where(EVENT.c.study_id == slots.study_id))

    slots.transact(write)


def fill_slots(slots: SlotTable, wanted: Sequence[tuple[str, Fixed]]) -> None:
    """Make slots 0, 1, ... of these (kind, fixed); slots that are there already stay as they are.

    Slots above are deleted if nobody ever claimed them: a smaller budget undoes no work.
    """
    rows = [
        {"study_id": slots.study_id, "slot": slot, "kind": kind, "fixed": as_json(fixed)}
        for slot, (kind, fixed) in enumerate(wanted)
    ]
    insert = postgresql.insert if slots.store.engine.name == "postgresql" else sqlite.insert
    above = sa.and_(_c.slot >= len(rows), _c.slot < ADDED)

    def write(connection: sa.Connection) -> None:
        if rows:
            connection.execute(insert(SLOT).on_conflict_do_nothing(), rows)
        connection.execute(sa.delete(SLOT).where(slots.of_study, above, _c.state == "free", _c.attempt == 0))

    slots.transact(write)


def add_slots(slots: SlotTable, wanted: Sequence[tuple[str, Fixed, int | None]]) -> None:
    """Add slots of these (kind, fixed, origin) beside those of the budget; they come before its search slots."""

    planned: list[int] = []

    def write(connection: sa.Connection) -> None:
        slots.lock(connection)
        made = sa.select(_c.slot).where(slots.of_study, _c.slot.in_(planned))
        if planned and connection.execute(made).first():  # its answer was lost
            return
        last = connection.execute(sa.select(sa.func.max(_c.slot)).where(slots.of_study, _c.slot >= ADDED)).scalar()
        first = ADDED if last is None else last + 1
        planned[:] = range(first, first + len(wanted))
        for slot, (kind, fixed, origin) in enumerate(wanted, first):
            values = {"study_id": slots.study_id, "slot": slot, "kind": kind, "fixed": as_json(fixed)}
            connection.execute(sa.insert(SLOT).values(**values, origin=origin))

    slots.transact(write)
