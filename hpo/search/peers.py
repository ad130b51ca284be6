"""The rule `peers: all` of the pruners median and percentile.

A trial is compared with all trials that reached its rung or were pruned before it. Optuna compares only with complete
trials, which are the best of earlier comparisons. Its rule therefore prunes a growing share of the trials.
"""

import copy
import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence

import optuna
from optuna.pruners import BasePruner, PercentilePruner
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.pruning_rules import RANK_TOLERANCE
from hpo.search.study_view import StudyView

FINISHED = frozenset((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))


class PeersPruner(BasePruner):
    """Prunes a trial if at least a share of its peers and itself are better than its best value so far.

    Optuna's percentile interpolates between two values, and its interpolation next to an infinite value is NaN. Optuna
    therefore sees each peer as 0 if it is better than the trial and as 1 otherwise, between a 0 and a 1 for the ends of
    the scale. Of n peers of which k are better, the percentile is then 0 exactly where k is at least share x (n + 1).
    Values are losses: the study is a `StudyView`, which minimizes.

    kind: returns Optuna's pruner, which decides, from its n_min_trials. It has no startup trials of its own.
    startup_trials: number of complete trials before which no trial is pruned. min_trials: minimum number of peers.
    """

    def __init__(self, kind: Callable[..., PercentilePruner], startup_trials: int, min_trials: int) -> None:
        self.optuna = kind(n_min_trials=min_trials + 2)  # with the two ends of the scale
        self.startup_trials = startup_trials
        self._finished = FinishedTrials([])

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether Optuna prunes the trial among its peers at its last rung."""
        rung = trial.last_step
        trials = study.get_trials(deepcopy=False)
        finished = [t for t in trials if t.state in FINISHED]
        if not self._finished.are(finished):
            self._finished = FinishedTrials(finished)
        if rung is None or self._finished.n_complete < self.startup_trials:
            return False
        best = min((v for v in trial.intermediate_values.values() if not math.isnan(v)), default=math.inf)
        unfinished = [t for t in trials if t.state not in FINISHED and t.number != trial.number]
        losses = [loss for t in unfinished if (loss := loss_at(t, rung)) is not None]
        ended = self._finished.losses_at(rung)
        n_better = bisect_left(ended, best) + sum(loss < best for loss in losses)
        n_other = len(ended) + len(losses) - n_better
        return self._is_pruned(study, trial, n_better, n_other)

    def _is_pruned(self, study: optuna.Study, trial: FrozenTrial, n_better: int, n_other: int) -> bool:
        """Return whether Optuna prunes a trial with this number of better peers and of other peers."""
        own = copy.copy(trial)
        own.intermediate_values = dict.fromkeys(trial.intermediate_values, RANK_TOLERANCE)
        rung = trial.last_step or 0
        better, other = (
            create_trial(state=TrialState.COMPLETE, value=shown, intermediate_values={rung: shown})
            for shown in (0.0, 1.0)
        )
        shown = [better] * (1 + n_better) + [other] * (n_other + 1)
        return self.optuna.prune(StudyView(study, lambda _: shown), own)

    def peers(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials with which a trial is compared at its last rung."""
        rung = trial.last_step or 0
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        return [t for t in others if loss_at(t, rung) is not None]


class FinishedTrials:
    """The losses of finished trials at each rung, in order. They are computed once, because these trials do not change.

    With this cache, a decision among 5,000 trials takes no longer than a decision of Optuna's pruner.
    """

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        self._trials = trials
        self._losses: dict[int, list[float]] = {}
        self.n_complete = sum(t.state == TrialState.COMPLETE for t in trials)

    def are(self, trials: Sequence[FrozenTrial]) -> bool:
        """Return whether these are the trials of a list. A finished trial stays the same object."""
        return len(trials) == len(self._trials) and all(map(operator.is_, trials, self._trials))

    def losses_at(self, rung: int) -> list[float]:
        """Return the losses of the peers at a rung, in ascending order."""
        if rung not in self._losses:
            self._losses[rung] = sorted(loss for t in self._trials if (loss := loss_at(t, rung)) is not None)
        return self._losses[rung]


def loss_at(trial: FrozenTrial, rung: int) -> float | None:
    """Return the loss of a peer at a rung, infinity for one that counts as worse than any; None for no peer.

    A trial that was pruned or diverged before the rung counts as worse than any. Trials that failed are no peers.
    Trials without a value at the rung are no peers if they still run, exceeded a limit, or never reported a value:
    they were not compared with others.
    """
    if trial.state == TrialState.FAIL:
        return None
    curve = trial.intermediate_values
    value = curve.get(rung)
    if value is not None:
        return value if math.isfinite(value) else math.inf
    if trial.state != TrialState.PRUNED or not curve or max(curve) > rung:
        return None
    return math.inf if all(c <= 0 for c in trial.constraints.values()) else None
