"""Give all trials of a study the same device kind, precision, compilation and attention, and record other engines."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from hpo.errors import StorageError
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.stored_study import StoredStudy
from hpo.runs.arithmetic import check_arithmetic, choose_pack_size, one_at_a_time, resolve_arithmetic
from hpo.runs.resources import AUTO_PACK
from hpo.storage.attributes import ARITHMETIC
from hpo.storage.studies import fill_attr, study_attrs
from hpo.study.arithmetic import has_arithmetic, other_engines, with_arithmetic
from hpo.study.engines import engine_text
from hpo.worker.events import EventListener
from model.config import ENGINE

EVENT = "arithmetic"  # type of the events about changed arithmetic


def settle_arithmetic(stored: StoredStudy, emit: EventListener) -> StoredStudy:
    """Return a study whose base has the resolved values; the first worker of a new study resolves them.

    A study of an earlier version has no record of them and is returned as it is.

    emit: receives the event that trials of another engine exist, unless an earlier worker has stored it.

    Raises:
        Problem: this machine cannot train with the resolved values.
    """
    if not has_arithmetic(stored.study):
        return stored
    trials = stored.optuna.get_trials(deepcopy=False)
    if others := other_engines(trial.user_attrs for trial in trials):
        _log_once(
            stored,
            emit,
            f"this version trains with engine {ENGINE}, and trials of this study were trained with "
            f"{engine_text(others)}: their losses are not comparable to the last bit, and runs of different "
            "engines form no pair",
        )
    resolved = stored.optuna.user_attrs.get(ARITHMETIC)
    if resolved == {}:
        resolved = _resolve(stored, emit)
    if resolved is None:
        return stored
    study = with_arithmetic(stored.study, resolved)
    check_arithmetic(study)
    return replace(stored, study=study)


def settle_pack(stored: StoredStudy, pack: int, emit: EventListener) -> int:
    """Return the number of trials to train side by side; for AUTO_PACK, the fastest number on this machine."""
    if pack != AUTO_PACK:
        return pack
    with one_at_a_time():
        return choose_pack_size(stored.study, lambda text: emit({"event": "note", "text": text}))


def _resolve(stored: StoredStudy, emit: EventListener) -> dict[str, Any]:
    """Return the values that the first worker resolves. The other workers of this machine wait for it."""
    study_id = get_study_id(stored.optuna)
    with one_at_a_time():
        resolved: dict[str, Any] = study_attrs(stored.store, study_id).get(ARITHMETIC) or {}
        if not resolved:
            values = resolve_arithmetic(stored.study, lambda text: emit({"event": "note", "text": text}))
            resolved = fill_attr(stored.store, study_id, ARITHMETIC, values)
    return resolved


def _log_once(stored: StoredStudy, emit: EventListener, text: str) -> None:
    """Store an event of the study, unless an earlier worker has."""
    with suppress(StorageError):
        if all((event.event_type, event.text) != (EVENT, text) for event in stored.slots.events()):
            stored.slots.log(EVENT, text)
            emit({"event": "note", "text": f"{EVENT}: {text}"})
