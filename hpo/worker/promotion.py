"""Pause trials at marks and promote paused trials, in studies with the pruner `asha`."""

import math
from typing import Any

from optuna.trial import FrozenTrial

from hpo.optuna_internals.objects import get_trial_id
from hpo.queue.pausing import PausedTrial, Promotion, pause, promote, prune_paused, reserve
from hpo.queue.slots import Claim
from hpo.queue.stored_study import StoredStudy
from hpo.runs.run_dir import to_json_value
from hpo.search.asha import AshaPruner, is_paused
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import MARKS, METRICS
from hpo.storage.fencing import fenced
from hpo.worker.trial import RunningTrial

TokenRungs = tuple[int, int] | None  # of a budget in tokens: rungs of one trial, and of all trials together


class Promoter:
    """Claims trials for one owner, and decides at marks which of its trials pause.

    With every other pruner than `asha`, there are no marks, and no trial pauses.
    """

    def __init__(self, stored: StoredStudy, owner: str, lease_s: float, pruner: CachedPruner) -> None:
        self.stored, self.owner, self.lease_s, self.pruner = stored, owner, lease_s, pruner
        self.rule = pruner.pruner if isinstance(pruner.pruner, AshaPruner) else None

    def claim(self, is_over: bool, rungs: TokenRungs) -> Claim | None:
        """Claim an interrupted trial, otherwise promote a paused trial, otherwise claim a new one.

        Return None if there is none. Baselines, and trials that a user added, come before promotions.
        is_over: whether no new trial may start.
        """
        slots = self.stored.slots
        if self.rule is None:
            return slots.claim(self.owner, self.lease_s, is_over, rungs)
        first_stop = self._with_probes(self.rule.next_stop(0))
        claim = slots.claim(self.owner, self.lease_s, is_over, rungs, first_stop, search=False)
        if claim is not None or is_over:
            return claim
        if slots.paused() and (candidates := self._promotions()):
            claim = promote(slots, self.owner, self.lease_s, candidates, rungs and rungs[1])
        return claim or slots.claim(self.owner, self.lease_s, is_over, rungs, first_stop)

    def _promotions(self) -> list[Promotion]:
        assert self.rule is not None
        found = self.pruner.promotions()
        stops = {place.rung: self._with_probes(self.rule.next_stop(place.rung)) for _, place in found}
        return [Promotion(get_trial_id(t), p, stops[p.rung], self._with_probes(p.rung) - p.rung) for t, p in found]

    def _with_probes(self, rung: int) -> int:
        """Return the rungs that a trial has trained at a rung, with its probes."""
        return rung + self.pruner.probes.cost_until(rung, self.pruner.rungs)

    def is_due(self, trial: RunningTrial) -> bool:
        """Return whether a trial is at a mark at which nothing was decided about it yet."""
        if self.rule is None or trial.never_prune or trial.rung not in self.rule.marks:
            return False
        return all(record["rung"] != trial.rung for record in trial.frozen.user_attrs.get(MARKS, ()))

    def settle(self, trial: RunningTrial, decision: str, rungs: TokenRungs) -> str:
        """Store the decision about a trial at a mark, and return it. A trial that the budget cannot pay for pauses.

        Raises:
            LeaseLost: another attempt has resumed the trial.
        """
        assert self.rule is not None
        place, record = self.pruner.describe_mark(trial.frozen)
        if decision == "continue" and rungs is not None:
            next_stop = self._with_probes(self.rule.next_stop(place.rung))
            if not reserve(self.stored.slots, trial.claim, self.owner, next_stop, rungs[1]):
                decision, record = "pause", {**record, "tokens": True}
        if decision == "pause":
            trial.mark = place, {"decision": "paused", **record}
            return decision
        records = [*trial.frozen.user_attrs.get(MARKS, ()), {"decision": "continued", **record}]
        with fenced(self.stored.slots.held(trial.claim, self.owner)):
            self.stored.store.optuna.set_trial_user_attr(get_trial_id(trial.frozen), MARKS, records)
        trial.frozen.user_attrs[MARKS] = records
        return decision

    def pause(self, trial: RunningTrial) -> bool:
        """Pause a trial for which `settle` has returned "pause"; return False if the lease is lost."""
        assert trial.mark is not None
        metrics: dict[str, Any] = {key: to_json_value(value) for key, value in trial.metrics.items()}
        attrs = {METRICS: metrics, **trial.unreported_attrs}
        return pause(self.stored.slots, trial.claim, self.owner, *trial.mark, attrs, trial.probe_rungs)

    def end_paused(self, is_over: bool, rungs: TokenRungs) -> list[FrozenTrial] | None:
        """End the paused trials of a study that has no other work, and return them.

        Return None if one of them may continue, or if another trial is running.
        """
        paused = [trial for trial in self.stored.optuna.get_trials(deepcopy=False) if is_paused(trial)]
        if not paused:
            return []
        used = self.stored.slots.rungs() if rungs else 0
        limit = rungs[1] if rungs else math.inf
        if not is_over and any(used + promotion.rungs <= limit for promotion in self._promotions()):
            return None
        ends = [PausedTrial(get_trial_id(t), t.intermediate_values[t.last_step or 0], self._record(t)) for t in paused]
        ended = prune_paused(self.stored.slots, ends)
        return None if ended is None else [trial for trial in paused if get_trial_id(trial) in ended]

    def _record(self, trial: FrozenTrial) -> dict[str, Any]:
        return {"rule": "asha", **self.pruner.describe_mark(trial)[1]}
