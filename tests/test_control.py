"""Acting on a running study through the storage alone: pause, resume, stop, kill, retry, enqueue, fork."""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from optuna.trial import TrialState

from hpo.adding import again, enqueue
from hpo.checking import read
from hpo.control import kill, turn
from hpo.engine import EVENT, SLOT
from hpo.forking import fork
from hpo.job import open_trial
from hpo.problems import Problem
from hpo.reading import State, Trial
from hpo.register import Registered, load, register
from hpo.status import ENDED, STATE, snapshot, word
from hpo.storage import Store, connect
from hpo.worker import Worker
from tests.command import COMMANDS, hpo
from tests.planted import study as planted
from tests.tiny import tiny

# Long enough for a person to come between
LONG: dict[str, Any] = {"rungs": 12, "base": {"rungs": 12, "pause": 0.12}, "pruner": {"name": "none"}}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("curves", None)


@pytest.fixture
def store(storage_url: str) -> Iterator[Store]:
    with connect(storage_url, create=True) as store:
        yield store


def typed(url: str, *arguments: str) -> str:
    """Type a command in another folder, which knows nothing of the study; return what it told."""
    told, data = io.StringIO(), io.StringIO()
    with contextlib.chdir("/"), contextlib.redirect_stderr(told), contextlib.redirect_stdout(data):
        COMMANDS.main([*arguments, "--storage", url], standalone_mode=False)
    assert data.getvalue() == ""
    return told.getvalue()


def refused(url: str, *arguments: str) -> str:
    """Type a command that is refused; return why."""
    with pytest.raises(Problem) as error:
        typed(url, *arguments)
    assert error.value.status == 2
    return str(error.value)


