"""Learning-rate schedules: the fraction of a run done -> the factor on the peak learning rate.

Progress is measured at the middle of an update, (u + 1/2) / updates for u = 0, 1, ...: the first update then
has lr > 0 under any warmup, and no update is spent at a rate of exactly zero.
"""

import math
from typing import Annotated, Literal

from pydantic import Field

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

    def shape(self, t: float) -> float:
        left = min(1.0, (1 - t) / self.decay)
        return self.floor + (1 - self.floor) * left


Schedule = Annotated[Constant | Cosine | Linear | Exponential | WSD, Field(discriminator="name")]
