"""A trial that a worker runs: its claim, its Optuna trial, its configuration and its folder."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel

from hpo.optuna_internals.objects import get_cached_trial, get_study_id, get_trial_id
from hpo.queue.slots import Claim
from hpo.queue.stored_study import StoredStudy
from hpo.runs.provenance import describe_machine
from hpo.search.complement_log import ComplementLogSampler
from hpo.search.marks import Standing
from hpo.search.pruners import learns_from_deepest
from hpo.search.samplers import build_sampler
from hpo.search.space import params_in_range, suggest_values
from hpo.storage.attributes import ARM, FIXED_VALUES, MACHINE, RETRIED, SEED, SUGGESTED_BY
from hpo.storage.fencing import LeaseLost, fenced
from hpo.study.arithmetic import with_earlier_engines
from hpo.study.arms import find_arm
from hpo.study.spec import seed_path
from model.seeds import derive

INDEPENDENT_SAMPLERS = ("random", "qmc")  # samplers whose suggestions do not depend on other trials


@dataclass
class RunningTrial:
    """A trial that this worker has claimed. It is being trained, or waits for a pack.

    frozen: the worker's own copy of the Optuna trial. The worker adds each new value to it.
    alone: whether to train the trial in a pack of its own, to find out which trial of a pack has failed.
    unreported: values by rung that the storage does not have yet, because it was unreachable. unreported_attrs:
    the same for attributes. probe_rungs: tokens of its probes, in rungs, rounded up.
    pruning_decision: the comparison by which the pruner ended the trial.
    mark: the place at the mark at which the trial pauses, and its record.
    note: what a reader of the result should know. costs: metrics that are known before the training.
    earlier_seconds: training time of earlier attempts. started_at: when this attempt started, by time.monotonic().
    """

    claim: Claim
    frozen: FrozenTrial
    config: BaseModel
    folder: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    unreported: dict[int, float] = field(default_factory=dict)
    unreported_attrs: dict[str, Any] = field(default_factory=dict)
    probe_rungs: int = 0
    pruning_decision: dict[str, Any] | None = None
    mark: tuple[Standing, dict[str, Any]] | None = None
    note: str = ""
    costs: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    def add_value(self, rung: int, value: float) -> None:
        """Add a value that must be reported. A value that the study already has does not change."""
        if rung not in self.frozen.intermediate_values:
            self.frozen.intermediate_values[rung] = self.unreported[rung] = value

    def seconds(self) -> float:
        """Return the training time of all attempts."""
        return self.earlier_seconds + time.monotonic() - self.started_at

    def is_over(self, limit: float | None) -> bool:
        """Return whether the training time has reached a limit in seconds."""
        return limit is not None and self.seconds() >= limit

    @property
    def number(self) -> int:
        return self.frozen.number

    @property
    def never_prune(self) -> bool:
        """Whether no pruner may end the trial, because other trials are compared with it."""
        return self.frozen.user_attrs.get(RETRIED, self.claim.kind) in ("baseline", "seed", "arm")

    @property
    def rung(self) -> int:
        return self.frozen.last_step or 0

    @property
    def spent_rungs(self) -> int:
        """The rungs that it has trained, with its probes."""
        return self.rung + self.probe_rungs


def open_trial(stored: StoredStudy, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Return the trial of a claimed slot: the trial of an earlier attempt if there is one, otherwise a new trial.

    pack: number of trials that the worker trains side by side.

    Raises:
        LeaseLost: the claim is lost.
    """
    if claim.trial_id is None:
        return _create_trial(stored, claim, owner, pack)
    _fill_optuna_cache(stored)
    before = stored.store.optuna.get_trial(claim.trial_id)
    machine = with_earlier_engines({**describe_machine(), "pack": pack}, before.user_attrs)
    attrs = {"attempt": claim.attempt, "worker": owner, MACHINE: machine}
    with fenced(stored.slots.held(claim, owner)):
        for key, value in attrs.items():
            with contextlib.suppress(UpdateFinishedTrialError):
                stored.store.optuna.set_trial_user_attr(claim.trial_id, key, value)
    return stored.store.optuna.get_trial(claim.trial_id)


