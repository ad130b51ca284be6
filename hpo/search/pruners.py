"""Pruners: which trials stop before their end. A step is a rung, counted 1, 2, ..., R."""

import binascii
import math
import time
from typing import Annotated, Any, Literal, Self

import optuna
from optuna.pruners import BasePruner, PercentilePruner, WilcoxonPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field, model_validator

from hpo.search.pruning_rules import compare, place, spans
from hpo.search.study_view import View, experimental
from model.section import Count, NonNegative, Section

Verdict = Literal["continue", "prune", "diverged"]
Factor = Annotated[int, Field(ge=2)]


class Warmup(Section):
    """What pruners with a warm-up have in common."""

    warmup_rungs: Annotated[int, Field(ge=0)] | None = None
    """Rungs 1 to this one never prune. Left out: a quarter of the rungs; with none, late bloomers are lost."""

    def first_rung(self, rungs: int) -> int:
        """Return the first rung that may prune, which is what Optuna calls n_warmup_steps."""
        # Not round(), which takes half a rung to the even side.
        return 1 + (math.floor(rungs / 4 + 0.5) if self.warmup_rungs is None else self.warmup_rungs)


class Rank(Warmup):
    """What pruners that compare a trial with the finished ones at the same rung have in common."""

    startup_trials: Annotated[int, Field(ge=0)] = 5
    """Finished trials before any is pruned. With more workers than this, all of the first ones run to the end."""
    min_trials: Count = 5
    """Finished trials that must have a value at the rung: fewer are no measure."""
    interval: Count = 1
    """Rungs from one decision to the next."""


class Median(Rank):
    """Keep a trial whose best value so far is no worse than the median of the finished ones (Golovin et al. 2017)."""

    name: Literal["median"] = "median"

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        return optuna.pruners.MedianPruner(
            self.startup_trials, self.first_rung(rungs), self.interval, n_min_trials=self.min_trials
        )


class Percentile(Rank):
    """Keep a trial whose best value so far is among the best so many percent of the finished ones."""

    name: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, lt=100)] = 75
    """Percent that are kept; 75 lost no trial of the true best 5 % in simulation, where the median lost 17 to 20 %."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        return optuna.pruners.PercentilePruner(
            self.percentile,
            self.startup_trials,
            self.first_rung(rungs),
            self.interval,
            n_min_trials=self.min_trials,
        )


class Halving(Section):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): keep the best 1 / factor at each mark."""

    name: Literal["halving"] = "halving"
    min_rungs: Count = 1
    """The first mark; the next ones are at min_rungs x factor, min_rungs x factor^2, ..."""
    factor: Factor = 3
    """One trial in so many is kept at a mark."""

    def build(self, rungs: int) -> BasePruner:
        """Return the pruner for trials of so many rungs."""
        return Brackets(self.min_rungs, self.factor, n_brackets=1)


class Hyperband(Section):
    """Halving in several brackets, each with a later first mark (Li et al. 2018, JMLR 18)."""

    name: Literal["hyperband"] = "hyperband"
    min_rungs: Count = 1
    """The first mark of the first bracket."""
    factor: Factor = 3
    """One trial in so many is kept at a mark."""

    def build(self, rungs: int) -> BasePruner:
        """Return the pruner for trials of so many rungs."""
        n_brackets = 1
        while self.min_rungs * self.factor**n_brackets <= rungs:
            n_brackets += 1
        return Brackets(self.min_rungs, self.factor, n_brackets)


class Patient(Section):
    """Stop a trial that has not improved on itself, whatever the others do."""

    name: Literal["patient"] = "patient"
    patience: Count = 2
    """Rungs without improvement that are forgiven."""
    min_delta: NonNegative = 0.0
    """Nats (or bits per byte) by which the latest rungs must be worse than the best before them."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        with experimental():
            return optuna.pruners.PatientPruner(None, self.patience, self.min_delta)


class Threshold(Warmup):
    """Stop a trial whose value leaves an interval."""

    name: Literal["threshold"] = "threshold"
    lower: float | None = None
    """Least value that goes on."""
    upper: float | None = None
    """Greatest value that goes on."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.lower is None and self.upper is None:
            raise ValueError("lower or upper is required")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower must be less than upper, got lower {self.lower} and upper {self.upper}")
        return self

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        return optuna.pruners.ThresholdPruner(self.lower, self.upper, self.first_rung(rungs))


class Wilcoxon(Warmup):
    """Stop a trial that a signed-rank test over its rungs finds worse than the best one.

    Made for values that do not depend on each other, such as folds; those of one learning curve do.
    """

    name: Literal["wilcoxon"] = "wilcoxon"
    p_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Prune below this p-value."""

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        with experimental():
            return optuna.pruners.WilcoxonPruner(p_threshold=self.p_threshold, n_startup_steps=self.first_rung(rungs))


class Nothing(Section):
    """Run every trial to its end."""

    name: Literal["none"] = "none"

    def build(self, rungs: int) -> BasePruner:
        """Return Optuna's pruner for trials of so many rungs."""
        return optuna.pruners.NopPruner()


