"""Training functions with a known curve, a planted effect, and noise of known size."""

import math
import random
from collections.abc import Iterator

from pydantic import BaseModel, Field

SIGMA = 0.02  # nats, of one run from seed to seed
RUNGS = 4
GAIN = 2 * SIGMA  # of `gain`, if x is above 0.6
EFFECTS = {"a": -0.05, "b": 0.03, "c": 0.0, "a x b": -0.04, "a x c": 0.0, "b x c": 0.0}  # of `crossed`


class Config(BaseModel):
    """A run: its hyperparameters, its seed, and the number of the study, so that no two studies share their noise."""

    x: float = Field(default=0.25, ge=0.0, le=1.0)
    y: float = Field(default=0.5, ge=0.0, le=1.0)
    a: float = 0.0
    b: float = 0.0
    c: float = 0.0
    seed: int = 0
    study: int = 0
    rungs: int = RUNGS


def _curve(config: Config, end: float) -> Iterator[tuple[int, float]]:
    """Fall to `end` plus noise, most of it of the run and part of it of the rung."""
    draw = random.Random(repr(config))
    noise = draw.gauss(0.0, SIGMA)
    for rung in range(1, config.rungs + 1):
        early = 2.0 * (math.exp(-3.0 * rung / config.rungs) - math.exp(-3.0))
        wobble = draw.gauss(0.0, SIGMA / 2) if rung < config.rungs else 0.0
        yield rung, end + early + noise + wobble


def nothing(config: Config) -> Iterator[tuple[int, float]]:
    """Learn the same for all x and y."""
    yield from _curve(config, 3.0)


def gain(config: Config) -> Iterator[tuple[int, float]]:
    """Learn more if x is above 0.6."""
    yield from _curve(config, 3.0 - GAIN * (config.x > 0.6))


def crossed(config: Config) -> Iterator[tuple[int, float]]:
    """Have main effects and an interaction, each relative to the mean over the levels of the other factors."""
    signs = {name: 1.0 if getattr(config, name) else -1.0 for name in "abc"}
    terms = {name: signs[name[0]] * signs[name[-1]] if " x " in name else signs[name] for name in EFFECTS}
    yield from _curve(config, 3.0 + sum(EFFECTS[name] / 2 * term for name, term in terms.items()))


def sloped(config: Config) -> Iterator[tuple[int, float]]:
    """Learn less the further x is from 0.7 and y from 0.3; if y is large, the loss rises in the second half."""
    for rung, value in _curve(config, 3.0 + abs(config.x - 0.7) + 0.5 * abs(config.y - 0.3)):
        late = max(0.0, rung / config.rungs - 0.5)
        yield rung, value + (late if config.y > 0.6 else 0.0)
