"""Resume a trial from its newest checkpoint."""

import time

from hpo.runs import checkpoints
from hpo.runs.command_files import CHECKPOINT, FILES, TrialPlace, has_checkpoint
from hpo.runs.metrics import metric, read_rungs, write_rungs
from hpo.runs.trainable import GuardedRuns
from hpo.study.engines import engine_text, engines_of
from hpo.worker.arithmetic import EVENT
from hpo.worker.executor import TrialExecutor
from hpo.worker.trial import RunningTrial
from model.errors import is_device_fault, is_out_of_memory

NO_CHECKPOINT = "there is no checkpoint"


def resume_run(executor: TrialExecutor, runs: GuardedRuns, lane: int, trial: RunningTrial) -> int:
    """Resume a trial from its newest readable checkpoint, or start it again if there is none; return its rung.

    Raises:
        Unwritable: the file of the trial's metrics cannot be written.
    """
    if executor.stored.study.file.command is not None:
        return _continue_command(executor, runs, lane, trial)
    file, log = executor.stored.study.file, trial.folder / "metrics.jsonl"
    reported = trial.frozen.intermediate_values
    rows = read_rungs(log, file.objective, reported)
    known = {r for r, row in rows.items() if r in reported or metric(row, file.objective) is not None}
    rung, reason = 0, NO_CHECKPOINT
    if trial.claim.attempt > 1 or trial.rung:
        rung, reason = _load_checkpoint(runs, lane, trial, known & set(range(1, executor.stored.study.rungs + 1)))
    if not rung and (trial.rung or reason != NO_CHECKPOINT):
        executor.log_event("restarted", f"trial {trial.number} restarts from its first rung: {reason}")
    if rung and len(engines := engines_of(trial.frozen.user_attrs)) > 1:
        text = (
            f"trial {trial.number} resumes at rung {rung} with another engine: its curve is of {engine_text(engines)}"
        )
        executor.log_event(EVENT, f"{text}, which are not comparable to the last bit")
    for r in range(1, rung + 1):  # the storage was unreachable, or it was restored from an older copy
        if r not in reported:
            trial.add_value(r, float(rows[r][file.objective]))
    trial.metrics = rows.get(rung, {})
    trial.earlier_seconds = metric(trial.metrics, "seconds") or 0.0
    trial.started_at = time.monotonic()
    write_rungs(log, {r: rows[r] for r in range(1, rung + 1)})
    return rung


def _continue_command(executor: TrialExecutor, runs: GuardedRuns, lane: int, trial: RunningTrial) -> int:
    """Continue a trial after the rungs that the study has, and return the last of them.

    The script resumes by itself, if it has saved a checkpoint. Otherwise it starts again, and what it reports up to
    this rung is ignored: reported values do not change.

    Raises:
        Unwritable: the file of the trial's metrics cannot be written.
    """
    study, log, reported = executor.stored.study, trial.folder / "metrics.jsonl", trial.frozen.intermediate_values
    rows, rung = read_rungs(log, study.file.objective, reported), 0
    while rung + 1 in reported and rung < study.rungs:
        rung += 1
    if rung and not has_checkpoint(trial.folder):
        reason = f"there is no {FILES}/{CHECKPOINT} in {trial.folder}"
        executor.log_event("restarted", f"the command of trial {trial.number} restarts from its beginning: {reason}")
    trial.metrics = rows.get(rung, {})
    trial.earlier_seconds = metric(trial.metrics, "seconds") or 0.0
    trial.started_at = time.monotonic()
    write_rungs(log, {r: rows[r] for r in range(1, rung + 1)})
    attempt, seconds = trial.claim.attempt, trial.earlier_seconds
    runs.assign(lane, TrialPlace(study.name, trial.number, attempt, trial.folder, rung, seconds))
    return rung


def _load_checkpoint(runs: GuardedRuns, lane: int, trial: RunningTrial, known: set[int]) -> tuple[int, str]:
    """Load the newest checkpoint of which all rungs are known; return its rung, or 0 and the reason.

    known: rungs whose values are in the study or in metrics.jsonl.
    """
    reason = NO_CHECKPOINT
    for folder in checkpoints.resumable_checkpoints(trial.folder):
        try:
            rung = runs.resume(lane, folder)
            if rung > 0 and known >= set(range(1, rung + 1)):
                return rung, ""
            reason = f"{folder}: values of its first rungs are missing"
        except Exception as error:  # a checkpoint may be damaged in any way; the trial does not need it
            if is_out_of_memory(error) or is_device_fault(error):
                raise
            reason = str(error) or type(error).__name__
        runs.stop(lane)  # it may have been loaded in part
        runs.start(lane, trial.config)
    return 0, reason
