"""Run the studies of arms that test one claim, and read their scores; runs in the storage are not repeated."""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.progress import has_ended
from hpo.analysis.snapshot import Snapshot, read_snapshot, trial_status
from hpo.console import command_line, say
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.evidence.claims.results import ClaimRun, scores_by_arm
from hpo.evidence.claims.schema import ArmsTest
from hpo.evidence.claims.scoring import metrics_at_equal_seconds, run_score
from hpo.evidence.claims.verdict import better_sign
from hpo.launcher.options import LaunchOptions
from hpo.launcher.supervisor import run_study
from hpo.storage.attributes import MACHINE, METRICS, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import State
from hpo.study.arms import ArmsPlan, plan_study
from hpo.study.fingerprint import spec_fingerprint
from hpo.study.spec import Study, StudyFile
from hpo.study.stored import study_from_spec
from model.config import TrainConfig
from model.section import updated

TUNING_SEEDS = (100, 101, 102)  # seeds that choose the levels of tuned factors; the verdict does not use them

ArmNames = Mapping[str, str]  # name of an arm -> name of another arm; each use says which


class ClaimSkipped(Problem):
    """A claim cannot be tested on this machine; other claims can."""


@dataclass(frozen=True)
class StudyRuns:
    """The scored runs of one study of arms, and the machines that made them."""

    runs: list[ClaimRun]
    machines: list[dict[str, Any]]


