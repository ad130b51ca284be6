"""One claim on its way through its studies of arms: those the storage holds, and those still to be run."""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpo.analysis.snapshot import Snapshot, ended, read_snapshot, word
from hpo.console import say
from hpo.errors import Problem, StorageError, WorkFailed
from hpo.evidence.claims.results import ClaimRun, scores_by_arm
from hpo.evidence.claims.schema import ArmsTest
from hpo.evidence.claims.verdict import better_sign
from hpo.evidence.paired import runs_by_arm
from hpo.launcher.supervisor import LaunchOptions, run_study
from hpo.runs.run_dir import read_metrics, trial_folder
from hpo.storage.attributes import MACHINE, METRICS, SPEC
from hpo.storage.engine import open_readonly
from hpo.storage.trials import State, Trial, study_attrs, study_ids
from hpo.study.arms import Compared, study_of
from hpo.study.spec import Study, StudyFile, fingerprint, from_spec
from model.config import TrainConfig
from model.section import updated

TUNING_SEEDS = (100, 101, 102)  # seeds by which the levels of tuned factors are chosen

ArmNames = Mapping[str, str]  # name of an arm -> another one's, as each use says


class ClaimSkipped(Problem):
    """A claim cannot be tested here; others can."""


@dataclass(frozen=True)
class StudyRuns:
    """The runs of a study of arms, and on what they were made."""

    runs: list[ClaimRun]
    machines: list[dict[str, Any]]


@dataclass(frozen=True)
class ClaimRunner:
    """A claim that is tested by runs, the base with rungs that suit all its arms, in whichever studies they are."""

    name: str
    test: ArmsTest
    base: TrainConfig
    options: LaunchOptions

    def tuned(self, contestants: Collection[str]) -> tuple[list[StudyRuns], dict[str, str]]:
        """Return the runs that choose the levels of tuned factors, and contestant -> the arm that goes on."""
        every = self.test.compared_arms()
        if not self.test.tuned:
            return [], {name: name for name in every}
        stands = {arm: arm for arm in self.test.all_arms()}
        wanted = [arm for name in contestants for arm in every[name]]
        found = self.done(wanted, TUNING_SEEDS, stands, "-tune")
        made = [run for part in found for run in part.runs]
        tried = {*wanted, *(run.arm for run in made)}
        return found, {
            name: best_level(self.test, arms, made) for name, arms in every.items() if tried.issuperset(arms)
        }

    def done(
        self, wanted: Collection[str], seeds: Collection[int], stands: ArmNames, kind: str = ""
    ) -> list[StudyRuns]:
        """Return all runs of these arms and seeds, and what else the storage holds, once they are made.

        A study keeps its arms and seeds, so that more of them are another study, and no run is lost.

        stands: name -> the arm of the ledger, tuned, that it stands for.
        kind: of the studies: "" or "-tune".
        """
        one_run = self._one_run(stands)
        studies = self._held(kind)
        missing: dict[tuple[int, ...], dict[str, None]] = {}
        for arm in dict.fromkeys(one_run[arm] for arm in wanted):
            have = {seed for arms, of in studies.values() if arm in arms for seed in of}
            missing.setdefault(tuple(seed for seed in seeds if seed not in have), {})[arm] = None
        for lacking, arms in missing.items():
            if lacking:
                first = f"claim-{self.name}{kind}"
                names = [first, *(f"{first}-{i}" for i in range(2, len(studies) + 2))]
                studies[next(name for name in names if name not in studies)] = tuple(arms), lacking
        return [self._finished(name, *of, stands, one_run) for name, of in studies.items()]

    def _held(self, kind: str) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        """Return the studies of the claim that the storage holds, in the order of their making: arms and seeds."""
        with suppress(StorageError), open_readonly(self.options.storage) as store:
            ours = re.compile(rf"claim-{self.name}{kind}(-\d+)?")
            found = [(number, name) for name, number in study_ids(store).items() if ours.fullmatch(name)]
            specs = {name: study_attrs(store, number).get(SPEC, {}) for number, name in sorted(found)}
            return {name: (tuple(spec["arms"]), tuple(spec["seeds"])) for name, spec in specs.items() if spec}
        return {}

    def _finished(
        self, name: str, arms: Collection[str], seeds: tuple[int, ...], stands: ArmNames, one_run: ArmNames
    ) -> StudyRuns:
        """Run a study to its end unless it is there already; return its runs.

        Raises:
            LeftOut: the storage holds another study under that name. WorkFailed: it was interrupted, or failed.
        """
        if not stands.keys() >= set(arms):
            raise self._other(name)
        study = self._study(name, seeds, {arm: self.test.all_arms()[stands[arm]] for arm in arms})
        timed = self.test.equal == "seconds" or "tokens_per_second" in self._metrics()
        options = replace(self.options, study=name, pack=1 if timed else self.options.pack)  # packs share their time
        if not self._is_done(study):
            status = run_study(options, study, lambda *_: 0)
            if status:
                failed = WorkFailed(f"{self.name} was interrupted; the same command goes on where it was")
                failed.status = status
                raise failed
        with open_readonly(options.storage) as store:
            snapshot = read_snapshot(store, name)
            return self._read(snapshot, {n: arm for n, arm in stands.items() if one_run[n] in arms}, one_run)

    def _metrics(self) -> set[str]:
        return {self.test.metric_of(arm) for arm in self.test.all_arms()}

    def _one_run(self, arms: Mapping[str, str]) -> dict[str, str]:
        """Return arm -> the first arm of the same configuration, whose run is its own too."""
        full = self.test.all_arms()
        configs = {name: updated(self.base, full[arm]) for name, arm in arms.items()}
        return {name: next(n for n in configs if configs[n] == configs[name]) for name in configs}

    def _study(self, name: str, seeds: tuple[int, ...], arms: dict[str, Any]) -> Study:
        objective = "val_loss" if any(metric.endswith("val_loss") for metric in self._metrics()) else "val_bpb"
        source = f"claim {self.name}"
        like = Study(name, source, StudyFile(arms=arms, seeds=seeds, objective=objective), self.base)
        return study_of(like, name, self.base, Compared(source, arms, seeds, {"claim": self.name}, self.test.equal))

    def _is_done(self, study: Study) -> bool:
        """Return whether the storage holds all runs of a study.

        Raises:
            LeftOut: it holds another one of that name.
        """
        with suppress(StorageError), open_readonly(self.options.storage) as store:
            study_id = study_ids(store).get(study.name)
            held = {} if study_id is None else study_attrs(store, study_id).get(SPEC, {})
            if not held:
                return False
            if fingerprint(from_spec(held).spec()) != fingerprint(study.spec()):
                raise self._other(study.name)
            return ended(read_snapshot(store, study.name))
        return False

    def _other(self, study: str) -> ClaimSkipped:
        return ClaimSkipped(
            f"the storage holds a study {study} with other arms than the ledger's; give another --storage"
        )

    def _read(self, snapshot: Snapshot, arms: Mapping[str, str], one_run: Mapping[str, str]) -> StudyRuns:
        """Return the runs of a study that came to an end, scored."""
        trials = runs_by_arm(snapshot)
        early = metrics_at_equal_seconds(snapshot, trials, self.options.out) if self.test.equal == "seconds" else {}
        found = []
        for name, arm in arms.items():
            metric = self.test.metric_of(arm)
            for seed, trial in sorted(trials[one_run[name]].items()):
                then = early.get(trial.number, {})
                if then is None or (trial.state != State.COMPLETE and word(snapshot, trial) != "diverged"):
                    continue
                last = trial.user_attrs.get(METRICS, {})
                value = then.get(metric, run_score(trial, metric))
                said = {"tokens": last.get("tokens"), "seconds": last.get("seconds")}
                found.append(
                    ClaimRun(arm=name, seed=seed, value=value, study=snapshot.name, trial=trial.number, **said)
                )
        missing = len(arms) * len(snapshot.spec["seeds"]) - len(found)
        if missing:
            why = "or had no rung when the first arm ended; " if early else ""
            say(f"{self.name}: {missing} runs failed, {why}`hpo trials --study {snapshot.name}` lists them")
        every = [t.user_attrs[MACHINE] for arm in trials.values() for t in arm.values()]
        return StudyRuns(found, distinct_machines([every]))


