"""Samplers: rules that propose the values of the next trial.

To add a sampler, add a subclass of `SamplerConfig` with a unique `name` to this file, override the methods that differ,
and add the class to the union `Sampler` at the end. `grid_samplers.py` holds those that enumerate combinations.
"""

from typing import Annotated, Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler
from pydantic import BaseModel, Field

from hpo.search.auto import AutoSampler, choose_sampler
from hpo.search.complement_log import ComplementLogSampler, Distributions
from hpo.search.grid_samplers import BruteForce, Grid, Listed
from hpo.search.optuna_samplers import CMAESWithCheckedState, GPWithPrunedTrials, SobolByTrialNumber
from hpo.search.prior_draws import PriorDraws
from hpo.search.ranges import Range, Space
from hpo.search.sampler_config import SamplerConfig, Seeds
from hpo.search.space import unconditional
from hpo.search.study_view import experimental
from model.section import Count

History = Annotated[int, Field(ge=100)]


class TPE(SamplerConfig):
    """Tree-structured Parzen estimator (TPE), the default.

    Source: Bergstra et al. 2011, NeurIPS 24; Watanabe 2023, arXiv:2304.11127.
    """

    name: Literal["tpe"] = "tpe"
    startup_trials: Count = 10
    """Number of finished or pruned trials before the estimator is used. Until then, values are drawn at random."""
    ei_candidates: Count = 24
    """Number of candidates for each proposal. The candidate with the best expected improvement is used."""
    multivariate: bool = False
    """Sample all parameters jointly, so that the estimator can model how they interact. In replays of real searches,
    a joint estimator needed more trials and often got stuck."""
    constant_liar: bool = True
    """Treat running trials as bad results, so that parallel workers do not try similar values."""
    history: History = 1000
    """Largest number of finished trials that the estimator uses: half of them are the best, the other half the
    latest."""

    def recall(self) -> int | None:
        return self.history

    def build(self, seeds: Seeds) -> BaseSampler:
        return optuna.samplers.TPESampler(
            seed=seeds.trial,
            n_startup_trials=self.startup_trials,
            n_ei_candidates=self.ei_candidates,
            multivariate=self.multivariate,
            constant_liar=self.constant_liar,
        )

    def joint(self, distributions: Distributions) -> Distributions:
        return distributions if self.multivariate else {}


class Random(SamplerConfig):
    """Random search: values are drawn independently.

    Source: Bergstra & Bengio 2012, JMLR 13.
    """

    name: Literal["random"] = "random"

    def joint(self, distributions: Distributions) -> Distributions:
        return {}


class GP(SamplerConfig):
    """Gaussian process. Each proposal takes up to 0.5 s, so use this sampler for at most a few hundred long trials.

    A pruned trial counts with its last value.
    """

    name: Literal["gp"] = "gp"
    startup_trials: Count = 10
    """Number of finished or pruned trials before the process is used. Until then, values are drawn at random."""
    history: History = 200
    """Largest number of finished trials to which the process is fitted: half of them are the best, the other half the
    latest."""

    def recall(self) -> int | None:
        return self.history

    def build(self, seeds: Seeds) -> BaseSampler:
        return GPWithPrunedTrials(
            seed=seeds.trial, n_startup_trials=self.startup_trials, warn_independent_sampling=False
        )


class CMAES(SamplerConfig):
    """Covariance matrix adaptation evolution strategy for numbers. Choices are drawn at random.

    Source: Hansen 2016, arXiv:1604.00772.
    """

    name: Literal["cmaes"] = "cmaes"
    startup_trials: Count = 1
    """Number of finished trials before the first generation. Until then, values are drawn at random."""
    population: Annotated[int, Field(ge=2)] | None = None
    """Number of trials in a generation. Default: 4 + 3 ln(number of parameters), rounded down."""
    consider_pruned_trials: bool = True
    """Use the last value of a pruned trial as its result. Otherwise a generation waits for trials that finish."""

    def build(self, seeds: Seeds) -> BaseSampler:
        with experimental():  # consider_pruned_trials
            return CMAESWithCheckedState(
                seed=seeds.trial,
                n_startup_trials=self.startup_trials,
                popsize=self.population,
                consider_pruned_trials=self.consider_pruned_trials,
                warn_independent_sampling=False,
            )

    def recall(self) -> int | None:
        # The sampler needs only the current generation, but it copies every pruned trial to find that generation:
        # 450 ms with 5,000 trials.
        return max(500, 10 * (self.population or 0))

    def joint(self, distributions: Distributions) -> Distributions:
        return {n: k for n, k in distributions.items() if not isinstance(k, CategoricalDistribution)}

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        if self.joint(unconditional(base, space)):
            return []
        return ["sampler.name: must not be cmaes, because the space has no number that varies in every trial; use tpe"]