Pruner = Annotated[
    Median | Percentile | Halving | Hyperband | Patient | Threshold | Wilcoxon | Nothing,
    Field(discriminator="name"),
]


class Brackets(BasePruner):
    """Successive halving from the reported values alone.

    Optuna's own pruners note each mark passed in the storage, from inside the decision: a write that no fence
    covers, and a read of the trial at every rung. Marks are exact rungs here, so the values tell the same.
    A failed trial does not count; in Optuna's it does. Nor does one whose value there is NaN, in neither.
    """

    def __init__(self, min_rungs: int, factor: int, n_brackets: int) -> None:
        self.min_rungs = min_rungs
        self.factor = factor
        # As Optuna shares trials out: Algorithm 1 of the paper, as proportions.
        shares = [math.ceil(n_brackets * factor**s / (s + 1)) for s in reversed(range(n_brackets))]
        self.slots = [bracket for bracket, share in enumerate(shares) for _ in range(share)]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether the trial is not among the best 1 / factor of its bracket at this mark."""
        rung = trial.last_step
        if rung is None or not self.is_mark(rung, self.bracket(study, trial.number)):
            return False
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        value = sign * trial.intermediate_values[rung]
        values = [sign * rival.intermediate_values[rung] for rival in self.rivals(study, trial)]
        return value > sorted([*values, value])[place(len(values) + 1, self.factor) - 1]

    def rivals(self, study: optuna.Study, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the other trials of a trial's bracket that have a value at its rung."""
        rung, bracket = trial.last_step or 0, self.bracket(study, trial.number)
        others = [
            t for t in study.get_trials(deepcopy=False) if t.state != TrialState.FAIL and t.number != trial.number
        ]
        # Not one with NaN there, which would put a sorted list in disorder.
        reached = [t for t in others if not math.isnan(t.intermediate_values.get(rung, math.nan))]
        return [t for t in reached if self.bracket(study, t.number) == bracket]

    def bracket(self, study: optuna.Study, number: int) -> int:
        """Return a trial's bracket, the same in every worker."""
        return self.slots[binascii.crc32(f"{study.study_name}_{number}".encode()) % len(self.slots)]

    def is_mark(self, rung: int, bracket: int) -> bool:
        """Return whether trials of a bracket are compared at this rung."""
        mark = self.min_rungs * self.factor**bracket
        while mark < rung:
            mark *= self.factor
        return mark == rung


class Judge:
    """Decides at a rung whether a trial goes on, from a list of trials that is at most `refresh_s` old.

    Optuna's should_prune reads every running trial with all its values each time: 28 ms with 64 of them.
    The trial judged is the worker's own copy, to which it adds each value itself.
    """

    def __init__(
        self,
        study: optuna.Study,
        pruner: BasePruner,
        rungs: int,
        refresh_s: float = 5.0,
    ) -> None:
        self.pruner = pruner
        self.rungs = rungs
        self.refresh_s = refresh_s
        self._study = study
        self._view = View(study, self._read)
        self._trials: list[FrozenTrial] = []
        self._read_at = -math.inf

    def verdict(self, trial: FrozenTrial, spared: bool = False) -> Verdict:
        """Return what becomes of a trial whose last value has just been added to it."""
        rung = trial.last_step
        if rung is None:
            return "continue"
        if not math.isfinite(trial.intermediate_values[rung]):
            return "diverged"
        if spared or rung >= self.rungs:
            return "continue"
        return "prune" if self.pruner.prune(self._view, trial) else "continue"

    def prune(self, trial: FrozenTrial, spared: bool = False) -> bool:
        """Return whether the pruner ends the trial; one that diverged is not asked about."""
        return self.verdict(trial, spared) == "prune"

    def record(self, rule: Section, trial: FrozenTrial) -> dict[str, Any]:
        """Return the comparison with which `verdict` has just pruned a trial, as it is stored.

        rule: the study's pruner, as which ours was built.
        """
        peers = self._peers(trial)
        found = compare(rule.model_dump(), trial.intermediate_values, [peer.intermediate_values for peer in peers])
        told = {"rule": rule.model_dump()["name"], "rung": trial.last_step, "value": found.value}
        return told | {"threshold": found.threshold, "n": len(peers), "peers": spans(peer.number for peer in peers)}

    def _peers(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials that a trial was compared with, from the list that the pruner read."""
        held = View(self._study, lambda _: self._trials)
        match self.pruner:
            case Brackets():
                return self.pruner.rivals(held, trial)
            case PercentilePruner():
                complete = held.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                return [peer for peer in complete if trial.last_step in peer.intermediate_values]
            case WilcoxonPruner():
                return [held._get_best_trial(deepcopy=False)]
        return []

    def look_again(self) -> None:
        """Read the trials afresh at the next decision: one has just ended, and it is a peer of all that follow."""
        self._read_at = -math.inf

    def _read(self, use_cache: bool) -> list[FrozenTrial]:
        now = time.monotonic()
        if now - self._read_at >= self.refresh_s:
            self._trials = self._study.get_trials(deepcopy=False)
            self._read_at = now
        return self._trials
