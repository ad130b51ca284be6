"""Targets that a study is to reach, the one that ends it, and the milestones of one run."""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.summary import goal_lines, summary
from hpo.analysis.targets import milestones
from hpo.cli.main import app
from hpo.commands.enqueue import enqueue_trial
from hpo.errors import Problem
from hpo.launcher.plan import describe_plan
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.engine import open_readonly
from hpo.storage.store import Store, open_store
from hpo.storage.targets import TargetReached
from hpo.storage.trials import State
from hpo.study.load import load_study
from hpo.worker.trial import open_trial
from hpo.worker.worker import Worker
from tests.support.command import start_launch
from tests.support.planted import planted_study as planted

pytestmark = pytest.mark.usefixtures("here")

# 1 + x at the last of four rungs, a quarter more at each one before: runs at 1.9, 1.6, 1.3 and 1.1
POINTS: dict[str, Any] = {
    "space": {"x": {"choices": [0.9, 0.6, 0.3, 0.1]}},
    "sampler": {"name": "grid"},
    "pruner": {"name": "none"},
    "baseline": [],
    "budget": {"trials": 4},
}
COUNTED = """

class Counted(Config):
    def rung_tokens(self):
        return 1000.0
"""


def began(store: Store, folder: Path, code: str = "", **keys: Any) -> StoredStudy:
    path = planted(folder, **POINTS | keys)
    with (folder / "curves.py").open("a") as module:
        module.write(code)
    return register_study(store, load_study(str(path)), None, {})


def work(stored: StoredStudy, turns: float = math.inf) -> int:
    return Worker(stored, Path("runs"), 1, lambda event: None).work(turns)


def in_order(stored: StoredStudy) -> list[float]:
    """Return the last value of each trial."""
    return [t.values[0] for t in read_snapshot(stored.store, "planted").trials]


def test_target_is_shown_with_the_trial_the_rung_and_the_tokens_that_it_took(here: Path, store: Store) -> None:
    stored = began(store, here, COUNTED, config="curves:Counted", targets={"a": 1.95, "b": 1.45, "c": 1.0})
    work(stored)
    snapshot = read_snapshot(store, "planted")
    order = in_order(stored)
    found = summary(snapshot)["targets"]
    for name, value in {"a": 1.95, "b": 1.45}.items():
        trial = next(i for i, last in enumerate(order) if last <= value)
        rung = next(r for r in (1, 2, 3, 4) if order[trial] + 1 - r / 4 <= value)
        assert found[name] == {
            "target": value,
            "trial": trial,
            "rung": rung,
            "value": pytest.approx(order[trial] + 1 - rung / 4),
            "tokens": 1000 * rung,
            "study_tokens": 1000 * (4 * trial + rung),
        }
    assert found["c"] == {**dict.fromkeys(found["a"]), "target": 1.0}
    told = goal_lines(snapshot)
    assert f"reached by trial {found['a']['trial']} at rung {found['a']['rung']}, val_loss" in told[0]
    assert (
        f"after {found['b']['tokens']:,} tokens of the trial and {found['b']['study_tokens']:,} tokens of the study"
        in told[1]
    )
    assert told[2:] == ["target c (1): not reached yet; the best trial is 0.1000 above it"]


def test_first_in_time_reached_a_target_though_its_number_is_higher_and_it_runs_still(here: Path, store: Store) -> None:
    stored = began(store, here, targets={"tier1": 2.0})
    trials = []
    for owner in ("slow", "fast"):
        claim = stored.slots.claim(owner, 60)
        assert claim is not None
        trials.append(open_trial(stored, claim, owner, 1))
    slow, fast = (trial._trial_id for trial in trials)
    for trial_id, rung, value in [
        (slow, 1, 3.0), (fast, 1, 2.5), (fast, 2, 1.9), (slow, 2, 1.5), (fast, 3, math.inf), (slow, 3, -math.inf)
    ]:  # fmt: skip
        store.optuna.set_trial_intermediate_value(trial_id, rung, value)
    snapshot = read_snapshot(store, "planted")
    assert snapshot.reached == {"tier1": TargetReached(trial=1, rung=2, value=1.9, rungs=3)}
    assert {t.state for t in snapshot.trials} == {State.RUNNING}
    assert "after 2 rungs of the trial and 3 rungs of the study" in goal_lines(snapshot)[0]


def test_baseline_with_another_seed_reaches_no_target(here: Path, store: Store) -> None:
    noisy: dict[str, Any] = {"base": {"noise": 0.1}, "baseline": [{}], "baseline_seeds": 4}
    stored = began(store, here, **noisy, targets={"tier1": 1.373})
    work(stored, turns=4)
    snapshot = read_snapshot(store, "planted")
    assert [t.values[0] <= 1.373 for t in snapshot.trials] == [False, True, False, False], "or this shows nothing"
    assert [t.user_attrs["kind"] for t in snapshot.trials] == ["baseline", "seed", "seed", "seed"]
    assert snapshot.reached == {}


