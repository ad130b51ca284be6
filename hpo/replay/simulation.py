"""Simulate a search: workers and rungs as events, with the samplers and pruners that real workers use.

Time is measured in rungs, which all cost the same number of tokens. Suggestions take no time.
"""

import copy
import heapq
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import optuna
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.optuna_internals.objects import get_study_id, get_trial_id
from hpo.replay.worlds import Run, World
from hpo.search.asha import AshaPruner
from hpo.search.pruners import Pruner, build_pruner, learns_from_deepest
from hpo.search.pruning import CachedPruner
from hpo.search.sampler_config import SamplerConfig
from hpo.search.samplers import build_sampler
from hpo.search.space import suggest_values
from hpo.storage.attributes import PAUSED
from model.section import flat, updated
from model.seeds import derive

optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs a line for each study in memory


@dataclass(frozen=True)
class Search:
    """The rules of a search. At least one of `trials` and `rungs` limits it, or the world gives its trials.

    sampler: None for the trials that the world gives. rungs: number of rungs that all trials together may train.
    """

    sampler: SamplerConfig | None
    pruner: Pruner
    workers: int = 4
    trials: int | None = None
    rungs: int | None = None


@dataclass
class SimulatedTrial:
    """A trial of a simulated search.

    state: running, paused, or why it ended: complete, pruned, diverged, or unknown where the recorded curve ends
    before. rungs: how many it trained. goal: up to which rung the budget is reserved for it.
    """

    number: int
    run: Run
    frozen: FrozenTrial
    state: str = "running"
    rungs: int = 0
    goal: int = 0


@dataclass
class Outcome:
    """A simulated search.

    path: (rungs trained by all trials, truth of the best trial so far), for each change of the best trial. asks: CPU
    seconds of each suggestion.
    """

    trials: list[SimulatedTrial] = field(default_factory=list)
    path: list[tuple[int, float]] = field(default_factory=list)
    asks: list[float] = field(default_factory=list)
    spent: int = 0


def simulate(world: World, search: Search, seed: int) -> Outcome:
    """Return the outcome of a search; the same arguments give the same outcome."""
    return _Simulation(world, search, seed).finish()


