"""Learning-rate schedules. A schedule maps the progress of a run to a factor on the peak learning rate.

Progress is measured at the middle of an update: (u + 1/2) / updates for u = 0, 1, ... The first update therefore has
a learning rate above 0 under any warmup, and no update has a learning rate of exactly 0.

To add a schedule, write one class with a `name` and add it to the union `Schedule` at the end of this file.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from model.section import Decay, Fraction, Section


class Warmup(Section):
    """Linear warmup to the peak, followed by the curve that a subclass defines."""

    warmup: Decay = 0.05
    """Fraction of the updates in which the learning rate rises linearly to the peak."""

    def multiplier(self, progress: float) -> float:
        """Return the factor on the peak learning rate.

        progress: fraction of the updates done, in [0, 1].
        """
        if progress < self.warmup:
            return progress / self.warmup
        return self.after_warmup((progress - self.warmup) / (1 - self.warmup))

    def beta1(self, progress: float, beta1: float) -> float:
        """Return the optimizer's beta1 at this progress. beta1: the configured value."""
        return beta1

    def after_warmup(self, t: float) -> float:
        """Return the factor after warmup. t: 0 at the peak, 1 at the end of the run."""
        raise AssertionError(f"{type(self).__name__} defines no curve after warmup")


class Constant(Warmup):
    """Stay at the peak after warmup."""

    name: Literal["constant"] = "constant"

    def after_warmup(self, t: float) -> float:
        return 1.0


class Cosine(Warmup):
    """Decay along half a cosine from the peak to the floor (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

    name: Literal["cosine"] = "cosine"
    floor: Fraction = 0.1
    """Learning rate at the end, as a fraction of the peak."""

    def after_warmup(self, t: float) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * t))


class Linear(Warmup):
    """Decay linearly from the peak to the floor."""

    name: Literal["linear"] = "linear"
    floor: Fraction = 0.1
    """Learning rate at the end, as a fraction of the peak."""

    def after_warmup(self, t: float) -> float:
        return 1 - (1 - self.floor) * t


class Exponential(Warmup):
    """Decay by the same factor in every update, from the peak to the floor."""

    name: Literal["exponential"] = "exponential"
    floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Learning rate at the end, as a fraction of the peak. It is above 0, because exponential decay never reaches 0."""

    def after_warmup(self, t: float) -> float:
        return self.floor**t


class WSD(Warmup):
    """Warmup, stable phase, linear decay to the floor (Hu et al. 2024, arXiv:2404.06395)."""

    name: Literal["wsd"] = "wsd"
    decay: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Fraction of the updates after warmup in which the learning rate decays."""
    floor: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak."""

    @model_validator(mode="after")
    def _decay_has_an_effect(self) -> Self:
        if self.floor == 1 and self.decay != WSD.model_fields["decay"].default:
            raise ValueError(f"decay has no effect if floor is 1, leave it out, got {self.decay}")
        return self

    def after_warmup(self, t: float) -> float:
        left = min(1.0, (1 - t) / self.decay)
        return self.floor + (1 - self.floor) * left


class OneCycle(Warmup):
    """Rise along half a cosine to the peak, then decay along another to almost 0 (Smith 2018, arXiv:1803.09820).

    Equals torch.optim.lr_scheduler.OneCycleLR with anneal_strategy cos and two phases: start is 1 / div_factor and
    floor is 1 / (div_factor final_div_factor).
    """

    name: Literal["onecycle"] = "onecycle"
    warmup: Decay = 0.3
    """Fraction of the updates in which the learning rate rises to the peak."""
    start: Annotated[float, Field(gt=0, le=1)] = 0.04
    """Learning rate at the start, as a fraction of the peak."""
    floor: Fraction = 4e-6
    """Learning rate at the end, as a fraction of the peak."""
    beta1_dip: Decay | None = None
    """Value of the optimizer's beta1 at the peak. beta1 falls to it during warmup and rises back afterwards. None:
    beta1 is constant."""

    @model_validator(mode="after")
    def _start_has_an_effect(self) -> Self:
        if self.warmup == 0 and self.start != OneCycle.model_fields["start"].default:
            raise ValueError(f"start has no effect if warmup is 0, leave it out, got {self.start}")
        return self

    def multiplier(self, progress: float) -> float:
        if progress < self.warmup:
            return _half_cosine(self.start, 1.0, progress / self.warmup)
        return _half_cosine(1.0, self.floor, (progress - self.warmup) / (1 - self.warmup))

    def beta1(self, progress: float, beta1: float) -> float:
        if self.beta1_dip is None:
            return beta1
        if progress < self.warmup:
            return _half_cosine(beta1, self.beta1_dip, progress / self.warmup)
        return _half_cosine(self.beta1_dip, beta1, (progress - self.warmup) / (1 - self.warmup))


def _half_cosine(a: float, b: float, t: float) -> float:
    """Return the point at t of half a cosine that runs from a (t = 0) to b (t = 1)."""
    return b + (a - b) * 0.5 * (1 + math.cos(math.pi * t))


class CoolDown:
    """A schedule that leaves another one during a run and decreases linearly to the value with which that one ends."""

    def __init__(self, schedule: Warmup, left: float, start: float) -> None:
        """Leave a schedule.

        left: progress at which the schedule is left, in [0, 1]. start: the same as a fraction of the shorter run.
        """
        self.schedule, self.left, self.start = schedule, left, start

    def multiplier(self, progress: float) -> float:
        """Return the factor on the peak learning rate. progress: of the shorter run, in [0, 1].

        During the warmup of some schedules the factor is smaller than at their end. Then it does not change.
        """
        first, last = self.schedule.multiplier(self.left), self.schedule.multiplier(1.0)
        return last + (first - last) * self._remaining(progress) if first > last else first

    def beta1(self, progress: float, beta1: float) -> float:
        """Return the optimizer's beta1 at this progress. beta1: the configured value."""
        first, last = (self.schedule.beta1(p, beta1) for p in (self.left, 1.0))
        return last + (first - last) * self._remaining(progress)

    def _remaining(self, progress: float) -> float:
        return (1 - progress) / (1 - self.start)


Schedule = Annotated[Constant | Cosine | Linear | Exponential | WSD | OneCycle, Field(discriminator="name")]
