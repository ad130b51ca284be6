"""`hpo best`: the best trial of a study, by one of its objectives."""

from typing import Any

from hpo.analysis.front import best_by, objective_value, objectives_of
from hpo.analysis.snapshot import Snapshot
from hpo.commands.show import trial_record
from hpo.console import with_columns


def best_record(snapshot: Snapshot, by: str | None, option: str = "--by") -> dict[str, Any]:
    """Return the record of the best trial of a study.

    by: the objective that decides, where the study has several. option: the name of `by` in messages.

    Raises:
        NothingFeasible: no trial is complete.
        Problem: `by` is not an objective of the study, or it is None and the study has several.
    """
    trial = best_by(snapshot, by, option)
    record = trial_record(snapshot, trial.number)
    others = {name: objective_value(snapshot, trial, name) for name in objectives_of(snapshot)[1:]}
    return with_columns(record, others, "objectives") if others else record
