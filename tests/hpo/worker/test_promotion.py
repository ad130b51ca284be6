"""Workers of studies with asha: paused trials continue in other workers, budgets hold, and the rest is pruned once."""

import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from hpo.analysis.decisions import decisions
from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import read_snapshot, trial_status
from hpo.analysis.summary import summary
from hpo.commands.control import kill_trial, set_study_state
from hpo.commands.doctor_files import check_checkpoints, check_paused
from hpo.commands.fork import matching_trials
from hpo.commands.show import trial_record
from hpo.config.yaml import dump_yaml
from hpo.optuna_internals.objects import get_study_id
from hpo.optuna_internals.tables import TRIALS, trial_state
from hpo.queue.registry import load_stored_study, register_study
from hpo.queue.stored_study import StoredStudy
from hpo.runs.checkpoints import resumable_checkpoints
from hpo.runs.datasets import describe_data
from hpo.runs.run_dir import trial_folder
from hpo.search.asha import is_paused
from hpo.search.complement_log import ComplementLogSampler
from hpo.storage.attributes import END_REASON, MARKS, SPEC, STARTED, SUGGESTED_BY
from hpo.storage.store import Store, open_store
from hpo.storage.trials import State, Trial
from hpo.study.load import load_study
from hpo.worker.worker import Worker
from model.train.trainer import Trainer
from tests.support.cases import exhaustive
from tests.support.control import create_study, events, get_trial, run_worker
from tests.support.tiny import UPDATE, alone, curves, tiny

pytestmark = pytest.mark.usefixtures("here")

RUNGS = 4
FACTOR = 2
XS = [0.3, 0.2, 0.8, 0.1, 0.9, 0.7, 0.4, 0.6]  # with one worker: 3 of them are promoted
ASHA: dict[str, Any] = {
    "space": {"x": {"choices": XS}},
    "sampler": "grid",
    "baseline": [],
    "pruner": {"name": "asha", "factor": FACTOR},
    "budget": {"trials": 8},
}
LRS = [3e-3, 4e-3, 1e-3, 6e-3, 5e-4, 2e-3]


@pytest.fixture
def sqlite(here: Path) -> Iterator[Store]:
    with open_store(f"sqlite:///{here}/asha.db", create=True) as store:
        yield store


def stop_after_pauses(n: int) -> Any:
    """Return a condition for `run_worker` that is true from the n-th pause on."""
    seen: Counter[str] = Counter()

    def until(event: dict[str, Any]) -> bool:
        seen[event["event"]] += 1
        return seen["paused"] >= n

    return until


def half_done(store: Store, here: Path, **keys: Any) -> StoredStudy:
    """Run a study until four trials are paused."""
    stored = create_study(store, here, **{**ASHA, **keys})
    assert run_worker(stored, stop_after_pauses(4)) == 130
    return stored


def statuses(store: Store, name: str = "planted") -> list[str]:
    snapshot = read_snapshot(store, name)
    return [trial_status(snapshot, trial) for trial in snapshot.trials]