@contextlib.contextmanager
def working(url: str, command: str = "worker", *more: str, n: int = 2) -> Iterator[list[subprocess.Popen[str]]]:
    """Have processes work on the planted study."""
    asked = [sys.executable, "-m", "hpo", command, "--study", "planted", *more]
    env = {**os.environ, "HPO_STORAGE": url, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(asked, env=env, **pipes) for _ in range(n)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    told = [process.communicate(timeout=60)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def until(true: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def began(store: Store, here: Path, **keys: Any) -> Registered:
    return register(store, read(str(planted(here, **keys))), None, {})


def worked(at: Registered, until_event: Callable[[dict[str, Any]], bool] = lambda event: False) -> int:
    """Work on a study in this process; a signal to leave arrives with the first event of which that is true."""
    worker = Worker(at, Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: worker.alarm.ask(2) if until_event(event) else None
    return worker.work()


def interrupted(at: Registered) -> None:
    """Leave a trial that was begun and given back."""
    assert worked(at, lambda event: event["event"] == "rung") == 130


def found(store: Store, number: int) -> Trial:
    return snapshot(store, "planted").trials[number]


def states(store: Store, name: str = "planted") -> Counter[State]:
    return Counter(trial.state for trial in snapshot(store, name).trials)


def rungs(store: Store) -> int:
    """Return how many values have been reported."""
    return sum(trial.last_step or 0 for trial in snapshot(store, "planted").trials)


def events(store: Store, *words: str) -> list[tuple[str, str | None]]:
    with store.engine.begin() as connection:
        rows = connection.execute(sa.select(EVENT.c.word, EVENT.c.text).order_by(EVENT.c.id)).all()
    return [(row.word, row.text) for row in rows if row.word in words]


def test_commands_act_through_the_storage_from_any_folder_and_their_status_says_how_it_went(here: Path) -> None:
    url = f"sqlite:///{here}/hpo.db"
    away = here / "away"
    away.mkdir()
    with connect(url, create=True) as store:
        at = began(store, here, pruner={"name": "none"}, budget={"trials": 2})
        interrupted(at)
        for command in ("pause", "resume", "stop"):
            assert "planted: " in hpo(command, "--storage", url, cwd=away).stderr
        assert "trial 0: ended as killed" in hpo("kill", "0", "--storage", url, cwd=away).stderr
        assert "the study is stopped" in hpo("retry", "0", "--storage", url, cwd=away).stderr
        asked = hpo("retry", "--storage", url, cwd=away, status=2)
        assert asked.stderr == "hpo: retry: must have either the number of a trial or --failed\n"
        assert "no study 'x'" in hpo("pause", "--study", "x", "--storage", url, cwd=away, status=2).stderr
        assert "no storage at" in hpo("pause", "--storage", "none.db", cwd=away, status=4).stderr
        assert "config: " in hpo("enqueue", "--set", "x=0.5", "--storage", url, cwd=away, status=2).stderr
        assert at.slots.left() == 2


def test_paused_study_trains_nothing_and_goes_on_to_the_exact_total(here: Path, store: Store) -> None:
    at = began(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        until(lambda: at.slots.counts()["leased"] == 2 and rungs(store) > 0)
        told = turn(store, None, "paused", "the machine is needed")
        before = rungs(store)
        assert told.startswith("planted: paused; the ")
        until(lambda: at.slots.counts()["leased"] == 0)
        held = rungs(store)
        assert held - before <= 2, "each worker ends the rung that it is in"
        given_back = states(store)[State.WAITING]
        assert given_back > 0
        assert states(store)[State.RUNNING] == 0
        assert "paused already" in typed(store.url, "pause")
        time.sleep(1.5)  # longer than a worker waits between looks
        assert rungs(store) == held
        assert at.slots.counts()["leased"] == 0
        assert all(worker.poll() is None for worker in workers)
        assert "active" in typed(store.url, "resume")
        assert ends(workers) == [(0, ""), (0, "")]
    assert states(store) == {State.COMPLETE: 3}
    assert all(sorted(t.intermediate_values) == list(range(1, 13)) for t in snapshot(store, "planted").trials)
    assert events(store, "paused", "resumed")[0] == ("paused", "the machine is needed")
    words = [word for word, _ in events(store, "paused", "resumed")]
    assert words == ["paused"] * (1 + given_back) + ["resumed"]


def test_worker_that_has_other_studies_does_not_wait_at_a_paused_one(
    here: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.telling.LOOK_S", 0.0)  # these rungs take no time
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 2})
    worker = Worker(at, Path("runs"), 1, lambda event: None)
    worker.listener = lambda event: turn(store, None, "paused") if event["event"] == "rung" else None
    assert worker.work(turns=1) == 0
    assert states(store) == {State.WAITING: 1}
    assert found(store, 0).last_step == 1


def test_workers_of_a_paused_study_end_when_nothing_is_left_to_wait_for(here: Path, store: Store) -> None:
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 1})
    interrupted(at)
    turn(store, None, "paused")
    with working(store.url, n=1) as workers:
        kill(store, None, 0)
        assert ends(workers) == [(0, "study planted is paused; `hpo resume` lets its workers go on\n")]
    assert "all of its trials have ended" in turn(store, None, "stopped")


def test_stopped_workers_leave_with_0_and_another_worker_goes_on_after_resume(here: Path, store: Store) -> None:
    at = began(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        until(lambda: at.slots.counts()["leased"] == 2)
        assert "planted: stopped; the " in typed(store.url, "stop")
        assert ends(workers) == [(0, ""), (0, "")]
    assert at.slots.counts()["leased"] == 0
    assert states(store)[State.RUNNING] == 0
    assert worked(at) == 0
    assert at.slots.counts()["done"] < 3, "a worker that joins a stopped study leaves"
    assert "stopped already" in typed(store.url, "stop")
    assert "hpo worker --study planted" in typed(store.url, "resume")
    assert worked(at) == 0
    assert states(store) == {State.COMPLETE: 3}
    assert "all of its trials have ended" in typed(store.url, "pause")


@pytest.mark.parametrize("when", ["before a trial is complete", "after"])
def test_stopped_launcher_ends_and_says_what_was_found(here: Path, store: Store, when: str) -> None:
    at = began(store, here, **LONG, budget={"trials": 5})
    with working(store.url, "launch", "--workers", "2", n=1) as launchers:
        done = 0 if when == "before a trial is complete" else 1
        until(lambda: rungs(store) > 0 and at.slots.counts()["done"] >= done)
        typed(store.url, "stop")
        stdout, stderr = launchers[0].communicate(timeout=60)
    assert "planted was stopped" in stderr
    assert launchers[0].returncode == (0 if done else 3), stderr
    assert ("best: trial" in stdout) == bool(done)
    assert at.slots.counts()["leased"] == 0
    with working(store.url, "launch", "--workers", "2", n=1) as launchers:  # launching goes on
        assert ends(launchers)[0][0] == 0
    assert states(store) == {State.COMPLETE: 5}
    assert store.optuna.get_study_user_attrs(at.slots.study_id)[STATE] == "active"


def test_killed_trial_that_runs_ends_within_one_rung_and_its_neighbours_go_on(here: Path, store: Store) -> None:
    at = began(store, here, **LONG, budget={"trials": 3})
    with working(store.url) as workers:
        until(lambda: any(t.number == 1 and t.last_step for t in snapshot(store, "planted").trials))
        told = kill(store, None, 1)
        seen = found(store, 1).last_step or 0
        assert told == "trial 1: is ended as killed within one rung"
        assert ends(workers) == [(0, ""), (0, "")]
    trial = found(store, 1)
    assert (trial.state, trial.user_attrs[ENDED]) == (State.FAIL, "killed")
    assert trial.last_step in (seen, seen + 1)
    assert states(store) == {State.COMPLETE: 2, State.FAIL: 1}
    assert at.slots.counts()["done"] == 3


def test_killed_trial_that_nobody_holds_ends_at_once(here: Path, store: Store) -> None:
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 2})
    interrupted(at)
    assert "it was interrupted, at rung 1 of 4" in typed(store.url, "kill", "0")
    assert (found(store, 0).state, found(store, 0).user_attrs[ENDED]) == (State.FAIL, "killed")
    assert at.slots.left() == 1
    assert worked(at) == 0
    assert states(store) == {State.COMPLETE: 1, State.FAIL: 1}


def test_killed_trial_of_a_worker_that_died_ends_at_once(here: Path, store: Store) -> None:
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 2})
    claim = at.slots.claim("dead", 60.0)
    assert claim is not None
    open_trial(at, claim, "dead", 1)
    with store.engine.begin() as connection:
        connection.execute(sa.update(SLOT).where(SLOT.c.owner == "dead").values(lease_until=1.0))
    assert word(snapshot(store, "planted"), found(store, 0)) == "interrupted"
    assert "ended as killed" in kill(store, "planted", 0)
    assert found(store, 0).state == State.FAIL
    assert worked(at) == 0
    assert states(store) == {State.COMPLETE: 1, State.FAIL: 1}


