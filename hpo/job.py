"""One trial in the hands of a worker: its slot, its Optuna trial, its folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ValidationError

from hpo.folders import machine
from hpo.register import Registered
from hpo.sampler import seeded
from hpo.slots import Claim
from hpo.space import held, suggest
from hpo.status import MACHINE, SET
from model.seeds import derive


@dataclass
class Job:
    """A trial that this worker runs; `trial` is the worker's own copy, to which it adds each value."""

    claim: Claim
    trial: FrozenTrial
    config: BaseModel
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def baseline(self) -> bool:
        return self.claim.kind == "baseline"

    @property
    def rung(self) -> int:
        return self.trial.last_step or 0


def open_trial(at: Registered, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Return the trial of a claimed slot: the one that an earlier attempt began, else a new one."""
    return _begun(at, claim) or _new(at, claim, owner, pack)


def _begun(at: Registered, claim: Claim) -> FrozenTrial | None:
    """Return the trial that an earlier attempt began, also where it died before it could note which."""
    if claim.trial_id is not None:
        return at.store.optuna.get_trial(claim.trial_id)
    return None if claim.attempt == 1 else _of_slot(at, claim)


def _of_slot(at: Registered, claim: Claim) -> FrozenTrial | None:
    trials = at.store.optuna.get_all_trials(at.optuna._study_id, deepcopy=False)
    return next((t for t in trials if t.user_attrs.get("slot") == claim.slot), None)


def _new(at: Registered, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Make the trial's row, slot and attempt in it, in one transaction."""
    fixed = _holdable(at, claim)
    template = create_trial(
        state=TrialState.RUNNING,
        params={path: value for path, (value, _) in fixed.items()},
        distributions={path: kind for path, (_, kind) in fixed.items()},
        user_attrs={
            "slot": claim.slot,
            "attempt": claim.attempt,
            "kind": claim.kind,
            "worker": owner,
            **({} if claim.fixed is None else {SET: claim.fixed}),
            MACHINE: {**machine(), "pack": pack},
        },
    )
    trial_id = _made_once(at, claim, template)
    at.slots.link(claim, owner, trial_id)
    return at.store.optuna.get_trial(trial_id)


def _made_once(at: Registered, claim: Claim, template: FrozenTrial) -> int:
    """Make a trial's row and return its id; one row also where the storage's answer is lost and asked for again."""
    tries = 0

    def make() -> int:
        nonlocal tries
        tries += 1
        made = _of_slot(at, claim) if tries > 1 else None
        return made._trial_id if made else at.store.create_new_trial(at.optuna._study_id, template)

    trial_id: int = at.store.retry(make)
    return trial_id


def _holdable(at: Registered, claim: Claim) -> dict[str, tuple[Any, BaseDistribution]]:
    """Return the parameters of a fixed slot that Optuna can hold; none where its values do not go together."""
    if claim.fixed is None:
        return {}
    try:
        return held(at.study.configured(claim.fixed), at.study.file.space)
    except ValidationError:
        return {}


def configuration(at: Registered, claim: Claim, trial: FrozenTrial) -> BaseModel:
    """Return what a trial is to train: the slot's fixed values, else what the sampler suggests.

    Raises:
        pydantic.ValidationError: the values do not go together.
    """
    if claim.fixed is not None:
        return at.study.configured(claim.fixed)
    seed = derive(at.study.file.seed, f"sampler/{claim.slot}/{claim.attempt}") % 2**32
    study_seed = derive(at.study.file.seed, "sampler") % 2**32
    file = at.study.file
    at.optuna.sampler = seeded(file.sampler, at.study.base, file.space, seed, study_seed)
    # What an earlier attempt was suggested is in the row, and suggested again.
    values = suggest(optuna.Trial(at.optuna, trial._trial_id), at.study.base, file.space)
    return at.study.configured(values)
