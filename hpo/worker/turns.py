"""Which of several studies a worker serves next."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import sqlalchemy as sa

from hpo.storage.attributes import SPEC, STUDY_STATE
from hpo.storage.retry import transact
from hpo.storage.schema import SLOT
from hpo.storage.store import Store
from hpo.storage.studies import study_attrs

_c = SLOT.c


class StudyTurn(NamedTuple):
    """How many trials of a study are running, and when this worker served the study last. The study with the
    smallest turn is next."""

    leased: int
    served: float
    name: str


def next_study(store: Store, studies: Mapping[str, int], served: Mapping[str, float]) -> str | None:
    """Return the study that has the next turn, None if there is none.

    studies: id by name. served: when this worker served a study last, by time.monotonic().
    """
    leased = _count_slots(store, "leased")
    turns = [StudyTurn(leased.get(i, 0), served.get(name, -math.inf), name) for name, i in studies.items()]
    return min(turns).name if turns else None


def unfinished_studies(store: Store, studies: Mapping[str, int], *states: str) -> dict[str, int]:
    """Return the active studies that have a slot in one of these states. studies: id by name."""
    unfinished = _count_slots(store, *states)
    found = {}
    for name, study_id in studies.items():
        attrs = study_attrs(store, study_id) if unfinished.get(study_id) else {}
        if SPEC in attrs and attrs.get(STUDY_STATE, "active") == "active":
            found[name] = study_id
    return found


def _count_slots(store: Store, *states: str) -> dict[int, int]:
    """Return the number of slots in one of these states by study id."""
    query = sa.select(_c.study_id, sa.func.count()).where(_c.state.in_(states)).group_by(_c.study_id)
    return dict(transact(store, lambda connection: [tuple(row) for row in connection.execute(query)]))
