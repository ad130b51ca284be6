"""Asha: who pauses at a mark, and which paused trial continues, compared with algorithm 2 of Li et al. 2020."""

import math
import random

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import TypeAdapter

from hpo.search.asha import AshaPruner, as_pruned, is_paused
from hpo.search.direction import Direction
from hpo.search.pruners import Pruner, build_pruner
from hpo.search.pruning import CachedPruner
from hpo.search.study_view import StudyView
from hpo.storage.attributes import PAUSED

R = 27


class Simulation:
    """A study in which workers train one rung at a time, with the product's pruner."""

    def __init__(self, curves: list[dict[int, float]], factor: int, min_rungs: int) -> None:
        self.curves, self.pruner = curves, AshaPruner(min_rungs, factor, R)
        self.trials: list[FrozenTrial] = []
        self.view = StudyView(optuna.create_study(), lambda _: self.trials)

    def job(self) -> int | None:
        """Promote a paused trial or start a new one; return its number."""
        for number in self.pruner.promotable(self.trials):
            self.trials[number].state = TrialState.RUNNING
            del self.trials[number].user_attrs[PAUSED]
            return number
        if len(self.trials) == len(self.curves):
            return None
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = len(self.trials)
        self.trials.append(trial)
        return trial.number

    def step(self, number: int) -> bool:
        """Train one rung; return whether the worker is free."""
        trial, curve = self.trials[number], self.curves[number]
        rung = (trial.last_step or 0) + 1
        trial.intermediate_values[rung] = curve[rung]
        if rung == R:
            trial.state, trial.values = TrialState.COMPLETE, [curve[rung]]
        elif self.pruner.prune(self.view, trial):
            trial.state = TrialState.WAITING
            trial.user_attrs[PAUSED] = "here"
        return trial.state != TrialState.RUNNING