def test_killed_trial_whose_worker_gives_it_back_first_is_not_gone_on_with(here: Path, store: Store) -> None:
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 2})
    told: list[str] = []

    def kill_and_leave(event: dict[str, Any]) -> bool:
        if event["event"] == "rung":
            told.append(kill(store, "planted", 0))
        return event["event"] == "rung"

    assert worked(at, kill_and_leave) == 130
    assert "within one rung" in told[0]
    assert worked(at) == 0
    assert found(store, 0).user_attrs[ENDED] == "killed"
    assert found(store, 0).last_step == 1


def test_kill_refuses_a_trial_that_has_ended_or_is_not_there(here: Path, store: Store) -> None:
    at = began(store, here, budget={"trials": 1})
    assert worked(at) == 0
    assert "trial 0: must be running or interrupted to be killed; in study planted it is complete" in refused(
        store.url, "kill", "0"
    )
    assert "has no trial 7; it has 0 to 0" in refused(store.url, "kill", "7")
    assert "no study 'other'" in refused(store.url, "kill", "0", "--study", "other")


FAILING = """
def fails_once(config):
    from pathlib import Path
    mark = Path(f"failed-{config.x}")
    if config.x > 0.5 and not mark.exists():
        mark.touch()
        raise RuntimeError("planted")
    yield from train(config)
"""


