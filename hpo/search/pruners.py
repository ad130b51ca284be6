"""Pruners: rules that stop weak trials early.

A run reports the objective at R rungs, which are equal fractions of the run, numbered 1 to R. Optuna calls them steps.

To add a pruner, add a class with a unique `name` and a method `build` to this file, and add the class to the union
`Pruner` at the end. If the rule compares trials, add the comparison to `pruning_rules.compare_at_last_rung`, which
`hpo why` shows.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, Self

import optuna
from optuna.pruners import BasePruner, PercentilePruner
from pydantic import Field, model_validator

from hpo.search.asha import AshaPruner
from hpo.search.direction import Direction
from hpo.search.halving import HalvingPruner
from hpo.search.peers import PeersPruner
from hpo.search.probes import ProbePlan
from hpo.search.pruning_rules import rule_for_losses
from hpo.search.study_view import experimental
from model.section import Count, NonNegative, Section

Factor = Annotated[int, Field(ge=2)]


class Warmup(Section):
    """The fields of pruners that do not prune in the first part of a run."""

    warmup_rungs: Annotated[int, Field(ge=0)] | None = None
    """Number of rungs at the start of a run at which no trial is pruned. Default: a quarter of the rungs, rounded.
    0 prunes trials that start slowly but would finish well."""

    def first_rung(self, rungs: int) -> int:
        """Return the first rung at which a trial may be pruned: Optuna's n_warmup_steps.

        rungs: number of rungs of a run.
        """
        # Not round(), which rounds a half to the even number.
        return 1 + (math.floor(rungs / 4 + 0.5) if self.warmup_rungs is None else self.warmup_rungs)


class RankBased(Warmup):
    """The fields of pruners that compare a trial with other trials at the same rung."""

    peers: Literal["all", "finished"] = "all"
    """The trials with which a trial is compared. all: every trial that has a value at the rung, and every trial that
    was pruned or diverged before it, which counts as worse than any; failed trials and trials that exceeded a limit
    before the rung are left out. finished: complete trials only, as in Optuna. They are the best of earlier
    comparisons, so a growing share of the trials is pruned. Studies of earlier versions continue with finished."""
    startup_trials: Annotated[int, Field(ge=0)] = 5
    """No trial is pruned until this many trials are complete. If the number of workers is larger, every trial of the
    first batch therefore runs to the end."""
    min_trials: Count = 5
    """Minimum number of trials to compare with at a rung. With fewer, no trial is pruned there."""
    interval: Count = 1
    """Number of rungs from one decision to the next."""

    def build_rank(self, kind: Callable[..., PercentilePruner], rungs: int) -> BasePruner:
        """Return the pruner for runs with this number of rungs.

        kind: Optuna's class, which decides.
        """
        first = self.first_rung(rungs)
        if self.peers == "finished":
            return kind(self.startup_trials, first, self.interval, n_min_trials=self.min_trials)
        return PeersPruner(partial(kind, 0, first, self.interval), self.startup_trials, self.min_trials)


class Median(RankBased):
    """Prune a trial if at least half of the trials are better than its best value so far, at the same rung.

    Source: Golovin et al. 2017, Google Vizier. Vizier compares with complete trials only, as `peers: finished` does.
    """

    name: Literal["median"] = "median"

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        return self.build_rank(optuna.pruners.MedianPruner, rungs)


class Percentile(RankBased):
    """Prune a trial if a percentage of the trials are better than its best value so far, at the same rung."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, lt=100)] = 75
    """Percentage of trials that continue."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        return self.build_rank(partial(PercentilePruner, self.percentile), rungs)


class Halving(Section):
    """Asynchronous successive halving: at some of the rungs, only the best 1 / factor of the trials continue.

    These rungs are min_rungs, min_rungs x factor, min_rungs x factor^2, and so on.
    Source: Li et al. 2020, arXiv:1810.05934.
    """

    name: Literal["halving"] = "halving"
    min_rungs: Count = 1
    """First rung at which trials are pruned."""
    factor: Factor = 3
    """Reduction factor. With 3, the best third of the trials continue."""

    def build(self, rungs: int) -> BasePruner:
        """Return the pruner for runs with this number of rungs."""
        return HalvingPruner(self.min_rungs, self.factor, n_brackets=1)


class Asha(Section):
    """Asynchronous successive halving by promotion: trials pause at marks, and the best of the paused continue.

    Use it for many short trials, if several good configurations are enough. Marks are the rungs min_rungs, min_rungs x
    factor, and so on. A trial among the best 1 / factor of the trials that reached a mark continues. Any other trial
    pauses, and keeps its checkpoint. A free worker continues the best paused trial that is now among them, from the
    last mark down, and starts a new trial only if there is none. When the budget ends, the trials still paused are
    pruned.
    Source: Li et al. 2020, arXiv:1810.05934, algorithm 2.
    """

    name: Literal["asha"] = "asha"
    min_rungs: Count = 1
    """First rung at which trials pause."""
    factor: Factor = 2
    """Reduction factor. With 2, the better half of the trials continue at a mark."""
    learn_from: Literal["deepest", "all"] = "deepest"
    """The trials from which samplers `tpe`, `gp` and `auto` learn. deepest: those that reached the deepest rung that is
    reached by at least twice `startup_trials` of the sampler, all complete trials, and those that diverged, were
    invalid or exceeded a limit. Early losses would otherwise keep the sampler away from trials that start slowly. all:
    every trial. Studies of earlier versions continue with all."""

    def build(self, rungs: int) -> BasePruner:
        """Return the pruner for runs with this number of rungs."""
        return AshaPruner(self.min_rungs, self.factor, rungs)


class Hyperband(Section):
    """Successive halving in several brackets. Each bracket starts to prune at a later rung than the one before.

    A trial belongs to one bracket, which depends on the name of the study and the number of the trial.
    Source: Li et al. 2018, JMLR 18.
    """

    name: Literal["hyperband"] = "hyperband"
    min_rungs: Count = 1
    """First rung at which the first bracket prunes. Each further bracket starts to prune `factor` times later."""
    factor: Factor = 3
    """Reduction factor. With 3, the best third of the trials continue."""

    def build(self, rungs: int) -> BasePruner:
        """Return the pruner for runs with this number of rungs."""
        n_brackets = 1
        while self.min_rungs * self.factor**n_brackets <= rungs:
            n_brackets += 1
        return HalvingPruner(self.min_rungs, self.factor, n_brackets)


class Patient(Section):
    """Prune a trial that no longer improves, without comparing it with other trials."""

    name: Literal["patient"] = "patient"
    patience: Count = 2
    """A trial is pruned if its last patience + 1 values are all worse than its best earlier value."""
    min_delta: NonNegative = 0.0
    """Minimum difference, in the unit of the objective, by which these values must be worse."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        with experimental():
            return optuna.pruners.PatientPruner(None, self.patience, self.min_delta)


