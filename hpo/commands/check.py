"""`hpo check`: check a study file or a ledger of claims without running anything."""

from collections.abc import Sequence
from pathlib import Path

from hpo.config.discovery import find_study, is_ledger
from hpo.errors import Problem
from hpo.study.command_checks import command_notes
from hpo.study.harmful_pairs import harmful_pairs
from hpo.study.load import load_study
from hpo.study.names import check_name
from hpo.transfer.carry import base_notes


def check_file(name: str, overrides: Sequence[str]) -> str:
    """Return a line that summarizes a valid study file or ledger, and a line for each warning.

    name: name of a study, path of a file, or `claims` for the ledger of claims.

    Raises:
        Problem: the file is not valid, or overrides are given for a ledger.
    """
    path = find_study(name)
    if is_ledger(path):
        return _check_ledger(path, overrides)
    study = load_study(name, overrides)
    if study.objections:
        raise Problem(*study.objections)
    check_name(study.name, study.source)
    arms, n = study.file.arms, len(study.file.space)
    contents = (
        f"{n} hyperparameter{'s' * (n != 1)}" if arms is None else f"{len(arms)} arms x {len(study.file.seeds)} seeds"
    )
    notes = [f"note: {note}" for note in [*harmful_pairs(study.file), *command_notes(study.file), *base_notes(study)]]
    return "\n".join([f"{study.source}: ok; {contents}, {study.rungs} rung{'s' * (study.rungs != 1)}", *notes])


def _check_ledger(path: Path, overrides: Sequence[str]) -> str:
    from hpo.evidence.claims.ledger import load_ledger

    if overrides:
        raise Problem(f"--set: must be omitted with a ledger, whose arms cannot be changed; got {overrides[0]}")
    return f"{path}: ok; {load_ledger(path).summary()}"