class Paper:
    """The state of algorithm 2 of Li et al. 2020: losses by rung of the paper, and who was promoted from there."""

    def __init__(self, marks: list[int], eta: int) -> None:
        self.eta, self.marks = eta, marks
        self.losses: dict[int, dict[int, float]] = {mark: {} for mark in marks}
        self.promoted: dict[int, set[int]] = {mark: set() for mark in marks}

    def top(self, mark: int) -> list[int]:
        losses = self.losses[mark]
        return sorted(losses, key=lambda number: (losses[number], number))[: len(losses) // self.eta]

    def get_job(self) -> tuple[int, int] | None:
        """Return (mark, number) of the promotion, None to start a new configuration."""
        for mark in reversed(self.marks):
            if candidates := [number for number in self.top(mark) if number not in self.promoted[mark]]:
                return mark, candidates[0]
        return None


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize(
    ("factor", "min_rungs", "marks"), [(3, 1, [1, 3, 9]), (2, 1, [1, 2, 4, 8, 16]), (3, 2, [2, 6, 18])]
)
def test_workers_promote_as_the_published_algorithm(
    factor: int, min_rungs: int, marks: list[int], workers: int
) -> None:
    chance = random.Random(workers)
    curves = [{r: round(chance.gauss(3, 1) / r, 1) for r in range(1, R + 1)} for _ in range(60)]  # with ties
    ours, paper = Simulation(curves, factor, min_rungs), Paper(marks, factor)
    assert ours.pruner.marks == marks
    running: list[int] = []
    n_promoted = 0
    while True:
        while len(running) < workers and (number := ours.job()) is not None:
            job = paper.get_job()
            is_new = ours.trials[number].last_step is None
            assert job == (None if is_new else (ours.trials[number].last_step, number))
            if job is not None:
                paper.promoted[job[0]].add(number)
                n_promoted += 1
            running.append(number)
        if not running:
            break
        number = chance.choice(running)
        is_free = ours.step(number)
        rung = ours.trials[number].last_step
        assert rung is not None
        if rung in marks:
            paper.losses[rung][number] = curves[number][rung]
            assert is_free == (number not in paper.top(rung))  # a trial among the best is promoted without a pause
            if not is_free:
                paper.promoted[rung].add(number)
        if is_free:
            running.remove(number)
    assert paper.get_job() is None
    assert {t.state for t in ours.trials} == {TrialState.COMPLETE, TrialState.WAITING}
    assert len(ours.trials) == 60
    assert n_promoted > 5


def paused(number: int, values: dict[int, float]) -> FrozenTrial:
    trial = create_trial(state=TrialState.WAITING, intermediate_values=values, user_attrs={PAUSED: "here"})
    trial.number = number
    return trial


def other(number: int, values: dict[int, float], state: TrialState = TrialState.RUNNING) -> FrozenTrial:
    trial = create_trial(
        state=state, intermediate_values=values, values=[1.0] if state == TrialState.COMPLETE else None
    )
    trial.number = number
    return trial


def test_diverged_trials_count_as_worst_at_their_next_mark_and_failed_ones_do_not_count() -> None:
    pruner = AshaPruner(1, 3, R)
    two = [paused(0, {1: 1.0}), paused(1, {1: 2.0})]
    assert pruner.promotable(two) == []
    for end in ({1: math.nan}, {1: math.inf}):
        assert pruner.promotable([*two, other(2, end, TrialState.PRUNED)]) == [0]
        assert pruner.promotable([*two, other(2, end, TrialState.FAIL)]) == []
    # After its mark, a trial counts with its value there, and as worst at the next mark only.
    at_3 = [paused(0, {1: 1.0, 3: 1.0}), paused(1, {1: 2.0, 3: 2.0})]
    assert pruner.promotable([*at_3, other(2, {1: 0.5, 2: math.nan}, TrialState.PRUNED)]) == [0]
    assert pruner.promotable([*at_3, other(2, {1: 0.5, 3: 0.5, 4: math.nan}, TrialState.PRUNED)]) == []


def test_only_paused_trials_are_promoted_from_the_last_mark_down() -> None:
    pruner = AshaPruner(1, 2, R)
    trials = [other(n, {1: 9.0, 2: 9.0}) for n in range(4)]  # they run, and count
    trials += [paused(4, {1: 1.0}), paused(5, {1: 8.0, 2: 8.0}), paused(6, {1: 7.0, 2: 7.0}), paused(7, {1: 6.0})]
    assert pruner.promotable(trials) == [6, 5, 4, 7]
    trials[6].user_attrs.clear()  # interrupted
    assert pruner.promotable(trials) == [5, 4, 7]
    trials[4].state = TrialState.RUNNING
    assert pruner.promotable(trials) == [5, 7]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_decision_is_pause_at_marks_only_and_from_a_fresh_list(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction)
    rule = TypeAdapter(Pruner).validate_python({"name": "asha", "factor": 3})
    cached = CachedPruner(study, build_pruner(rule, R, Direction(direction)), R, refresh_s=math.inf)
    own = other(1000, {1: sign * 1.0})
    assert cached.decide(own) == "pause"  # the best of one
    assert cached.decide(own, never_prune=True) == "continue"
    for value in (2.0, 3.0):
        trial = study.ask()
        trial.report(sign * value, 1)
    assert cached.decide(own) == "continue"  # the best of three
    assert cached.decide(other(1001, {1: sign * 4.0})) == "pause"
    assert cached.decide(other(1001, {1: sign * 4.0, 2: sign * 9.0})) == "continue"  # no mark
    assert cached.decide(other(1001, {1: math.nan})) == "diverged"


def test_samplers_see_a_paused_trial_as_pruned_with_its_last_value() -> None:
    trial = paused(3, {1: 2.0, 2: 1.5})
    assert is_paused(trial)
    seen = as_pruned(trial)
    assert (seen.state, seen.values, seen.intermediate_values) == (TrialState.PRUNED, [1.5], {1: 2.0, 2: 1.5})
    assert trial.state == TrialState.WAITING