class QMC(SamplerConfig):
    """Quasi-Monte Carlo: scrambled Sobol points, which cover the space more evenly than random points."""

    name: Literal["qmc"] = "qmc"

    def build(self, seeds: Seeds) -> BaseSampler:
        with experimental():
            return SobolByTrialNumber(
                seeds.point,
                seed=seeds.study,
                scramble=True,  # without scrambling, the second point is the lower corner of the space
                independent_sampler=optuna.samplers.RandomSampler(seed=seeds.trial),
                warn_independent_sampling=False,
            )


class NSGA2(SamplerConfig):
    """Genetic algorithm NSGA-II: crossover and mutation of the best finished trials.

    Source: Deb et al. 2002, IEEE TEVC 6(2).
    """

    name: Literal["nsga2"] = "nsga2"
    population: Annotated[int, Field(ge=2)] = 20
    """Number of finished trials in a generation. The first generation is drawn at random."""

    def build(self, seeds: Seeds) -> BaseSampler:
        return optuna.samplers.NSGAIISampler(seed=seeds.trial, population_size=self.population)


class Auto(SamplerConfig):
    """Choose the sampler for each trial by the space and the number of finished trials.

    The first trials are points of a scrambled Sobol design, which covers the space evenly. After them, a Gaussian
    process proposes the trials if at most 20 fields vary in every trial, at least one of them is a number, none has
    more than 6 choices, and at most `gp_trials` trials have finished. Otherwise TPE does.
    """

    name: Literal["auto"] = "auto"
    startup_trials: Count = 10
    """Number of finished or pruned trials before a model of the results is used."""
    gp_trials: Count = 200
    """Largest number of finished or pruned trials with which the Gaussian process is used. Its proposals take longer
    with each trial."""

    def recall(self) -> int | None:
        return max(1000, self.gp_trials)

    def build(self, seeds: Seeds) -> BaseSampler:
        tpe = TPE(startup_trials=self.startup_trials).build(seeds)
        return AutoSampler(
            QMC().build(seeds), GP(startup_trials=1).build(seeds), tpe, self.startup_trials, self.gp_trials
        )

    def origin(self, joint: Distributions, finished: int) -> dict[str, Any]:
        name, reason = choose_sampler(joint, finished, self.startup_trials, self.gp_trials)
        return {"by": name, "auto": reason}


def build_sampler(
    sampler: SamplerConfig,
    base: BaseModel,
    space: Space,
    seed: int,
    study_seed: int,
    point: int | None = None,
    from_deepest: bool = False,
) -> ComplementLogSampler:
    """Return the sampler of a study for one trial. Set it as `study.sampler` before the trial is created.

    point: see `Seeds`. from_deepest: whether tpe, gp and auto learn only from the trials that trained longest. Other
    samplers need all trials: they count generations or points.
    """
    complemented_names = frozenset(p for p, entry in space.items() if isinstance(entry, Range) and entry.complement_log)
    joint = sampler.joint(unconditional(base, space))
    inner = sampler.build(Seeds(seed, study_seed, point))
    enough = 2 * sampler.startup_trials if from_deepest and isinstance(sampler, TPE | GP | Auto) else None
    return ComplementLogSampler(inner, joint, complemented_names, sampler.recall(), PriorDraws(space, seed), enough)


Sampler = Annotated[
    Auto | TPE | Random | Grid | BruteForce | Listed | GP | CMAES | QMC | NSGA2, Field(discriminator="name")
]
