"""Read paused trials once: Optuna caches finished trials only, and reading 1,000 paused ones takes half a second."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals.objects import cached_unfinished_trials, without_reading
from hpo.storage.attributes import PAUSED
from hpo.storage.schema import SLOT

_c = SLOT.c


def cache_paused_trials(storage: BaseStorage, engine: sa.Engine) -> None:
    """Let a cached storage read a paused trial again only after another attempt has started."""
    read: Callable[..., list[FrozenTrial]] = storage.get_all_trials

    def get_all_trials(study_id: int, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        with without_reading(storage, study_id, _unchanged(storage, engine, study_id)):
            return read(study_id, *args, **kwargs)

    storage.get_all_trials = get_all_trials  # type: ignore[method-assign]


def _unchanged(storage: BaseStorage, engine: sa.Engine, study_id: int) -> set[int]:
    """Return the ids of the cached trials that are still paused since the attempt in which they were read."""
    cached = cached_unfinished_trials(storage, study_id).items()
    # Optuna reads the states before the attributes: a trial that pauses in between is read as one that runs.
    waiting = {trial_id: t for trial_id, t in cached if t.state == TrialState.WAITING}
    attempts = {trial_id: t.user_attrs.get("attempt") for trial_id, t in waiting.items() if PAUSED in t.user_attrs}
    if not attempts:
        return set()
    paused = sa.select(_c.trial_id, _c.attempt).where(_c.study_id == study_id, _c.state == "paused")
    with engine.connect() as connection:
        return {trial_id for trial_id, attempt in connection.execute(paused) if attempts.get(trial_id) == attempt}
