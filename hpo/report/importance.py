"""Estimate the importance of hyperparameters at each rung, and test which of them interact."""

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
from hpo.report.axes import Axis, axes, common_paths, units
from hpo.storage.attributes import END_REASON
from hpo.storage.trials import State, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)  # Optuna logs a line for each study in memory

MIN_TRIALS = 10  # trials at a rung without which no importance is estimated
BEST_SHARE = 1 / 3  # of trials; with Optuna's default of 0.1, planted effects in studies of 60 trials were not found
N_SHUFFLES = 59  # chance exceeds the third largest of 59 shuffled importances exactly one time in 20
MAX_TRIALS = 2_000  # sampled evenly from more; 5,000 trials take three times as long and give the same result
RESIDUAL_DOF = 10  # residual degrees of freedom that a test of interactions needs


@dataclass(frozen=True)
class Point:
    """A trial at one rung: its position on each axis, in [0, 1], and its objective there as a loss."""

    position: Mapping[str, float]
    loss: float


@dataclass(frozen=True)
class Importance:
    """The share of one hyperparameter in the total importance.

    chance: the share that a hyperparameter without effect exceeds one time in 20, None if not estimated.
    """

    path: str
    share: float
    chance: float | None = None


@dataclass(frozen=True)
class Interaction:
    """A pair of hyperparameters, tested for an interaction.

    p: p-value of no interaction, corrected for the number of pairs. explained: share of the residual variance of the
    model without the product of the pair that the product explains.
    """

    first: str
    second: str
    p: float
    explained: float


@dataclass(frozen=True)
class InteractionTests:
    """All pairs, the most significant first, tested on n trials at one rung; none where n is below `needed`."""

    rung: int
    n: int
    needed: int
    pairs: Sequence[Interaction]


def varied_trials(snapshot: Snapshot) -> list[Trial]:
    """Return the trials that differ in their hyperparameters: no failed trials, repeats of the baseline, or arms."""
    return [t for t in snapshot.trials if t.user_attrs.get("kind") not in ("seed", "arm") and t.state != State.FAIL]


