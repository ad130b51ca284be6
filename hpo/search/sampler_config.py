"""The base class of all samplers of a study file."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import optuna
from optuna.samplers import BaseSampler
from pydantic import BaseModel

from hpo.search.complement_log import Distributions
from hpo.search.ranges import Space
from model.section import Section

Combinations = Sequence[dict[str, Any]]


class Seeds(NamedTuple):
    """What distinguishes the sampler of one trial from those of the other trials.

    trial: the seed of this trial. It differs between trials; otherwise parallel workers propose the same values.
    study: the seed of the study, which all its trials share.
    point: the index of the trial among those that the sampler proposes, None for the number of the trial.
    """

    trial: int
    study: int
    point: int | None = None


class SamplerConfig(Section):
    """Base of all samplers. By default, all finished trials are used and all parameters are sampled jointly."""

    name: str

    def recall(self) -> int | None:
        """Return the number of finished trials that the sampler uses, None for all."""
        return None

    def build(self, seeds: Seeds) -> BaseSampler:
        """Return Optuna's sampler for one trial."""
        return optuna.samplers.RandomSampler(seed=seeds.trial)

    def combinations(self, base: BaseModel, space: Space) -> Combinations | None:
        """Return the values of trials 0, 1, 2, ... if they are known in advance, else None."""
        return None

    def joint(self, distributions: Distributions) -> Distributions:
        """Return the parameters that are sampled jointly.

        distributions: the parameters that every trial has.
        """
        return distributions

    def origin(self, joint: Distributions, finished: int) -> dict[str, Any]:
        """Return what proposes the next trial, as it is stored with the trial: `by` and more.

        joint: the parameters that are sampled jointly. finished: number of finished trials.
        """
        return {"by": self.name}

    def problems(self, base: BaseModel, space: Space) -> list[str]:
        """Return the reasons why this sampler cannot search a space, as lines that name the keys."""
        return []
