"""A sampler for fields such as beta2, which any of Optuna's samplers then searches uniformly in log (1 - x)."""

import copy
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.ranges import inside
from hpo.view import View

Distributions = dict[str, BaseDistribution]


class Mirror(optuna.samplers.BaseSampler):
    """Shows a sampler the study with x mirrored to 1 - x, and maps its answers back.

    The storage holds the plain x under a plain range; a search with log scale is what the inner sampler sees.
    It also fixes what is sampled jointly: `joint`, the parameters that every trial has. Optuna would take what
    all finished trials have in common, and one baseline that carries less would make the rest independent.
    """

    def __init__(self, inner: optuna.samplers.BaseSampler, joint: Distributions, mirrored: frozenset[str]) -> None:
        self.inner = inner
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
        found = self.inner.sample_relative(self._view(study, kinds), self._flipped(trial), kinds)
        return {name: self._plain(name, value, search_space[name]) for name, value in found.items()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the inner sampler's draw of one parameter, in plain x."""
        kind = self._flipped_kind(param_name, param_distribution)
        found = self.inner.sample_independent(self._view(study, {}), self._flipped(trial), param_name, kind)
        return self._plain(param_name, found, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Forget the trials read for the one before, which only Study.ask would do, and tell the inner sampler."""
        study._thread_local.cached_all_trials = None
        self.inner.before_trial(self._view(study, {}), self._flipped(trial))

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the inner sampler."""
        self.inner.after_trial(self._view(study, {}), self._flipped(trial), state, values)

    def reseed_rng(self) -> None:
        """Reseed the inner sampler."""
        self.inner.reseed_rng()

    def _view(self, study: optuna.Study, needed: Distributions) -> View:
        """Return the study as the inner sampler may see it: finished trials with all `needed`, in its scale."""

        def read(use_cache: bool) -> list[FrozenTrial]:
            trials = study._get_trials(deepcopy=False, use_cache=use_cache)
            flipped = [self._flipped(trial) for trial in trials]
            # GP and NSGA-II look every parameter up in every finished trial; TPE skips those that lack one.
            return [t for t in flipped if not t.state.is_finished() or needed.keys() <= t.params.keys()]

        return View(study, read)

    def _flipped(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a copy of a trial in the inner sampler's scale, without values outside their ranges."""
        kinds = {n: k for n, k in trial.distributions.items() if inside(k, trial.params[n])}
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