def failing(store: Store, here: Path, **keys: Any) -> Registered:
    path = planted(here, train="curves:fails_once", pruner={"name": "none"}, **keys)
    with (here / "curves.py").open("a") as file:
        file.write(FAILING)
    return register(store, read(str(path)), None, {})


def test_retry_runs_the_parameters_again_as_a_new_trial_beside_the_budget(here: Path, store: Store) -> None:
    at = failing(store, here, baseline=[{"x": 0.9}], budget={"trials": 6})
    assert worked(at) == 0
    failed = [t.number for t in snapshot(store, "planted").in_state(State.FAIL)]
    assert 0 in failed
    assert len(failed) > 1
    told = typed(store.url, "retry", "0")
    assert "trial 0: is tried again as a new trial" in told
    assert "hpo worker --study planted" in told
    assert "trial 0: is being tried again already" in refused(store.url, "retry", "0")
    assert len(typed(store.url, "retry", "--failed").splitlines()) == len(failed)  # one a trial, and that none trains
    assert worked(at) == 0
    trials = snapshot(store, "planted").trials
    assert states(store) == {State.COMPLETE: 6, State.FAIL: len(failed)}
    tries = {t.user_attrs["retry_of"]: t for t in trials if t.user_attrs["kind"] == "retry"}
    assert sorted(tries) == failed
    assert all(tries[n].params == trials[n].params and tries[n].state == State.COMPLETE for n in failed)
    assert "no failed trial to try again" in typed(store.url, "retry", "--failed")


def test_retry_takes_what_failed_and_nothing_whose_result_stands(here: Path, store: Store) -> None:
    at = began(store, here, pruner={"name": "none"}, budget={"trials": 4})
    ids = []
    for state, ended, values in (
        (TrialState.PRUNED, "timeout", {}),
        (TrialState.PRUNED, "pruned", {}),
        (TrialState.COMPLETE, "complete", {"values": [1.0]}),
    ):
        claim = at.slots.claim("planted", 60.0)
        assert claim is not None
        trial = at.optuna.ask({"x": at.study.file.space["x"].distribution(float)})
        ids.append(trial.number)
        store.optuna.set_trial_user_attr(trial._trial_id, "slot", claim.slot)
        store.optuna.set_trial_user_attr(trial._trial_id, ENDED, ended)
        store.optuna.set_trial_state_values(trial._trial_id, state, **values)
        at.slots.done(claim, "planted", 1, ended)
    assert "trial 0: is tried again" in again(store, None, 0, False)[0]
    with pytest.raises(Problem, match="trial 1: must have failed to be tried again; it is pruned, and its result stan"):
        again(store, None, 1, False)
    with pytest.raises(Problem, match="trial 2: must have failed to be tried again; it is complete, and"):
        again(store, None, 2, False)
    interrupted(at)
    running = len(snapshot(store, "planted").trials) - 1
    with pytest.raises(Problem, match=f"trial {running}: must have ended to be tried again"):
        again(store, None, running, False)
    with pytest.raises(Problem, match="retry: must have either the number of a trial or --failed"):
        again(store, None, None, False)
    with pytest.raises(Problem, match="either"):
        again(store, None, 0, True)