def points_at_rung(snapshot: Snapshot, rung: int) -> list[Point]:
    """Return the trials that reached a rung, pruned ones included, and the trials that diverged before it.

    A diverged trial counts as the worst, because that is all that is known of, for example, a learning rate that is
    too high.
    """
    of_axes = axes(snapshot)
    losses: list[tuple[Mapping[str, float], float]] = []
    for trial in varied_trials(snapshot):
        position = units(trial, of_axes)
        value = trial.intermediate_values.get(rung)
        if value is None and trial.user_attrs.get(END_REASON) == "diverged":
            value = math.nan
        if position and value is not None:
            losses.append((position, snapshot.direction.loss(value)))
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    if not finite:
        return []
    points = [Point(position, loss if math.isfinite(loss) else max(finite)) for position, loss in losses]
    return points[:: -(-len(points) // MAX_TRIALS) or 1]


def importances(points: Sequence[Point], of_axes: Mapping[str, Axis], n_shuffles: int = 0) -> list[Importance]:
    """Return the importance of each hyperparameter, the largest first; none for fewer than `MIN_TRIALS` points.

    n_shuffles: number of times to shuffle the values, which gives `Importance.chance`.

    Source: PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255, as implemented by Optuna. It compares the best third of
    the trials with all trials, so it does not confuse where the sampler searched with what matters.
    """
    if len(points) < MIN_TRIALS:
        return []
    study = _unit_study(points, of_axes)
    values = np.array([point.loss for point in points])
    raw = _raw_importances(study, values)
    total = sum(raw.values())
    if not total:
        return []
    random = np.random.default_rng(SEED)
    shuffled = [_raw_importances(study, random.permutation(values)) for _ in range(n_shuffles)]
    chance = {
        path: float(np.quantile([one[path] for one in shuffled], LEVEL, method="higher")) / total
        for path in raw
        if shuffled
    }
    ranked = [Importance(path, value / total, chance.get(path)) for path, value in raw.items()]
    return sorted(ranked, key=lambda one: -one.share)


def _unit_study(points: Sequence[Point], of_axes: Mapping[str, Axis]) -> optuna.Study:
    """Return a study in memory with one trial per point, whose parameters are positions on the axes."""
    study = optuna.create_study()
    distributions = {path: _distribution(axis) for path, axis in of_axes.items()}
    study.add_trials(
        optuna.create_trial(
            value=0.0,
            params={path: _parameter(distributions[path], position) for path, position in point.position.items()},
            distributions={path: distributions[path] for path in point.position},
        )
        for point in points
    )
    return study


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.discrete:
        return CategoricalDistribution(range(len(axis.entry.choices)))  # type: ignore[union-attr]
    return FloatDistribution(0.0, 1.0) if axis.n_steps is None else IntDistribution(0, axis.n_steps)


def _parameter(distribution: BaseDistribution, position: float) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return round(position * (len(distribution.choices) - 1))
    position = min(1.0, max(0.0, position))
    return round(position * distribution.high) if isinstance(distribution, IntDistribution) else position


def _raw_importances(study: optuna.Study, values: np.ndarray) -> dict[str, float]:
    """Return the unscaled importances if the trials of a study have these values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the direction of values, and about regimes of one trial, which count 0
        return PedAnovaImportanceEvaluator(target_quantile=BEST_SHARE).evaluate(
            study, target=lambda trial: float(values[trial.number])
        )


def importances_by_rung(snapshot: Snapshot) -> dict[int, list[Importance]]:
    """Return the importances at each rung that enough trials reached."""
    of_axes = axes(snapshot)
    by_rung = {rung: importances(points_at_rung(snapshot, rung), of_axes) for rung in range(1, snapshot.rungs + 1)}
    return {rung: ranked for rung, ranked in by_rung.items() if ranked}


def final_importances(snapshot: Snapshot) -> tuple[int, list[Importance]]:
    """Return the last rung that enough trials reached, and the importances there with those of chance."""
    of_axes = axes(snapshot)
    for rung in range(snapshot.rungs, 0, -1):
        if ranked := importances(points_at_rung(snapshot, rung), of_axes, N_SHUFFLES):
            return rung, ranked
    return snapshot.rungs, []


def interactions(snapshot: Snapshot) -> InteractionTests:
    """Test all pairs of hyperparameters at the last rung that enough trials reached."""
    of_axes = axes(snapshot)
    closest = InteractionTests(snapshot.rungs, len(points_at_rung(snapshot, snapshot.rungs)), 0, ())
    for rung in range(snapshot.rungs, 0, -1):
        tests = interactions_at_rung(points_at_rung(snapshot, rung), of_axes, rung)
        if tests.pairs:
            return tests
        if not closest.needed or tests.n > closest.n:
            closest = tests
    return closest


def interactions_at_rung(points: Sequence[Point], of_axes: Mapping[str, Axis], rung: int) -> InteractionTests:
    """Test each pair of hyperparameters for an interaction.

    An F test compares a linear model of all hyperparameters and their squares with and without the product of the
    pair. p-values are corrected by Holm's method. Very large values are clipped, because one diverging run would
    dominate the fit.
    """
    paths = common_paths([point.position for point in points], of_axes)
    complete = [point for point in points if all(path in point.position for path in paths)]
    positions = {path: np.array([point.position[path] for point in complete]) for path in paths}
    terms = {path: _linear_terms(of_axes[path], position) for path, position in positions.items()}
    mains = [term for path in paths for term in terms[path] + _square_terms(of_axes[path], positions[path])]
    pairs = list(itertools.combinations(paths, 2))
    products = {(a, b): [x * y for x in terms[a] for y in terms[b]] for a, b in pairs}
    needed = 1 + len(mains) + max((len(columns) for columns in products.values()), default=0) + RESIDUAL_DOF
    if len(complete) < needed or not pairs:
        return InteractionTests(rung, len(complete), needed, ())
    values = _clipped(np.array([point.loss for point in complete]))
    tests = [_f_test(values, mains, products[pair]) for pair in pairs]
    corrected = holm([p for p, _ in tests])
    tested = [Interaction(a, b, p, share) for (a, b), p, (_, share) in zip(pairs, corrected, tests, strict=True)]
    return InteractionTests(rung, len(complete), needed, sorted(tested, key=lambda pair: (pair.p, -pair.explained)))


def _linear_terms(axis: Axis, position: np.ndarray) -> list[np.ndarray]:
    """Return the linear terms of a hyperparameter: its position, or one indicator for each choice except the first."""
    if not axis.discrete:
        return [position - 0.5]
    levels = sorted(set(position.tolist()))
    return [(position == level).astype(float) for level in levels[1:]]


def _square_terms(axis: Axis, position: np.ndarray) -> list[np.ndarray]:
    return [] if axis.discrete or len(set(position.tolist())) < 3 else [(position - 0.5) ** 2]


def _clipped(values: np.ndarray) -> np.ndarray:
    """Return the values, clipped at three interquartile ranges above the upper quartile."""
    low, high = np.quantile(values, (0.25, 0.75))
    return np.minimum(values, high + 3 * (high - low))


def _f_test(values: np.ndarray, mains: Sequence[np.ndarray], product: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the p-value of no interaction, and the share of the residual variance that the product explains."""
    without, with_product = _fit(values, mains), _fit(values, [*mains, *product])
    if with_product.df_model <= without.df_model or without.ssr <= 1e-12 * max(1.0, float(np.var(values))):
        return 1.0, 0.0
    _, p, _ = with_product.compare_f_test(without)
    return (float(p) if math.isfinite(p) else 1.0), max(0.0, 1 - float(with_product.ssr / without.ssr))


def _fit(values: np.ndarray, terms: Sequence[np.ndarray]) -> Any:
    from statsmodels.regression.linear_model import OLS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about dependent columns, as where one choice was tried only once
        return OLS(values, np.column_stack([np.ones(len(values)), *terms])).fit()
