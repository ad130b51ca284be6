"""Create and delete the slots of a study, one slot for each trial of its budget."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from hpo.queue.inspect import SlotTable
from hpo.storage.schema import EVENT, SLOT

Fixed = Mapping[str, Any] | None  # the values that the trial of a slot must use; None: the sampler suggests them

ADDED = 1_000_000  # number of the first slot that a user added, in addition to the budget

_c = SLOT.c


def delete_slots(slots: SlotTable) -> None:
    """Delete all slots and events of a study."""

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.delete(SLOT).where(slots.of_study))
        connection.execute(sa.delete(EVENT).where(EVENT.c.study_id == slots.study_id))

    slots.transact(write)


def fill_slots(slots: SlotTable, wanted: Sequence[tuple[str, Fixed]]) -> None:
    """Create slots 0, 1, ... from (kind, fixed), and leave existing slots unchanged.

    Slots with higher numbers are deleted if no worker ever claimed them: a smaller budget discards no work.
    """
    rows = [
        {"study_id": slots.study_id, "slot": slot, "kind": kind, "fixed": _as_json(fixed)}
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
    """Add slots from (kind, fixed, origin) to those of the budget. Workers claim them before the search slots."""
    planned: list[int] = []

    def write(connection: sa.Connection) -> None:
        slots.lock(connection)
        existing = sa.select(_c.slot).where(slots.of_study, _c.slot.in_(planned))
        if planned and connection.execute(existing).first():  # an earlier call wrote them, and its answer was lost
            return
        last = connection.execute(sa.select(sa.func.max(_c.slot)).where(slots.of_study, _c.slot >= ADDED)).scalar()
        first = ADDED if last is None else last + 1
        planned[:] = range(first, first + len(wanted))
        for slot, (kind, fixed, origin) in enumerate(wanted, first):
            values = {"study_id": slots.study_id, "slot": slot, "kind": kind, "fixed": _as_json(fixed)}
            connection.execute(sa.insert(SLOT).values(**values, origin=origin))

    slots.transact(write)


def _as_json(fixed: Fixed) -> str | None:
    return None if fixed is None else json.dumps(dict(fixed))
