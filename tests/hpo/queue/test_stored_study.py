"""A worker stops if the definition of its study is changed or removed in the storage while the study runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hpo.analysis.snapshot import read_snapshot
from hpo.errors import WorkFailed
from hpo.optuna_internals.tables import STUDY_USER_ATTRS
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import SPEC
from hpo.storage.store import Store
from hpo.storage.trials import State
from tests.support.control import create_study, run_worker

pytestmark = pytest.mark.usefixtures("here")

DEFINITION = sa.and_(STUDY_USER_ATTRS.c.key == SPEC)


def change(store: Store) -> None:
    """Change the range of x in the definition, as another program could."""
    with store.engine.begin() as connection:
        text = connection.execute(sa.select(STUDY_USER_ATTRS.c.value_json).where(DEFINITION)).scalar_one()
        other = json.loads(text) | {"space": {"x": {"low": 0.9, "high": 1.0}}}
        connection.execute(sa.update(STUDY_USER_ATTRS).where(DEFINITION).values(value_json=json.dumps(other)))


def remove(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(sa.delete(STUDY_USER_ATTRS).where(DEFINITION))


def run_until_stopped(stored: StoredStudy, act: Callable[[Store], None]) -> tuple[WorkFailed, list[int]]:
    """Run a worker and act when its first trial is complete; return its error and the trials that it started."""
    started: list[int] = []

    def listen(event: dict[str, Any]) -> bool:
        if event["event"] == "start":
            started.append(event["trial"])
        if event["event"] == "complete":
            act(stored.store)
        return False

    with pytest.raises(WorkFailed) as caught:
        run_worker(stored, listen)
    return caught.value, started


CHANGED = "study planted: its definition in the storage was changed while it ran"
REMOVED = (
    "study planted: its definition, the row hpo:spec of the table study_user_attributes, was removed from the storage "
    "while it ran; restore a copy of the storage"
)


@pytest.mark.parametrize(("act", "message"), [(change, CHANGED), (remove, REMOVED)], ids=["changed", "removed"])
def test_worker_stops_before_the_next_trial_if_the_definition_is_another(
    act: Callable[[Store], None], message: str, store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.worker.reporter.STATE_REFRESH_S", 0.0)
    stored = create_study(
        store, here, budget={"trials": 3}, pruner={"name": "none"}, space={"x": {"low": 0.0, "high": 0.5}}
    )
    failed, started = run_until_stopped(stored, act)
    assert (str(failed), failed.status) == (message, 1)
    assert started == [0]
    if act is change:  # the storage without its definition cannot be read as a study
        assert [t.state for t in read_snapshot(store, "planted").trials] == [State.COMPLETE]