def test_enqueued_configuration_runs_next_and_beside_the_budget(here: Path, store: Store) -> None:
    at = began(store, here, base={"pause": 0.15}, pruner={"name": "none"}, budget={"trials": 8})
    with working(store.url) as workers:
        until(lambda: rungs(store) > 0)
        told = typed(store.url, "enqueue", "--set", "x=0.125")
        assert "enqueued x=0.1250, beside the budget, first of those added by hand, before the search" in told
        assert "no worker" not in told
        assert ends(workers) == [(0, ""), (0, "")]
    trials = snapshot(store, "planted").trials
    (mine,) = [t for t in trials if t.user_attrs["kind"] == "enqueued"]
    assert mine.params == {"x": 0.125}
    assert mine.number < 8, "it came before the rest of the search"
    assert states(store) == {State.COMPLETE: 9}
    # after the end, the same again
    assert "no worker trains at the moment" in typed(store.url, "enqueue", "--set", "x=0.125")
    assert "already, and has not ended" in refused(store.url, "enqueue", "--set", "x=0.125")
    assert "behind 1 others" in typed(store.url, "enqueue", "--set", "x=0.25")
    assert worked(at) == 0
    assert states(store) == {State.COMPLETE: 11}


def test_enqueue_says_what_keeps_it_from_being_run(here: Path, store: Store) -> None:
    at = began(store, here, budget={"hours": 1}, space={"x": {"low": 0.2, "high": 0.4}})
    turn(store, None, "paused")
    at.optuna.set_user_attr("hpo:started", at.slots.now() - 3600)
    told = "\n".join(enqueue(store, None, ["x=0.75"]))
    assert "x=0.7500 lies outside the range of the space; it runs, but the sampler does not learn" in told
    assert "the study is paused: hpo resume --study planted" in told
    assert "its 1 hours are over" in told


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "--set: must be given at least once"),
        (["x"], "--set: must be path=value"),
        (["y=1"], "--set y: "),
        (["x=2"], "--set x: "),
        (["x=low"], "--set x: "),
    ],
)
def test_enqueue_refuses_what_is_no_configuration(
    here: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with connect(f"sqlite:///{tmp_path}/c.db", create=True) as store:
        at = began(store, here)
        with pytest.raises(Problem) as error:
            enqueue(store, None, overrides)
        assert message in str(error.value)
        assert at.slots.left() == 12


def gpt(here: Path, name: str, low: float, base: dict[str, Any], **keys: Any) -> Path:
    tree = {
        "base": tiny({"optimizer.lr": 3e-3, **base}).model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": low, "high": 1e-2, "log": True}},
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "budget": {"trials": 4},
    }
    path = here / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**tree, **keys}))
    return path


def test_enqueue_refuses_a_trial_that_could_not_be_compared_with_the_others(here: Path) -> None:
    with connect(f"sqlite:///{here}/c.db", create=True) as store:
        at = register(store, read(str(gpt(here, "a", 1e-3, {}))), None, {})
        for override, why in (
            ("run.tokens=999", "lengths"),
            ("run.rungs=7", "rungs"),
            ("tokenizer.name=chars", "tokenizers"),
            ("data.split_seed=1", "data"),
        ):
            with pytest.raises(Problem, match=f"trials of different {why} cannot be compared"):
                enqueue(store, "a", [override])
        with pytest.raises(Problem, match="--set optimizer: must be a dotted field, such as"):
            enqueue(store, "a", ["optimizer={name: sgd}"])
        searched = {"space": {"tokenizer.name": {"choices": ["bytes", "chars"]}}, "objective": "val_bpb"}
        register(store, read(str(gpt(here, "b", 1e-3, {}, **searched))), None, {})
        assert "b: enqueued tokenizer.name=chars" in enqueue(store, "b", ["tokenizer.name=chars"])[0]
        assert at.slots.left() == 4
        tokens = at.study.base.model_dump()["run"]["tokens"]
        assert "enqueued" in enqueue(store, "a", [f"run.tokens={tokens}", "optimizer.lr=0.5"])[0]
        assert at.slots.left() == 5


