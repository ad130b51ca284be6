"""A study keeps its identity: renamed, copied, deleted and created again, without slots, or of another program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import optuna_dashboard
import pytest
import sqlalchemy as sa

from hpo.analysis.progress import trial_counts
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.doctor_checks import check_all
from hpo.errors import Problem, WorkFailed
from hpo.queue.registry import load_stored_study, register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import SPEC, UID
from hpo.storage.engine import open_readonly
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.studies import study_ids
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.study.stored import study_from_spec
from hpo.worker.trial import open_trial
from tests.support.control import create_study, events, run_worker
from tests.support.planted import planted_study
from tests.support.wsgi import Answer

pytestmark = pytest.mark.usefixtures("here")


def rename(store: Store, old: str, new: str) -> None:
    """Rename a study with Optuna's dashboard, started by another program than hpo."""
    app = optuna_dashboard.wsgi(store.rdb)
    answer = Answer(app, f"/api/studies/{study_ids(store)[old]}/rename", "POST", {"study_name": new})
    assert answer.status == 201, answer.body


def launch(store: Store, name: str) -> StoredStudy:
    """Register a study of the storage again, as `hpo launch --study NAME` does without a file."""
    attrs = optuna.load_study(study_name=name, storage=store.optuna).user_attrs
    return register_study(store, study_from_spec(attrs[SPEC], name), None, {})


def at_first(event_type: str, act: Callable[[], Any]) -> Callable[[dict[str, Any]], bool]:
    """Return a listener that acts once, at the first event of a type."""
    acted: list[Any] = []

    def listen(event: dict[str, Any]) -> bool:
        if event["event"] == event_type and not acted:
            acted.append(act())
        return False

    return listen


def test_renamed_study_continues_with_its_trials_in_its_run_folder_and_says_so_once(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 3}, pruner={"name": "none"})
    assert run_worker(stored, lambda event: event["event"] == "start" and event["trial"] == 1) == 130
    rename(store, "planted", "new")
    assert trial_counts(read_snapshot(store, "new"))["waiting"] == 2, "before any launch"
    again = launch(store, "new")
    assert again.notes == (
        "study new: was renamed; it continues with all of its trials, in the run folder that it has",
    )
    assert run_worker(again) == 0
    assert [t.state for t in read_snapshot(store, "new").trials] == [State.COMPLETE] * 3
    assert sorted(path.name for path in (here / "runs").iterdir()) == ["planted"]
    assert len(list((here / "runs" / "planted" / "trials").iterdir())) == 3
    assert launch(store, "new").notes == ()
    assert events(store, "renamed") == [("renamed", "to new")]
    assert optuna.load_study(study_name="new", storage=store.optuna).metric_names == ["val_loss"]


def test_study_renamed_while_it_runs_stops_with_the_reason_and_loses_nothing(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 3}, pruner={"name": "none"})
    reason = (
        r"study planted: was renamed to 'my new' while it ran; .* `hpo launch --study 'my new'` continues the study"
    )
    with pytest.raises(WorkFailed, match=reason):
        run_worker(stored, at_first("rung", lambda: rename(store, "planted", "my new")))
    again = load_stored_study(store, "my new")
    assert run_worker(again) == 0
    trials = read_snapshot(store, "my new").trials
    assert [(t.number, t.state) for t in trials] == [(n, State.COMPLETE) for n in range(3)]
    assert [sorted(t.intermediate_values) for t in trials] == [[1, 2, 3, 4]] * 3
    assert events(store, "lost", "interrupted") == [("interrupted", None)]


def test_study_renamed_after_its_worker_was_killed_loses_nothing(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 3}, pruner={"name": "none"})
    open_trial(stored, stored.slots.claim("killed", 60.0), "killed", 1)
    rename(store, "planted", "new")
    assert run_worker(load_stored_study(store, "new")) == 0
    assert [t.state for t in read_snapshot(store, "new").trials] == [State.COMPLETE] * 3
    assert events(store, "lost") == [("lost", "the study was renamed")]


def test_launch_of_the_old_name_creates_another_study_with_a_folder_of_its_own(store: Store, here: Path) -> None:
    run_worker(create_study(store, here, budget={"trials": 1}))
    rename(store, "planted", "new; rm x")
    again = create_study(store, here, budget={"trials": 1})
    assert "study new; rm x of this storage had the name planted before it was renamed" in again.notes[0]
    assert "`hpo launch --study 'new; rm x'` continues the renamed one" in again.notes[0]
    run_worker(again)
    assert run_worker(launch(store, "new; rm x")) == 0
    folders = sorted(path.name for path in (here / "runs").iterdir())
    assert folders == ["planted", f"planted-{again.uid[:8]}"]


