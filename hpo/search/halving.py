"""Successive halving and Hyperband brackets."""

import binascii
import math

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning_rules import n_promoted


class HalvingPruner(BasePruner):
    """Asynchronous successive halving, in one bracket or several, computed from the reported values.

    A mark is a rung at which the trials of a bracket are compared. Optuna's SuccessiveHalvingPruner and HyperbandPruner
    write every mark that a trial passes to the storage. Such a write is not fenced by the lease of the trial, and it
    costs a read of the trial at every rung. Here marks are exact rungs, so that the reported values are sufficient.
    Values are losses: the study is a `StudyView`, which minimizes.
    Failed trials do not count, unlike in Optuna. Trials whose value at the mark is NaN do not count either.

    min_rungs: rung of the first mark of bracket 0. factor: reciprocal of the fraction that continues at a mark.
    """

    def __init__(self, min_rungs: int, factor: int, n_brackets: int) -> None:
        self.min_rungs = min_rungs
        self.factor = factor
        # Trials are distributed over brackets as in Optuna, in the proportions of Algorithm 1 of Li et al. 2018.
        shares = [math.ceil(n_brackets * factor**s / (s + 1)) for s in reversed(range(n_brackets))]
        self.slots = [bracket for bracket, share in enumerate(shares) for _ in range(share)]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the last rung is a mark and the trial is not among the best 1 / factor of its bracket
        there."""
        rung = trial.last_step
        if rung is None or not self.is_mark(rung, self.bracket(study, trial.number)):
            return False
        value = trial.intermediate_values[rung]
        values = [rival.intermediate_values[rung] for rival in self.rivals(study, trial)]
        return value > sorted([*values, value])[n_promoted(len(values) + 1, self.factor) - 1]

    def rivals(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the other trials of the bracket of a trial that have a value at its last rung."""
        rung, bracket = trial.last_step or 0, self.bracket(study, trial.number)
        others = [
            t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL and t.number != trial.number
        ]
        # Without NaN, which has no place in a sorted list.
        reached = [t for t in others if not math.isnan(t.intermediate_values.get(rung, math.nan))]
        return [t for t in reached if self.bracket(study, t.number) == bracket]

    def bracket(self, study: optuna.Study, number: int) -> int:
        """Return the bracket of a trial, which is the same in every worker."""
        return self.slots[binascii.crc32(f"{study.study_name}_{number}".encode()) % len(self.slots)]

    def is_mark(self, rung: int, bracket: int) -> bool:
        """Return whether a rung is a mark of a bracket."""
        mark = self.min_rungs * self.factor**bracket
        while mark < rung:
            mark *= self.factor
        return mark == rung
