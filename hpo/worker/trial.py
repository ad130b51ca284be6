"""One trial in the hands of a worker: its slot, its Optuna trial, its folder."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel

from hpo.optuna_internals import get_study_id, get_trial_id
from hpo.queue.registry import StoredStudy
from hpo.queue.slots import Claim
from hpo.runs.provenance import describe_machine
from hpo.search.complement_log import Mirror
from hpo.search.samplers import seeded
from hpo.search.space import held, suggest
from hpo.storage.attributes import ARM, FIXED_VALUES, MACHINE, RETRIED, SEED, SUGGESTED_BY
from hpo.storage.fencing import LeaseLost, fenced
from hpo.study.arms import arm_of
from hpo.study.spec import seed_path
from model.seeds import derive

INDEPENDENT_SAMPLERS = ("random", "qmc")  # samplers that look at no trial


@dataclass
class RunningTrial:
    """A trial that this worker runs; `trial` is the worker's own copy, to which it adds each value.

    alone: whether to train it without neighbours, to see whose failure a pack's was.
    unsent: values by rung that the storage has not got yet, since it was away.
    pruned: the comparison that ends it, once one does.
    seconds: what its earlier attempts took; began: when this one did, by this process's clock.
    """

    claim: Claim
    trial: FrozenTrial
    config: BaseModel
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    unsent: dict[int, float] = field(default_factory=dict)
    pruned: dict[str, Any] | None = None
    seconds: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def add(self, rung: int, value: float) -> None:
        """Add a value that is to be told to the study; one that the study has stays as it is."""
        if rung not in self.trial.intermediate_values:
            self.trial.intermediate_values[rung] = self.unsent[rung] = value

    def spent(self) -> float:
        """Return the seconds of all attempts."""
        return self.seconds + time.monotonic() - self.began

    def overdue(self, limit: float | None) -> bool:
        """Return whether it took longer than so many seconds."""
        return limit is not None and self.spent() >= limit

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def spared(self) -> bool:
        """Whether it is never pruned, since others are measured against it."""
        return self.trial.user_attrs.get(RETRIED, self.claim.kind) in ("baseline", "seed", "arm")

    @property
    def rung(self) -> int:
        return self.trial.last_step or 0


def open_trial(stored: StoredStudy, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Return the trial of a claimed slot: the one that an earlier attempt began, else a new one.

    Raises:
        Lost: the claim is lost.
    """
    if claim.trial_id is None:
        return _new(stored, claim, owner, pack)
    _meet(stored)
    with fenced(stored.slots.held(claim, owner)):
        for key, value in {
            "attempt": claim.attempt,
            "worker": owner,
            MACHINE: {**describe_machine(), "pack": pack},
        }.items():
            with contextlib.suppress(UpdateFinishedTrialError):
                stored.store.optuna.set_trial_user_attr(claim.trial_id, key, value)
    return stored.store.optuna.get_trial(claim.trial_id)


