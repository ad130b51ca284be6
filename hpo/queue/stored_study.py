"""A study in the storage, as launchers and workers use it, and what can change while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import optuna

from hpo.errors import WorkFailed
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.compatibility import PROTOCOL_VERSION, protocol
from hpo.queue.identity import gone_problem
from hpo.queue.slots import Slots
from hpo.search.direction import Direction
from hpo.search.probes import NO_PROBES, ProbePlan
from hpo.storage.attributes import (
    ANCHORS,
    BUDGET,
    DATA_HASH,
    DATA_ROWS,
    PROBE_PLAN,
    PROTOCOL,
    SPEC,
    STARTED,
    STUDY_STATE,
    UID,
)
from hpo.storage.store import Store
from hpo.storage.targets import target_reached
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.limits import Budget
from hpo.study.spec import Study


@dataclass(frozen=True)
class StoredStudy:
    """A study in the storage: its definition, Optuna's study and its slots.

    first_name: name under which the study was created, which its run folder keeps. fingerprint: of the definition in
    the storage. notes: what the user must know about the study, each for one line. is_new: whether this process has
    created it.
    """

    study: Study
    optuna: optuna.Study
    slots: Slots
    store: Store
    first_name: str
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    is_new: bool = False

    @property
    def uid(self) -> str:
        return self.slots.uid

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
        """Read what can change while a study runs, and check that it is still this study.

        Raises:
            WorkFailed: The study was deleted, renamed or replaced by another, or its definition was changed or removed.
            StorageError: The file of the storage was removed or replaced.
        """
        self.store.check_file()
        attrs = self._read_attrs()
        budget = Budget.model_validate(attrs.get(BUDGET) or attrs[SPEC]["budget"])
        file = self.study.file.model_copy(update={"budget": budget})
        hours_over, n_rungs = False, replace(self.study, file=file).rungs_in_budget
        if budget.hours is not None:
            hours_over = self.slots.now() - attrs[STARTED] >= 3600 * budget.hours
        probes = self.study.probe_plan(attrs.get(PROBE_PLAN))
        full = self.study.rungs + (probes.cost_until(self.study.rungs, self.study.rungs) if probes else 0)
        rungs = None if n_rungs is None else (full, n_rungs)
        target = None if budget.target is None else self.study.file.targets[budget.target]
        return StudyState(attrs.get(STUDY_STATE, "active"), hours_over, rungs, target, probes)

    def _read_attrs(self) -> dict[str, Any]:
        try:
            attrs = self.optuna.user_attrs
        except KeyError:  # the study was deleted
            attrs = {}
        if attrs.get(UID) != self.uid and (problem := gone_problem(self.slots, self.study.name)):
            raise problem
        if SPEC not in attrs:
            raise WorkFailed(
                f"study {self.study.name}: its definition, the row {SPEC} of the table study_user_attributes, was "
                "removed from the storage while it ran; restore a copy of the storage"
            )
        if spec_fingerprint(attrs[SPEC]) != self.fingerprint:
            raise WorkFailed(f"study {self.study.name}: its definition in the storage was changed while it ran")
        return attrs

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
        if protocol(self.optuna) < PROTOCOL_VERSION:
            self.optuna.set_user_attr(PROTOCOL, PROTOCOL_VERSION)


@dataclass(frozen=True)
class StudyState:
    """The part of a study that can change while it runs.

    state: "active", "paused" or "stopped". hours_over: whether the hours of the budget have passed.
    rungs: of a budget in tokens, the rungs of one trial and the rungs that all trials together may train. The tokens of
    probes count as rungs. probes: what the study probes, None while `probe: auto` has not decided.
    target: value of the objective that ends the study.
    """

    state: str
    hours_over: bool
    rungs: tuple[int, int] | None
    target: float | None = None
    probes: ProbePlan | None = NO_PROBES
