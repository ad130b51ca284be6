"""Let the training function of a run end after its last rung."""

from hpo.errors import CommandFailed, error_summary, raised_error
from hpo.runs.run_dir import append_error_log
from hpo.runs.trainable import GuardedRuns
from hpo.worker.executor import TrialExecutor
from hpo.worker.failures import failure_text
from hpo.worker.signals import SignalHandler, TrialTimeout
from hpo.worker.trial import RunningTrial


def finish_run(
    executor: TrialExecutor, runs: GuardedRuns, signals: SignalHandler, lane: int, trial: RunningTrial, rung: int
) -> None:
    """Let a training function of the user end, and note if it does not end at the last rung of the study file.

    The result is already known. The next rung of a function that yields more is trained once per worker only.
    """
    study, text = executor.stored.study, ""
    what = "the training function" if study.file.command is None else "the command"
    limit = study.file.limits.seconds
    try:
        if limit is not None:
            signals.start_timeout(limit - trial.seconds())
        further = rung
        if rung <= study.rungs and not executor.yields_more:
            further = runs.finish(lane) or 0
        if further > study.rungs:
            text = f"the training function reports rung {further}, but `rungs` of the study file is {study.rungs}"
            if study.file.steps is not None:
                text = f"the command trains past `steps.last` of the study file, step {study.file.steps.last:g}"
            executor.yields_more = text
    except TrialTimeout:
        text = f"the code after its last rung was stopped by limits.seconds: {limit:g}"
    except Exception as error:
        raised = raised_error(error)
        append_error_log(trial.folder, trial.claim.attempt, failure_text(raised))
        text = f"{what} failed after its last rung: {_named(raised)}"
    finally:
        signals.cancel_timeout()
    if text := error_summary(text):
        executor.log_event("rungs", f"trial {trial.number}: {text}")
    trial.note = text or executor.yields_more


def _named(error: BaseException) -> str:
    return str(error).partition("\n")[0] if isinstance(error, CommandFailed) else f"{type(error).__name__}: {error}"