def test_once_the_target_is_reached_no_trial_is_begun_and_those_that_run_go_on_to_their_end(
    here: Path, store: Store
) -> None:
    stored = began(store, here, targets={"tier1": 2.0}, budget={"target": "tier1"})
    slow = stored.slots.claim("elsewhere", 60)
    assert slow is not None
    running = open_trial(stored, slow, "elsewhere", 1)
    work(stored, turns=100)  # leaves when there is nothing to begin
    snapshot = read_snapshot(store, "planted")
    reach = snapshot.reached["tier1"]
    assert len(snapshot.trials) == reach.trial + 1 < 4, "none was begun after the one that came to the target"
    assert snapshot.trials[reach.trial].state == State.COMPLETE, "which went on to its own end"
    assert stored.is_over(stored.read_state())
    assert not has_ended(snapshot), "one still runs"
    assert goal_lines(snapshot)[-1].endswith("; trials still running: 1")
    stored.slots.release(slow, "elsewhere")
    assert work(stored) == 0
    snapshot = read_snapshot(store, "planted")
    assert has_ended(snapshot)
    assert snapshot.trials[running.number].state == State.COMPLETE
    assert (len(snapshot.trials), snapshot.slots["free"]) == (reach.trial + 1, 3 - reach.trial)


def test_several_workers_end_a_study_at_its_target_and_a_further_launch_begins_nothing(here: Path) -> None:
    random: dict[str, Any] = {"space": {"x": {"low": 0.0, "high": 1.0}}, "sampler": {"name": "random"}}
    path = planted(here, **POINTS | random | {"targets": {"tier1": 1.4}, "budget": {"target": "tier1"}})
    for turn in range(2):
        process = start_launch("--study", str(path), "--workers", "3")
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert "ended by its target tier1: no further trials start" in stdout
        assert ("trial 0: started" in stderr) == (turn == 0)
        with open_readonly("runs/hpo.db") as store:
            snapshot = read_snapshot(store, "planted")
            assert has_ended(snapshot)
            assert {t.state for t in snapshot.trials} <= {State.COMPLETE, State.PRUNED}
            first = snapshot.trials[snapshot.reached["tier1"].trial]
            late = [t for t in snapshot.trials if t.started and first.ended and t.started > first.ended]
            assert len(late) <= 2, "each other worker may have been about to begin one"
            assert snapshot.slots["leased"] == 0


def test_trials_end_a_study_that_does_not_reach_its_target(here: Path, store: Store) -> None:
    path = planted(here, **POINTS | {"targets": {"tier1": 0.5}, "budget": {"target": "tier1"}})
    study = load_study(str(path), budget={"trials": 3, "hours": None})
    assert "budget 3 trials, target tier1;" in describe_plan(study, {})
    assert "targets tier1 0.5000" in describe_plan(study, {})
    stored = register_study(store, study, None, {})
    assert work(stored) == 0
    snapshot = read_snapshot(store, "planted")
    assert (len(snapshot.trials), has_ended(snapshot), snapshot.target) == (3, True, None)
    assert goal_lines(snapshot)[-1].startswith("target tier1 (0.5): not reached yet; the best trial is")


def test_target_alone_is_a_budget_of_many_trials(here: Path) -> None:
    space = {"x": {"low": 0.0, "high": 1.0}}
    path = planted(here, targets={"tier1": 1.4}, budget={"target": "tier1"}, space=space)
    assert len(load_study(str(path)).slots()) == 10_000


@pytest.mark.parametrize("budget", [{"target": "tier2"}, {"trials": 4}], ids=["another", "none"])
def test_study_continues_past_its_target_where_its_file_names_another_or_none(
    here: Path, store: Store, budget: dict[str, Any]
) -> None:
    targets = {"tier1": 2.0, "tier2": 0.5}
    first = began(store, here, targets=targets, budget={"target": "tier1"})
    work(first)
    n = len(read_snapshot(store, "planted").trials)
    assert n < 4
    with open_store(store.url) as fresh:
        again = register_study(
            fresh, load_study(str(planted(here, **POINTS | {"targets": targets, "budget": budget}))), None, {}
        )
        assert work(again) == 0
    assert len(read_snapshot(store, "planted").trials) == 4


def test_target_that_is_reached_keeps_what_is_enqueued_from_being_run_and_says_so(here: Path, store: Store) -> None:
    work(began(store, here, targets={"tier1": 2.0}, budget={"target": "tier1"}))
    assert any("the target tier1 is reached" in said for said in enqueue_trial(store, None, ["x=0.7"]))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"targets": {"tier1": 1.9, "tier2": 2.0}, "budget": {"target": "teir1"}},
            "budget.target: must be one of targets, 'tier1', 'tier2', got 'teir1'; did you mean tier1?",
        ),
        (
            {"budget": {"target": "tier1"}},
            "budget.target: must be used with targets, for example targets: {tier1: 1.9}",
        ),
        ({"targets": {"tier1": math.nan}}, "targets.tier1: must be a finite number, got nan"),
        ({"targets": {"": 1.0}}, "targets.'': must"),
        ({"milestones": {"0.0": 5.0}}, "milestones.0.0: must be greater than 0, got '0.0'"),
        ({"milestones": {"1.5": 5.0}}, "milestones.1.5: must be at most 1, got '1.5'"),
        ({"milestones": {"0.5": math.inf}}, "milestones.0.5: must be a finite number, got inf"),
        ({"milestones": {"half": 5.0}}, "milestones.half: must be a number, got 'half'"),
        ({"budget": {}}, "budget: must have trials, hours, tokens or target; add one of them"),
    ],
)
def test_aims_that_mean_nothing_are_refused(here: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem) as caught:
        load_study(str(planted(here, **keys)))
    assert said in str(caught.value)


