"""Probe the runs of one owner at probed rungs, and decide for `probe: auto` whether a study probes."""

import math
from collections.abc import Mapping

from optuna.trial import TrialState

from hpo.console import fixed
from hpo.errors import StorageError
from hpo.optuna_internals.objects import get_study_id
from hpo.queue.stored_study import StoredStudy
from hpo.runs.metrics import append_metrics
from hpo.runs.run_dir import to_json_value
from hpo.runs.trainable import GuardedRuns
from hpo.search.probes import NO_PROBES, ProbePlan, decide_now
from hpo.search.pruners import build_pruner, rule_for
from hpo.search.pruning import CachedPruner
from hpo.storage.attributes import FORKED, PROBE_PLAN, PROBE_TOKENS, PROBES, RETRIED
from hpo.storage.studies import fill_attr
from hpo.worker.events import EventListener
from hpo.worker.reporter import LeaseStatus, Reporter
from hpo.worker.trial import RunningTrial
from model.config import TrainConfig


class Prober:
    """The cool-down probes of the trials that one owner holds."""

    def __init__(self, stored: StoredStudy, reporter: Reporter, pruner: CachedPruner, emit: EventListener) -> None:
        """Probe nothing until `update`. emit: receives the worker's events."""
        self.stored, self.reporter, self.pruner, self.emit = stored, reporter, pruner, emit
        self.n_complete = -1  # trials among which `auto` has last looked for evidence

    def update(self) -> None:
        """Take the plan of the study from the storage; decide about `probe: auto` if there is enough evidence."""
        plan = self.reporter.study_state().probes or self._decided() or NO_PROBES
        if plan != self.pruner.probes:
            file, rungs = self.stored.study.file, self.pruner.rungs
            self.pruner.set_probes(plan, build_pruner(rule_for(plan, file.pruner), rungs, self.stored.study.direction))

    def _decided(self) -> ProbePlan | None:
        """Return what `auto` decides now and store it, None if it needs more finished runs."""
        study, optuna_study = self.stored.study, self.stored.optuna
        assert isinstance(study.base, TrainConfig)
        try:
            complete = optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if len(complete) == self.n_complete:
                return None
            self.n_complete = len(complete)
            own = [t for t in complete if t.user_attrs.get(RETRIED, t.user_attrs.get("kind")) not in ("seed", FORKED)]
            curves = [trial.intermediate_values for trial in own]
            rule = study.file.pruner.model_dump(mode="json")
            plan = decide_now(rule, study.rungs, study.base.marks()[-1], curves)
            if plan is None:
                return None
            record = fill_attr(self.stored.store, get_study_id(optuna_study), PROBE_PLAN, plan.record())
            if plan.rungs and record == plan.record():
                self.emit({"event": "note", "text": plan.text()})
                self.stored.slots.log("probes", plan.text().removeprefix("probes: "))
        except StorageError as error:
            if not error.passing:
                raise
            return None
        return study.probe_plan(record)

    def take_stored(self, trial: RunningTrial) -> None:
        """Count the probes of earlier attempts of a trial."""
        trial.probe_rungs = self.pruner.probes.cost(len(trial.frozen.user_attrs.get(PROBES, {})), self.pruner.rungs)

    def is_due(self, trial: RunningTrial, rung: int) -> bool:
        """Return whether a trial must be probed at this rung, which it has reached."""
        if rung not in self.pruner.probes.rungs or str(rung) in trial.frozen.user_attrs.get(PROBES, {}):
            return False
        return math.isfinite(trial.frozen.intermediate_values.get(rung, math.nan))

    def run(self, runs: GuardedRuns, trials: Mapping[int, RunningTrial]) -> dict[int, Mapping[str, float]]:
        """Train the probes of these trials, by lane, and return their metrics."""
        return runs.probe(dict.fromkeys(trials, self.pruner.probes.share))

    def report(self, trial: RunningTrial, probe: Mapping[str, float], wait: bool) -> LeaseStatus:
        """Report the probe of a trial at its last rung; return the status of the lease.

        wait: whether to wait for an unreachable storage without limit.

        Raises:
            Unwritable: the metrics cannot be written.
        """
        attrs, value = trial.frozen.user_attrs, float(probe[f"probe_{self.stored.study.file.objective}"])
        probes = {**attrs.get(PROBES, {}), str(trial.metrics["rung"]): to_json_value(value)}
        tokens = attrs.get(PROBE_TOKENS, 0) + int(probe["probe_tokens"])
        changed = {PROBES: probes, PROBE_TOKENS: tokens}
        attrs.update(changed)
        trial.unreported_attrs |= changed
        trial.metrics = {**trial.metrics, **probe}
        self.take_stored(trial)
        status = self.reporter.report_values(trial, wait)
        if status != "lost":
            append_metrics(trial.folder / "metrics.jsonl", trial.metrics)
            rung, shown = trial.metrics["rung"], "diverged" if not math.isfinite(value) else fixed(value, 4)
            event = {"event": "probe", "trial": trial.number, "rung": rung, "value": to_json_value(value)}
            self.emit({**event, "text": f"trial {trial.number}: probe at rung {rung}/{self.pruner.rungs}, {shown}"})
        return status
