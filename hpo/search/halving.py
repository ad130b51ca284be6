"""Successive halving and Hyperband brackets."""

import binascii
import math

import optuna
from optuna.pruners import BasePruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.pruning_rules import n_promoted


class HalvingPruner(BasePruner):
    """Successive halving from the reported values alone.

    Optuna's own pruners note each mark passed in the storage, from inside the decision: a write that no fence
    covers, and a read of the trial at every rung. Marks are exact rungs here, so the values tell the same.
    A failed trial does not count; in Optuna's it does. Nor does one whose value there is NaN, in neither.
    """

    def __init__(self, min_rungs: int, factor: int, n_brackets: int) -> None:
        self.min_rungs = min_rungs
        self.factor = factor
        # As Optuna shares trials out: Algorithm 1 of the paper, as proportions.
        shares = [math.ceil(n_brackets * factor**s / (s + 1)) for s in reversed(range(n_brackets))]
        self.slots = [bracket for bracket, share in enumerate(shares) for _ in range(share)]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is not among the best 1 / factor of its bracket at this mark."""
        rung = trial.last_step
        if rung is None or not self.is_mark(rung, self.bracket(study, trial.number)):
            return False
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        value = sign * trial.intermediate_values[rung]
        values = [sign * rival.intermediate_values[rung] for rival in self.rivals(study, trial)]
        return value > sorted([*values, value])[n_promoted(len(values) + 1, self.factor) - 1]

    def rivals(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the other trials of a trial's bracket that have a value at its rung."""
        rung, bracket = trial.last_step or 0, self.bracket(study, trial.number)
        others = [
            t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL and t.number != trial.number
        ]
        # Not one with NaN there, which would put a sorted list in disorder.
        reached = [t for t in others if not math.isnan(t.intermediate_values.get(rung, math.nan))]
        return [t for t in reached if self.bracket(study, t.number) == bracket]

    def bracket(self, study: optuna.Study, number: int) -> int:
        """Return a trial's bracket, the same in every worker."""
        return self.slots[binascii.crc32(f"{study.study_name}_{number}".encode()) % len(self.slots)]

    def is_mark(self, rung: int, bracket: int) -> bool:
        """Return whether trials of a bracket are compared at this rung."""
        mark = self.min_rungs * self.factor**bracket
        while mark < rung:
            mark *= self.factor
        return mark == rung
