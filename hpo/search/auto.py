"""The sampler `auto`: a Sobol design first, then Optuna's Gaussian process where it suits the space, else TPE."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.search.complement_log import Distributions

MAX_FIELDS = 20  # above, a Gaussian process has too few trials for the length scale of each field
MAX_CHOICES = 6  # of one field: to the process, all choices are equally far apart


def choose_sampler(joint: Distributions, finished: int, startup_trials: int, gp_trials: int) -> tuple[str, str]:
    """Return the sampler of the next trial, sobol, gp or tpe, and the reason as a clause.

    joint: the fields that every trial has and that have more than one value. finished: number of finished trials.
    startup_trials: number of them before a model is used. gp_trials: largest number of them for a Gaussian process.
    """
    n_choices = max((len(k.choices) for k in joint.values() if isinstance(k, CategoricalDistribution)), default=0)
    if finished < startup_trials and joint:
        return "sobol", f"fewer than {startup_trials} trials had finished"
    if not any(not isinstance(kind, CategoricalDistribution) for kind in joint.values()):
        return "tpe", "no number varies in every trial"
    if len(joint) > MAX_FIELDS:
        return "tpe", f"{len(joint)} fields vary, more than {MAX_FIELDS}"
    if n_choices > MAX_CHOICES:
        return "tpe", f"a field has {n_choices} choices, more than {MAX_CHOICES}"
    if finished > gp_trials:
        return "tpe", f"there were more than {gp_trials} finished trials to learn from"
    return "gp", f"at most {MAX_FIELDS} fields vary, and there were at most {gp_trials} finished trials to learn from"


class AutoSampler(BaseSampler):
    """Proposes each trial with the sampler that `choose_sampler` returns for it.

    Fields that only some trials have are always proposed by TPE, which looks at each field alone.
    """

    def __init__(
        self, sobol: BaseSampler, gp: BaseSampler, tpe: BaseSampler, startup_trials: int, gp_trials: int
    ) -> None:
        self._sobol, self._gp, self._tpe = sobol, gp, tpe
        self._startup_trials, self._gp_trials = startup_trials, gp_trials

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        """Return no parameters: the sampler that wraps this one knows which parameters every trial has."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return values of all parameters that every trial has, or none where TPE proposes them one by one."""
        finished = sum(other.state.is_finished() for other in study.get_trials(deepcopy=False))
        name, _ = choose_sampler(search_space, finished, self._startup_trials, self._gp_trials)
        if name == "tpe":
            return {}
        return (self._gp if name == "gp" else self._sobol).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a value of one parameter by TPE, which draws at random as long as too few trials have finished."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Call all samplers."""
        for sampler in (self._sobol, self._gp, self._tpe):
            sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Call all samplers."""
        for sampler in (self._sobol, self._gp, self._tpe):
            sampler.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """Reseed all samplers. The Sobol points keep their seed, which all workers share."""
        for sampler in (self._sobol, self._gp, self._tpe):
            sampler.reseed_rng()
