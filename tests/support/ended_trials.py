"""A planted search whose trials have ended with given results, without a worker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState, create_trial

from hpo.analysis.snapshot import read_snapshot
from hpo.analysis.warnings import study_warnings
from hpo.queue.budget import fill_slots
from hpo.queue.registry import register_study
from hpo.queue.stored_study import StoredStudy
from hpo.storage.attributes import END_REASON
from hpo.storage.store import Store
from hpo.study.load import load_study
from tests.support.planted import edit
from tests.support.planted import planted_study as planted

SPACE = {"x": {"low": 0.0, "high": 1.0}, "pause": {"low": 0.0, "high": 10.0}}


def register_search(store: Store, folder: Path, anchors: Mapping[str, float] | None = None, **keys: Any) -> StoredStudy:
    path = planted(folder, **{"space": SPACE, "budget": {"trials": 40}, **keys})
    edit(folder, "ge=0.0, le=1.0", "ge=-9.0, le=9.0")
    return register_study(store, load_study(str(path)), None, anchors or {})


def add_trial(
    stored: StoredStudy,
    value: float | None,
    kind: str = "search",
    pruned: bool = False,
    reason: str = "",
    **params: Any,
) -> None:
    """Put a trial into the study that ended at a value, or failed."""
    slot = len(stored.optuna.get_trials(deepcopy=False))
    state = TrialState.FAIL if value is None else TrialState.PRUNED if pruned else TrialState.COMPLETE
    space = stored.study.file.space
    trial = create_trial(
        state=state,
        value=value,
        params=params,
        distributions={path: space[path].distribution(float) for path in params},
        user_attrs={"slot": slot, "kind": kind, "attempt": 1, END_REASON: reason or state.name.lower()},
        intermediate_values={} if value is None else {1: value + 1, **({} if pruned else {4: value})},
    )
    stored.store.optuna.create_new_trial(stored.optuna._study_id, trial)


def warnings_of(stored: StoredStudy) -> list[str]:
    return study_warnings(read_snapshot(stored.store, stored.study.name))


def end_search(stored: StoredStudy) -> None:
    """End the study's budget at the trials that it has."""
    n = len(stored.optuna.get_trials(deepcopy=False))
    stored.optuna.set_user_attr("hpo:budget", {"trials": n})
    fill_slots(stored.slots, stored.study.slots()[:n])