def _new(stored: StoredStudy, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Make the trial's row, slot and attempt in it, and note it in the slot, all in one transaction."""
    fixed = _holdable(stored, claim)
    template = create_trial(
        state=TrialState.RUNNING,
        params={path: value for path, (value, _) in fixed.items()},
        distributions={path: kind for path, (_, kind) in fixed.items()},
        user_attrs={
            "slot": claim.slot,
            "attempt": claim.attempt,
            "kind": claim.kind,
            "worker": owner,
            **({} if claim.fixed is None else {FIXED_VALUES: claim.fixed, SUGGESTED_BY: _given(stored, claim)}),
            **_arm(stored, claim),
            **({} if claim.origin is None else {"retry_of": claim.origin, RETRIED: _first_kind(stored, claim.origin)}),
            MACHINE: {**describe_machine(), "pack": pack},
        },
    )

    def make() -> int:
        try:
            with fenced(stored.slots.held(claim, owner), stored.slots.link(claim, owner)):
                return stored.store.create_new_trial(get_study_id(stored.optuna), template)
        except LeaseLost:
            made = stored.slots.trial_id(claim.slot)  # made before, and its answer was lost, or another attempt's
            if made is None:
                raise
            _meet(stored)
            return made

    return stored.store.optuna.get_trial(stored.store.retry(make))


def _first_kind(stored: StoredStudy, number: int) -> str:
    """Return the kind of the trial that is tried again; of a try of a try, that of the first."""
    (attrs,) = (t.user_attrs for t in stored.optuna.get_trials(deepcopy=False) if t.number == number)
    return str(attrs.get(RETRIED, attrs.get("kind")))


def _given(stored: StoredStudy, claim: Claim) -> dict[str, Any]:
    """Return where the values of a fixed slot come from."""
    file = stored.study.file
    if claim.kind == "retry":
        return {"by": claim.kind, "of": claim.origin}
    if claim.kind != "search":
        return {"by": claim.kind}
    before = len(file.baseline) + len(stored.study.noise_seeds())
    return {
        "by": file.sampler.name,
        "point": claim.slot - before + 1,
        "of": len(file.sampler.combinations(stored.study.base, file.space) or ()),
    }


def _arm(stored: StoredStudy, claim: Claim) -> dict[str, Any]:
    """Return arm and seed of a trial that is one of an arm's."""
    path, fixed = seed_path(stored.study.base), claim.fixed
    if path is None or fixed is None or (name := arm_of(stored.study.file, fixed, path)) is None:
        return {}
    return {ARM: name, SEED: fixed[path]}


def _meet(stored: StoredStudy) -> None:
    """Have Optuna's cache see every trial: it takes no parameter of one that it never saw."""
    stored.optuna.get_trials(deepcopy=False)


def _holdable(stored: StoredStudy, claim: Claim) -> dict[str, tuple[Any, BaseDistribution]]:
    """Return the parameters of a fixed slot that Optuna can hold; none where its values do not go together."""
    if claim.fixed is None:
        return {}
    try:
        return held(stored.study.configured(claim.fixed), stored.study.file.space)
    except Exception:  # said where the trial is configured, when it has a row to be told in
        return {}


def trial_config(stored: StoredStudy, claim: Claim, trial: FrozenTrial) -> BaseModel:
    """Return what a trial is to train: the slot's fixed values, else what the sampler suggests.

    Raises:
        pydantic.ValidationError: the values do not go together.
    """
    if claim.fixed is not None:
        return stored.study.configured(claim.fixed)
    seed = derive(stored.study.file.seed, f"sampler/{claim.slot}/{claim.attempt}") % 2**32
    study_seed = derive(stored.study.file.seed, "sampler") % 2**32
    file = stored.study.file
    stored.optuna.sampler = sampler = seeded(file.sampler, stored.study.base, file.space, seed, study_seed)
    opened = optuna.Trial(stored.optuna, get_trial_id(trial))
    if not trial.params:  # first, so that no parameter is ever there without it
        stored.store.optuna.set_trial_user_attr(get_trial_id(trial), SUGGESTED_BY, _drawn(stored, sampler, opened))
    # What an earlier attempt was suggested is in the row, and suggested again.
    return stored.study.configured(suggest(opened, stored.study.base, file.space))


def _drawn(stored: StoredStudy, sampler: BaseSampler, trial: optuna.Trial) -> dict[str, Any]:
    """Return what a sampler knew when it was asked: the trials that it was shown, and whether it uses them yet."""
    own = stored.study.file.sampler
    if own.name in INDEPENDENT_SAMPLERS:
        return {"by": own.name}
    assert isinstance(sampler, Mirror)
    shown = sampler.view(stored.optuna, sampler.joint).get_trials(deepcopy=False)  # read for the draw too, and once
    finished = sum(other.state.is_finished() for other in shown)
    running = sum(o.state == TrialState.RUNNING and o.number != trial.number for o in shown)
    first = getattr(own, "startup_trials", getattr(own, "population", 0))
    random = not trial.relative_params if sampler.joint else finished < first
    return {"by": own.name, "finished": finished, "running": running} | ({"random_until": first} if random else {})
