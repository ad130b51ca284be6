"""Choose and write the configuration of a claimed trial."""

from typing import Any

from pydantic import ValidationError

from hpo.config.files import config_text
from hpo.config.validation import error_messages
from hpo.errors import Problem, Unwritable
from hpo.queue.stored_study import StoredStudy
from hpo.runs.datasets import PreparedDatasets
from hpo.runs.memory import memory_problem, trial_costs
from hpo.runs.provenance import describe_machine
from hpo.runs.run_dir import write_file
from hpo.storage.fencing import fenced
from hpo.study.command import plan_as_json
from hpo.study.spec import StudyFile
from hpo.worker.trial import RunningTrial, trial_config


def configure_trial(
    stored: StoredStudy, trial: RunningTrial, owner: str, datasets: PreparedDatasets, pack: int, probed: bool
) -> tuple[str, str] | None:
    """Set the configuration of a trial and write it to its folder.

    Values that are valid one by one may be invalid together, as n_head and n_embd, or leave too little text. Return the
    end reason and the message of such a trial, with which it is pruned: the sampler ignores failed trials, so it would
    suggest the same values again.

    pack: number of trials that the worker trains side by side. probed: whether the study has cool-down probes.

    Raises:
        Unwritable: the prepared data or the configuration cannot be written.
        LeaseLost: the claim is lost.
        Exception: the user's configuration class has raised it.
    """
    try:
        with fenced(stored.slots.held(trial.claim, owner)):
            trial.config = trial_config(stored, trial.claim, trial.frozen)
        data_hash = datasets.data_hash(trial.config)
    except ValidationError as error:
        return "invalid", "; ".join(error_messages(error, type(stored.study.base)))
    except Unwritable:
        raise
    except Problem as problem:
        return "invalid", str(problem)
    if reason := memory_problem(stored.study, trial.config, datasets, probed):
        return "oom", reason
    trial.costs = trial_costs(stored.study, trial.config, datasets)
    _write_config(stored, trial, data_hash, pack)
    return None


def _write_config(stored: StoredStudy, trial: RunningTrial, data_hash: str | None, pack: int) -> None:
    provenance = {
        "study": stored.study.name,
        "trial": trial.number,
        "kind": trial.claim.kind,
        "data_hash": data_hash,
        **_code(stored.study.file),
        "pack": pack,
        **describe_machine(),
    }
    write_file(trial.folder / "config.yaml", config_text(trial.config, provenance))


def _code(file: StudyFile) -> dict[str, Any]:
    if file.command is not None:
        return {"command": plan_as_json(file.model_dump(mode="json")), "objective": file.objective}
    return {"train": file.train, "config": file.config}
