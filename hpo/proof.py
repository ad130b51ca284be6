"""hpo claims: the tests of a ledger, run as studies of arms, or as calculations."""

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpo import bases
from hpo.arms import Compared, study_of
from hpo.claims import Arithmetic, Arms, Claim
from hpo.compare import runs
from hpo.data import described as described_data
from hpo.data import prepared
from hpo.engine import look
from hpo.judgement import better
from hpo.output import say
from hpo.patience import StorageError
from hpo.problems import Problem, WorkFailed
from hpo.reading import SPEC, State, study_attrs, study_ids
from hpo.records import Finding, Run, described, values
from hpo.running import Options, run
from hpo.scoring import at_equal_seconds, scored
from hpo.status import MACHINE, METRICS, Snapshot, ended, snapshot, word
from hpo.study import Study, StudyFile, fingerprint, from_spec
from model.config import TrainConfig
from model.section import updated

TUNING = (100, 101, 102)  # seeds by which the levels of tuned factors are chosen
ROOT = Path(__file__).parent.parent
CONTROL = "base"  # beside arms that are one run, scored in several ways: a study compares two at least


class LeftOut(Problem):
    """A claim cannot be tested here; others can."""


@dataclass(frozen=True)
class Found:
    """The runs of a study of arms, and on what they were made."""

    runs: list[Run]
    machines: list[dict[str, Any]]


def prove(name: str, claim: Claim, seeds: int, options: Options) -> Finding:
    """Test a claim and return what was found; what the storage holds of it already is not run again.

    Raises:
        LeftOut: what it needs is not here. WorkFailed: it could not be done to the end, or was interrupted.
    """
    if isinstance(claim.test, Arithmetic):
        return calculated(name, claim, claim.test)
    case = _Case(name, claim, claim.test, _base(claim.test), options)
    tuning, chosen = case.tuned()
    parts = [case.done(study, seeds_of, chosen) for study, seeds_of in case.parts(seeds).items()]
    made = [run for part in parts for run in part.runs]
    full = claim.test.named()
    weighed = [next(iter(chosen)), *claim.test.terms()]
    return Finding(
        test=described(claim),
        command=f"hpo claims {name} --seeds {len({run.seed for run in made})}",
        base=claim.test.base,
        parameters={arm: parameters(updated(case.base, full[chosen[arm]])) for arm in weighed},
        machines=_distinct(part.machines for part in [*tuning, *parts]),
        chosen={arm: of for arm, of in chosen.items() if arm != of},
        runs=tuple(made),
        tuning=tuple(run for part in tuning for run in part.runs),
    )


def _base(test: Arms) -> TrainConfig:
    """Return the base of a test, once its text is here.

    Raises:
        LeftOut: it is not.
    """
    base = bases.load(test.base, "test.base", TrainConfig)
    try:
        described_data(base)
    except Problem as problem:
        raise LeftOut(*problem.lines) from None
    return base


def calculated(name: str, claim: Claim, test: Arithmetic) -> Finding:
    """Run the pytest node that a claim names.

    Raises:
        LeftOut: the project's tests, or pytest, are not here. WorkFailed: the calculation does not come out.
    """
    if not (ROOT / test.arithmetic.partition("::")[0]).is_file():
        raise LeftOut(f"its calculation, {test.arithmetic}, is among the project's tests, which are not installed")
    asked = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test.arithmetic]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No module named pytest" in done.stderr:
        raise LeftOut(f"its calculation, {test.arithmetic}, needs pytest, which is not installed")
    if done.returncode:
        raise WorkFailed(f"{test.arithmetic} does not pass; `{' '.join(['python', *asked[1:]])}` says why")
    return Finding(test=described(claim), command=f"hpo claims {name}", passed=True)


