"""`hpo import` of trials: a CSV file or a study of Optuna, as prior trials that the sampler of a study uses."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import ValidationError

from hpo.commands.create import create_study
from hpo.config.validation import error_messages
from hpo.console import command_line
from hpo.errors import Problem
from hpo.foreign.study_text import study_text
from hpo.foreign.sweep_command import study_name
from hpo.foreign.trials import ForeignTrial, ForeignTrials, open_optuna, optuna_trials, read_csv, space_of
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.registry import load_stored_study
from hpo.queue.stored_study import StoredStudy
from hpo.search.space import params_in_range
from hpo.storage.attributes import FORKED, IMPORTED
from hpo.storage.locks import creation_lock
from hpo.storage.store import Store
from hpo.storage.studies import study_ids
from hpo.study.load import load_study
from hpo.study.spec import Study, StudyFile
from hpo.study.stored import study_from_spec
from model.section import flat


def parse_renames(renames: Sequence[str]) -> dict[str, str]:
    """Return --rename THEIRS=OURS arguments as a mapping.

    Raises:
        Problem: an argument is not of this form.
    """
    pairs = {}
    for text in renames:
        theirs, equals, ours = text.rpartition("=")
        if not equals or not theirs or not ours:
            raise Problem(f"--rename: must be THEIRS=OURS, such as lr=optimizer.lr, got {text!r:.60}")
        pairs[theirs.strip()] = ours.strip()
    return pairs


def import_csv(store: Store, path: Path, study: str, renamed: dict[str, str]) -> list[str]:
    """Add the rows of a CSV file to a study as prior trials; return lines that say so.

    study: name of a study, or path of a study file, which is created if the storage does not hold it.

    Raises:
        Problem: the file or the study cannot be read, or no row fits.
    """
    stored = _stored(store, study)
    file = stored.study.file
    return _add(stored, read_csv(path, list(file.space), file.objective, renamed), study)


def import_optuna(store: Store, url: str, name: str | None, study: str, renamed: dict[str, str]) -> list[str]:
    """Add the complete trials of a study of Optuna to a study as prior trials; return lines that say so.

    Raises:
        Problem: one of the studies cannot be read, they improve in different directions, or no trial fits.
    """
    theirs = open_optuna(url, name)
    stored = _stored(store, study)
    direction = theirs.direction.name.lower()
    if direction != stored.study.file.direction:
        raise Problem(
            f"{stored.study.source}: direction: must be {direction}, as in study {theirs.study_name!r}, because the "
            f"sampler compares all trials; got {stored.study.file.direction}"
        )
    return _add(stored, optuna_trials(theirs, list(stored.study.file.space), renamed, theirs.study_name), study)


def study_of_optuna(url: str, name: str | None) -> tuple[str, str]:
    """Return the text of a study file with the ranges and the direction of a study of Optuna, and its name.

    Raises:
        Problem: the study cannot be read, or it has no parameters.
    """
    theirs = open_optuna(url, name)
    space = _named_space(space_of(theirs), theirs.study_name)
    if not space:
        raise Problem(f"study {theirs.study_name!r}: must have trials with parameters, got none")
    metric = (theirs.metric_names or ["value"])[0]
    tree: dict[str, Any] = {
        "command": ["python", "train.py", "{flags}"],
        "space": space,
        "objective": metric,
        "direction": theirs.direction.name.lower(),
        "pruner": "none",
        "budget": {"trials": 24},
    }
    try:
        StudyFile.model_validate(tree)
    except ValidationError as error:
        raise Problem(*(f"study {theirs.study_name!r}: {line}" for line in error_messages(error, StudyFile))) from None
    comments = {
        "command": ["Write the name of your script. It receives each parameter as --NAME=VALUE."],
        "objective": ["The script reports it: hpo.current_trial().report(step, NAME=...), or see `metric`."],
    }
    header = [f"Ranges of the Optuna study {theirs.study_name}".replace("\n", " ")]
    return study_text(header, tree, comments), theirs.study_name


def _named_space(theirs: dict[str, Any], study: str) -> dict[str, Any]:
    """Return ranges by the names that a command can have.

    Raises:
        Problem: two parameters have the same name in the study file.
    """
    names: dict[str, str] = {}  # name in the study file -> parameter of Optuna
    for parameter in theirs:
        name = study_name(parameter)
        if (first := names.setdefault(name, parameter)) != parameter:
            raise Problem(
                f"study {study!r}: parameters must have different names in the study file, but {first!r} and "
                f"{parameter!r} are both called {name}; write the study file with other names, and import the trials "
                "with --study FILE --rename THEIRS=OURS"
            )
    return {name: theirs[parameter] for name, parameter in names.items()}


def _stored(store: Store, name: str) -> StoredStudy:
    """Return a study of the storage, or create it from its file."""
    stem = Path(name).stem if name.endswith((".yaml", ".yml")) else name
    if stem in study_ids(store):
        return load_stored_study(store, stem)
    study = load_study(name)
    if study.file.arms is not None:
        raise Problem(f"{study.source}: must be a search to import trials, got a study of arms")
    return create_study(store, study)


def _add(stored: StoredStudy, found: ForeignTrials, name: str) -> list[str]:
    """Write trials to a study. Trials that an earlier import has written are left out."""
    study = study_from_spec(stored.study.spec(), stored.study.name)  # as workers see it
    copies = [_copy_or_reason(study, found.source, trial) for trial in found.trials]
    left_out = found.left_out + Counter(copy for copy in copies if isinstance(copy, str))
    with creation_lock(stored.store.url, stored.store.patience):
        present = {t.user_attrs.get(IMPORTED) for t in stored.optuna.get_trials(deepcopy=False)} - {None}
        fitting = [copy for copy in copies if not isinstance(copy, str)]
        new = [copy for copy in fitting if copy.user_attrs[IMPORTED] not in present]
        left_out += Counter({"imported before": len(fitting) - len(new)} if len(new) < len(fitting) else {})
        reasons = ", ".join(f"{n} {reason}" for reason, n in left_out.most_common())
        if not fitting:
            raise Problem(f"{found.source}: no trial fits study {study.name}: {reasons or 'there is none'}")
        for trial in new:
            stored.store.optuna.create_new_trial(get_study_id(stored.optuna), trial)
    n = len(new) + left_out.total()
    lines = [
        f"{study.name}: has {len(new)} of the {n} trials of {found.source} as prior trials, in addition to its budget"
        + (f"; left out: {reasons}" if reasons else ""),
        f"next: {command_line('hpo', 'launch', '--study', name)}",
    ]
    return [*found.notes, *lines]


def _copy_or_reason(study: Study, source: str, trial: ForeignTrial) -> FrozenTrial | str:
    """Return a trial as a trial of the study, or the reason why it does not fit."""
    space = study.file.space
    try:
        config = study.configured({path: value for path, value in trial.values.items() if path in space})
    except ValidationError:
        return "not a valid configuration"
    params = params_in_range(config, space)
    fields = flat(config)
    lacking = [path for path in space if path in fields and path not in trial.values]
    if lacking:
        return f"without {lacking[0]}"
    if outside := [path for path in space if path in fields and path not in params]:
        return f"with {outside[0]} outside its range"
    return create_trial(
        state=TrialState.COMPLETE,
        value=trial.result,
        params={path: value for path, (value, _) in params.items()},
        distributions={path: kind for path, (_, kind) in params.items()},
        user_attrs={"kind": FORKED, IMPORTED: f"{trial.origin} of {source}"},
    )