def test_copy_of_a_study_is_refused_while_the_study_exists(store: Store, here: Path) -> None:
    run_worker(create_study(store, here, budget={"trials": 1}))
    with_copy = {"from_study_name": "planted", "from_storage": store.optuna, "to_storage": store.optuna}
    optuna.copy_study(**with_copy, to_study_name="copy")
    with pytest.raises(Problem, match="study copy: is a copy of study planted, and only planted can be continued"):
        load_stored_study(store, "copy")
    assert load_stored_study(store, "planted").slots.counts()["done"] == 1


def test_study_without_its_slots_is_refused_and_doctor_restores_them(store: Store, here: Path) -> None:
    stored = create_study(store, here, budget={"trials": 4})
    run_worker(stored, lambda event: event["event"] == "start" and event["trial"] == 2)
    with store.engine.begin() as connection:
        connection.execute(sa.delete(SLOT))
    for join in (lambda: load_stored_study(store, "planted"), lambda: create_study(store, here, budget={"trials": 4})):
        with pytest.raises(Problem, match=r"study planted: 3 of its trials have lost their slots.*`hpo doctor --fix`"):
            join()
    lost = next(result for result in check_all(store.url, None, here / "runs") if result.check == "slots")
    assert (lost.state, lost.message) == (
        "error",
        "planted: 3 trials have lost their slots, so that the study cannot continue",
    )
    assert lost.repair
    lost.repair()
    again = create_study(store, here, budget={"trials": 4})
    assert again.slots.counts() == {"free": 2, "leased": 0, "done": 2, "expired": 0}
    assert run_worker(again) == 0
    assert [t.state for t in read_snapshot(store, "planted").trials] == [State.COMPLETE] * 4


@pytest.mark.parametrize("directions", [["maximize"], ["minimize"], ["maximize", "minimize"]])
def test_study_of_another_program_is_never_adopted(store: Store, here: Path, directions: list[str]) -> None:
    theirs = optuna.create_study(study_name="planted", storage=store.optuna, directions=directions)
    message = (
        f"study planted: the storage holds a study of this name that another program created, with directions "
        f"{', '.join(directions)} and 0 trials; give the study file another name, or use another --storage"
    )
    with pytest.raises(Problem) as refused:
        create_study(store, here)
    assert str(refused.value) == message
    assert theirs.user_attrs == {}


def test_worker_of_a_deleted_study_takes_no_trial_of_the_study_created_under_its_name(store: Store, here: Path) -> None:
    old = create_study(store, here, budget={"trials": 3})

    def create_again() -> None:
        store.rdb.delete_study(old.slots.study_id)
        create_study(store, here, budget={"trials": 2}, base={"x": 0.25})

    reason = "study planted: was deleted while it ran, and another study was created under this name"
    with pytest.raises(WorkFailed, match=reason):
        run_worker(old, at_first("rung", create_again))
    assert old.slots.claim("old", 60.0) is None
    with open_store(store.url) as fresh:  # Optuna's cache of the other connection knows trials by the id of the study
        new = load_stored_study(fresh, "planted")
        assert new.uid != old.uid
        assert new.slots.counts() == {"free": 2, "leased": 0, "done": 0, "expired": 0}
        assert new.optuna.trials == []
        assert run_worker(new) == 0


def test_every_study_has_its_uid_from_the_transaction_that_creates_it(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    for step in ("describe_study", "fill_slots"):
        monkeypatch.setattr(f"hpo.queue.registry.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            create_study(store, here, budget={"trials": 2})
        found = optuna.load_study(study_name="planted", storage=store.optuna)
        assert found.user_attrs[UID]
        assert SPEC not in found.user_attrs
        monkeypatch.undo()
        monkeypatch.chdir(here)
    with open_readonly(store.url) as reader, pytest.raises(Problem, match="being registered, 0 of 2 trials"):
        read_snapshot(reader, "planted")
    assert run_worker(create_study(store, here, budget={"trials": 2})) == 0


def test_launch_of_another_definition_after_an_interrupted_registration_drops_the_slots(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"space": {"x": {"choices": [0.2, 0.4]}}, "sampler": {"name": "grid"}, "baseline": []}
    monkeypatch.setattr("hpo.queue.budget.CHUNK", 1)

    def die(n: int, total: int) -> None:
        raise KeyboardInterrupt

    study = load_study(str(planted_study(here, **grid)))
    with pytest.raises(KeyboardInterrupt):
        register_study(store, study, None, {}, progress=die)
    stored = create_study(store, here, **{**grid, "space": {"x": {"choices": [0.6, 0.8]}}})
    assert run_worker(stored) == 0
    assert sorted(t.params["x"] for t in read_snapshot(store, "planted").trials) == [0.6, 0.8]