def check_marks(trials: list[Trial]) -> None:
    """Check that the better half of those that reached a mark has continued, and no other trial."""
    for mark in (1, 2):
        reached = [t for t in trials if mark in t.intermediate_values]
        ranked = sorted(reached, key=lambda t: (t.intermediate_values[mark], t.number))
        beyond = {t.number for t in reached if (t.last_step or 0) > mark}
        assert {t.number for t in ranked[: len(ranked) // FACTOR]} <= beyond
        for t in reached:
            words = [record["decision"] for record in t.user_attrs[MARKS] if record["rung"] == mark]
            assert words in (["paused"], ["continued"], ["paused", "promoted"])
            assert (words[-1] != "paused") == (t.number in beyond)


def gpt_base(lr: float) -> Any:
    return tiny({"optimizer.lr": lr, "run.tokens": 8 * RUNGS * UPDATE, "run.rungs": RUNGS})


@functools.cache
def reference(lr: float, pack: int) -> list[float]:
    """Return the curve of a run that nobody pauses, alone or in a pack."""
    if pack == 1:
        return [m.val_loss for m in alone(gpt_base(lr))]
    # A run has the same losses in every pack of at least two runs, and differs from a run alone in the last digits.
    return [m.val_loss for m in curves(Trainer([gpt_base(lr), gpt_base(2 * lr)]))[0]]


def gpt_study(store: Store, here: Path, name: str, pruner: Any) -> StoredStudy:
    tree = {
        "base": gpt_base(3e-3).model_dump(mode="json"),
        "space": {"optimizer.lr": {"choices": LRS}},
        "sampler": "grid",
        "baseline": [],
        "pruner": pruner,
        "budget": {"trials": len(LRS)},
    }
    path = here / f"{name}.yaml"
    path.write_text(dump_yaml(tree))
    study = load_study(str(path))
    return register_study(store, study, *describe_data(study.base))


def run_packs(stored: StoredStudy, pack: int, n_pauses: int, happened: list[dict[str, Any]] | None = None) -> None:
    """Run a worker until this many trials are paused; add its events to `happened`."""
    worker, until = Worker(stored, Path("runs"), pack, lambda event: None), stop_after_pauses(n_pauses)

    def listen(event: dict[str, Any]) -> None:
        if happened is not None:
            happened.append(event)
        if until(event):
            worker.signals.request_stop(2)

    worker.listener = listen
    worker.work()


def is_start(trial: Trial, curve: list[float]) -> bool:
    """Return whether the values of a trial are the first values of a curve, bit by bit."""
    return trial.intermediate_values == dict(enumerate(curve[: trial.last_step or 0], 1))


@pytest.mark.parametrize("pack", [exhaustive(1), 3])
def test_paused_gpts_continue_in_other_workers_with_the_curves_of_unpruned_runs(
    sqlite: Store, here: Path, pack: int
) -> None:
    stored = gpt_study(sqlite, here, "asha", {"name": "asha", "factor": FACTOR})
    for n_pauses in (2, 2, 1000):  # three workers, one after the other
        run_packs(stored, pack, n_pauses)
    trials = read_snapshot(sqlite, "asha").trials
    check_marks(trials)
    promoted = {t.number for t in trials if any(record["decision"] == "promoted" for record in t.user_attrs[MARKS])}
    equal = {t.number for t in trials if is_start(t, reference(t.params["optimizer.lr"], pack))}
    if pack == 1:
        assert equal == {t.number for t in trials}
    assert promoted & equal  # the last trials of a study may not fill a pack, and then train alone
    for t in trials:
        curve = reference(t.params["optimizer.lr"], pack)
        assert list(t.intermediate_values.values()) == pytest.approx(curve[: t.last_step], rel=1e-6)
    assert all(t.values == [t.intermediate_values[RUNGS]] for t in trials if t.state == State.COMPLETE)


def test_study_ends_when_nothing_can_be_promoted_and_the_paused_are_pruned_once(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    assert "paused" in statuses(sqlite)
    assert not has_ended(read_snapshot(sqlite, "planted"))
    assert run_worker(stored) == 0
    snapshot = read_snapshot(sqlite, "planted")
    check_marks(snapshot.trials)
    assert has_ended(snapshot)
    assert set(statuses(sqlite)) == {"complete", "pruned"}
    pruned = [t for t in snapshot.trials if t.state == State.PRUNED]
    assert [t.values for t in pruned] == [[t.intermediate_values[t.last_step or 0]] for t in pruned]
    assert len(events(sqlite, "pruned")) == len(pruned)
    assert run_worker(stored) == 0
    assert len(events(sqlite, "pruned")) == len(pruned)


def test_larger_budget_starts_new_trials_and_pruned_ones_stay_pruned(sqlite: Store, here: Path) -> None:
    keys = {**ASHA, "sampler": "random", "space": {"x": {"low": 0.0, "high": 1.0}}, "budget": {"trials": 6}}
    assert run_worker(create_study(sqlite, here, **keys)) == 0
    before = statuses(sqlite)
    assert run_worker(create_study(sqlite, here, **{**keys, "budget": {"trials": 12}})) == 0
    assert statuses(sqlite)[:6] == before
    assert len(statuses(sqlite)) == 12


def test_stopped_study_keeps_its_paused_trials(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    paused = statuses(sqlite).count("paused")
    assert paused > 1
    assert "stopped; no trial is running" in set_study_state(sqlite, "planted", "stopped")
    assert run_worker(stored) == 0
    assert statuses(sqlite).count("paused") == paused
    set_study_state(sqlite, "planted", "active")
    assert run_worker(stored) == 0
    assert set(statuses(sqlite)) == {"complete", "pruned"}


def test_paused_trials_are_pruned_when_the_hours_are_over(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here, budget={"trials": 8, "hours": 1.0})
    n = len(statuses(sqlite))
    stored.optuna.set_user_attr(STARTED, stored.slots.now() - 7200)
    assert run_worker(stored) == 0
    assert len(statuses(sqlite)) == n  # no trial has started
    assert set(statuses(sqlite)) <= {"complete", "pruned"}


def test_budget_in_tokens_is_not_exceeded_and_pays_for_promotions(sqlite: Store, here: Path) -> None:
    tree = {
        "base": gpt_base(3e-3).model_dump(mode="json"),
        "space": {"optimizer.lr": {"low": 1e-3, "high": 6e-3}},
        "sampler": "random",
        "baseline": [],
        "pruner": {"name": "asha", "factor": FACTOR},
        "budget": {"tokens": 14 * 8 * UPDATE},
    }
    (here / "tokens.yaml").write_text(dump_yaml(tree))
    study = load_study("tokens.yaml")
    stored = register_study(sqlite, study, *describe_data(study.base))
    assert run_worker(stored) == 0
    trials = read_snapshot(sqlite, "tokens").trials
    trained = sum(t.last_step or 0 for t in trials)
    assert trained == stored.slots.rungs() <= 14
    assert {t.state for t in trials} <= {State.COMPLETE, State.PRUNED}
    assert trained > 14 - RUNGS
    assert any(record["decision"] == "promoted" for t in trials for record in t.user_attrs[MARKS])


def test_trial_whose_worker_died_before_the_pause_pauses_without_training(sqlite: Store, here: Path) -> None:
    stored = gpt_study(sqlite, here, "asha", {"name": "asha", "factor": FACTOR})
    worker = Worker(stored, Path("runs"), 1, lambda event: None)
    died = KeyboardInterrupt()  # like SIGKILL: nothing is saved after it

    def die(trial: Any) -> bool:
        raise died

    worker.executor.promoter.pause = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        worker.work()
    assert statuses(sqlite, "asha") == ["interrupted"]
    happened: list[dict[str, Any]] = []
    run_packs(stored, 1, 1, happened)
    assert [event["event"] for event in happened if event.get("trial") == 0] == ["start", "paused"]


def test_samplers_see_a_paused_trial_as_pruned_at_its_last_value(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    sampler = ComplementLogSampler(optuna.samplers.RandomSampler(), {}, frozenset())
    seen = sampler.view(stored.optuna, {}).get_trials(deepcopy=False)
    for trial, status in zip(seen, statuses(sqlite), strict=True):
        if status == "paused":
            assert trial.state == optuna.trial.TrialState.PRUNED
            assert trial.values == [trial.intermediate_values[trial.last_step or 0]]
    again = sampler.view(stored.optuna, {}).get_trials(deepcopy=False)
    assert [t.state for t in again] == [t.state for t in seen]
    assert run_worker(stored) == 0
    fresh = ComplementLogSampler(optuna.samplers.RandomSampler(), {}, frozenset()).view(stored.optuna, {})
    assert [t.values for t in fresh.get_trials(deepcopy=False)] == [t.values for t in stored.optuna.get_trials()]


def test_status_show_why_and_doctor_distinguish_paused_trials(sqlite: Store, here: Path) -> None:
    half_done(sqlite, here)
    snapshot = read_snapshot(sqlite, "planted")
    paused = [t for t in snapshot.trials if trial_status(snapshot, t) == "paused"]
    for t in paused:
        mark = t.last_step or 0
        at_mark = sorted(o.intermediate_values[mark] for o in snapshot.trials if mark in o.intermediate_values)
        place = {"rung": mark, "rank": at_mark.index(t.intermediate_values[mark]) + 1, "of": len(at_mark)}
        assert {"number": t.number, **place} in summary(snapshot)["paused"]
        shown = trial_record(snapshot, t.number)
        assert (shown["state"], shown["paused"]) == ("paused", f"at rung {mark}, rank {place['rank']} of {place['of']}")
        last = decisions(snapshot, t.number)[-1]
        assert f"is paused at rung {mark} of 4, with rank {place['rank']} of {place['of']}" in last["sentence"]
    assert summary(snapshot)["trials"]["paused"] == len(paused)
    assert summary(snapshot)["trials"]["waiting"] == 8 - len(snapshot.trials) + statuses(sqlite).count("interrupted")
    (check,) = check_paused(snapshot, Path("runs"))
    assert check.state == "warning"  # a training function of the user has no checkpoints
    assert f"trial {paused[0].number} at rung" in check.message


def test_why_names_ranks_and_notices_curves_that_were_changed(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    assert run_worker(stored) == 0
    said = {n: [d["sentence"] for d in decisions(read_snapshot(sqlite, "planted"), n)] for n in range(8)}
    assert not any("do not reproduce" in sentence for sentences in said.values() for sentence in sentences)
    assert said[0][1].startswith(
        "at rung 1 it paused: its val_loss, 2.0500, ranked 1 of 1; no trial continues before 2"
    )
    assert said[0][2] == "it was promoted from rung 1, where it ranked 3 of 6; the best 3 continue"
    assert "it was pruned at rung 1 of 4: it was paused when the study ended, with rank " in said[2][-1]
    worst = get_trial(sqlite, 4)
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE trial_intermediate_values SET intermediate_value = 0 WHERE trial_id = {worst.user_attrs.trial_id}"
        )
    again = [d["sentence"] for d in decisions(read_snapshot(sqlite, "planted"), 4)]
    assert any("do not reproduce this decision: they give rank 1, not" in sentence for sentence in again)


def test_killed_paused_trial_fails_and_forked_one_is_pruned(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    first, second = [n for n, status in enumerate(statuses(sqlite)) if status == "paused"][:2]
    assert "failed as killed; it was paused at rung" in kill_trial(sqlite, "planted", first)
    assert statuses(sqlite)[first] == "killed"
    copies, _ = matching_trials(stored, stored.study)
    (copy,) = [t for t in copies if t.user_attrs["forked_from"] == f"planted/{second}"]
    assert (copy.state, copy.user_attrs[END_REASON]) == (optuna.trial.TrialState.PRUNED, "pruned")
    assert copy.values == [copy.intermediate_values[copy.last_step or 0]]
    assert run_worker(stored) == 0
    assert sorted(statuses(sqlite)) == sorted(["killed", *[s for s in statuses(sqlite) if s != "killed"]])
    assert set(statuses(sqlite)) == {"killed", "complete", "pruned"}


@pytest.mark.parametrize("learn_from", ["deepest", "all"])
def test_the_sampler_learns_from_the_trials_that_the_study_says(sqlite: Store, here: Path, learn_from: str) -> None:
    keys: dict[str, Any] = {
        "space": {"x": {"low": 0.0, "high": 1.0}},
        "sampler": {"name": "tpe", "startup_trials": 2},
        "pruner": ASHA["pruner"] | {"learn_from": learn_from},
        "budget": {"trials": 16},
    }
    stored = create_study(sqlite, here, **ASHA | keys)
    assert run_worker(stored) == 0
    seen = [trial.user_attrs[SUGGESTED_BY]["finished"] for trial in read_snapshot(sqlite, "planted").trials]
    assert seen[:4] == [0, 1, 2, 3]
    if learn_from == "all":
        assert seen == list(range(16))  # one worker: every earlier trial has paused or ended
    else:
        assert 4 <= seen[-1] < 15


def test_study_that_was_stored_before_learn_from_existed_continues_with_all(sqlite: Store, here: Path) -> None:
    stored = create_study(sqlite, here, **ASHA)
    assert stored.study.file.pruner.model_dump()["learn_from"] == "deepest"
    spec = stored.optuna.user_attrs[SPEC]
    del spec["pruner"]["learn_from"]
    stored.optuna.set_user_attr(SPEC, spec)
    assert load_stored_study(sqlite, "planted").study.file.pruner.model_dump()["learn_from"] == "all"


def test_checkpoints_of_paused_trials_stay_until_they_are_pruned(sqlite: Store, here: Path) -> None:
    stored = gpt_study(sqlite, here, "asha", {"name": "asha", "factor": FACTOR})
    run_packs(stored, 1, 3)
    snapshot = read_snapshot(sqlite, "asha")
    paused = [t.number for t in snapshot.trials if trial_status(snapshot, t) == "paused"]
    folder = Path("runs/asha")
    assert all(resumable_checkpoints(trial_folder(folder, n)) for n in paused)
    assert check_checkpoints(snapshot, Path("runs")).state == "ok"
    assert [check.state for check in check_paused(snapshot, Path("runs"))] == ["ok"]
    run_packs(stored, 1, 1000)
    pruned = [t.number for t in read_snapshot(sqlite, "asha").trials if t.state == State.PRUNED]
    assert pruned
    assert not any(resumable_checkpoints(trial_folder(folder, n)) for n in pruned)


def test_training_function_without_checkpoints_restarts_its_promoted_trials(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    assert run_worker(stored) == 0
    trials = read_snapshot(sqlite, "planted").trials
    check_marks(trials)
    n_promoted = sum(record["decision"] == "promoted" for t in trials for record in t.user_attrs[MARKS])
    assert len(events(sqlite, "restarted")) == n_promoted > 0


def test_paused_trials_are_read_once_until_they_change(sqlite: Store, here: Path) -> None:
    stored = half_done(sqlite, here)
    with open_store(sqlite.url) as other:  # the cache of another worker
        study = optuna.load_study(study_name="planted", storage=other.optuna)
        study.get_trials()  # the first read finds which trials are paused, the second one keeps them
        first = {t.number: t for t in study.get_trials(deepcopy=False)}
        paused = [n for n, status in enumerate(statuses(sqlite)) if status == "paused"]
        again = {t.number: t for t in study.get_trials(deepcopy=False)}
        assert paused
        assert all(again[n] is first[n] for n in paused)
        assert run_worker(stored) == 0
        now = study.get_trials(deepcopy=False)
        assert now == optuna.load_study(study_name="planted", storage=other.rdb).get_trials()
        assert not any(is_paused(t) for t in now)


def test_trial_that_pauses_while_it_is_read_is_read_again(sqlite: Store, here: Path) -> None:
    """On Postgres, Optuna may read that a trial is running, and then the attributes of its pause."""
    half_done(sqlite, here)
    number = statuses(sqlite).index("paused")
    with open_store(sqlite.url) as other:
        study = optuna.load_study(study_name="planted", storage=other.optuna)
        of_trial = sa.and_(TRIALS.c.number == number, TRIALS.c.study_id == get_study_id(study))
        for state in ("RUNNING", "WAITING"):
            with sqlite.engine.begin() as connection:
                connection.execute(sa.update(TRIALS).where(of_trial).values(state=trial_state(state)))
            read = [study.get_trials()[number].state.name for _ in range(2)]
            assert read == [state, state]
