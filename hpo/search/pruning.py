"""Decide at each rung whether a trial is pruned, and describe the decision."""

import copy
import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import optuna
from optuna.pruners import BasePruner, PercentilePruner, WilcoxonPruner
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals.objects import get_best_trial
from hpo.search.asha import AshaPruner
from hpo.search.halving import HalvingPruner
from hpo.search.marks import Standing
from hpo.search.peers import PeersPruner
from hpo.search.probes import NO_PROBES, ProbePlan, probed_curve
from hpo.search.pruning_rules import compare_at_last_rung, format_spans
from hpo.search.study_view import StudyView, as_minimized, direction_of
from hpo.storage.attributes import FIXED_VALUES, PROBES
from model.section import Section

Decision = Literal["continue", "prune", "diverged", "pause"]


class CachedPruner:
    """Decides at a rung whether a trial continues, from a list of trials that is at most `refresh_s` seconds old.

    Optuna's should_prune reads every running trial with all its values at each call, which takes 28 ms with 64 trials.
    The worker passes its own copy of the trial, to which it adds each value itself.

    rungs: number of rungs of a run. At the last rung, no trial is pruned.
    within: fields of the given values that must be equal in all trials of a comparison, as the length of a run in a
        ladder, whose losses cannot be compared across lengths.
    """

    def __init__(
        self,
        study: optuna.Study,
        pruner: BasePruner,
        rungs: int,
        refresh_s: float = 5.0,
        within: Sequence[str] = (),
    ) -> None:
        self.pruner = pruner
        self.rungs = rungs
        self.refresh_s = refresh_s
        self._within = tuple(within)
        self.probes = NO_PROBES
        self._study, self._direction = study, direction_of(study)
        self._marks = list(pruner.marks) if isinstance(pruner, AshaPruner) else []
        self._finished: dict[int, FrozenTrial] = {}  # finished trials as the pruner sees them, by number
        self._view = StudyView(study, self._read)
        self._trials: list[FrozenTrial] = []
        self._decided: FrozenTrial | None = None  # the trial whose peers are shown
        self._read_at = -math.inf

    def set_probes(self, plan: ProbePlan, pruner: BasePruner) -> None:
        """Compare from now on the probes of the study instead of the raw values, at the probed rungs only.

        pruner: decides from now on, except for `AshaPruner`, whose marks are reduced to the probed rungs.
        """
        self.probes = plan
        if not isinstance(self.pruner, AshaPruner):
            self.pruner = pruner
        self._finished.clear()
        self.refresh()
        if isinstance(self.pruner, AshaPruner):
            self.pruner.marks = [mark for mark in self._marks if mark in plan.rungs or not plan.rungs]

    def decide(self, trial: FrozenTrial, never_prune: bool = False) -> Decision:
        """Return the decision for a trial after its last value was added to it.

        The decision "pause" comes from `AshaPruner` only. At its marks, the trials are read again.
        never_prune: whether the trial continues unless it diverged, as baselines and runs of arms do.
        """
        rung, self._decided = trial.last_step, trial
        if rung is None:
            return "continue"
        if not math.isfinite(trial.intermediate_values[rung]):
            return "diverged"
        if never_prune or rung >= self.rungs:
            return "continue"
        if self.probes.rungs and str(rung) not in trial.user_attrs.get(PROBES, {}):
            return "continue"
        if isinstance(self.pruner, AshaPruner):
            if rung in self.pruner.marks:
                self.refresh()
            return "pause" if self.pruner.prune(self._view, self._as_compared(trial)) else "continue"
        return "prune" if self.pruner.prune(self._view, self._as_compared(trial)) else "continue"

    def prune(self, trial: FrozenTrial, never_prune: bool = False) -> bool:
        """Return whether the pruner ends the trial. A trial that diverged is not pruned."""
        return self.decide(trial, never_prune) == "prune"

    def promotions(self) -> list[tuple[FrozenTrial, Standing]]:
        """Read the trials, and return the paused ones that `AshaPruner` lets continue, in order, with their places."""
        assert isinstance(self.pruner, AshaPruner)
        self.refresh()
        trials = self._view.get_trials(deepcopy=False)
        by_number = {trial.number: trial for trial in trials}
        return [(by_number[number], place) for number, place in self.pruner.promotions(trials)]

    def describe_mark(self, trial: FrozenTrial) -> tuple[Standing, dict[str, Any]]:
        """Return the place of a trial at its last rung, a mark of `AshaPruner`, also in its stored form.

        The trials are those that the last decision read.
        """
        assert isinstance(self.pruner, AshaPruner)
        trials = self._view.get_trials(deepcopy=False)
        compared = self._as_compared(trial)
        place, peers = self.pruner.compare(trials, compared)
        value = self._direction.loss(compared.intermediate_values[place.rung])
        record = {**place._asdict(), "value": value, "peers": format_spans(peers), **self._probed()}
        return place, record

    def describe(self, rule: Section, trial: FrozenTrial) -> dict[str, Any]:
        """Return the comparison by which `decide` has just pruned a trial, in its stored form.

        rule: the pruner of the study, from which `self.pruner` was built.
        """
        peers = self._peers(trial)
        curves = [{r: self._direction.loss(v) for r, v in peer.intermediate_values.items()} for peer in peers]
        own = {r: self._direction.loss(v) for r, v in self._as_compared(trial).intermediate_values.items()}
        comparison = compare_at_last_rung(rule.model_dump(), own, curves, self._direction)
        stored = {"rule": rule.model_dump()["name"], "rung": trial.last_step, "value": comparison.value}
        return (
            self._probed()
            | stored
            | {
                "threshold": comparison.threshold,
                "n": len(peers),
                "peers": format_spans(peer.number for peer in peers),
            }
        )

    def _probed(self) -> dict[str, bool]:
        """Return the part of a record which says that probes were compared."""
        return {"probe": True} if self.probes.rungs else {}

    def _peers(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials with which a trial was compared, from the list that the pruner read."""
        view = StudyView(self._study, lambda _: self._comparable(trial))
        match self.pruner:
            case HalvingPruner():
                return self.pruner.rivals(view, trial)
            case PeersPruner():
                return self.pruner.peers(view, trial)
            case PercentilePruner():
                complete = view.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
                return [peer for peer in complete if trial.last_step in peer.intermediate_values]
            case WilcoxonPruner():
                return [get_best_trial(view)]
        return []

    def refresh(self) -> None:
        """Read the trials again at the next decision, because a trial has ended and other trials are compared with
        it."""
        self._read_at = -math.inf

    def _read(self, use_cache: bool) -> list[FrozenTrial]:
        now = time.monotonic()
        if now - self._read_at >= self.refresh_s:
            self._trials = [self._cached(trial) for trial in self._study.get_trials(deepcopy=False)]
            self._read_at = now
        return self._comparable(self._decided)

    def _comparable(self, trial: FrozenTrial | None) -> list[FrozenTrial]:
        """Return the trials whose losses can be compared with those of a trial."""
        if not self._within or trial is None:
            return self._trials
        return [other for other in self._trials if self._group(other) == self._group(trial)]

    def _group(self, trial: FrozenTrial) -> tuple[Any, ...]:
        values = trial.user_attrs.get(FIXED_VALUES, {})
        return tuple(values.get(path) for path in self._within)

    def _cached(self, trial: FrozenTrial) -> FrozenTrial:
        if not trial.state.is_finished():
            return self._as_compared(trial)
        if trial.number not in self._finished:
            self._finished[trial.number] = self._as_compared(trial)
        return self._finished[trial.number]

    def _as_compared(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial as the pruner sees it: with losses, and only those of the probes if runs are probed."""
        if self.probes.rungs:
            values = probed_curve(trial.intermediate_values, trial.user_attrs.get(PROBES, {}))
            trial = copy.copy(trial)
            trial.intermediate_values = values
        return as_minimized(trial, self._direction)
