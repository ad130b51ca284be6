"""Read the state of a study from the storage, without loading the model, torch or Optuna."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hpo.analysis.noise import Noise, noise_floor
from hpo.errors import NothingFeasible, Problem
from hpo.queue.identity import find_slots
from hpo.queue.inspect import SlotEvent, unregistered_problem
from hpo.search.direction import Direction
from hpo.storage import attributes, targets
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import resolve_study_name, study_attrs, study_ids
from hpo.storage.trials import State, Trial, read_trials
from hpo.study.earlier import complete_spec


@dataclass(frozen=True)
class Snapshot:
    """The definition, the trials and the slots of a study as the storage holds them at one moment.

    spec: the study file as stored, completed as `complete_spec` does. slots: kind of a trial -> number of slots; a slot
    is one trial of the budget. leased: slots that a live worker holds. anchors: losses of the n-gram models. elapsed:
    seconds since the first launch. rows: what became of the rows of the data, empty if an earlier version prepared it.
    uid: "" for a study of an earlier version of hpo. paused: slots whose trials are paused.
    arithmetic: device, precision, compilation and attention, {} until a worker resolves them; None in earlier versions.
    probe: what `probe: auto` has decided, {} until then.
    """

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
    events: Sequence[SlotEvent] = ()
    reached: Mapping[str, targets.TargetReached] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    uid: str = ""
    stalled: Mapping[int, int] = field(default_factory=dict)
    paused: frozenset[int] = frozenset()
    arithmetic: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None

    @property
    def first_name(self) -> str:
        """The name under which the study was created. Its run folder and its comparisons keep this name."""
        return str(self.spec["name"])

    @property
    def names(self) -> frozenset[str]:
        """The name of the study, and the name that it had before it was renamed."""
        return frozenset((self.name, self.first_name))

    @property
    def objective(self) -> str:
        return str(self.spec["objective"])

    @cached_property
    def direction(self) -> Direction:
        """Whether a smaller or a larger objective is better. Studies of version 0.1 minimize."""
        return Direction(self.spec.get("direction", Direction.MINIMIZE))

    def loss(self, trial: Trial) -> float:
        """Return the objective of a complete trial as a loss: the smaller, the better."""
        return self.direction.loss(trial.values[0])

    @property
    def rungs(self) -> int:
        return int(self.spec["rungs"])

    @property
    def rung_tokens(self) -> float | None:
        """Tokens between two rungs, None for a training function that does not count tokens."""
        return self.spec.get("rung_tokens")

    @cached_property
    def own(self) -> list[Trial]:
        """The trials that workers of this study ran: none that `hpo fork` copied or that another program added."""
        return [t for t in self.trials if "slot" in t.user_attrs and t.user_attrs.get("kind") != attributes.FORKED]

    @cached_property
    def feasible(self) -> list[Trial]:
        """The complete trials that meet their constraints; the best trial is one of them.

        Repeats of the baseline with other seeds are left out, because they differ from it only in the seed.
        """
        complete = [t for t in self.in_state(State.COMPLETE) if self.kind(t) != "seed"]
        return [t for t in complete if all(c <= 0 for c in t.constraints.values())]

    @cached_property
    def baseline_runs(self) -> list[Trial]:
        """The complete runs of the first baseline: the run with the seed of the study file, then its repeats."""
        first = self.baseline()
        repeats = [t for t in self.own if self.kind(t) == "seed"]
        return [t for t in ([first] if first else []) + repeats if t.state == State.COMPLETE]

    @cached_property
    def noise(self) -> Noise | None:
        """The noise floor of the runs of the first baseline, None for fewer than two complete runs."""
        return noise_floor(self.baseline_runs, self.direction)

    @cached_property
    def target(self) -> str | None:
        """The name of the target that ended the study, None where no target did."""
        name = self.budget.get("target")
        return name if name in self.reached else None

    def kind(self, trial: Trial) -> str | None:
        """Return the kind of a trial, such as baseline, seed, arm or search; a retry has the kind of its trial."""
        return trial.user_attrs.get(attributes.RETRIED, trial.user_attrs.get("kind"))

    def in_state(self, *states: State) -> list[Trial]:
        return [t for t in self.trials if t.state in states]

    def best(self) -> Trial | None:
        """Return the complete trial with the best objective among the trials that meet their constraints."""
        return self._best

    def baseline(self) -> Trial | None:
        """Return the trial of the first baseline in the study file, in any state.

        Where that trial failed and a retry is complete, return the retry.
        """
        return self._baseline

    @property
    def baseline_value(self) -> float | None:
        """The objective of the first baseline, None while no run of it is complete."""
        first = self.baseline()
        return first.values[0] if first is not None and first.state == State.COMPLETE else None

    @cached_property  # the live view reads it four times per second
    def _best(self) -> Trial | None:
        return min(self.feasible, key=self.loss, default=None)

    @cached_property
    def _baseline(self) -> Trial | None:
        baselines = [t for t in self.trials if self.kind(t) == "baseline"]
        first = min(baselines, key=lambda t: int(t.user_attrs["slot"]), default=None)
        if first is None or first.state == State.COMPLETE:
            return first
        fixed = first.user_attrs.get(attributes.FIXED_VALUES)
        tries = [t for t in baselines if t.user_attrs.get(attributes.FIXED_VALUES) == fixed]
        return next((t for t in tries if t.state == State.COMPLETE), first)

    @cached_property
    def state_counts(self) -> dict[str, int]:
        """The number of trials by state. waiting includes the slots whose trial no worker has started.

        Only a study whose trials may pause has paused.
        """
        started = {t.user_attrs["slot"] for t in self.own}
        states = Counter(t.state for t in self.own)
        waiting = states[State.WAITING] - len(self.paused)  # interrupted trials, which a worker resumes
        if self.budget.get("trials"):
            waiting += max(0, sum(self.slots.values()) - len(started))
        paused = {"paused": len(self.paused)} if self.spec.get("pruner", {}).get("name") == "asha" else {}
        return {state.value: states[state] for state in _SHOWN} | paused | {"waiting": waiting}


GIVEN_KINDS = ("baseline", "seed", "arm")  # kinds of trials whose values the study file gives
_SHOWN = (State.COMPLETE, State.PRUNED, State.FAIL, State.RUNNING)


def read_snapshot(store: OpenStorage, name: str | None) -> Snapshot:
    """Read a study; name: None for the only study of the storage.

    Raises:
        Problem: the storage has no such study, several studies and no name, or a study of another program.
    """
    name = resolve_study_name(store, name)
    study_id = study_ids(store)[name]
    attrs = study_attrs(store, study_id, name)
    if attributes.SPEC not in attrs:
        raise unregistered_problem(store, name, study_id, attrs)
    uid = attrs.get(attributes.UID, "")
    slots, spec = find_slots(store, study_id, uid), complete_spec(attrs[attributes.SPEC])
    maximize = spec.get("direction") == Direction.MAXIMIZE
    return Snapshot(
        name=name,
        spec=spec,
        budget=attrs.get(attributes.BUDGET) or spec["budget"],
        anchors=attrs.get(attributes.ANCHORS) or {},
        data_hash=attrs.get(attributes.DATA_HASH),
        elapsed=slots.now() - attrs[attributes.STARTED],
        trials=read_trials(store, study_id),
        slots=slots.counts(),
        leased=frozenset(lease.slot for lease in slots.owners() if lease.seconds > 0),
        state=attrs.get(attributes.STUDY_STATE, "active"),
        events=slots.events(),
        reached=targets.targets_reached(store, study_id, spec.get("targets") or {}, maximize),
        rows=attrs.get(attributes.DATA_ROWS) or {},
        uid=uid,
        stalled=slots.stalled(),
        paused=slots.paused(),
        arithmetic=attrs.get(attributes.ARITHMETIC),
        probe=attrs.get(attributes.PROBE_PLAN),
    )


def best_trial(snapshot: Snapshot) -> Trial:
    """Return the best trial.

    Raises:
        NothingFeasible: no trial is complete.
    """
    best = snapshot.best()
    if best is None:
        raise NothingFeasible(f"study {snapshot.name}: no trial is complete yet; `hpo status` shows the progress")
    return best


def trial_value(trial: Trial) -> float | None:
    """Return the objective of a trial, or its last finite intermediate value where it has no result."""
    if trial.values:  # the worker reports the last finite value of a pruned trial as its result
        return float(trial.values[0])
    finite = [v for _, v in sorted(trial.intermediate_values.items()) if math.isfinite(v)]
    return finite[-1] if finite else None


def trial_status(snapshot: Snapshot, trial: Trial) -> str:
    """Return the status of a trial in one word: running, interrupted, paused, complete, or the reason why it ended."""
    if trial.state == State.WAITING and trial.user_attrs.get("slot") in snapshot.paused:
        return "paused"
    lost = trial.state == State.RUNNING and trial.user_attrs.get("slot") not in snapshot.leased
    if lost or trial.state == State.WAITING:
        return "interrupted"
    return str(trial.user_attrs.get(attributes.END_REASON, trial.state))


def find_trial(snapshot: Snapshot, number: int) -> Trial:
    """Return a trial by number.

    Raises:
        Problem: the study has no such trial.
    """
    if found := [trial for trial in snapshot.trials if trial.number == number]:
        return found[0]
    existing = f"it has trials 0 to {len(snapshot.trials) - 1}" if snapshot.trials else "it has no trials yet"
    raise Problem(f"trial: study {snapshot.name} has no trial {number}; {existing}")
