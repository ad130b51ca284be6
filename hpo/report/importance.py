"""Which hyperparameters matter, at the end and rung by rung, and which of them act together."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL, SEED, holm
from hpo.report.axes import Axis, axes, common, units
from hpo.storage.attributes import END_REASON
from hpo.storage.trials import State, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line for each study in memory

FEWEST = 10  # trials without which no importance is told
GOOD = 1 / 3  # of the trials; of a tenth, as is usual, a study of 60 tells less: planted effects were not found
SHUFFLES = 59  # of the values: the third largest of 59 is exceeded by chance exactly one time in 20
MOST = 2_000  # trials that are looked at, every so many of more: 5,000 take three times as long and say the same
FREE = 10  # degrees of freedom that a test of interactions must have left


@dataclass(frozen=True)
class Point:
    """A trial at one rung: where it lies on each axis, from 0 to 1, and its value there."""

    place: Mapping[str, float]
    value: float


@dataclass(frozen=True)
class Importance:
    """One hyperparameter: its share of all importance, and the share that one without effect seldom exceeds."""

    path: str
    share: float
    chance: float | None = None


@dataclass(frozen=True)
class Interaction:
    """Two hyperparameters: the p-value of no interaction, corrected for all pairs, and the variance it explains.

    explained: the share of what the model without their product leaves unexplained.
    """

    first: str
    second: str
    p: float
    explained: float


@dataclass(frozen=True)
class Interactions:
    """The pairs, the clearest first, tested on the values of n trials at one rung; none where n is below `needed`."""

    rung: int
    n: int
    needed: int
    pairs: Sequence[Interaction]


def varied_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the trials that differ in their hyperparameters: not the baseline with other seeds, nor arms."""
    return [t for t in snapshot.trials if t.user_attrs.get("kind") not in ("seed", "arm") and t.state != State.FAIL]


