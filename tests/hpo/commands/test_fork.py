"""`hpo fork` creates a study that starts with trials of another study."""

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo.analysis.snapshot import read_snapshot
from hpo.commands.fork import fork_study
from hpo.errors import Problem
from hpo.queue.registry import load_stored_study, register_study
from hpo.storage.attributes import END_REASON
from hpo.storage.schema import SLOT
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State
from hpo.study.load import load_study
from tests.support.command import hpo
from tests.support.control import create_study, gpt, refused, run_control, run_worker, states
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")


def test_fork_takes_over_the_trials_that_the_new_study_would_train_alike(here: Path, store: Store) -> None:
    old = create_study(
        store, here, budget={"trials": 12}, pruner={"name": "median", "startup_trials": 3, "warmup_rungs": 1}
    )
    assert run_worker(old) == 0
    first = read_snapshot(store, "planted").trials
    inside = [t for t in first if t.params["x"] <= 0.6]
    assert 0 < len(inside) < 12
    assert states(store)[State.PRUNED] > 0
    path = planted(here, "narrow", space={"x": {"low": 0.0, "high": 0.6}}, budget={"trials": 2}, baseline=[])
    told = run_control(store.url, "fork", str(path), "--from", "planted", "--trials", "3")
    assert f"narrow: starts with {len(inside)} of the 12 finished trials of planted" in told
    assert f"{12 - len(inside)} not copied: {12 - len(inside)} x outside its range" in told
    assert f"next: hpo launch --study {path} --trials 3" in told
    for before, after in zip(inside, read_snapshot(store, "narrow").trials, strict=True):
        assert (after.state, after.values, after.params) == (before.state, before.values, before.params)
        assert after.intermediate_values == before.intermediate_values
        assert after.user_attrs["forked_from"] == f"planted/{before.number}"
        assert after.user_attrs["kind"] == "forked"
        assert after.user_attrs[END_REASON] == before.user_attrs[END_REASON]
        assert (after.started, after.ended) == (before.started, before.ended)
    stored = load_stored_study(store, "narrow")
    assert stored.slots.n_unfinished() == 3, "what was taken over does not count in the budget"
    assert run_worker(stored) == 0
    assert len(read_snapshot(store, "narrow").trials) == len(inside) + 3
    assert len(read_snapshot(store, "planted").trials) == 12


def test_fork_of_a_fork_takes_over_what_was_taken_over(here: Path, store: Store) -> None:
    old = create_study(store, here, pruner={"name": "none"}, budget={"trials": 3})
    assert run_worker(old) == 0
    tpe = {"name": "tpe", "startup_trials": 2}
    fork_study(store, str(planted(here, "second", sampler=tpe, budget={"trials": 2})), "planted", None, [], None)
    told = fork_study(store, str(planted(here, "third", seed=3)), "second", None, [], None)
    assert "third: starts with 3 of the 3 finished trials of second" in told
    assert [t.user_attrs["forked_from"] for t in read_snapshot(store, "third").trials] == [
        f"second/{i}" for i in range(3)
    ]
    assert run_worker(load_stored_study(store, "second")) == 0
    assert states(store, "second") == {State.COMPLETE: 5}, "the sampler takes them for its own"


def test_fork_takes_over_a_trial_that_met_a_limit_only_where_the_limit_is_the_same(here: Path, store: Store) -> None:
    old = create_study(store, here, limits={"seconds": 9})
    trial = old.optuna.ask({"x": old.study.file.space["x"].distribution(float)})
    trial.set_constraint("seconds", 1.0)
    trial.report(1.0, 1)
    trial.set_user_attr(END_REASON, "timeout")
    old.optuna.tell(trial, state=TrialState.PRUNED)
    with pytest.raises(Problem, match="1 ended at a different limit"):
        fork_study(store, str(planted(here, "second", limits={"seconds": 8})), "planted", None, [], None)
    fork_study(store, str(planted(here, "second", limits={"seconds": 9})), "planted", None, [], None)
    (taken,) = read_snapshot(store, "second").trials
    assert (taken.state, taken.constraints, taken.last_step) == (State.PRUNED, {"seconds": 1.0}, 1)


