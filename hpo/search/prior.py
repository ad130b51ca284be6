"""What the user believes about the best value of a field, and how far a search trusts this belief.

A prior gives proposals, it never excludes any: a share of the trials does not follow it, whatever the trust.
Source: Mallik et al. 2023, arXiv:2306.12370 (PriorBand), whose truncated normal has a standard deviation of 0.25.
"""

import math
from statistics import NormalDist
from typing import Annotated, Literal, get_args

from pydantic import Field, Strict

from model.section import Section

Trust = Literal["weak", "strong"]

SPREAD: dict[str, float] = {"weak": 0.2, "strong": 0.1}  # standard deviation, as a share of the range on its scale
FIRST_SHARE: dict[str, float] = {"weak": 0.5, "strong": 0.75}  # share of the first trials that follow the prior
HALF_LIFE: dict[str, float] = {"weak": 10, "strong": 100}  # number of trials after which half of this share is left

# Strict, because pydantic otherwise accepts true and "1e-4" as numbers.
Number = Annotated[int, Strict()] | Annotated[float, Field(strict=True, allow_inf_nan=False)]
Choice = None | Annotated[bool, Strict()] | Number | Annotated[str, Strict()]

_NORMAL = NormalDist()


class Prior(Section):
    """Where you expect the best value of a range. Some trials are drawn around it; the others ignore it."""

    at: Number
    """The value at which you expect the best result."""
    trust: Trust = "weak"
    """How many trials follow the prior, and how closely. weak: half of the first trials, with a standard deviation of
    0.2 of the range, and half as many after 10 trials. strong: three quarters, 0.1 of the range, and half as many after
    100 trials."""


class ChoicePrior(Section):
    """Which choice you expect to be the best. Some trials use it; the others ignore the prior."""

    at: Choice
    """The choice that you expect to be the best."""
    trust: Trust = "weak"
    """How many trials use this choice. weak: half of the first trials, and half as many after 10 trials. strong: three
    quarters, and half as many after 100 trials."""


def share(trust: str, number: int) -> float:
    """Return the share of trials that follow a prior, for the trial with this number: hyperbolic decay."""
    return FIRST_SHARE[trust] / (1 + number / HALF_LIFE[trust])


def density(position: float, centre: float, spread: float) -> float:
    """Return the density of the normal distribution that is truncated to [0, 1].

    position, centre: places in the range on its own scale, from 0 to 1. spread: standard deviation before truncation.
    """
    if not 0 <= position <= 1:
        return 0.0
    low, high = _ends(centre, spread)
    return _NORMAL.pdf((position - centre) / spread) / (spread * (high - low))


def quantile(probability: float, centre: float, spread: float) -> float:
    """Return the position in [0, 1] below which the truncated normal distribution has this probability."""
    low, high = _ends(centre, spread)
    inside = min(max(low + probability * (high - low), math.ulp(0.0)), 1 - math.ulp(0.5))
    return min(max(centre + spread * _NORMAL.inv_cdf(inside), 0.0), 1.0)


def _ends(centre: float, spread: float) -> tuple[float, float]:
    return _NORMAL.cdf(-centre / spread), _NORMAL.cdf((1 - centre) / spread)


assert set(get_args(Trust)) == SPREAD.keys() == FIRST_SHARE.keys() == HALF_LIFE.keys()