def points_at_rung(snapshot: Snapshot, rung: int) -> list[Point]:
    """Return the trials that came to a rung, pruned ones included, and those that diverged before it.

    Of very many, every so many. What diverged counts as the worst: of a learning rate that is too high there is
    nothing better to say.
    """
    of_axes = axes(snapshot)
    found: list[tuple[Mapping[str, float], float]] = []
    for trial in varied_trials(snapshot):
        place = units(trial, of_axes)
        value = trial.intermediate_values.get(rung)
        if value is None and trial.user_attrs.get(END_REASON) == "diverged":
            value = math.nan
        if place and value is not None:
            found.append((place, value))
    finite = [value for _, value in found if math.isfinite(value)]
    if not finite:
        return []
    told = [Point(place, value if math.isfinite(value) else max(finite)) for place, value in found]
    return told[:: -(-len(told) // MOST) or 1]


def importances(found: Sequence[Point], of_axes: Mapping[str, Axis], shuffles: int = 0) -> list[Importance]:
    """Return the hyperparameters by importance, the greatest first; none for fewer than ten trials.

    shuffles: how often to shuffle the values, which says how important chance alone makes a hyperparameter.

    Source: PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255, by Optuna; the better third of the trials is
    compared with all that were tried, so that it does not mistake where the sampler looked for what mattered.
    """
    if len(found) < FEWEST:
        return []
    study = _study(found, of_axes)
    values = np.array([point.value for point in found])
    real = _raw(study, values)
    total = sum(real.values())
    if not total:
        return []
    random = np.random.default_rng(SEED)
    drawn = [_raw(study, random.permutation(values)) for _ in range(shuffles)]
    chance = {
        path: float(np.quantile([d[path] for d in drawn], LEVEL, method="higher")) / total for path in real if drawn
    }
    told = [Importance(path, raw / total, chance.get(path)) for path, raw in real.items()]
    return sorted(told, key=lambda weight: -weight.share)


def _study(found: Sequence[Point], of_axes: Mapping[str, Axis]) -> optuna.Study:
    """Return a study in memory whose trials lie in the unit cube, with their number for a value."""
    study = optuna.create_study()
    kinds = {path: _distribution(axis) for path, axis in of_axes.items()}
    study.add_trials(
        optuna.create_trial(
            value=0.0,
            params={path: _held(kinds[path], at) for path, at in point.place.items()},
            distributions={path: kinds[path] for path in point.place},
        )
        for point in found
    )
    return study


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.discrete:
        return CategoricalDistribution(range(len(axis.entry.choices)))  # type: ignore[union-attr]
    return FloatDistribution(0.0, 1.0) if axis.steps is None else IntDistribution(0, axis.steps)


def _held(kind: BaseDistribution, at: float) -> float:
    if isinstance(kind, CategoricalDistribution):
        return round(at * (len(kind.choices) - 1))
    at = min(1.0, max(0.0, at))
    return round(at * kind.high) if isinstance(kind, IntDistribution) else at


def _raw(study: optuna.Study, values: np.ndarray) -> dict[str, float]:
    """Return the unscaled importances when the trials have these values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that small values are the good ones; regimes of one trial, which count for 0
        return PedAnovaImportanceEvaluator(target_quantile=GOOD).evaluate(
            study, target=lambda trial: float(values[trial.number])
        )


def importances_by_rung(snapshot: Snapshot) -> dict[int, list[Importance]]:
    """Return importances at each rung that enough trials reached."""
    of_axes = axes(snapshot)
    told = {rung: importances(points_at_rung(snapshot, rung), of_axes) for rung in range(1, snapshot.rungs + 1)}
    return {rung: found for rung, found in told.items() if found}


def final_importances(snapshot: Snapshot) -> tuple[int, list[Importance]]:
    """Return the last rung that enough trials reached, and the importances there, with those of chance."""
    of_axes = axes(snapshot)
    for rung in range(snapshot.rungs, 0, -1):
        if found := importances(points_at_rung(snapshot, rung), of_axes, SHUFFLES):
            return rung, found
    return snapshot.rungs, []


def interactions(snapshot: Snapshot) -> Interactions:
    """Test all pairs at the last rung that enough trials reached."""
    of_axes = axes(snapshot)
    least = Interactions(snapshot.rungs, len(points_at_rung(snapshot, snapshot.rungs)), 0, ())
    for rung in range(snapshot.rungs, 0, -1):
        tested = interactions_at_rung(points_at_rung(snapshot, rung), of_axes, rung)
        if tested.pairs:
            return tested
        if not least.needed or tested.n > least.n:
            least = tested
    return least


def interactions_at_rung(found: Sequence[Point], of_axes: Mapping[str, Axis], rung: int) -> Interactions:
    """Test each pair: a linear model of all hyperparameters and their squares, with and without the pair's product.

    The F test of the two models, corrected by Holm's method. Values far above the others are drawn in, since one run
    that went wrong would decide everything.
    """
    paths = common([point.place for point in found], of_axes)
    kept = [point for point in found if all(path in point.place for path in paths)]
    places = {path: np.array([point.place[path] for point in kept]) for path in paths}
    alone = {path: _columns(of_axes[path], at) for path, at in places.items()}
    mains = [column for path in paths for column in alone[path] + _square(of_axes[path], places[path])]
    wanted = list(itertools.combinations(paths, 2))
    products = {(a, b): [x * y for x in alone[a] for y in alone[b]] for a, b in wanted}
    needed = 1 + len(mains) + max((len(columns) for columns in products.values()), default=0) + FREE
    if len(kept) < needed or not wanted:
        return Interactions(rung, len(kept), needed, ())
    values = _drawn_in(np.array([point.value for point in kept]))
    tests = [_f_test(values, mains, products[pair]) for pair in wanted]
    corrected = holm([p for p, _ in tests])
    told = [Interaction(a, b, p, share) for (a, b), p, (_, share) in zip(wanted, corrected, tests, strict=True)]
    return Interactions(rung, len(kept), needed, sorted(told, key=lambda pair: (pair.p, -pair.explained)))


def _columns(axis: Axis, at: np.ndarray) -> list[np.ndarray]:
    """Return what stands for a hyperparameter in a linear model: itself, or each choice but the first."""
    if not axis.discrete:
        return [at - 0.5]
    levels = sorted(set(at.tolist()))
    return [(at == level).astype(float) for level in levels[1:]]


def _square(axis: Axis, at: np.ndarray) -> list[np.ndarray]:
    return [] if axis.discrete or len(set(at.tolist())) < 3 else [(at - 0.5) ** 2]


def _drawn_in(values: np.ndarray) -> np.ndarray:
    """Return the values, none further above the upper quartile than three times the distance of the quartiles."""
    low, high = np.quantile(values, (0.25, 0.75))
    return np.minimum(values, high + 3 * (high - low))


def _f_test(values: np.ndarray, mains: Sequence[np.ndarray], product: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the p-value of no product, and the share of the unexplained variance that it explains."""
    without, with_it = _fitted(values, mains), _fitted(values, [*mains, *product])
    if with_it.df_model <= without.df_model or without.ssr <= 1e-12 * max(1.0, float(np.var(values))):
        return 1.0, 0.0
    _, p, _ = with_it.compare_f_test(without)
    return (float(p) if math.isfinite(p) else 1.0), max(0.0, 1 - float(with_it.ssr / without.ssr))


def _fitted(values: np.ndarray, columns: Sequence[np.ndarray]) -> Any:
    from statsmodels.api import OLS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that columns depend on one another, as where one choice was tried once
        return OLS(values, np.column_stack([np.ones(len(values)), *columns])).fit()
