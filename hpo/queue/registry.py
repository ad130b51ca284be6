"""Create a study in the storage, or find it and check that it is the same study."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna

from hpo.errors import Problem
from hpo.optuna_internals import get_study_id
from hpo.queue.budget import delete_slots, fill_slots
from hpo.queue.slots import Slots
from hpo.search.direction import Direction
from hpo.search.study_view import experimental
from hpo.storage.attributes import ANCHORS, BUDGET, DATA_HASH, DATA_ROWS, PROTOCOL, SPEC, STARTED, STUDY_STATE
from hpo.storage.locks import creation_lock
from hpo.storage.retry import OpenStorage
from hpo.storage.store import Store
from hpo.storage.targets import target_reached
from hpo.storage.trials import resolve_study_name, study_ids
from hpo.study.spec import Budget, Study, spec_fingerprint, study_from_spec
from model.section import flatten

# Version of what the workers of a study share: tables, attributes, the meaning of a slot, checkpoints.
# 1: hpo 0.1.0. 2: `train` holds the address model.train.trainer:Trainer, and checkpoints name optimizer state as
# PyTorch does; version 0.1.0 can read neither. A program reads every protocol up to its own.
PROTOCOL_VERSION = 2


@dataclass(frozen=True)
class StoredStudy:
    """A study in the storage: its definition, Optuna's study and its slots."""

    study: Study
    optuna: optuna.Study
    slots: Slots
    store: Store

    @property
    def data_hash(self) -> str | None:
        data_hash: str | None = self.optuna.user_attrs.get(DATA_HASH)
        return data_hash

    @property
    def anchors(self) -> dict[str, float]:
        anchors: dict[str, float] = self.optuna.user_attrs.get(ANCHORS) or {}
        return anchors

    def store_rows(self, rows: Mapping[str, int]) -> None:
        """Store what became of the rows of the data, unless an earlier launch has."""
        if rows and DATA_ROWS not in self.optuna.user_attrs:
            self.optuna.set_user_attr(DATA_ROWS, dict(rows))

    def read_state(self) -> "StudyState":
        """Read what can change while a study runs."""
        attrs = self.optuna.user_attrs
        budget = Budget.model_validate(attrs.get(BUDGET) or attrs[SPEC]["budget"])
        file = self.study.file.model_copy(update={"budget": budget})
        hours_over, n_rungs = False, replace(self.study, file=file).rungs_in_budget
        if budget.hours is not None:
            hours_over = self.slots.now() - attrs[STARTED] >= 3600 * budget.hours
        rungs = None if n_rungs is None else (self.study.rungs, n_rungs)
        target = None if budget.target is None else self.study.file.targets[budget.target]
        return StudyState(attrs.get(STUDY_STATE, "active"), hours_over, rungs, target)

    def is_over(self, state: "StudyState") -> bool:
        """Return whether no new trial may start, because the hours are over or a trial has reached the target.

        Trials that have started run to their end. This method reads the storage if the study has a target.
        """
        if state.hours_over:
            return True
        if state.target is None:
            return False
        maximize = self.study.direction is Direction.MAXIMIZE
        return target_reached(self.store, get_study_id(self.optuna), state.target, maximize)

    def raise_protocol(self) -> None:
        """Store this program's protocol version, so that older programs refuse the study from now on."""
        if _protocol(self.optuna) < PROTOCOL_VERSION:
            self.optuna.set_user_attr(PROTOCOL, PROTOCOL_VERSION)


@dataclass(frozen=True)
class StudyState:
    """The part of a study that can change while it runs.

    state: "active", "paused" or "stopped". hours_over: whether the hours of the budget have passed.
    rungs: of a budget in tokens, the rungs of one trial and the rungs that all trials together may train.
    target: value of the objective that ends the study.
    """

    state: str
    hours_over: bool
    rungs: tuple[int, int] | None
    target: float | None = None


def register_study(
    store: Store,
    study: Study,
    data_hash: str | None,
    anchors: Mapping[str, float],
    requested: Mapping[str, Any] | None = None,
) -> StoredStudy:
    """Create a study, or find it if it exists; then create the slots of its budget.

    requested: the budget of the command line. An existing study keeps its own value for each key that is None here,
        but takes a larger number of trials from the file.

    Raises:
        Problem: The storage holds a different study under this name, the data differ, or a new study has objections.
    """
    spec = study.spec()
    with creation_lock(
        store.url, store.patience
    ):  # two launches may run simultaneously, even with two files of one name
        check_objections(store, study)
        found = optuna.create_study(
            study_name=study.name, storage=store.optuna, direction=study.file.direction, load_if_exists=True
        )
        stored_spec = found.user_attrs.get(SPEC)
        if stored_spec is None:
            _describe(store, found, study, data_hash, anchors)
        else:
            _check_version(found)
            _check_same(study, study_from_spec(stored_spec).spec(), spec)
            check_data_hash(found, data_hash)
            study = _with_budget(study, found.user_attrs.get(BUDGET) or stored_spec["budget"], requested or {})
        found.set_user_attr(STUDY_STATE, "active")
        found.set_user_attr(BUDGET, study.file.budget.model_dump(mode="json"))
        stored = StoredStudy(study, found, Slots(store, get_study_id(found)), store)
        stored.raise_protocol()
        fill_slots(stored.slots, study.slots())
        if stored_spec is None:
            found.set_user_attr(SPEC, spec)  # last: workers may join a study as soon as it has this attribute
    return stored


