"""`hpo best`: the best trial of a study, by one of its objectives."""

from hpo.analysis.front import best_by, objective_value, objectives_of
from hpo.analysis.snapshot import read_snapshot
from hpo.commands.show import trial_record
from hpo.console import Format, print_record, with_columns
from hpo.storage.retry import OpenStorage


def show_best(store: OpenStorage, study: str | None, by: str | None, format: Format) -> None:
    """Print the best trial of a study; by: the objective that decides, where the study has several."""
    snapshot = read_snapshot(store, study)
    trial = best_by(snapshot, by)
    record = trial_record(snapshot, trial.number)
    others = {name: objective_value(snapshot, trial, name) for name in objectives_of(snapshot)[1:]}
    print_record(with_columns(record, others, "objectives") if others else record, format)