def _create_trial(stored: StoredStudy, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Create the Optuna trial of a slot and store its id in the slot, in one transaction."""
    template = _trial_template(stored, claim, owner, pack)

    def create() -> int:
        try:
            with fenced(stored.slots.held(claim, owner), stored.slots.link(claim, owner)):
                return stored.store.create_new_trial(get_study_id(stored.optuna), template)
        except LeaseLost:
            # Either an earlier call created the trial and its answer was lost, or another attempt holds the lease.
            trial_id = stored.slots.trial_id(claim.slot)
            if trial_id is None:
                raise
            _fill_optuna_cache(stored)
            return trial_id

    return get_cached_trial(stored.store.optuna, stored.store.retry(create))


def _trial_template(stored: StoredStudy, claim: Claim, owner: str, pack: int) -> FrozenTrial:
    """Return a new trial of a slot, with its attributes and the parameters that the slot fixes."""
    fixed = _fixed_params(stored, claim)
    return create_trial(
        state=TrialState.RUNNING,
        params={path: value for path, (value, _) in fixed.items()},
        distributions={path: distribution for path, (_, distribution) in fixed.items()},
        user_attrs={
            "slot": claim.slot,
            "attempt": claim.attempt,
            "kind": claim.kind,
            "worker": owner,
            **({} if claim.fixed is None else {FIXED_VALUES: claim.fixed, SUGGESTED_BY: _fixed_by(stored, claim)}),
            **_arm_attrs(stored, claim),
            **({} if claim.origin is None else {"retry_of": claim.origin, RETRIED: _first_kind(stored, claim.origin)}),
            MACHINE: {**describe_machine(), "pack": pack},
        },
    )


def _first_kind(stored: StoredStudy, number: int) -> str:
    """Return the kind of the trial that is retried. For a retry of a retry, return the kind of the first trial."""
    (attrs,) = (t.user_attrs for t in stored.optuna.get_trials(deepcopy=False) if t.number == number)
    return str(attrs.get(RETRIED, attrs.get("kind")))


def _fixed_by(stored: StoredStudy, claim: Claim) -> dict[str, Any]:
    """Return the origin of the values of a fixed slot, as it is stored."""
    file = stored.study.file
    if claim.kind == "retry":
        return {"by": claim.kind, "of": claim.origin}
    if claim.kind != "search":
        return {"by": claim.kind}
    return {
        "by": file.sampler.name,
        "point": _point(stored, claim) + 1,
        "of": len(file.sampler.combinations(stored.study.base, file.space) or ()),
    }


def _point(stored: StoredStudy, claim: Claim) -> int:
    """Return the index of a slot among those that follow the baselines. No two slots have the same index."""
    return claim.slot - len(stored.study.file.baseline) - len(stored.study.noise_seeds())


def _arm_attrs(stored: StoredStudy, claim: Claim) -> dict[str, Any]:
    """Return arm and seed of a trial, or nothing if the trial does not belong to an arm."""
    path, fixed = seed_path(stored.study.base), claim.fixed
    if path is None or fixed is None or (name := find_arm(stored.study.file, fixed, path)) is None:
        return {}
    return {ARM: name, SEED: fixed[path]}


def _fill_optuna_cache(stored: StoredStudy) -> None:
    """Read all trials into Optuna's cache, which rejects parameters of a trial that it does not contain."""
    stored.optuna.get_trials(deepcopy=False)


def _fixed_params(stored: StoredStudy, claim: Claim) -> dict[str, tuple[Any, BaseDistribution]]:
    """Return the parameters of a fixed slot that Optuna can store; none if the values are not a valid configuration."""
    if claim.fixed is None:
        return {}
    try:
        return params_in_range(stored.study.configured(claim.fixed), stored.study.file.space)
    except Exception:  # `trial_config` raises it again, when the trial exists and the error can be stored with it
        return {}


def trial_config(stored: StoredStudy, claim: Claim, frozen: FrozenTrial) -> BaseModel:
    """Return the configuration of a trial: the slot's fixed values, otherwise the values that the sampler suggests.

    frozen: the stored trial, which receives the suggested parameters.

    Raises:
        pydantic.ValidationError: the values are not a valid configuration.
    """
    if claim.fixed is not None:
        return stored.study.configured(claim.fixed)
    seed = derive(stored.study.file.seed, f"sampler/{claim.slot}/{claim.attempt}") % 2**32
    study_seed = derive(stored.study.file.seed, "sampler") % 2**32
    file = stored.study.file
    point = _point(stored, claim)
    deepest = learns_from_deepest(file.pruner)
    stored.optuna.sampler = sampler = build_sampler(
        file.sampler, stored.study.base, file.space, seed, study_seed, point, from_deepest=deepest
    )
    trial = optuna.Trial(stored.optuna, get_trial_id(frozen))
    if not frozen.params:  # before the first suggestion, so that every parameter has a stored origin
        trial.set_user_attr(SUGGESTED_BY, _suggested_by(stored, sampler, trial))
    # Parameters that an earlier attempt was given are stored in the trial, and Optuna suggests them again.
    values = suggest_values(trial, stored.study.base, file.space)
    frozen.params, frozen.distributions, frozen.user_attrs = trial.params, trial.distributions, trial.user_attrs
    return stored.study.configured(values)


def _suggested_by(stored: StoredStudy, sampler: ComplementLogSampler, trial: optuna.Trial) -> dict[str, Any]:
    """Return what the sampler knows at a suggestion, as it is stored.

    The dictionary holds the sampler that proposes the trial, the number of finished and running trials that it reads,
    whether it still draws at random, and the fields that follow their priors instead.
    """
    spec = stored.study.file.sampler
    followed = sampler.priors.followed(trial.number)
    record: dict[str, Any] = {"prior": followed} if followed else {}
    if spec.name in INDEPENDENT_SAMPLERS:
        return {"by": spec.name} | record
    # The sampler reads the same view for its suggestion, and keeps it, so the trials are read only once.
    trials = sampler.view(stored.optuna, sampler.joint).get_trials(deepcopy=False)
    finished = sum(other.state.is_finished() for other in trials)
    running = sum(o.state == TrialState.RUNNING and o.number != trial.number for o in trials)
    record |= spec.origin(sampler.joint, finished) | {"finished": finished, "running": running}
    first = getattr(spec, "startup_trials", getattr(spec, "population", 0))
    random = not trial.relative_params.keys() - set(followed) if sampler.joint else finished < first
    return record | ({"random_until": first} if random and spec.name != "auto" else {})
