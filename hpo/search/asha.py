"""Asynchronous successive halving by promotion: trials pause at marks, and the best of the paused continue."""

import copy
import math
from collections.abc import Iterable, Sequence

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from hpo.search.marks import Standing, mark_rungs, promotions, ranking
from hpo.storage.attributes import PAUSED


class AshaPruner(BasePruner):
    """Decides which trials pause at a mark, and which paused trials continue.

    Values are losses: the study is a `StudyView`, which minimizes. Failed trials do not count.

    min_rungs: the first mark. factor: reciprocal of the fraction that continues. rungs: number of rungs of a run.
    """

    def __init__(self, min_rungs: int, factor: int, rungs: int) -> None:
        self.factor, self.rungs = factor, rungs
        self.marks = mark_rungs(min_rungs, factor, rungs)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether a trial pauses at its last rung.

        It pauses if the rung is a mark, and the trial is not among the best 1 / factor of the trials that reached it.
        """
        return trial.last_step in self.marks and not self.compare(study.get_trials(deepcopy=False), trial)[0].is_kept

    def compare(self, trials: Iterable[FrozenTrial], trial: FrozenTrial) -> tuple[Standing, list[int]]:
        """Rank a trial at its last rung, which must be a mark.

        Returns its place and the numbers of the other trials that reached the mark, best first.

        trials: all trials of the study. `trial` may have newer values than its copy in `trials`.
        """
        rung = trial.last_step
        assert rung in self.marks
        ranked = ranking(_curves(trials) | _curves([trial]), self.marks, rung)
        place = Standing(rung, ranked.index(trial.number) + 1, len(ranked), len(ranked) // self.factor)
        return place, [number for number in ranked if number != trial.number]

    def promotable(self, trials: Sequence[FrozenTrial]) -> list[int]:
        """Return the numbers of the paused trials that may continue, in the order in which to continue them.

        trials: all trials of the study. Those for which `is_paused` is true are paused.
        """
        return [number for number, _ in self.promotions(trials)]

    def promotions(self, trials: Sequence[FrozenTrial]) -> list[tuple[int, Standing]]:
        """Return the same numbers, each with the place of its trial."""
        paused = {trial.number for trial in trials if is_paused(trial)}
        return promotions(_curves(trials), self.marks, paused, self.factor) if paused else []

    def next_stop(self, rung: int) -> int:
        """Return the rung to which a trial continues from a rung before it may pause again, or its last rung."""
        return next((mark for mark in self.marks if mark > rung), self.rungs)


def is_paused(trial: FrozenTrial) -> bool:
    """Return whether a trial is paused: it waits, and it has the attribute that it loses when it is promoted."""
    return trial.state == TrialState.WAITING and PAUSED in trial.user_attrs


def as_pruned(trial: FrozenTrial) -> FrozenTrial:
    """Return a paused trial as samplers see it: pruned, with its last finite value as its result."""
    pruned = copy.copy(trial)
    finite = [value for _, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)]
    pruned.state, pruned.values = TrialState.PRUNED, finite[-1:] or None
    pruned.datetime_complete = trial.datetime_start
    return pruned


def _curves(trials: Iterable[FrozenTrial]) -> dict[int, dict[int, float]]:
    return {trial.number: trial.intermediate_values for trial in trials if trial.state != TrialState.FAIL}
