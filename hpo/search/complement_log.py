"""A sampler for fields such as beta2, which any of Optuna's samplers then searches uniformly in log (1 - x)."""

import copy
import heapq
import itertools
import math
import weakref
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import get_sampler_trials, get_trial_id
from hpo.search.ranges import is_inside
from hpo.search.study_view import StudyView

Distributions = dict[str, BaseDistribution]

TrialRank = tuple[float, bool, float, float]  # the smaller, the better
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # samplers ignore failed trials
FinishedTrials = dict[int, tuple[FrozenTrial, TrialRank]]

# Finished trials in the inner sampler's scale, by what is mirrored and by id: they change no more, and to copy 5,000
# of them for each ask took 200 ms.
_FINISHED_TRIALS: weakref.WeakKeyDictionary[optuna.Study, dict[frozenset[str], FinishedTrials]] = (
    weakref.WeakKeyDictionary()
)


class ComplementLogSampler(optuna.samplers.BaseSampler):
    """Shows a sampler the study with x mirrored to 1 - x, and maps its answers back.

    The storage holds the plain x under a plain range; a search with log scale is what the inner sampler sees.
    It also fixes what is sampled jointly: `joint`, the parameters that every trial has. Optuna would take what
    all finished trials have in common, and one baseline that carries less would make the rest independent.
    The study is read once a trial, and only by a sampler that looks at it.
    """

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        joint: Distributions,
        mirrored: frozenset[str],
        history: int | None = None,
    ) -> None:
        """Wrap a sampler.

        history: finished trials that it sees, see `recalled`; None: all.
        """
        self.inner, self.history = inner, history
        self._seen: dict[frozenset[str], list[FrozenTrial]] = {}
        self.joint = {name: kind for name, kind in joint.items() if not kind.single()}
        self.mirrored = mirrored

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return what is sampled jointly: always the same."""
        return self.joint

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return the inner sampler's joint draw, in plain x."""
        if not search_space:
            return {}
        kinds = {name: self._flipped_kind(name, kind) for name, kind in search_space.items()}
        found = self.inner.sample_relative(self.view(study, kinds), self._flipped(trial), kinds)
        return {name: self._plain(name, value, search_space[name]) for name, value in found.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the inner sampler's draw of one parameter, in plain x."""
        kind = self._flipped_kind(param_name, param_distribution)
        found = self.inner.sample_independent(self.view(study, {}), self._flipped(trial), param_name, kind)
        return self._plain(param_name, found, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget the trials read for the one before, and tell the inner sampler."""
        self._seen = {}
        self.inner.before_trial(self.view(study, {}), self._flipped(trial))

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the inner sampler."""
        self.inner.after_trial(self.view(study, {}), self._flipped(trial), state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler."""
        self.inner.reseed_rng()

    def view(self, study: optuna.Study, needed: Distributions) -> StudyView:
        """Return the study as the inner sampler may see it: finished trials with all `needed`, in its scale."""

        def read(use_cache: bool) -> list[FrozenTrial]:
            key = frozenset(needed)
            if key not in self._seen:
                self._seen[key] = self._read(study, key)
            return self._seen[key]

        return StudyView(study, read)

    def _read(self, study: optuna.Study, needed: frozenset[str]) -> list[FrozenTrial]:
        ended = _FINISHED_TRIALS.setdefault(study, {}).setdefault(self.mirrored, {})
        trials = get_sampler_trials(study)
        for trial in trials:
            if trial.state in _FINISHED and get_trial_id(trial) not in ended:
                ended[get_trial_id(trial)] = self._flipped(trial), _rank(trial)
        # GP and NSGA-II look every parameter up in every finished trial; TPE skips those that lack one.
        ids = [get_trial_id(trial) for trial in trials]
        fit = [i for i in ids if i in ended and needed <= ended[i][0].params.keys()]
        kept = set(fit if self.history is None else select_history(fit, ended, self.history))
        return [
            ended[i][0] if trial.state.is_finished() else self._flipped(trial)
            for i, trial in zip(ids, trials, strict=True)
            if i in kept or not trial.state.is_finished()
        ]

    def _flipped(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a copy of a trial in the inner sampler's scale, without values outside their ranges."""
        kinds = {n: k for n, k in trial.distributions.items() if is_inside(k, trial.params[n])}
        flipped = copy.copy(trial)
        flipped.params = {n: 1 - trial.params[n] if n in self.mirrored else trial.params[n] for n in kinds}
        flipped.distributions = {n: self._flipped_kind(n, kind) for n, kind in kinds.items()}
        return flipped

    def _flipped_kind(self, name: str, kind: BaseDistribution) -> BaseDistribution:
        if name not in self.mirrored:
            return kind
        assert isinstance(kind, FloatDistribution)
        return FloatDistribution(1 - kind.high, 1 - kind.low, log=True)

    def _plain(self, name: str, value: Any, kind: BaseDistribution) -> Any:
        if name not in self.mirrored:
            return value
        assert isinstance(kind, FloatDistribution)
        return min(max(1 - value, kind.low), kind.high)  # 1 - (1 - 0.999) is not 0.999


def select_history(ids: Sequence[int], ended: FinishedTrials, history: int) -> Sequence[int]:
    """Return the ids of so many finished trials: half of them the best, the others the latest.

    TPE takes at most 25 trials for good, so these are the true ones whatever it is shown; what it forgets are old bad
    ones, to which it gives the least weight anyway.
    """
    if len(ids) <= history:
        return ids
    best = heapq.nsmallest(history // 2, ids, key=lambda i: ended[i][1])
    taken = set(best)
    latest = (i for i in reversed(ids) if i not in taken)
    return [*best, *itertools.islice(latest, history - len(best))]


def _rank(trial: FrozenTrial) -> TrialRank:
    """Order finished trials as TPE does: feasible ones first, then complete ones, then by step and value."""
    excess = sum(c for c in trial.constraints.values() if c > 0)
    if trial.state == TrialState.COMPLETE:
        return excess, False, 0, trial.values[0]
    step = trial.last_step or 0
    value = trial.intermediate_values.get(step, math.inf)
    return excess, True, -step, math.inf if math.isnan(value) else value
