"""Apply the rules of a sequential comparison to a study in the storage: record each look, and skip needless runs.

Every worker takes a look before it claims a run. The decisions follow from the results alone, so all workers agree.
"""

import sqlalchemy as sa

from hpo.queue.arm_results import group_by_arm, look_text, results_of_arms
from hpo.queue.inspect import SKIPPED, SlotTable
from hpo.queue.stored_study import StoredStudy
from hpo.storage.schema import EVENT, SLOT, insert_event
from hpo.storage.trials import read_trials
from hpo.study.sequential import MIN_PAIRS, follow_pairs, plan_of

LOOK = "look"  # type of the event that records a look

_c = SLOT.c


def take_look(stored: StoredStudy) -> None:
    """Decide about the arms of a sequential comparison, and skip the runs that are not needed any more.

    A retry of a failed run can revoke a decision. Runs that were skipped are then needed again. A look is recorded once
    as an event. Other studies are left unchanged.
    """
    file = stored.study.file
    bounds = plan_of(file.about)
    if bounds is None or file.arms is None:
        return
    trials = read_trials(stored.store, stored.slots.study_id)
    results = results_of_arms(group_by_arm(file.arms, file.space, trials), file.seeds)
    arms = follow_pairs(bounds, results, stored.study.direction)
    names = list(file.arms)
    decided = {names.index(name) for name, arm in arms.items() if arm.outcome is not None}
    if len(decided) == len(arms):
        decided.add(0)
    slots, text = stored.slots, look_text(arms, len(file.seeds))
    is_look = bool(decided) or max(len(arm.gains) for arm in arms.values()) >= MIN_PAIRS
    known = sa.select(EVENT.c.id).where(
        EVENT.c.study_id == slots.study_id, EVENT.c.event_type == LOOK, EVENT.c.text == text
    )
    of_decided = (_c.slot % len(names)).in_(decided)
    unneeded = sa.and_(slots.of_study, _c.kind == "arm", _c.state == "free", _c.attempt == 0, of_decided)
    needed = sa.and_(slots.of_study, _c.kind == "arm", _c.state == SKIPPED, sa.not_(of_decided), _no_retry(slots))

    def write(connection: sa.Connection) -> None:
        slots.lock(connection)
        if is_look and connection.execute(known).first() is None:
            connection.execute(insert_event(slots.clock, LOOK, text, study_id=slots.study_id))
        connection.execute(sa.update(SLOT).where(unneeded).values(state=SKIPPED))
        connection.execute(sa.update(SLOT).where(needed).values(state="free"))

    slots.transact(write)


def _no_retry(slots: SlotTable) -> sa.ColumnElement[bool]:
    """Return the condition that every retry has ended. Before that, its arm only seems undecided."""
    slot = SLOT.alias()
    retries = sa.select(slot.c.slot).where(
        slot.c.study_id == slots.study_id, slot.c.kind == "retry", slot.c.state != "done"
    )
    return sa.not_(retries.exists())
