"""Samplers: what a study tries next."""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, Field

from hpo.search.complement_log import ComplementLogSampler, Distributions
from hpo.search.grid import build_grid
from hpo.search.ranges import Entry, Range, Space, discrete_values, spaced_values
from hpo.search.space import configs_with_field, field_type, unconditional
from hpo.search.study_view import StudyView, experimental
from model.section import Count, Section

Combinations = Sequence[dict[str, Any]]
History = Annotated[int, Field(ge=100)]


class SamplerConfig(Section):
    """What samplers have in common; by default points are not listed beforehand and all parameters drawn jointly."""

    def recall(self) -> int | None:
        """Return how many finished trials the sampler is shown, None for all."""
        return None

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        """Return Optuna's sampler for one trial.

        seed: differs from trial to trial, or parallel workers would all propose the same point.
        study_seed: the same for all trials of a study.
        """
        return optuna.samplers.RandomSampler(seed=seed)

    def combinations(self, base: BaseModel, space: Space) -> Combinations | None:
        """Return the values to try in slot 0, 1, 2, ..., None where the sampler decides as it goes."""
        return None

    def joint(self, distributions: Distributions) -> Distributions:
        """Return those of the parameters of every trial that are drawn together."""
        return distributions

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        """Return why this sampler cannot search this space."""
        return []


class TPE(SamplerConfig):
    """Tree-structured Parzen estimator (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127)."""

    name: Literal["tpe"] = "tpe"
    startup_trials: Count = 10
    """Finished or pruned trials before the estimator; until then random."""
    ei_candidates: Count = 24
    """Candidates drawn for each proposal; the one with the best expected improvement is taken."""
    multivariate: bool = True
    """Draw all parameters together, so that those which depend on each other are tuned as one."""
    constant_liar: bool = True
    """Count running trials as bad, so that parallel workers keep away from each other's points."""
    history: History = 1000
    """Finished trials that the estimator is built from: the better half are the best, the others the latest."""

    def recall(self) -> int | None:
        return self.history

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=self.startup_trials,
            n_ei_candidates=self.ei_candidates,
            multivariate=self.multivariate,
            constant_liar=self.constant_liar,
        )

    def joint(self, distributions: Distributions) -> Distributions:
        return distributions if self.multivariate else {}


class Random(SamplerConfig):
    """Independent random draws (Bergstra & Bengio 2012)."""

    name: Literal["random"] = "random"

    def joint(self, distributions: Distributions) -> Distributions:
        return {}


class Grid(SamplerConfig):
    """Every combination of evenly spaced values, by slot: workers neither repeat nor miss one."""

    name: Literal["grid"] = "grid"
    points: Annotated[int, Field(ge=2)] = 5
    """Values of each continuous or longer range, evenly spaced on its own scale, both ends included."""

    def combinations(self, base: BaseModel, space: Space) -> Combinations:
        return build_grid(base, space, lambda entry, kind: spaced_values(entry, self.points, kind))


class BruteForce(SamplerConfig):
    """Every combination of a discrete space, by slot: workers neither repeat nor miss one."""

    name: Literal["brute-force"] = "brute-force"

    def combinations(self, base: BaseModel, space: Space) -> Combinations:
        return build_grid(base, space, _all)

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        return [
            f"space.{path}: must be choices or have a step, since sampler brute-force tries every value"
            for path, entry in space.items()
            if any(
                discrete_values(entry, field_type(config, path)) is None
                for config in configs_with_field(base, space, path)
            )
        ]


class GP(SamplerConfig):
    """Gaussian process; for up to a few hundred trials that are dear enough to wait a second for each."""

    name: Literal["gp"] = "gp"
    startup_trials: Count = 10
    """Finished or pruned trials before the process; until then random."""
    history: History = 200
    """Finished trials that the process is fitted to: half are the best, the others the latest."""

    def recall(self) -> int | None:
        return self.history

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        return GPWithPrunedTrials(seed=seed, n_startup_trials=self.startup_trials, warn_independent_sampling=False)


