"""Search fields such as beta2 uniformly in log (1 - x), with any of Optuna's samplers."""

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

from hpo.optuna_internals.objects import get_sampler_trials, get_trial_id
from hpo.search.asha import as_pruned, is_paused
from hpo.search.prior_draws import PriorDraws
from hpo.search.ranges import is_inside
from hpo.search.study_view import StudyView, as_minimized, direction_of

Distributions = dict[str, BaseDistribution]

TrialRank = tuple[float, bool, float, float]  # smaller is better
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)  # samplers ignore failed trials
FinishedTrials = dict[int, tuple[FrozenTrial, TrialRank]]

# Finished trials on the scale of the inner sampler, by complemented parameters and trial id. They no longer change, and
# copying 5,000 of them for each new trial took 200 ms.
_FINISHED_TRIALS: weakref.WeakKeyDictionary[optuna.Study, dict[frozenset[str], FinishedTrials]] = (
    weakref.WeakKeyDictionary()
)


class ComplementLogSampler(optuna.samplers.BaseSampler):
    """Wraps a sampler: the inner sampler sees 1 - x on a log scale, the storage holds x on a linear scale.

    The wrapper also sets which parameters are sampled jointly: those that every trial has. Optuna uses the parameters
    that all finished trials share, so that one baseline with fewer parameters would make the others independent.
    The trials are read at most once for each new trial, and only if the sampler uses them.
    """

    def __init__(
        self,
        inner: optuna.samplers.BaseSampler,
        joint: Distributions,
        complemented_names: frozenset[str],
        history: int | None = None,
        priors: PriorDraws | None = None,
        enough: int | None = None,
    ) -> None:
        """Wrap a sampler.

        joint: distributions of the parameters that are sampled jointly. complemented_names: names of the parameters
        that the inner sampler sees as 1 - x. history: number of finished trials that it sees, None for all. priors:
        what the user expects; where a trial follows a prior, its value replaces that of the inner sampler. enough: if
        at least this many trials have reached a rung, the inner sampler does not see those that ended before it.
        """
        self.inner, self.history, self.priors, self.enough = inner, history, priors or PriorDraws({}, 0), enough
        self._seen: dict[frozenset[str], list[FrozenTrial]] = {}
        self.joint = {name: kind for name, kind in joint.items() if not kind.single()}
        self.complemented_names = complemented_names

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return the distributions of the parameters that are sampled jointly."""
        return self.joint

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return values of all joint parameters, as x."""
        if not search_space:
            return {}
        kinds = {name: self._complement_range(name, kind) for name, kind in search_space.items()}
        sampled = self.inner.sample_relative(self.view(study, kinds), self._complement(trial), kinds)
        plain = {name: self._to_plain(name, value, search_space[name]) for name, value in sampled.items()}
        return plain | self.priors.draw(trial.number, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value of one parameter, as x."""
        if drawn := self.priors.draw(trial.number, {param_name: param_distribution}):
            return drawn[param_name]
        kind = self._complement_range(param_name, param_distribution)
        sampled = self.inner.sample_independent(self.view(study, {}), self._complement(trial), param_name, kind)
        return self._to_plain(param_name, sampled, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget the trials that were read for the previous trial, and call the inner sampler."""
        self._seen = {}
        self.inner.before_trial(self.view(study, {}), self._complement(trial))

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call the inner sampler."""
        self.inner.after_trial(self.view(study, {}), self._complement(trial), state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler."""
        self.inner.reseed_rng()

    def view(self, study: optuna.Study, needed: Distributions) -> StudyView:
        """Return the study as the inner sampler sees it: on its scale, without finished trials that lack a parameter.

        needed: the parameters that a finished trial must have.
        """

        def read(use_cache: bool) -> list[FrozenTrial]:
            key = frozenset(needed)
            if key not in self._seen:
                self._seen[key] = self._read(study, key)
            return self._seen[key]

        return StudyView(study, read)

    def _read(self, study: optuna.Study, needed: frozenset[str]) -> list[FrozenTrial]:
        stored = _FINISHED_TRIALS.setdefault(study, {}).setdefault(self.complemented_names, {})
        read, direction = get_sampler_trials(study), direction_of(study)
        paused = {get_trial_id(trial) for trial in read if is_paused(trial)}
        trials = [as_pruned(trial) if get_trial_id(trial) in paused else trial for trial in read]
        ended = dict(stored)
        for trial in trials:
            if trial.state in _FINISHED and get_trial_id(trial) not in ended:
                minimized = as_minimized(trial, direction)
                ended[get_trial_id(trial)] = self._complement(minimized), _rank(minimized)
        stored.update((i, entry) for i, entry in ended.items() if i not in paused)
        # GP and NSGA-II need every parameter in every finished trial. TPE skips trials that lack one.
        ids = [get_trial_id(trial) for trial in trials]
        fit = [i for i in ids if i in ended and needed <= ended[i][0].params.keys()]
        fit = fit if self.enough is None else select_deepest(fit, ended, self.enough)
        kept = set(fit if self.history is None else select_history(fit, ended, self.history))
        return [
            ended[i][0] if trial.state.is_finished() else self._complement(as_minimized(trial, direction))
            for i, trial in zip(ids, trials, strict=True)
            if i in kept or not trial.state.is_finished()
        ]

    def _complement(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a copy of a trial on the scale of the inner sampler, without values outside their ranges."""
        kinds = {n: k for n, k in trial.distributions.items() if is_inside(k, trial.params[n])}
        complemented = copy.copy(trial)
        complemented.params = {
            n: 1 - trial.params[n] if n in self.complemented_names else trial.params[n] for n in kinds
        }
        complemented.distributions = {n: self._complement_range(n, kind) for n, kind in kinds.items()}
        return complemented

    def _complement_range(self, name: str, kind: BaseDistribution) -> BaseDistribution:
        if name not in self.complemented_names:
            return kind
        assert isinstance(kind, FloatDistribution)
        return FloatDistribution(1 - kind.high, 1 - kind.low, log=True)

    def _to_plain(self, name: str, value: Any, kind: BaseDistribution) -> Any:
        if name not in self.complemented_names:
            return value
        assert isinstance(kind, FloatDistribution)
        return min(max(1 - value, kind.low), kind.high)  # 1 - (1 - 0.999) is not 0.999


def select_history(ids: Sequence[int], ended: FinishedTrials, history: int) -> Sequence[int]:
    """Return the ids of at most `history` finished trials: half of them are the best, the other half the latest.

    TPE treats at most 25 trials as good, and the best trials are always included. The omitted trials are old and bad,
    and TPE gives such trials the smallest weight.
    """
    if len(ids) <= history:
        return ids
    best = heapq.nsmallest(history // 2, ids, key=lambda i: ended[i][1])
    taken = set(best)
    latest = (i for i in reversed(ids) if i not in taken)
    return [*best, *itertools.islice(latest, history - len(best))]


def select_deepest(ids: Sequence[int], ended: FinishedTrials, enough: int) -> list[int]:
    """Return the ids of the trials that reached the deepest rung that at least `enough` configurations reached.

    Early losses of the others may mislead: high learning rates often lead at first (docs/search.md). Complete trials
    are always included, also those without a curve, which were imported. So are trials that would not have become
    better: those that diverged, were invalid or exceeded a limit.
    Source: Falkner et al. 2018, arXiv:1807.01774, section 3.2, which fits a model for each budget.
    """
    reached: dict[object, int] = {}  # the deepest rung of each configuration: repeated baselines are one
    for trial in (ended[i][0] for i in ids):
        if trial.last_step is not None:
            configuration = tuple(sorted(trial.params.items()))
            reached[configuration] = max(reached.get(configuration, 0), trial.last_step)
    limit = sorted(reached.values(), reverse=True)[enough - 1] if len(reached) >= enough else 0
    return [i for i in ids if (ended[i][0].last_step or 0) >= limit or _counts_anyway(ended[i][0])]


def _counts_anyway(trial: FrozenTrial) -> bool:
    last = trial.last_step
    if last is None:
        return True  # imported with its final value, or invalid
    diverged = not math.isfinite(trial.intermediate_values[last])
    return trial.state == TrialState.COMPLETE or diverged or any(excess > 0 for excess in trial.constraints.values())


def _rank(trial: FrozenTrial) -> TrialRank:
    """Return a key that orders finished trials as TPE does: feasible, then complete, then by last step and value."""
    excess = sum(c for c in trial.constraints.values() if c > 0)
    if trial.state == TrialState.COMPLETE:
        return excess, False, 0, trial.values[0]
    step = trial.last_step or 0
    value = trial.intermediate_values.get(step, math.inf)
    return excess, True, -step, math.inf if math.isnan(value) else value
