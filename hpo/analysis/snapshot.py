"""What a study has done so far, read from the storage alone: no model, no torch, so it answers at once."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hpo.analysis.noise import Noise, noise_floor
from hpo.config.addresses import with_current_addresses
from hpo.errors import NothingFeasible, Problem
from hpo.queue.inspect import SlotEvent, SlotTable
from hpo.storage import targets
from hpo.storage.attributes import (
    ANCHORS,
    BUDGET,
    DATA_HASH,
    END_REASON,
    FIXED_VALUES,
    FORKED,
    RETRIED,
    SPEC,
    STARTED,
    STUDY_STATE,
)
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import State, Trial, read_trials, resolve_study_name, study_attrs, study_ids


@dataclass(frozen=True)
class Snapshot:
    """A study and its trials at one moment."""

    name: str
    spec: Mapping[str, Any]
    budget: Mapping[str, Any]
    anchors: Mapping[str, float]
    data_hash: str | None
    elapsed: float
    trials: list[Trial]
    slots: Mapping[str, int]
    leased: frozenset[int]
    state: str = "active"
    happened: Sequence[SlotEvent] = ()
    reached: Mapping[str, targets.TargetReached] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        return str(self.spec["objective"])

    @property
    def rungs(self) -> int:
        return int(self.spec["rungs"])

    @property
    def rung_tokens(self) -> float | None:
        found: float | None = self.spec.get("rung_tokens")
        return found

    @cached_property
    def own(self) -> list[Trial]:
        """The trials that this study ran itself: not those that `hpo fork` carried over, or another program made."""
        return [t for t in self.trials if "slot" in t.user_attrs and t.user_attrs.get("kind") != FORKED]

    @cached_property
    def feasible(self) -> list[Trial]:
        """The finished trials, one of which is the best: they meet their constraints.

        The baseline with another seed is none of them: it is the same configuration with more luck.
        """
        finished = [t for t in self.in_state(State.COMPLETE) if all(c <= 0 for c in t.constraints.values())]
        return [t for t in finished if self.kind(t) != "seed"]

    @cached_property
    def repeats(self) -> list[Trial]:
        """The finished runs of the first baseline, the one of the base's own seed first."""
        first = self.baseline()
        again = [t for t in self.own if self.kind(t) == "seed"]
        return [t for t in ([first] if first else []) + again if t.state == State.COMPLETE]

    @cached_property
    def noise(self) -> Noise | None:
        """The noise floor of those runs, None for fewer than two."""
        return noise_floor(self.repeats)

    @cached_property
    def target(self) -> str | None:
        """The name of the target that ends the study, None where it goes by other things or is not reached."""
        name = self.budget.get("target")
        return name if name in self.reached else None

    def kind(self, trial: Trial) -> str | None:
        """Return what a trial is; one that is tried again is what it was before."""
        return trial.user_attrs.get(RETRIED, trial.user_attrs.get("kind"))

    def in_state(self, *states: State) -> list[Trial]:
        return [t for t in self.trials if t.state in states]

    def best(self) -> Trial | None:
        """Return the finished trial with the smallest objective, among those that meet their constraints."""
        return self._best

    def baseline(self) -> Trial | None:
        """Return the first baseline trial, finished or not."""
        return self._baseline

    @cached_property  # the live view asks four times a second
    def _best(self) -> Trial | None:
        return min(self.feasible, key=lambda t: t.values[0], default=None)

    @cached_property
    def _baseline(self) -> Trial | None:
        found = [t for t in self.trials if self.kind(t) == "baseline"]
        first = min(found, key=lambda t: int(t.user_attrs["slot"]), default=None)
        if first is None or first.state == State.COMPLETE:
            return first
        tries = [t for t in found if t.user_attrs.get(FIXED_VALUES) == first.user_attrs.get(FIXED_VALUES)]
        return next((t for t in tries if t.state == State.COMPLETE), first)

    @cached_property
    def _counts(self) -> dict[str, int]:
        begun = {t.user_attrs["slot"] for t in self.own}
        states = Counter(t.state for t in self.own)
        waiting = states[State.WAITING]  # interrupted, to be gone on with
        if self.budget.get("trials"):
            waiting += max(0, sum(self.slots.values()) - len(begun))
        return {state.value: states[state] for state in _SHOWN} | {"waiting": waiting}