def check_objections(store: OpenStorage | None, study: Study) -> None:
    """Check a study that the storage does not hold yet; store is None where there is no storage yet.

    Raises:
        Problem: The study is new and has objections.
    """
    if study.objections and (store is None or study.name not in study_ids(store)):
        raise Problem(*study.objections)


def _with_budget(study: Study, stored: Mapping[str, Any], requested: Mapping[str, Any]) -> Study:
    """Return the study with the budget that is valid from now on. The target is that of the file."""
    own = study.file.budget
    budget = {**stored, **{key: value for key, value in requested.items() if value is not None}, "target": own.target}
    if all(value is None for value in budget.values()):  # the only end was a target, which the file no longer has
        return study
    if requested.get("trials") is None and budget["trials"] and own.trials:
        budget["trials"] = max(budget["trials"], own.trials)
    file = study.file.model_copy(update={"budget": Budget.model_validate(budget)})
    return replace(study, file=file)


def _describe(
    store: Store, new: optuna.Study, study: Study, data_hash: str | None, anchors: Mapping[str, float]
) -> None:
    """Set the attributes of a new study, except SPEC."""
    if new.get_trials(deepcopy=False):
        raise Problem(
            f"study: the storage holds a study {new.study_name!r} that another program made; use another --storage"
        )
    delete_slots(Slots(store, get_study_id(new)))  # SQLite gives the id of a deleted study to the next study
    with experimental():  # the dashboard labels its axes with this name
        new.set_metric_names([study.file.objective])
    attributes = {DATA_HASH: data_hash, ANCHORS: dict(anchors), PROTOCOL: PROTOCOL_VERSION}
    for key, value in (attributes | {STARTED: Slots(store, 0).now()}).items():
        new.set_user_attr(key, value)


def load_stored_study(store: Store, name: str | None) -> StoredStudy:
    """Find a study by name, or the only study of the storage.

    Raises:
        Problem: No study has this name, no name is given and there are several studies, or a newer version of hpo
            created the study.
    """
    name = resolve_study_name(store, name)
    found = optuna.load_study(study_name=name, storage=store.optuna)
    spec = found.user_attrs.get(SPEC)
    if spec is None:
        raise Problem(f"--study: {name!r} was not created by `hpo launch`")
    _check_version(found)
    budget = found.user_attrs.get(BUDGET) or spec["budget"]
    return StoredStudy(study_from_spec({**spec, "budget": budget}), found, Slots(store, get_study_id(found)), store)


def _protocol(study: optuna.Study) -> int:
    return int(study.user_attrs.get(PROTOCOL, 1))


def _check_version(study: optuna.Study) -> None:
    """Check that this program knows the protocol of a study.

    Raises:
        Problem: A newer version of hpo created or continued the study.
    """
    if (protocol := _protocol(study)) > PROTOCOL_VERSION:
        raise Problem(
            f"study {study.study_name}: a newer version of hpo uses it with protocol {protocol}, and this version "
            f"knows protocols up to {PROTOCOL_VERSION}; "
            "install the newer version on all machines, or use another study name"
        )


def check_data_hash(study: optuna.Study, data_hash: str | None) -> None:
    """Check that prepared data are those of a study.

    Raises:
        Problem: The hashes differ.
    """
    stored = study.user_attrs.get(DATA_HASH)
    if stored != data_hash:
        raise Problem(
            f"study {study.study_name}: its data has the hash {_short(stored)}, here it has {_short(data_hash)}; "
            "losses on different data cannot be compared: use the same text, or another study name"
        )


def _check_same(study: Study, stored: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    if spec_fingerprint(stored) == spec_fingerprint(spec):
        return
    before, after = flatten({**stored, "budget": None}), flatten({**spec, "budget": None})
    lines = [
        f"{study.source}: {key}: the study in the storage has {old}, here it is {new}"
        for key in sorted(before.keys() | after.keys())
        if (old := _as_json(before, key)) != (new := _as_json(after, key))
    ]
    fork = shlex.join(["hpo", "fork", study.source, "--from", study.name, "--as", f"{study.name}-2"])
    remedy = (
        f"the definition of a study cannot change: `{fork}` "
        "creates another study with the trials that fit its definition; or give the file another name"
    )
    raise Problem(*lines, remedy)


def _as_json(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "nothing"


def _short(data_hash: str | None) -> str:
    return data_hash[:12] if data_hash else "none"
