"""Learning-rate schedules: the fraction of a run done -> the factor on the peak learning rate.

Progress is measured at the middle of an update, (u + 1/2) / updates for u = 0, 1, ...: the first update then
has lr > 0 under any warmup, and no update is spent at a rate of exactly zero.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model.section import Decay, Fraction, Section


class Warmup(Section):
    """A linear rise to the peak, then whatever shape the schedule has."""

    warmup: Decay = 0.05
    """Fraction of the updates spent rising linearly to the peak."""

    def multiplier(self, progress: float) -> float:
        """Return the factor on the peak learning rate.

        progress: fraction of the updates done, in [0, 1].
        """
        if progress < self.warmup:
            return progress / self.warmup
        return self.shape((progress - self.warmup) / (1 - self.warmup))

    def beta1(self, progress: float, beta1: float) -> float:
        """Return the beta1 in force, where the optimizer has one."""
        return beta1

    def shape(self, t: float) -> float:
        """Return the factor after warmup; t runs from 0 at the peak to 1 at the end."""
        raise AssertionError(f"{type(self).__name__} has no shape")


class Constant(Warmup):
    """The peak, all the way after warmup."""

    name: Literal["constant"] = "constant"

    def shape(self, t: float) -> float:
        return 1.0


class Cosine(Warmup):
    """Half a cosine from the peak to the floor (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"] = "cosine"
    floor: Fraction = 0.1
    """Learning rate at the end, as a fraction of the peak."""

    def shape(self, t: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t))


class Linear(Warmup):
    """A straight line from the peak to the floor."""

    name: Literal["linear"] = "linear"
    floor: Fraction = 0.1
    """Learning rate at the end, as a fraction of the peak."""

    def shape(self, t: float) -> float:
        return 1 - (1 - self.floor) * t


class Exponential(Warmup):
    """Decay by an equal factor in every update, down to the floor."""

    name: Literal["exponential"] = "exponential"
    floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate at the end, as a fraction of the peak; above 0, which no equal factor reaches."""

    def shape(self, t: float) -> float:
        return self.floor**t


class WSD(Warmup):
    """Warmup, stable, linear decay to the floor (Hu et al. 2024, arXiv:2404.06395)."""

    name: Literal["wsd"] = "wsd"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the updates after warmup spent decaying."""
    floor: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak."""

    @model_validator(mode="after")
    def _decays(self) -> Self:
        if self.floor == 1 and self.decay != WSD.model_fields["decay"].default:
            raise ValueError(f"decay is the share spent falling to the floor, which is the peak; got {self.decay}")
        return self

    def shape(self, t: float) -> float:
        left = min(1.0, (1 - t) / self.decay)
        return self.floor + (1 - self.floor) * left


class OneCycle(Warmup):
    """Half a cosine up from a fraction of the peak, another down to almost nothing (Smith 2018, arXiv:1803.09820).

    As torch.optim.lr_scheduler.OneCycleLR with anneal_strategy cos and two phases: start is 1 / div_factor, floor
    1 / (div_factor final_div_factor).
    """

    name: Literal["onecycle"] = "onecycle"
    warmup: Decay = 0.3
    """Fraction of the updates spent rising to the peak."""
    start: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Learning rate at the beginning, as a fraction of the peak."""
    floor: Fraction = 4e-6
    """Learning rate at the end, as a fraction of the peak."""
    beta1_dip: Decay | None = None
    """The optimizer's beta1 falls to this at the peak and comes back; none: it stays as it is."""

    @model_validator(mode="after")
    def _starts_somewhere(self) -> Self:
        if self.warmup == 0 and self.start != OneCycle.model_fields["start"].default:
            raise ValueError(f"start is where warmup begins, of which there is none; got {self.start}")
        return self

    def multiplier(self, progress: float) -> float:
        if progress < self.warmup:
            return _between(self.start, 1.0, progress / self.warmup)
        return _between(1.0, self.floor, (progress - self.warmup) / (1 - self.warmup))

    def beta1(self, progress: float, beta1: float) -> float:
        if self.beta1_dip is None:
            return beta1
        if progress < self.warmup:
            return _between(beta1, self.beta1_dip, progress / self.warmup)
        return _between(self.beta1_dip, beta1, (progress - self.warmup) / (1 - self.warmup))


def _between(a: float, b: float, t: float) -> float:
    """Return the point of half a cosine from a, at t = 0, to b, at t = 1."""
    return b + (a - b) * 0.5 * (1 + math.cos(math.pi * t))


Schedule = Annotated[Constant | Cosine | Linear | Exponential | WSD | OneCycle, Field(discriminator="name")]