@dataclass(frozen=True)
class _Case:
    """One claim on its way through its studies."""

    name: str
    claim: Claim
    test: Arms
    base: TrainConfig
    options: Options

    def tuned(self) -> tuple[list[Found], dict[str, str]]:
        """Return the runs that choose the levels of tuned factors, and contestant -> the arm that goes on."""
        contestants = self.test.contestants()
        if not self.test.tuned:
            return [], {name: name for name in contestants}
        found = self.done(f"claim-{self.name}-tune", TUNING, {name: name for name in self.test.named()})
        return [found], {name: best(self.test, arms, found.runs) for name, arms in contestants.items()}

    def parts(self, seeds: int) -> dict[str, tuple[int, ...]]:
        """Return the studies that make up a claim's runs, with their seeds; the last one has those still missing.

        A study keeps its seeds, so that more of them are another study, and no run is lost.
        """
        held: dict[str, tuple[int, ...]] = {}
        with suppress(StorageError), look(self.options.storage) as at:
            for study, study_id in sorted(study_ids(at).items()):
                if re.fullmatch(rf"claim-{self.name}(-from-\d+)?", study):
                    held[study] = tuple(study_attrs(at, study_id).get(SPEC, {}).get("seeds", ()))
        have = {seed for found in held.values() for seed in found}
        missing = tuple(seed for seed in range(seeds) if seed not in have)
        if missing:
            held[f"claim-{self.name}" + (f"-from-{missing[0]}" if missing[0] else "")] = missing
        return held

    def done(self, name: str, seeds: tuple[int, ...], arms: Mapping[str, str]) -> Found:
        """Run a study to its end unless it is there already; return its runs.

        arms: name -> the arm of the ledger, tuned, that it stands for.

        Raises:
            LeftOut: the storage holds another study under that name. WorkFailed: it was interrupted, or failed.
        """
        one_run = self._one_run(arms)
        study = self._study(name, seeds, {arm: self.test.named()[arms[arm]] for arm in one_run.values()})
        timed = self.test.equal == "seconds" or "tokens_per_second" in self._metrics()
        options = replace(self.options, study=name, pack=1 if timed else self.options.pack)  # packs share their time
        if not self._is_done(study):
            status = run(options, study, lambda *_: 0)
            if status:
                failed = WorkFailed(f"{self.name} was interrupted; the same command goes on where it was")
                failed.status = status
                raise failed
        with look(options.storage) as at:
            of = snapshot(at, name)
            return self._read(of, arms, one_run)

    def _metrics(self) -> set[str]:
        return {self.test.metric_of(arm) for arm in self.test.named()}

    def _one_run(self, arms: Mapping[str, str]) -> dict[str, str]:
        """Return arm -> the first arm of the same configuration, whose run is its own too."""
        full = self.test.named()
        configs = {name: updated(self.base, full[arm]) for name, arm in arms.items()}
        return {name: next(n for n in configs if configs[n] == configs[name]) for name in configs}

    def _study(self, name: str, seeds: tuple[int, ...], arms: dict[str, Any]) -> Study:
        if len(arms) == 1:
            arms = {**arms, CONTROL: {}}
        objective = "val_loss" if any(metric.endswith("val_loss") for metric in self._metrics()) else "val_bpb"
        source = f"claim {self.name}"
        like = Study(name, source, StudyFile(arms=arms, seeds=seeds, objective=objective), self.base)
        return study_of(like, name, self.base, Compared(source, arms, seeds, {"claim": self.name}, self.test.equal))

    def _is_done(self, study: Study) -> bool:
        """Return whether the storage holds all runs of a study.

        Raises:
            LeftOut: it holds another one of that name.
        """
        with suppress(StorageError), look(self.options.storage) as at:
            study_id = study_ids(at).get(study.name)
            held = {} if study_id is None else study_attrs(at, study_id).get(SPEC, {})
            if not held:
                return False
            if fingerprint(from_spec(held).spec()) != fingerprint(study.spec()):
                raise LeftOut(
                    f"the storage holds a study {study.name} with other arms than the ledger's; give another --storage"
                )
            return ended(snapshot(at, study.name))
        return False

    def _read(self, of: Snapshot, arms: Mapping[str, str], one_run: Mapping[str, str]) -> Found:
        """Return the runs of a study that came to an end, scored."""
        trials = runs(of)
        early = at_equal_seconds(of, trials, self.options.out) if self.test.equal == "seconds" else {}
        found = []
        for name, arm in arms.items():
            metric = self.test.metric_of(arm)
            for seed, trial in sorted(trials[one_run[name]].items()):
                then = early.get(trial.number, {})
                if then is None or (trial.state != State.COMPLETE and word(of, trial) != "diverged"):
                    continue
                last = trial.user_attrs.get(METRICS, {})
                value = then.get(metric, scored(trial, metric))
                said = {"tokens": last.get("tokens"), "seconds": last.get("seconds")}
                found.append(Run(arm=name, seed=seed, value=value, study=of.name, trial=trial.number, **said))
        missing = len(arms) * len(of.spec["seeds"]) - len(found)
        if missing:
            why = "or had no rung when the first arm ended; " if early else ""
            say(f"{self.name}: {missing} runs failed, {why}`hpo trials --study {of.name}` lists them")
        every = [t.user_attrs[MACHINE] for arm in trials.values() for t in arm.values()]
        return Found(found, _distinct([every]))


def best(test: Arms, arms: list[str], found: Iterable[Run]) -> str:
    """Return which of the arms that differ in tuned factors alone did best: fewest diverged, then the best mean.

    Raises:
        WorkFailed: none of them has all its runs.
    """
    by_arm = {arm: list(of.values()) for arm, of in values(found).items() if len(of) == len(TUNING)}
    whole = [arm for arm in arms if arm in by_arm]
    if not whole:
        raise WorkFailed(f"no level of {', '.join(test.tuned)} has all its runs: {', '.join(arms)}")

    def rank(arm: str) -> tuple[int, float]:
        known = [value for value in by_arm[arm] if value is not None]
        return len(TUNING) - len(known), -better(test) * float(np.mean(known)) if known else 0.0

    return min(whole, key=rank)


def parameters(config: TrainConfig) -> int:
    """Return how many weights a configuration trains."""
    network = config.model.build(prepared(config).vocab_size, 0)
    return sum(weights.numel() for weights in network.parameters())


def _distinct(found: Iterable[Iterable[dict[str, Any]]]) -> Any:
    kept: list[dict[str, Any]] = []
    for machine in (machine for machines in found for machine in machines):
        if machine not in kept:
            kept.append(machine)
    return kept