class CMAES(SamplerConfig):
    """Covariance matrix adaptation (Hansen 2016, arXiv:1604.00772) over the numbers; choices are drawn at random."""

    name: Literal["cmaes"] = "cmaes"
    startup_trials: Count = 1
    """Finished trials before the first generation; until then random."""
    population: Annotated[int, Field(ge=2)] | None = None
    """Trials of one generation. Left out: 4 + 3 ln(number of parameters)."""
    consider_pruned_trials: bool = True
    """Take a pruned trial's last value for its result: a generation is complete only when all of it is known."""

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        with experimental():  # consider_pruned_trials
            return optuna.samplers.CmaEsSampler(
                seed=seed,
                n_startup_trials=self.startup_trials,
                popsize=self.population,
                consider_pruned_trials=self.consider_pruned_trials,
                warn_independent_sampling=False,
            )

    def recall(self) -> int | None:
        # It looks at the generation that is under way and nowhere else, but copies every pruned trial on its way
        # there: 450 ms at 5,000 trials.
        return max(500, 10 * (self.population or 0))

    def joint(self, distributions: Distributions) -> Distributions:
        return {n: k for n, k in distributions.items() if not isinstance(k, CategoricalDistribution)}

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        if self.joint(unconditional(base, space)):
            return []
        return ["sampler.name: must be another one than cmaes, since no number varies in every trial"]


class QMC(SamplerConfig):
    """Scrambled Sobol points, which fill the space more evenly than random ones."""

    name: Literal["qmc"] = "qmc"

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        with experimental():
            return SobolByTrialNumber(
                seed=study_seed,
                scramble=True,  # the second point of the plain sequence is the lower corner of the space
                independent_sampler=optuna.samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )


class NSGA2(SamplerConfig):
    """A genetic algorithm (Deb et al. 2002): crossover and mutation of the best finished trials."""

    name: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 20
    """Finished trials of one generation; the first is random."""

    def build(self, seed: int, study_seed: int) -> BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=self.population)


class GPWithPrunedTrials(optuna.samplers.GPSampler):
    """Optuna's sampler with a pruned trial for one that ended at its last value.

    Optuna leaves pruned trials out: of where they were the process knows nothing, and proposes the same again.
    """

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return the joint draw."""
        told = _as_complete(study.get_trials(deepcopy=False))
        return super().sample_relative(StudyView(study, lambda _: told), trial, search_space)


def _as_complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials, a pruned one with its last value for result, the worst of all where it has none."""
    known = [t.values[0] for t in trials if t.state.is_finished() and t.values]
    found = []
    for trial in trials:
        if trial.state == TrialState.PRUNED and known:
            values = trial.values or [max(known)]
            trial = copy.copy(trial)
            trial.state, trial.values = TrialState.COMPLETE, values
        found.append(trial)
    return found


class SobolByTrialNumber(optuna.samplers.QMCSampler):
    """Optuna's sampler with the trial's number as the number of the point.

    Optuna counts points in a study attribute, read and written apart: two workers at once get the same point.
    """

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions) -> dict[str, Any]:
        """Return point number `trial.number`."""
        self._point = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: optuna.Study, search_space: Distributions) -> int:
        return self._point


def _all(entry: Entry, kind: type) -> Sequence[Any]:
    found = discrete_values(entry, kind)
    assert found is not None, "problems() refuses continuous ranges"
    return found


def build_sampler(sampler: SamplerConfig, base: BaseModel, space: Space, seed: int, study_seed: int) -> BaseSampler:
    """Return a study's sampler for one trial, to be set as `study.sampler` before the trial is opened."""
    mirrored = frozenset(p for p, entry in space.items() if isinstance(entry, Range) and entry.complement_log)
    joint = sampler.joint(unconditional(base, space))
    return ComplementLogSampler(sampler.build(seed, study_seed), joint, mirrored, sampler.recall())


Sampler = Annotated[TPE | Random | Grid | BruteForce | GP | CMAES | QMC | NSGA2, Field(discriminator="name")]
