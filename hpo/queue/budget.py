"""Create and delete the slots of a study, one slot for each trial of its budget."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from hpo.optuna_internals.tables import STUDIES, STUDY_USER_ATTRS
from hpo.queue.inspect import SlotTable
from hpo.storage.attributes import UID
from hpo.storage.schema import EVENT, SLOT

Fixed = Mapping[str, Any] | None  # the values that the trial of a slot must use; None: the sampler suggests them
Progress = Callable[[int, int], None]  # receives the number of slots that exist, and of those that are wanted

ADDED = 1_000_000  # number of the first slot that a user added, in addition to the budget
CHUNK = 20_000  # slots that one transaction creates, so that other processes can write in between

_c = SLOT.c

# SQLAlchemy's own form of these statements takes four times as long for a million rows.
_COLUMNS = "study_id, study_uid, slot, kind, fixed, state, attempt, lease_until"
_INSERT_SQLITE = f"INSERT INTO hpo_slot ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, 'free', 0, 0.0) ON CONFLICT DO NOTHING"
_INSERT_POSTGRES = f"""
    INSERT INTO hpo_slot ({_COLUMNS})
    SELECT %s, %s, slot, kind, fixed, 'free', 0, 0.0
    FROM unnest(%s::integer[], %s::varchar[], %s::text[]) AS rows (slot, kind, fixed)
    ON CONFLICT DO NOTHING
"""


def delete_slots(slots: SlotTable) -> None:
    """Delete all slots and events under the id of a study, also those of a deleted study that had the same id.

    Those of all other studies that were deleted are deleted too. A renamed study keeps its uid, and its slots.
    """
    attrs = STUDY_USER_ATTRS.c
    deleted = ~sa.exists().where(STUDIES.c.study_id == _c.study_id)
    stored_uid = sa.literal('"') + _c.study_uid + '"'
    unknown = ~sa.exists().where(attrs.key == UID, attrs.value_json == stored_uid)

    def write(connection: sa.Connection) -> None:
        connection.execute(sa.delete(SLOT).where(_c.study_uid != "", deleted, unknown))
        orphaned = ~sa.exists().where(STUDIES.c.study_id == EVENT.c.study_id)
        connection.execute(sa.delete(EVENT).where(orphaned, ~sa.exists().where(_c.study_id == EVENT.c.study_id)))
        connection.execute(sa.delete(SLOT).where(_c.study_id == slots.study_id))
        connection.execute(sa.delete(EVENT).where(EVENT.c.study_id == slots.study_id))

    slots.transact(write)


def fill_slots(slots: SlotTable, wanted: Sequence[tuple[str, Fixed]], progress: Progress | None = None) -> None:
    """Create slots 0, 1, ... from (kind, fixed), and leave existing slots unchanged.

    Slots with higher numbers are deleted if no worker ever claimed them: a smaller budget discards no work.
    progress: called after each chunk of slots.
    """
    below = sa.select(sa.func.count(), sa.func.max(_c.slot)).where(slots.of_study, _c.slot < len(wanted))
    n_existing, last = slots.run(below)[0]
    if n_existing < len(wanted):
        first = n_existing if last is not None and last + 1 == n_existing else 0
        for start in range(first, len(wanted), CHUNK):
            rows = [(n, kind, _as_json(fixed)) for n, (kind, fixed) in enumerate(wanted[start : start + CHUNK], start)]
            slots.transact(functools.partial(_insert, slots, rows))
            if progress is not None:
                progress(start + len(rows), len(wanted))
    above = sa.and_(slots.of_study, _c.slot >= len(wanted), _c.slot < ADDED)
    unclaimed = sa.delete(SLOT).where(above, _c.state == "free", _c.attempt == 0)
    slots.transact(lambda connection: connection.execute(unclaimed))


def _insert(slots: SlotTable, rows: Sequence[tuple[int, str, str | None]], connection: sa.Connection) -> None:
    study = (slots.study_id, slots.uid)
    if connection.engine.name == "postgresql":
        columns = [list(column) for column in zip(*rows, strict=True)]
        connection.exec_driver_sql(_INSERT_POSTGRES, (*study, *columns))
    else:
        connection.exec_driver_sql(_INSERT_SQLITE, [(*study, *row) for row in rows])


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
            connection.execute(sa.insert(SLOT).values(**values, study_uid=slots.uid, origin=origin))

    slots.transact(write)


def _as_json(fixed: Fixed) -> str | None:
    return None if fixed is None else json.dumps(dict(fixed))