def test_fork_that_a_launch_offers_for_a_changed_space_does_what_it_says(here: Path, store: Store) -> None:
    assert run_worker(create_study(store, here, pruner={"name": "none"}, budget={"trials": 3})) == 0
    path = planted(here, space={"x": {"low": 0.0, "high": 0.999}})
    with pytest.raises(Problem) as found:
        register_study(store, load_study(str(path)), None, {})
    offered = str(found.value).partition("`")[2].partition("`")[0]
    assert offered == f"hpo fork {path} --from planted --as planted-2"
    told = run_control(store.url, *offered.split()[1:])
    assert "planted-2: starts with 3 of the 3 finished trials" in told
    assert "next: hpo launch --study planted-2" in told
    assert len(read_snapshot(store, "planted-2").trials) == 3
    hpo("launch", "--study", "planted-2", "--trials", "4", "--storage", store.url, "--quiet", cwd=here)
    snapshot = read_snapshot(store, "planted-2")
    assert (len(snapshot.own), len(snapshot.trials)) == (4, 7), "what was copied does not count in the budget"
    told = hpo("launch", "--study", "planted-2", "--seed", "3", "--storage", store.url, cwd=here, status=2).stderr
    assert "--seed: must be omitted, because study planted-2 exists" in told


def test_fork_refuses_another_measure_no_overlap_and_a_name_that_is_taken(here: Path, store: Store) -> None:
    assert run_worker(create_study(store, here, pruner={"name": "none"}, budget={"trials": 3}, baseline=[])) == 0
    path = planted(here, "other", rungs=3, objective="loss", base={"rungs": 3})
    told = refused(store.url, "fork", str(path), "--from", "planted")
    assert (
        "rungs: must be the same as in study planted, 4, because otherwise their trials cannot be compared; got 3"
        in told
    )
    assert "objective: must be the same as in study planted, 'val_loss'" in told
    path = planted(here, "other", base={"pause": 0.01})
    told = refused(store.url, "fork", str(path), "--from", "planted")
    assert "no finished trial of study planted matches" in told
    assert "3 different pause" in told
    assert "there are planted" in refused(store.url, "fork", str(path), "--from", "none")
    for name, message in (("planted", "already holds a study 'planted'"), ("a/b", "--as: must be a name of letters")):
        with pytest.raises(Problem, match=message):
            fork_study(store, str(path), "planted", name, [], None)
    with pytest.raises(Problem, match="already holds a study 'planted'"):
        fork_study(store, str(planted(here)), "planted", None, [], None)
    wrong = planted(here, "other", space={"x": {"low": 0, "high": 2}})
    assert "space.x.high: " in refused(store.url, "fork", str(wrong), "--from", "planted")
    with store.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 1


def test_fork_that_fails_half_way_leaves_nothing(here: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = create_study(store, here, pruner={"name": "none"}, budget={"trials": 3})
    assert run_worker(old) == 0
    make, made = store.optuna.create_new_trial, []

    def fail_at_the_second(*arguments: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(make(*arguments))
        return made[0]

    monkeypatch.setattr(store.optuna, "create_new_trial", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fork_study(store, str(planted(here, "second")), "planted", None, [], None)
    with store.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 1
        assert connection.execute(sa.select(sa.func.count()).select_from(SLOT)).scalar() == 3
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "starts with 3 of the 3" in fork_study(store, str(here / "second.yaml"), "planted", None, [], None)


def test_fork_of_a_gpt_study_compares_whole_configurations_and_data(here: Path) -> None:
    from hpo.runs.datasets import describe_data

    with open_store(f"sqlite:///{here}/c.db", create=True) as store:
        study = load_study(str(gpt(here, "a", 1e-3, {}, budget={"trials": 2})))
        old = register_study(store, study, *describe_data(study.base))
        assert run_worker(old) == 0
        told = fork_study(store, str(gpt(here, "b", 2e-3, {})), "a", None, [], None)
        assert "b: starts with" in told
        taken = read_snapshot(store, "b").trials
        assert taken
        assert all(t.params["optimizer.lr"] >= 2e-3 for t in taken)
        with pytest.raises(Problem, match="2 different optimizer"):
            fork_study(store, str(gpt(here, "c", 1e-3, {"optimizer.weight_decay": 0.3})), "a", None, [], None)
        # a field that becomes part of the space takes its value from the old base
        wider = {
            "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "optimizer.weight_decay": {"low": 0.0, "high": 1.0},
        }
        told = fork_study(
            store, str(gpt(here, "d", 1e-3, {"optimizer.weight_decay": 0.3}, space=wider)), "a", None, [], None
        )
        assert "d: starts with 2 of the 2" in told
        assert all("optimizer.weight_decay" in t.params for t in read_snapshot(store, "d").trials)
        with pytest.raises(Problem, match="its data has the hash"):
            fork_study(store, str(gpt(here, "e", 1e-3, {"data.split_seed": 1})), "a", None, [], None)