class Threshold(Warmup):
    """Prune a trial whose value is outside an interval. At least one end of the interval is required."""

    name: Literal["threshold"] = "threshold"
    lower: float | None = None
    """Smallest value that is not pruned, in the unit of the objective. Default: no lower end."""
    upper: float | None = None
    """Largest value that is not pruned, in the unit of the objective. Default: no upper end."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.lower is None and self.upper is None:
            raise ValueError("must have lower or upper; add one of them")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower must be less than upper, got lower {self.lower} and upper {self.upper}")
        return self

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        return optuna.pruners.ThresholdPruner(self.lower, self.upper, self.first_rung(rungs))


class Wilcoxon(Warmup):
    """Prune a trial if a Wilcoxon signed-rank test over its rungs finds it worse than the best trial.

    The test assumes independent values, such as those of the folds of a cross-validation. The values of a learning
    curve are not independent.
    """

    name: Literal["wilcoxon"] = "wilcoxon"
    p_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """p-value below which a trial is pruned."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        with experimental():
            return optuna.pruners.WilcoxonPruner(p_threshold=self.p_threshold, n_startup_steps=self.first_rung(rungs))


class NoPruning(Section):
    """Prune no trial."""

    name: Literal["none"] = "none"

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for runs with this number of rungs."""
        return optuna.pruners.NopPruner()


def rule_for(plan: ProbePlan, rule: "Pruner") -> "Pruner":
    """Return the pruner that compares probes where runs are probed: without the default warmup, which is for raw
    losses."""
    if plan.rungs and getattr(rule, "warmup_rungs", 0) is None:
        return rule.model_copy(update={"warmup_rungs": 0})
    return rule


def build_pruner(rule: "Pruner", rungs: int, direction: Direction) -> BasePruner:
    """Return Optuna's pruner, which decides by losses, for runs with this number of rungs."""
    return type(rule).model_validate(rule_for_losses(rule.model_dump(), direction)).build(rungs)


def learns_from_deepest(rule: "Pruner") -> bool:
    """Return whether samplers learn only from the trials that trained longest."""
    return isinstance(rule, Asha) and rule.learn_from == "deepest"


Pruner = Annotated[
    Median | Percentile | Asha | Halving | Hyperband | Patient | Threshold | Wilcoxon | NoPruning,
    Field(discriminator="name"),
]
