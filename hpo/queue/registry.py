"""A study in the storage: made once, found by name, refused where it is another one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna

from hpo.errors import Problem
from hpo.optuna_internals import get_study_id
from hpo.queue.budget import delete_slots, fill_slots
from hpo.queue.slots import Slots
from hpo.search.study_view import experimental
from hpo.storage.attributes import ANCHORS, BUDGET, DATA_HASH, PROTOCOL, SPEC, STARTED, STUDY_STATE
from hpo.storage.locks import creation_lock
from hpo.storage.store import Store
from hpo.storage.targets import target_reached
from hpo.storage.trials import resolve_study_name
from hpo.study.spec import Budget, Study, fingerprint, from_spec

PROTOCOL_VERSION = 1  # of what workers of one study agree on: tables, attributes, the meaning of a slot


@dataclass(frozen=True)
class StoredStudy:
    """A study as it lies in the storage."""

    study: Study
    optuna: optuna.Study
    slots: Slots
    store: Store

    @property
    def data_hash(self) -> str | None:
        found: str | None = self.optuna.user_attrs.get(DATA_HASH)
        return found

    @property
    def anchors(self) -> dict[str, float]:
        found: dict[str, float] = self.optuna.user_attrs.get(ANCHORS) or {}
        return found

    def read_state(self) -> "StudyState":
        """Read what may change while a study runs."""
        attrs = self.optuna.user_attrs
        budget = Budget.model_validate(attrs.get(BUDGET) or attrs[SPEC]["budget"])
        file = self.study.file.model_copy(update={"budget": budget})
        spent, n = False, replace(self.study, file=file).rungs_in_budget
        if budget.hours is not None:
            spent = self.slots.now() - attrs[STARTED] >= 3600 * budget.hours
        target = None if budget.target is None else self.study.file.targets[budget.target]
        return StudyState(attrs.get(STUDY_STATE, "active"), spent, None if n is None else (self.study.rungs, n), target)

    def is_over(self, now: "StudyState") -> bool:
        """Return whether no further trial is to be begun: the hours are over, or a trial has come to the target.

        Those that run go on to their end: one of them may be better still, and nothing is lost.
        """
        return now.hours_over or (
            now.target is not None and target_reached(self.store, get_study_id(self.optuna), now.target)
        )


@dataclass(frozen=True)
class StudyState:
    """How a study stands at this moment: its state, whether its hours are over, and the rungs of its tokens.

    rungs: those of one trial, and those that all trials may train. target: the objective that ends the study.
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
    asked: Mapping[str, Any] | None = None,
) -> StoredStudy:
    """Make a study, or find it if it is there already; fill its slots up to the budget.

    asked: the budget of the command line. A study that is there keeps its own where that says nothing, unless the
    file's trials are more by now.

    Raises:
        Problem: the storage holds another study under that name, or the data are others.
    """
    spec = study.spec()
    with creation_lock(store.url, store.patience):  # two launches at one moment, perhaps of two files of one name
        made = optuna.create_study(
            study_name=study.name, storage=store.optuna, direction="minimize", load_if_exists=True
        )
        held = made.user_attrs.get(SPEC)
        if held is None:
            delete_slots(Slots(store, get_study_id(made)))  # SQLite gives the id of a deleted study to the next
            told = {
                DATA_HASH: data_hash,
                ANCHORS: dict(anchors),
                STARTED: Slots(store, 0).now(),
                PROTOCOL: PROTOCOL_VERSION,
            }
            _describe(made, told, study.file.objective)
        else:
            _check_version(made)
            _check_same(study, from_spec(held).spec(), spec)
            check_data_hash(made, data_hash)
            study = _budgeted(study, made.user_attrs.get(BUDGET) or held["budget"], asked or {})
        made.set_user_attr(STUDY_STATE, "active")
        made.set_user_attr(BUDGET, study.file.budget.model_dump(mode="json"))
        slots = Slots(store, get_study_id(made))
        fill_slots(slots, study.slots())
        if held is None:
            made.set_user_attr(SPEC, spec)  # last: with it the study is whole, and workers may join
    return StoredStudy(study, made, slots, store)


def _budgeted(study: Study, held: Mapping[str, Any], asked: Mapping[str, Any]) -> Study:
    """Return the study with the budget that is in force from now on; its target is that of the file."""
    own = study.file.budget
    budget = {**held, **{key: value for key, value in asked.items() if value is not None}, "target": own.target}
    if all(value is None for value in budget.values()):  # it had nothing but a target, and the file has none any more
        return study
    if asked.get("trials") is None and budget["trials"] and own.trials:
        budget["trials"] = max(budget["trials"], own.trials)
    file = study.file.model_copy(update={"budget": Budget.model_validate(budget)})
    return replace(study, file=file)


def _describe(made: optuna.Study, attributes: Mapping[str, Any], objective: str) -> None:
    """Write a new study's description."""
    if made.get_trials(deepcopy=False):
        raise Problem(
            f"study: the storage holds a study {made.study_name!r} that another program made; use another --storage"
        )
    with experimental():  # the name that the dashboard's axes carry
        made.set_metric_names([objective])
    for key, value in attributes.items():
        made.set_user_attr(key, value)


def load_stored_study(store: Store, name: str | None) -> StoredStudy:
    """Find a study by name, or the only one of the storage.

    Raises:
        Problem: there is none of that name, or several and no name.
    """
    name = resolve_study_name(store, name)
    found = optuna.load_study(study_name=name, storage=store.optuna)
    spec = found.user_attrs.get(SPEC)
    if spec is None:
        raise Problem(f"study: {name!r} was not made by `hpo launch`")
    _check_version(found)
    budget = found.user_attrs.get(BUDGET) or spec["budget"]
    return StoredStudy(from_spec({**spec, "budget": budget}), found, Slots(store, get_study_id(found)), store)


def _check_version(study: optuna.Study) -> None:
    """Refuse a study whose workers agree on other things than we do.

    Raises:
        Problem: it is one.
    """
    held = study.user_attrs.get(PROTOCOL, PROTOCOL_VERSION)
    if held != PROTOCOL_VERSION:
        raise Problem(
            f"study {study.study_name}: was made by a version of hpo whose workers speak protocol {held}, this one "
            f"speaks {PROTOCOL_VERSION}; install the same version on all machines, or use another study name"
        )


def check_data_hash(study: optuna.Study, data_hash: str | None) -> None:
    """Refuse data that are not the study's own.

    Raises:
        Problem: the hashes differ.
    """
    held = study.user_attrs.get(DATA_HASH)
    if held != data_hash:
        raise Problem(
            f"study {study.study_name}: its data has the hash {_short(held)}, here it has {_short(data_hash)}; "
            "losses on different data cannot be compared: use the same text, or another study name"
        )


def _check_same(study: Study, held: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    if fingerprint(held) == fingerprint(spec):
        return
    before, after = _leaves({**held, "budget": None}), _leaves({**spec, "budget": None})
    lines = [
        f"{study.source}: {key}: the study in the storage has {_said(before, key)}, here it is {_said(after, key)}"
        for key in sorted(before.keys() | after.keys())
        if _said(before, key) != _said(after, key)
    ]
    remedy = (
        f"a study keeps its questions: `hpo fork {study.source} --from {study.name} --as {study.name}-2` begins "
        "another one with the trials that fit it; or give the file another name"
    )
    raise Problem(*lines, remedy)


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        return {
            k: v for key, value in tree.items() for k, v in _leaves(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: tree}


def _said(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "nothing"


def _short(text: str | None) -> str:
    return text[:12] if text else "none"
