"""Worlds in which a search is simulated: each answers a configuration with a learning curve."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from hpo.errors import Problem
from hpo.replay.curves import Array, Curves, features, unit_positions
from hpo.replay.surrogate import MIN_CONFIGURATIONS, Surrogate, fit_surrogate
from hpo.search.ranges import Choices, Space

N_CANDIDATES = 4096  # random points from which the search for the best point of a surrogate starts
N_CLIMBERS, N_STEPS = 64, 60
N_SIMILAR = 20  # recorded deviations from which the noise of a run is drawn: those of configurations with similar loss


class Run(NamedTuple):
    """A run of a simulated trial.

    curve: losses at rungs 1 to R; inf: it diverges there; NaN: nobody knows. truth: the loss at the end without the
    noise of this run, NaN if it is not known. fixed: whether it may not be pruned.
    """

    params: Mapping[str, Any]
    curve: Array
    truth: float
    fixed: bool = False


class World(Protocol):
    """A source of learning curves. It either gives the trials of a search, or answers what a sampler suggests."""

    name: str
    curves: Curves
    optimum: float  # the smallest possible truth
    top: float | None  # truth at or below which a trial belongs to the best tenth; None: the best tenth of each search

    def given(self, seed: int) -> Sequence[Run] | None:
        """Return the trials of a search in their order, None if a sampler suggests the configurations."""

    def run(self, params: Mapping[str, Any], seed: int) -> Run:
        """Return a run of a configuration. Its noise depends on the seed."""


class Recorded:
    """The recorded runs in the order in which they were recorded, the same for each seed."""

    name = "recorded"

    def __init__(self, curves: Curves) -> None:
        self.curves, self.optimum = curves, float(np.nanmin(curves.truth))
        self.top: float | None = curves.top

    def given(self, seed: int) -> Sequence[Run] | None:
        return [_recorded(self.curves, i) for i in range(len(self.curves.config))]

    def run(self, params: Mapping[str, Any], seed: int) -> Run:
        raise AssertionError("the recorded order needs no sampler")


class Shuffled(Recorded):
    """The recorded configurations in random order, each with one of its runs: random search without repetition."""

    name = "shuffled"

    def given(self, seed: int) -> Sequence[Run] | None:
        rng, curves = np.random.default_rng(seed), self.curves
        picked = [rng.choice(np.flatnonzero(curves.config == c)) for c in rng.permutation(len(curves.params))]
        runs = [_recorded(curves, i) for i in picked]
        # Runs that are never pruned, such as the baseline, come first in a study.
        return sorted(runs, key=lambda run: not run.fixed)


class Nearest:
    """Answers with a run of the recorded configuration that is nearest in the space."""

    name = "nearest"

    def __init__(self, curves: Curves) -> None:
        _check_size(curves, self.name)
        self.curves, self.optimum, self.top = curves, float(np.nanmin(curves.truth)), None
        self._kept = np.flatnonzero(~np.isnan(curves.truth))
        self._points = features(curves.space, curves.units[self._kept])

    def given(self, seed: int) -> Sequence[Run] | None:
        return None

    def run(self, params: Mapping[str, Any], seed: int) -> Run:
        point = features(self.curves.space, np.array([unit_positions(self.curves.space, params)]))
        config = self._kept[((self._points - point) ** 2).sum(axis=1).argmin()]
        runs = np.flatnonzero((self.curves.config == config) & self.curves.known)
        recorded = _recorded(self.curves, int(np.random.default_rng(seed).choice(runs)))
        return recorded._replace(params=params)


class Fitted:
    """Answers with the curve of a surrogate, plus a recorded difference between seeds of a similar configuration."""

    name = "surrogate"

    def __init__(self, curves: Curves, surrogate: Surrogate | None = None) -> None:
        _check_size(curves, self.name)
        self.curves, self.top = curves, None
        self.surrogate = surrogate or fit_surrogate(curves)
        self._noise, self._noise_at = curves.seed_residuals()
        self.optimum = _lowest(self.surrogate)

    def given(self, seed: int) -> Sequence[Run] | None:
        return None

    def run(self, params: Mapping[str, Any], seed: int) -> Run:
        curve = self.surrogate.predict(np.array([unit_positions(self.curves.space, params)]))[0]
        noise = np.zeros_like(curve)
        if len(self._noise):
            rng = np.random.default_rng(seed)
            similar = np.abs(self._noise_at - curve[-1]).argsort(kind="stable")[:N_SIMILAR]
            noise = rng.choice((-1.0, 1.0)) * self._noise[rng.choice(similar)]
        return Run(params, curve + noise, float(curve[-1]))


WORLDS: dict[str, Any] = {kind.name: kind for kind in (Recorded, Shuffled, Nearest, Fitted)}


def _recorded(curves: Curves, index: int) -> Run:
    config = curves.config[index]
    fixed = curves.fixed is not None and bool(curves.fixed[index])
    return Run(curves.params[config], curves.values[index], float(curves.truth[config]), fixed)


def _check_size(curves: Curves, name: str) -> None:
    n = int((~np.isnan(curves.truth)).sum())
    if not curves.space:
        raise Problem(f"{curves.name}: must have a space for world {name}; use --world shuffled")
    if n < MIN_CONFIGURATIONS:
        raise Problem(
            f"{curves.name}: must have at least {MIN_CONFIGURATIONS} configurations with a known result for world "
            f"{name}, got {n}; use --world shuffled"
        )


def _lowest(surrogate: Surrogate) -> float:
    """Return the smallest loss of a surrogate at the last rung, found by random search and improvement of the best."""
    rng, space = np.random.default_rng(0), surrogate.curves.space
    known = surrogate.curves.units[~np.isnan(surrogate.curves.truth)]
    points = np.concatenate([snapped(space, rng.random((N_CANDIDATES, len(space)))), known])
    losses = surrogate.predict(points)[:, -1]
    order = losses.argsort()[:N_CLIMBERS]
    points, losses = points[order], losses[order]
    for step in range(N_STEPS):
        moved = points + rng.normal(scale=0.2 * 0.93**step, size=points.shape) * (rng.random(points.shape) < 0.5)
        moved = snapped(space, np.clip(moved, 0, 1))
        reached = surrogate.predict(moved)[:, -1]
        better = reached < losses
        points[better], losses[better] = moved[better], reached[better]
    return float(losses.min())


def snapped(space: Space, units: Array) -> Array:
    """Return positions of which those of choices are exact positions of a choice."""
    units = units.copy()
    for axis, entry in enumerate(space.values()):
        if isinstance(entry, Choices):
            steps = max(1, len(entry.choices) - 1)
            units[:, axis] = np.rint(units[:, axis] * steps) / steps
    return units
