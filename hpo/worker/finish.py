"""Let the training function of a run end after its last rung."""

import traceback

from hpo.errors import error_summary, raised_error
from hpo.runs.run_dir import append_error_log
from hpo.runs.trainable import GuardedRuns
from hpo.worker.executor import TrialExecutor
from hpo.worker.signals import SignalHandler, TrialTimeout
from hpo.worker.trial import RunningTrial


def finish_run(
    executor: TrialExecutor, runs: GuardedRuns, signals: SignalHandler, lane: int, trial: RunningTrial, rung: int
) -> None:
    """Let a training function of the user end, and note if it does not end at the last rung of the study file.

    The result is already known. The next rung of a function that yields more is trained once per worker only.
    """
    study, text = executor.stored.study, ""
    limit = study.file.limits.seconds
    try:
        if limit is not None:
            signals.start_timeout(limit - trial.seconds())
        further = rung
        if rung <= study.rungs and not executor.yields_more:
            further = runs.finish(lane) or 0
        if further > study.rungs:
            text = f"the training function reports rung {further}, but `rungs` of the study file is {study.rungs}"
            executor.yields_more = text
    except TrialTimeout:
        text = f"the code after its last rung was stopped by limits.seconds: {limit:g}"
    except Exception as error:
        raised = raised_error(error)
        append_error_log(trial.folder, trial.claim.attempt, "".join(traceback.format_exception(raised)))
        text = f"the training function failed after its last rung: {type(raised).__name__}: {raised}"
    finally:
        signals.cancel_timeout()
    if text := error_summary(text):
        executor.log_event("rungs", f"trial {trial.number}: {text}")
    trial.note = text or executor.yields_more
