"""`hpo export`: the configuration of a trial as a file, also for a run of another length."""

from dataclasses import dataclass

from pydantic import ValidationError

from hpo.analysis.export import export_text, exported_configuration, provenance, select_trial
from hpo.analysis.front import best_by, objectives_of
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.commands.train_output import without_result
from hpo.config.files import config_text
from hpo.errors import Problem
from hpo.evidence.preferred import trial_to_export
from hpo.storage.retry import OpenStorage
from hpo.storage.trials import Trial
from hpo.transfer.carry import TRANSFER, carry
from hpo.transfer.guard import length_problems
from hpo.transfer.lookup import find_fitted
from hpo.transfer.rule import Rule
from hpo.transfer.rules import Move
from model.config import TrainConfig
from model.section import updated


@dataclass(frozen=True)
class AtLength:
    """The options of `hpo export` for another length; None where they are not given.

    tokens: of the run that the file describes. rule: by which the configuration is carried over. cool_down: the rung of
    a wsd run whose branch is exported.
    """

    tokens: int | None = None
    rule: Rule | None = None
    cool_down: int | None = None


def export_trial(
    store: OpenStorage, study: str | None, number: int | None, by: str | None, wanted: AtLength
) -> tuple[str, str]:
    """Return the YAML file of a trial, and where its configuration comes from, in words.

    number: of the trial. None: a confirmed trial, else the best trial of the search. by: the objective that decides.

    Raises:
        NothingFeasible: no trial is complete.
        Problem: there is no such trial, or an option does not fit it.
    """
    snapshot = read_snapshot(store, study)
    if number is not None and by is not None:
        raise Problem(f"--by: must be omitted with --trial, which names the trial, got {by}")
    if number is not None:
        trial, known = select_trial(snapshot, number), ""
    elif by not in (None, snapshot.objective) or (by is None and len(objectives_of(snapshot)) > 1):
        trial, known = best_by(snapshot, by), f"best by {by}, not confirmed"
    else:
        trial, known = trial_to_export(store, snapshot)
    text = export_at_length(store, snapshot, trial, known, wanted)
    return text, f"trial {trial.number} of {snapshot.name}" + (f", {known}" if known else "")


def export_at_length(store: OpenStorage, snapshot: Snapshot, trial: Trial, known: str, wanted: AtLength) -> str:
    """Return the YAML file of a trial, for a run of another length. What does not carry over is printed.

    known: a phrase that says how far the result is confirmed.

    Raises:
        Problem: an option does not fit the configuration, or the rule cannot be applied.
    """
    tokens, rule = wanted.tokens, wanted.rule
    if tokens is None:
        if rule not in (None, Rule.copy):
            raise Problem(f"--rule: must be used with --tokens, the length of the new run, got {rule}")
        return export_text(snapshot, trial, known, wanted.cool_down)
    if wanted.cool_down is not None:
        raise Problem(
            "--tokens: must be left out with --cool-down, which exports a branch of the run as it was trained"
        )
    config = exported_configuration(snapshot, trial)
    if not isinstance(config, TrainConfig):
        raise Problem("--tokens: must be left out with a configuration class of your own")
    try:
        move = Move(config, updated(config, {"run.tokens": tokens}))
    except ValidationError as error:
        raise Problem(*length_problems(error)) from None
    if not move.changes_scale():
        return export_text(snapshot, trial, known)
    search = str(snapshot.spec.get("about", {}).get("confirms", snapshot.name))
    what = f"trial {trial.number} of {snapshot.name}"
    carried, record = carry(what, move, rule or Rule.copy, find_fitted(store, search, move))
    origin = without_result(provenance(snapshot, trial, config, known))
    return config_text(carried, origin | {TRANSFER: record})
