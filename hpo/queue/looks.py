"""Apply the rules of a sequential comparison to a study in the storage: record each look, skip needless runs.

Every worker takes a look before it claims a run. The decisions follow from the results alone, so all workers agree.
"""

import sqlalchemy as sa

from hpo.queue.arm_results import group_by_arm, look_text, results_of_arms
from hpo.queue.inspect import SKIPPED
from hpo.queue.stored_study import StoredStudy
from hpo.storage.schema import EVENT, SLOT, insert_event
from hpo.storage.trials import read_trials
from hpo.study.sequential import MIN_PAIRS, follow_pairs, plan_of

LOOK = "look"  # type of the event that records a look

_c = SLOT.c


def take_look(stored: StoredStudy) -> None:
    """Decide about the arms of a sequential comparison, and skip the runs that are not needed any more.

    A look is recorded once as an event. Other studies are left unchanged.
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
    looked = max(len(arm.gains) for arm in arms.values())
    if looked < MIN_PAIRS and not decided:
        return
    slots, text = stored.slots, look_text(arms, len(file.seeds))
    known = sa.select(EVENT.c.id).where(
        EVENT.c.study_id == slots.study_id, EVENT.c.event_type == LOOK, EVENT.c.text == text
    )
    unneeded = sa.and_(
        slots.of_study, _c.kind == "arm", _c.state == "free", _c.attempt == 0, (_c.slot % len(names)).in_(decided)
    )

    def write(connection: sa.Connection) -> None:
        slots.lock(connection)
        if connection.execute(known).first() is None:
            connection.execute(insert_event(slots.clock, LOOK, text, study_id=slots.study_id))
        connection.execute(sa.update(SLOT).where(unneeded).values(state=SKIPPED))

    slots.transact(write)