_SHOWN = (State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING)


def read_snapshot(store: OpenStorage, name: str | None) -> Snapshot:
    """Read a study.

    Raises:
        Problem: there is none of that name, or it was not made by us.
    """
    name = resolve_study_name(store, name)
    study_id = study_ids(store)[name]
    attrs = study_attrs(store, study_id)
    if SPEC not in attrs:
        raise Problem(f"--study: {name!r} was not made by `hpo launch`")
    slots, spec = SlotTable(store, study_id), with_current_addresses(attrs[SPEC])
    return Snapshot(
        name=name,
        spec=spec,
        budget=attrs.get(BUDGET) or spec["budget"],
        anchors=attrs.get(ANCHORS) or {},
        data_hash=attrs.get(DATA_HASH),
        elapsed=slots.now() - attrs[STARTED],
        trials=read_trials(store, study_id),
        slots=slots.counts(),
        leased=frozenset(lease.slot for lease in slots.owners() if lease.seconds > 0),
        state=attrs.get(STUDY_STATE, "active"),
        happened=slots.events(),
        reached=targets.targets_reached(store, study_id, spec.get("targets") or {}),
    )


def best_trial(snapshot: Snapshot) -> Trial:
    """Return the best trial.

    Raises:
        NothingFeasible: no trial is complete.
    """
    best = snapshot.best()
    if best is None:
        raise NothingFeasible(f"study {snapshot.name}: no trial is complete yet; `hpo status` says how far it is")
    return best


def trial_counts(snapshot: Snapshot) -> dict[str, int]:
    """Return trials by state; waiting are slots that nobody began."""
    return dict(snapshot._counts)


def has_ended(snapshot: Snapshot) -> bool:
    """Return whether a study has nothing left to do."""
    n, budget = trial_counts(snapshot), snapshot.budget
    over = bool(budget.get("hours")) and snapshot.elapsed >= 3600 * float(budget["hours"])
    if budget.get("tokens") and snapshot.rung_tokens:  # what is left does not pay for a whole trial
        spent = sum(t.last_step or 0 for t in snapshot.own)
        over = over or spent + snapshot.rungs > math.ceil(budget["tokens"] / snapshot.rung_tokens)
    over = over or snapshot.target is not None
    if n["running"] or snapshot.in_state(State.WAITING):
        return False
    return over or (bool(budget.get("trials")) and not n["waiting"])


def token_counts(snapshot: Snapshot) -> dict[str, int | None]:
    """Return tokens trained, and those that pruned trials were spared; None where a run has no tokens."""
    if snapshot.rung_tokens is None:
        return {"trained": None, "saved_by_pruning": None}
    trained = sum(t.last_step or 0 for t in snapshot.own)
    saved = sum(snapshot.rungs - (t.last_step or 0) for t in snapshot.own if t.state == State.PRUNED)
    return {"trained": round(trained * snapshot.rung_tokens), "saved_by_pruning": round(saved * snapshot.rung_tokens)}


def trial_value(trial: Trial) -> float | None:
    """Return a trial's result, or the last finite value of one that has none."""
    if trial.values:  # of a pruned trial, the worker tells the last finite one
        return float(trial.values[0])
    finite = [v for _, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]
    return finite[-1] if finite else None


def trial_status(snapshot: Snapshot, trial: Trial) -> str:
    """Return in one word where a trial stands: running, interrupted, complete, or why it ended."""
    if trial.state == State.WAITING or (
        trial.state == State.RUNNING and trial.user_attrs.get("slot") not in snapshot.leased
    ):
        return "interrupted"
    return str(trial.user_attrs.get(END_REASON, trial.state))


def find_trial(snapshot: Snapshot, number: int) -> Trial:
    """Return a trial by number.

    Raises:
        Problem: there is none.
    """
    for trial in snapshot.trials:
        if trial.number == number:
            return trial
    held = f"0 to {len(snapshot.trials) - 1}" if snapshot.trials else "none yet"
    raise Problem(f"trial: study {snapshot.name} has no trial {number}; it has {held}")