def test_fork_takes_over_the_trials_that_the_new_study_would_train_alike(here: Path, store: Store) -> None:
    old = began(store, here, budget={"trials": 12}, pruner={"name": "median", "startup_trials": 3, "warmup_rungs": 1})
    assert worked(old) == 0
    first = snapshot(store, "planted").trials
    inside = [t for t in first if t.params["x"] <= 0.6]
    assert 0 < len(inside) < 12
    assert states(store)[State.PRUNED] > 0
    path = planted(here, "narrow", space={"x": {"low": 0.0, "high": 0.6}}, budget={"trials": 2}, baseline=[])
    told = typed(store.url, "fork", str(path), "--from", "planted", "--trials", "3")
    assert f"narrow: begins with {len(inside)} of the 12 finished trials of planted" in told
    assert f"{12 - len(inside)} left out: {12 - len(inside)} x outside its range" in told
    assert f"next: hpo launch --study {path} --trials 3" in told
    for before, after in zip(inside, snapshot(store, "narrow").trials, strict=True):
        assert (after.state, after.values, after.params) == (before.state, before.values, before.params)
        assert after.intermediate_values == before.intermediate_values
        assert after.user_attrs["forked_from"] == f"planted/{before.number}"
        assert after.user_attrs["kind"] == "forked"
        assert after.user_attrs[ENDED] == before.user_attrs[ENDED]
        assert (after.started, after.ended) == (before.started, before.ended)
    at = load(store, "narrow")
    assert at.slots.left() == 3, "what was taken over does not count in the budget"
    assert worked(at) == 0
    assert len(snapshot(store, "narrow").trials) == len(inside) + 3
    assert len(snapshot(store, "planted").trials) == 12


def test_fork_of_a_fork_takes_over_what_was_taken_over(here: Path, store: Store) -> None:
    old = began(store, here, pruner={"name": "none"}, budget={"trials": 3})
    assert worked(old) == 0
    tpe = {"name": "tpe", "startup_trials": 2}
    fork(store, str(planted(here, "second", sampler=tpe, budget={"trials": 2})), "planted", None, [], None)
    told = fork(store, str(planted(here, "third", seed=3)), "second", None, [], None)
    assert "third: begins with 3 of the 3 finished trials of second" in told
    assert [t.user_attrs["forked_from"] for t in snapshot(store, "third").trials] == [f"second/{i}" for i in range(3)]
    assert worked(load(store, "second")) == 0
    assert states(store, "second") == {State.COMPLETE: 5}, "the sampler takes them for its own"


def test_fork_takes_over_a_trial_that_met_a_limit_only_where_the_limit_is_the_same(here: Path, store: Store) -> None:
    old = began(store, here, limits={"seconds": 9})
    trial = old.optuna.ask({"x": old.study.file.space["x"].distribution(float)})
    trial.set_constraint("seconds", 1.0)
    trial.report(1.0, 1)
    trial.set_user_attr(ENDED, "timeout")
    old.optuna.tell(trial, state=TrialState.PRUNED)
    with pytest.raises(Problem, match="1 ended at another limit"):
        fork(store, str(planted(here, "second", limits={"seconds": 8})), "planted", None, [], None)
    fork(store, str(planted(here, "second", limits={"seconds": 9})), "planted", None, [], None)
    (taken,) = snapshot(store, "second").trials
    assert (taken.state, taken.constraints, taken.last_step) == (State.PRUNED, {"seconds": 1.0}, 1)


def test_fork_that_a_launch_offers_for_a_changed_space_does_what_it_says(here: Path, store: Store) -> None:
    assert worked(began(store, here, pruner={"name": "none"}, budget={"trials": 3})) == 0
    path = planted(here, space={"x": {"low": 0.0, "high": 0.999}})
    with pytest.raises(Problem) as found:
        register(store, read(str(path)), None, {})
    offered = str(found.value).partition("`")[2].partition("`")[0]
    assert offered == f"hpo fork {path} --from planted --as planted-2"
    told = typed(store.url, *offered.split()[1:])
    assert "planted-2: begins with 3 of the 3 finished trials" in told
    assert "next: hpo launch --study planted-2" in told
    assert len(snapshot(store, "planted-2").trials) == 3
    hpo("launch", "--study", "planted-2", "--trials", "4", "--storage", store.url, "--quiet", cwd=here)
    of = snapshot(store, "planted-2")
    assert (len(of.own), len(of.trials)) == (4, 7), "what was carried over does not count in the budget"
    told = hpo("launch", "--study", "planted-2", "--seed", "3", "--storage", store.url, cwd=here, status=2).stderr
    assert "--set, --seed: must be left out, since planted-2 is begun" in told