def test_target_may_not_end_a_study_of_arms(here: Path) -> None:
    path = here / "arms.yaml"
    planted(here)
    path.write_text(
        "train: curves:train\nconfig: curves:Config\nrungs: 4\narms: {a: {x: 0.1}, b: {x: 0.2}}\nseeds: [1, 2]\n"
        "targets: {tier1: 1.5}\nbudget: {target: tier1}\n"
    )
    with pytest.raises(Problem, match=r"budget\.target: must be omitted with arms"):
        load_study(str(path))


CURVE = {1: 5.0, 2: 4.5, 3: math.nan, 4: 3.0}


@pytest.mark.parametrize(
    ("share", "rung", "value", "said"),
    [
        (0.25, 1, 5.0, "5.1 by 25 % met by 0.1 (rung 1)"),
        (0.26, 2, 4.5, "5.1 by 26 % met by 0.6000 (rung 2)"),
        (0.01, 1, 5.0, "5.1 by 1 % met by 0.1 (rung 1)"),
        (0.7, 3, None, "5.1 by 70 % not reached yet (rung 3)"),
        (1.0, 4, 3.0, "5.1 by 100 % met by 2.1000 (rung 4)"),
    ],
)
def test_milestone_is_read_at_the_first_rung_at_or_after_its_share(
    share: float, rung: int, value: float | None, said: str
) -> None:
    (found,) = milestones({share: 5.1}, 4, CURVE)
    assert (found.rung, found.value, found.text(None)) == (rung, value, said)


def test_share_that_is_a_whole_number_of_rungs_is_read_there_whatever_its_fractions() -> None:
    found = milestones({i / 100: 1.0 for i in range(1, 101)}, 100, {})
    assert [m.rung for m in found] == list(range(1, 101))


@pytest.mark.parametrize(("value", "met"), [(5.0, True), (5.1, True), (5.2, False), (math.inf, False)])
def test_milestone_is_met_by_its_very_value(value: float, met: bool) -> None:
    (found,) = milestones({"0.5": 5.1}, 2, {1: value})
    assert found.record()["met"] is met


def table(text: str) -> Mapping[str, str]:
    return {words[0]: words[1] for words in (line.split() for line in text.splitlines()) if len(words) == 2}


def test_status_and_show_say_which_milestones_a_trial_met_and_missed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store("sqlite:///runs/hpo.db", create=True) as store:
        path = planted(here, **POINTS)
        path.write_text(path.read_text() + "milestones: {0.5: 1.8, .75: 1.3}\n")  # as a person writes them
        work(register_study(store, load_study(str(path)), None, {}))
        snapshot = read_snapshot(store, "planted")
    best = snapshot.best()
    assert best is not None
    app(["status"], standalone_mode=False)
    told = f"milestones of trial {best.number}: 1.8 by 50 % met by 0.2000 (rung 2), 1.3 by 75 % missed by 0.05 (rung 3)"
    assert told in capsys.readouterr().out
    app(["status", "--format", "json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)["milestones"]
    assert {share: (m["rung"], m["met"], round(m["by"], 6)) for share, m in found.items()} == {
        "0.5": (2, True, 0.2), "0.75": (3, False, -0.05)
    }  # fmt: skip
    app(["show", str(in_order_of(snapshot, 1.6))], standalone_mode=False)
    shown = table(capsys.readouterr().out)
    assert (shown["milestones.0.5.met"], shown["milestones.0.5.value"]) == ("false", "2.1000")
    assert shown["milestones.0.5.by"] == "-0.3000"


def in_order_of(of: Any, value: float) -> int:
    return next(t.number for t in of.trials if t.values[0] == pytest.approx(value))


def test_aims_are_read_from_the_storage_alone(here: Path, store: Store) -> None:
    work(began(store, here, targets={"tier1": 2.0}, budget={"target": "tier1"}, milestones={"0.5": 1.0}))
    program = """
import sys
from hpo.cli.main import main
sys.argv = ["hpo", "status", "--storage", sys.argv[1]]
try:
    main()
finally:
    print(sorted({"optuna", "torch", "model"} & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", program, store.url], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ended by its target tier1" in done.stdout
    assert "milestones of trial" in done.stdout
    assert done.stdout.endswith("[]\n")