class _Simulation:
    """The state of a simulated search: a study in memory, the trials that run, and the next event of each worker."""

    def __init__(self, world: World, search: Search, seed: int) -> None:
        self.world, self.search, self.seed = world, search, seed
        self.rungs = world.curves.rungs
        self.storage, self.outcome = InMemoryStorage(), Outcome()
        self.study = optuna.create_study(storage=self.storage, study_name=f"replay {seed}")
        pruner = build_pruner(search.pruner, self.rungs, world.curves.direction)
        self.pruner = CachedPruner(self.study, pruner, self.rungs, refresh_s=0.0)
        self.asha = pruner if isinstance(pruner, AshaPruner) else None
        given = world.given(seed)
        self.given: Iterator[Run] | None = None if given is None else iter(given)
        self.best = math.inf
        self.events: list[tuple[int, int, SimulatedTrial]] = []  # time, tie-breaker, trial
        self.n_events = 0

    def finish(self) -> Outcome:
        """Run all events and return the outcome."""
        now, free = 0, self.search.workers
        while True:
            while free and self._start(now):
                free -= 1
            if not self.events:
                break
            now, _, trial = heapq.heappop(self.events)
            if self._report(trial):
                self._schedule(now, trial)
            else:
                free += 1
        for trial in self.outcome.trials:
            if trial.state == "paused":  # the budget has ended
                self._end(trial, "pruned")
        return self.outcome

    def _schedule(self, now: int, trial: SimulatedTrial) -> None:
        self.n_events += 1
        heapq.heappush(self.events, (now + 1, self.n_events, trial))

    def _start(self, now: int) -> bool:
        """Continue a paused trial or start a new one on a free worker, if the budget is enough; return whether it is.

        The budget must be enough for the way to the next mark, or for a full run of a new trial.
        """
        trial = self._promoted() or self._created()
        if trial is not None:
            trial.state = "running"
            self._schedule(now, trial)
        return trial is not None

    def _has_rungs(self, n: int) -> bool:
        """Return whether the budget has n rungs that are neither trained nor reserved by a running trial."""
        reserved = self.outcome.spent + sum(trial.goal - trial.rungs for _, _, trial in self.events)
        return self.search.rungs is None or reserved + n <= self.search.rungs

    def _promoted(self) -> SimulatedTrial | None:
        if self.asha is None:
            return None
        for frozen, place in self.pruner.promotions():
            trial = self.outcome.trials[frozen.number]
            goal = self.asha.next_stop(place.rung)
            if self._has_rungs(goal - trial.rungs):
                trial.goal = goal
                self.storage.set_trial_state_values(get_trial_id(trial.frozen), TrialState.RUNNING)
                return trial
        return None

    def _created(self) -> SimulatedTrial | None:
        over = self.search.trials is not None and len(self.outcome.trials) >= self.search.trials
        if over or not self._has_rungs(self.rungs):
            return None
        trial = self._next()
        if trial is not None:
            trial.goal = self.rungs if self.asha is None or trial.run.fixed else self.asha.next_stop(0)
            self.outcome.trials.append(trial)
        return trial

    def _next(self) -> SimulatedTrial | None:
        number = len(self.outcome.trials)
        if self.given is None:
            return self._suggested(number)
        run = next(self.given, None)
        if run is None:
            return None
        trial_id = self.storage.create_new_trial(get_study_id(self.study), create_trial(state=TrialState.RUNNING))
        return SimulatedTrial(number, run, _own_copy(self.storage.get_trial(trial_id)))

    def _suggested(self, number: int) -> SimulatedTrial:
        """Ask the sampler as a worker does: with the seed of the trial, and with all running trials in the study."""
        sampler, curves = self.search.sampler, self.world.curves
        assert sampler is not None, "a world that gives no trials needs a sampler"
        began = time.process_time()
        seeds = derive(self.seed, f"sampler/{number}/1") % 2**32, derive(self.seed, "sampler") % 2**32
        trial_id = self.storage.create_new_trial(get_study_id(self.study), create_trial(state=TrialState.RUNNING))
        self.study.sampler = build_sampler(
            sampler, curves.base, curves.space, *seeds, number, from_deepest=learns_from_deepest(self.search.pruner)
        )
        values = suggest_values(optuna.Trial(self.study, trial_id), curves.base, curves.space)
        self.outcome.asks.append(time.process_time() - began)
        fields = flat(updated(curves.base, values))
        params = {path: fields[path] for path in curves.space if path in fields}
        run = self.world.run(params, derive(self.seed, f"run/{number}") % 2**32)
        return SimulatedTrial(number, run, _own_copy(self.storage.get_trial(trial_id)))

    def _report(self, trial: SimulatedTrial) -> bool:
        """Report the next value of a trial; return whether the trial continues."""
        value = float(trial.run.curve[trial.rungs])
        if math.isnan(value):
            self._end(trial, "unknown")
            return False
        trial.rungs += 1
        self.outcome.spent += 1
        trial.frozen.intermediate_values[trial.rungs] = value
        self.storage.set_trial_intermediate_value(get_trial_id(trial.frozen), trial.rungs, value)
        decision = self.pruner.decide(trial.frozen, never_prune=trial.run.fixed)
        if decision == "continue" and trial.rungs < self.rungs:
            if trial.rungs < trial.goal or self._extend(trial):
                return True
            decision = "pause"
        if decision == "pause":
            self._pause(trial)
            return False
        self._end(trial, {"continue": "complete", "prune": "pruned"}.get(decision, decision))
        return False

    def _extend(self, trial: SimulatedTrial) -> bool:
        """Reserve the rungs to the next mark for a trial that continues at a mark; return whether the budget allows."""
        assert self.asha is not None
        goal = self.asha.next_stop(trial.rungs)
        if not self._has_rungs(goal - trial.rungs):
            return False
        trial.goal = goal
        return True

    def _pause(self, trial: SimulatedTrial) -> None:
        trial.state = "paused"
        # A storage takes the attribute away at a promotion. Here it may stay, because only waiting trials are paused.
        self.storage.set_trial_user_attr(get_trial_id(trial.frozen), PAUSED, True)
        self.storage.set_trial_state_values(get_trial_id(trial.frozen), TrialState.WAITING)

    def _end(self, trial: SimulatedTrial, state: str) -> None:
        trial.state = state
        values = [v for v in trial.frozen.intermediate_values.values() if math.isfinite(v)]
        ended = TrialState.COMPLETE if state == "complete" else TrialState.PRUNED
        self.storage.set_trial_state_values(get_trial_id(trial.frozen), ended, values[-1:] or None)
        if state == "complete" and values[-1] < self.best:
            self.best = values[-1]
            self.outcome.path.append((self.outcome.spent, trial.run.truth))


def _own_copy(frozen: FrozenTrial) -> FrozenTrial:
    """Return a copy to which values can be added, as each worker has one."""
    own = copy.copy(frozen)
    own.intermediate_values = dict(frozen.intermediate_values)
    return own