@dataclass(frozen=True)
class ClaimRunner:
    """Runs the arms of one claim as studies named claim-ID, claim-ID-2, ..., and claim-ID-tune for tuning.

    A study never changes its arms or seeds, so further arms or seeds are run in a further study.

    base: the base of the test, with rungs that all arms reach exactly, however they are split over studies.
    options: how and where `hpo launch` runs the studies.
    """

    name: str
    test: ArmsTest
    base: TrainConfig
    options: LaunchOptions

    def tune(self, arms: Collection[str]) -> tuple[list[StudyRuns], dict[str, str]]:
        """Choose the best levels of the tuned factors for each of these compared arms.

        Returns the studies that choose them, and compared arm -> its arm with the best levels. Compared arms that
        earlier runs tuned are included.
        """
        compared = self.test.compared_arms()
        if not self.test.tuned:
            return [], {name: name for name in compared}
        wanted = [candidate for name in arms for candidate in compared[name]]
        studies = self.complete_runs(wanted, TUNING_SEEDS, {arm: arm for arm in self.test.all_arms()}, "-tune")
        runs = [run for study in studies for run in study.runs]
        tried = {*wanted, *(run.arm for run in runs)}
        chosen = {n: best_level(self.test, levels, runs) for n, levels in compared.items() if tried.issuperset(levels)}
        return studies, chosen

    def complete_runs(
        self, wanted: Collection[str], seeds: Collection[int], arm_of: ArmNames, suffix: str = ""
    ) -> list[StudyRuns]:
        """Run the missing runs of these arms and seeds; return all runs of the claim in the storage.

        arm_of: compared arm -> the arm of the ledger, tuned, whose configuration it has.
        suffix: of the studies' names, "" or "-tune".
        """
        first_equal = self._first_equal_arms(arm_of)
        studies = self._existing_studies(suffix)
        missing: dict[tuple[int, ...], dict[str, None]] = {}
        for arm in dict.fromkeys(first_equal[arm] for arm in wanted):
            done = {seed for arms, study_seeds in studies.values() if arm in arms for seed in study_seeds}
            missing.setdefault(tuple(seed for seed in seeds if seed not in done), {})[arm] = None
        for missing_seeds, arms in missing.items():
            if missing_seeds:
                first = f"claim-{self.name}{suffix}"
                names = [first, *(f"{first}-{i}" for i in range(2, len(studies) + 2))]
                studies[next(name for name in names if name not in studies)] = tuple(arms), missing_seeds
        return [self._complete_study(name, *plan, arm_of, first_equal) for name, plan in studies.items()]

    def _existing_studies(self, suffix: str) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Return the arms and seeds of each study of the claim in the storage, the oldest study first."""
        with suppress(StorageError), open_readonly(self.options.storage) as store:
            pattern = re.compile(rf"claim-{self.name}{suffix}(-\d+)?")
            ids = sorted((study_id, name) for name, study_id in study_ids(store).items() if pattern.fullmatch(name))
            specs = {name: study_attrs(store, study_id).get(SPEC, {}) for study_id, name in ids}
            return {name: (tuple(spec["arms"]), tuple(spec["seeds"])) for name, spec in specs.items() if spec}
        return {}

    def _complete_study(
        self, name: str, arms: Collection[str], seeds: tuple[int, ...], arm_of: ArmNames, first_equal: ArmNames
    ) -> StudyRuns:
        """Run a study to its end unless it has ended; return its runs.

        Raises:
            ClaimSkipped: the storage holds a different study with this name.
            WorkFailed: the study was interrupted, or its workers failed.
        """
        if not arm_of.keys() >= set(arms):
            raise self._different_study(name)
        study = self._study(name, seeds, {arm: self.test.all_arms()[arm_of[arm]] for arm in arms})
        timed = self.test.equal == "seconds" or "tokens_per_second" in self._metrics()
        # The runs of a pack share their time, so runs whose speed is compared are not packed.
        options = replace(self.options, study=name, pack=1 if timed else self.options.pack)
        if not self._has_ended(study):
            status = run_study(options, study, lambda *_: 0)
            if status:
                failed = WorkFailed(f"{self.name} was interrupted; run the same command again to resume")
                failed.status = status
                raise failed
        with open_readonly(options.storage) as store:
            snapshot = read_snapshot(store, name)
            return self._read(snapshot, {n: arm for n, arm in arm_of.items() if first_equal[n] in arms}, first_equal)

    def _metrics(self) -> set[str]:
        return {self.test.metric_of(arm) for arm in self.test.all_arms()}

    def _first_equal_arms(self, arm_of: ArmNames) -> dict[str, str]:
        """Return compared arm -> the first arm with the same configuration, whose runs it shares."""
        all_arms = self.test.all_arms()
        configs = {name: updated(self.base, all_arms[arm]) for name, arm in arm_of.items()}
        return {name: next(n for n in configs if configs[n] == configs[name]) for name in configs}

    def _study(self, name: str, seeds: tuple[int, ...], arms: dict[str, Any]) -> Study:
        objective = "val_loss" if any(metric.endswith("val_loss") for metric in self._metrics()) else "val_bpb"
        source = f"claim {self.name}"
        template = Study(name, source, StudyFile(arms=arms, seeds=seeds, objective=objective), self.base)
        return plan_study(
            template, name, self.base, ArmsPlan(source, arms, seeds, {"claim": self.name}, self.test.equal)
        )

    def _has_ended(self, study: Study) -> bool:
        """Return whether the storage holds all runs of a study.

        Raises:
            ClaimSkipped: the storage holds a different study with this name.
        """
        with suppress(StorageError), open_readonly(self.options.storage) as store:
            study_id = study_ids(store).get(study.name)
            spec = {} if study_id is None else study_attrs(store, study_id).get(SPEC, {})
            if not spec:
                return False
            if spec_fingerprint(study_from_spec(spec).spec()) != spec_fingerprint(study.spec()):
                raise self._different_study(study.name)
            return has_ended(read_snapshot(store, study.name))
        return False

    def _different_study(self, study: str) -> ClaimSkipped:
        return ClaimSkipped(
            f"the storage holds a study {study} whose arms differ from the ledger's; use another --storage"
        )

    def _read(self, snapshot: Snapshot, arm_of: ArmNames, first_equal: ArmNames) -> StudyRuns:
        """Return the scored runs of a study that has ended."""
        trials, by_time = runs_by_arm(snapshot), self.test.equal == "seconds"
        timed_metrics = metrics_at_equal_seconds(snapshot, trials, self.options.out) if by_time else {}
        runs = []
        for name, arm in arm_of.items():
            metric = self.test.metric_of(arm)
            for seed, trial in sorted(trials[first_equal[name]].items()):
                metrics = timed_metrics.get(trial.number, {})
                if metrics is None or (trial.state != State.COMPLETE and trial_status(snapshot, trial) != "diverged"):
                    continue
                last = trial.user_attrs.get(METRICS, {})
                value = metrics.get(metric, run_score(trial, metric))
                spent = {"tokens": last.get("tokens"), "seconds": last.get("seconds")}
                runs.append(
                    ClaimRun(arm=name, seed=seed, value=value, study=snapshot.name, trial=trial.number, **spent)
                )
        missing = len(arm_of) * len(snapshot.spec["seeds"]) - len(runs)
        if missing:
            why = "or had no rung when the first arm ended; " if timed_metrics else ""
            listing = command_line("hpo", "trials", "--study", snapshot.name)
            say(f"{self.name}: {missing} runs failed, {why}`{listing}` lists them")
        machines = [trial.user_attrs[MACHINE] for arm in trials.values() for trial in arm.values()]
        return StudyRuns(runs, distinct_machines([machines]))


def best_level(test: ArmsTest, arms: list[str], runs: Iterable[ClaimRun]) -> str:
    """Return the best of the arms that differ only in tuned factors: fewest diverged runs, then the best mean.

    Raises:
        WorkFailed: none of the arms has all its runs.
    """
    scores = {arm: list(own.values()) for arm, own in scores_by_arm(runs).items() if len(own) == len(TUNING_SEEDS)}
    complete = [arm for arm in arms if arm in scores]
    if not complete:
        raise WorkFailed(f"no level of {', '.join(test.tuned)} has all its runs: {', '.join(arms)}")

    def rank(arm: str) -> tuple[int, float]:
        known = [score for score in scores[arm] if score is not None]
        return len(TUNING_SEEDS) - len(known), -better_sign(test) * float(np.mean(known)) if known else 0.0

    return min(complete, key=rank)


def distinct_machines(machines: Iterable[Iterable[dict[str, Any]]]) -> Any:
    """Return the machines of several studies, each once, in their order."""
    distinct: list[dict[str, Any]] = []
    for machine in (machine for group in machines for machine in group):
        if machine not in distinct:
            distinct.append(machine)
    return distinct