def test_fork_refuses_another_measure_no_overlap_and_a_name_that_is_taken(here: Path, store: Store) -> None:
    assert worked(began(store, here, pruner={"name": "none"}, budget={"trials": 3}, baseline=[])) == 0
    path = planted(here, "other", rungs=3, objective="loss", base={"rungs": 3})
    told = refused(store.url, "fork", str(path), "--from", "planted")
    assert "rungs: must be that of study planted, 4, or their trials cannot be compared, got 3" in told
    assert "objective: must be that of study planted, 'val_loss'" in told
    path = planted(here, "other", base={"pause": 0.01})
    told = refused(store.url, "fork", str(path), "--from", "planted")
    assert "no finished trial of study planted is one of" in told
    assert "3 another pause" in told
    assert "there are planted" in refused(store.url, "fork", str(path), "--from", "none")
    for name, message in (("planted", "holds a study 'planted' already"), ("a/b", "--as: must be a name of letters")):
        with pytest.raises(Problem, match=message):
            fork(store, str(path), "planted", name, [], None)
    with pytest.raises(Problem, match="holds a study 'planted' already"):
        fork(store, str(planted(here)), "planted", None, [], None)
    wrong = planted(here, "other", space={"x": {"low": 0, "high": 2}})
    assert "space.x.high: " in refused(store.url, "fork", str(wrong), "--from", "planted")
    with store.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 1


def test_fork_that_fails_half_way_leaves_nothing(here: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = began(store, here, pruner={"name": "none"}, budget={"trials": 3})
    assert worked(old) == 0
    make, made = store.optuna.create_new_trial, []

    def fail_at_the_second(*arguments: Any) -> Any:
        if made:
            raise KeyboardInterrupt
        made.append(make(*arguments))
        return made[0]

    monkeypatch.setattr(store.optuna, "create_new_trial", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        fork(store, str(planted(here, "second")), "planted", None, [], None)
    with store.engine.begin() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 1
        assert connection.execute(sa.select(sa.func.count()).select_from(SLOT)).scalar() == 3
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "begins with 3 of the 3" in fork(store, str(here / "second.yaml"), "planted", None, [], None)


def test_fork_of_a_gpt_study_compares_whole_configurations_and_data(here: Path) -> None:
    from hpo.data import described

    with connect(f"sqlite:///{here}/c.db", create=True) as store:
        study = read(str(gpt(here, "a", 1e-3, {}, budget={"trials": 2})))
        old = register(store, study, *described(study.base))
        assert worked(old) == 0
        told = fork(store, str(gpt(here, "b", 2e-3, {})), "a", None, [], None)
        assert "b: begins with" in told
        taken = snapshot(store, "b").trials
        assert taken
        assert all(t.params["optimizer.lr"] >= 2e-3 for t in taken)
        with pytest.raises(Problem, match="2 another optimizer"):
            fork(store, str(gpt(here, "c", 1e-3, {"optimizer.weight_decay": 0.3})), "a", None, [], None)
        # a field that becomes part of the space takes its value from the old base
        wider = {
            "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
            "optimizer.weight_decay": {"low": 0.0, "high": 1.0},
        }
        told = fork(store, str(gpt(here, "d", 1e-3, {"optimizer.weight_decay": 0.3}, space=wider)), "a", None, [], None)
        assert "d: begins with 2 of the 2" in told
        assert all("optimizer.weight_decay" in t.params for t in snapshot(store, "d").trials)
        with pytest.raises(Problem, match="its data has the hash"):
            fork(store, str(gpt(here, "e", 1e-3, {"data.split_seed": 1})), "a", None, [], None)