def best_level(test: ArmsTest, arms: list[str], found: Iterable[ClaimRun]) -> str:
    """Return which of the arms that differ in tuned factors alone did best: fewest diverged, then the best mean.

    Raises:
        WorkFailed: none of them has all its runs.
    """
    by_arm = {arm: list(of.values()) for arm, of in scores_by_arm(found).items() if len(of) == len(TUNING_SEEDS)}
    whole = [arm for arm in arms if arm in by_arm]
    if not whole:
        raise WorkFailed(f"no level of {', '.join(test.tuned)} has all its runs: {', '.join(arms)}")

    def rank(arm: str) -> tuple[int, float]:
        known = [value for value in by_arm[arm] if value is not None]
        return len(TUNING_SEEDS) - len(known), -better_sign(test) * float(np.mean(known)) if known else 0.0

    return min(whole, key=rank)


def distinct_machines(found: Iterable[Iterable[dict[str, Any]]]) -> Any:
    kept: list[dict[str, Any]] = []
    for machine in (machine for machines in found for machine in machines):
        if machine not in kept:
            kept.append(machine)
    return kept


def run_score(trial: Trial, metric: str) -> float | None:
    """Return what a run that came to its end, or diverged, is scored by; None where it diverged."""
    if metric == "finished":
        return float(trial.state == State.COMPLETE)
    if trial.state != State.COMPLETE:
        return None
    value = trial.user_attrs.get(METRICS, {}).get(metric)
    return max(value) if isinstance(value, list) else value


def metrics_at_equal_seconds(
    snapshot: Snapshot, trials: Mapping[str, Mapping[int, Trial]], out: Path
) -> dict[int, dict[str, float] | None]:
    """Return trial -> metrics, read between rungs at the time at which the first arm of its seed ended.

    None for a run that had not come to its first rung by then.

    Raises:
        WorkFailed: the curves are not under --out.
    """
    found: dict[int, dict[str, float] | None] = {}
    for seed in snapshot.spec["seeds"]:
        finished = [arm[seed] for arm in trials.values() if seed in arm and arm[seed].state == State.COMPLETE]
        curves = {t.number: read_curve(trial_folder(out, snapshot.name, t.number) / "metrics.jsonl") for t in finished}
        over = min((rungs["seconds"][-1] for rungs in curves.values()), default=0.0)
        for number, rungs in curves.items():
            whole = {key: values for key, values in rungs.items() if None not in values}
            began = rungs["seconds"][0] <= over
            read = {key: float(np.interp(over, rungs["seconds"], values)) for key, values in whole.items()}
            found[number] = read if began else None
    return found


def read_curve(path: Path) -> dict[str, list[Any]]:
    """Return the numbers of a run by name, a value a rung.

    Raises:
        WorkFailed: the file is not here.
    """
    rows = list(read_metrics(path))
    if not rows:
        raise WorkFailed(f"no curve in {path}: losses at equal seconds need the folder that the runs wrote, by --out")
    return {key: [row[key] for row in rows] for key, value in rows[0].items() if isinstance(value, int | float)}
