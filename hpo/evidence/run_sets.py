"""Find the runs of a configuration with several seeds, and choose runs of two configurations that can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpo.analysis.looks import runs_by_arm
from hpo.analysis.snapshot import Snapshot, read_snapshot
from hpo.evidence.paired import final_score
from hpo.storage.attributes import ARM, FIXED_VALUES, SPEC
from hpo.storage.retry import OpenStorage
from hpo.storage.studies import study_attrs, study_ids
from hpo.storage.trials import Trial
from hpo.study.sequential import plan_of
from hpo.transfer.rule import Rule
from model.section import flatten

Runs = Mapping[int, Trial]  # seed -> complete run of one configuration


@dataclass(frozen=True)
class RunSet:
    """Complete runs of one configuration that differ only in their seeds.

    study: name of the study that ran them. length: of a run, as text such as "1,000 tokens".
    is_arm: whether the study is a comparison of arms, which are comparable by design.
    is_confirmation: whether the study confirms the study of the configuration.
    is_sequential: whether the study stops as soon as its results decide.
    rule: by which the configuration was carried over to this length.
    """

    runs: Runs
    study: str
    length: str
    is_arm: bool = False
    is_confirmation: bool = False
    is_sequential: bool = False
    rule: str = str(Rule.copy)

    def is_comparison_with(self, other: "RunSet") -> bool:
        """Return whether both are arms of one comparison, so that their runs form pairs."""
        return self.is_arm and other.is_arm and self.study == other.study

    def is_comparable_with(self, other: "RunSet") -> bool:
        """Return whether a difference can only be due to the configurations: not to a length, and not to a rule."""
        if {self.rule, other.rule} != {str(Rule.copy)}:
            return False
        return self.is_comparison_with(other) or self.length == other.length


def comparable_runs(a: Sequence[RunSet], b: Sequence[RunSet]) -> tuple[RunSet, RunSet] | None:
    """Return the best runs of two configurations to compare, None without two comparable runs on both sides.

    Arms of one comparison come first, because their runs form pairs; then the runs with the most seeds.
    """
    choices = [(x, y) for x in a for y in b if x.is_comparable_with(y) and min(len(x.runs), len(y.runs)) > 1]

    def rank(choice: tuple[RunSet, RunSet]) -> tuple[bool, int, int]:
        n = [len(side.runs) for side in choice]
        return choice[0].is_comparison_with(choice[1]), min(n), max(n)

    return max(choices, key=rank, default=None)


def runs_of(store: OpenStorage, snapshot: Snapshot, trial: Trial) -> list[RunSet]:
    """Return the complete runs of a trial's configuration, one set for each study and length.

    The runs are those of its arm; of a search, the trial or the repeats of the baseline, and the runs of each
    confirmation.
    """
    if snapshot.spec.get("arms"):
        return [_arm_runs(snapshot, str(trial.user_attrs.get(ARM)))]
    same = snapshot.baseline_runs if trial in snapshot.baseline_runs else [trial]
    runs = _complete(snapshot, {_seed(snapshot, run): run for run in same})
    own = RunSet(runs, snapshot.name, run_length(snapshot, _values(trial)))
    return [own, *_confirmed(store, snapshot, trial)]


def _confirmed(store: OpenStorage, snapshot: Snapshot, trial: Trial) -> list[RunSet]:
    """Return the runs of a trial in each confirmation of its study. The first arm is the baseline of the search."""
    found = []
    is_baseline = trial == snapshot.baseline() or trial in snapshot.baseline_runs
    for name, study_id in study_ids(store).items():
        spec = study_attrs(store, study_id).get(SPEC) or {}
        about = spec.get("about") or {}
        if about.get("confirms") not in snapshot.names or not spec.get("arms"):
            continue
        arms = [arm for arm, number in (about.get("trials") or {}).items() if number == trial.number]
        if is_baseline:
            arms = [next(iter(spec["arms"]))]
        found += [_arm_runs(read_snapshot(store, name), arm, is_confirmation=True) for arm in arms]
    return found


def _arm_runs(snapshot: Snapshot, arm: str, is_confirmation: bool = False) -> RunSet:
    about: Mapping[str, Any] = snapshot.spec.get("about") or {}
    return RunSet(
        runs=_complete(snapshot, runs_by_arm(snapshot).get(arm, {})),
        study=snapshot.name,
        length=run_length(snapshot, snapshot.spec["arms"].get(arm, {})),
        is_arm=True,
        is_confirmation=is_confirmation,
        is_sequential=plan_of(about) is not None,
        rule=about.get("rule", str(Rule.copy)) if is_confirmation else str(Rule.copy),
    )


def run_length(snapshot: Snapshot, values: Mapping[str, Any]) -> str:
    """Return the length of a run: its tokens, or its rungs where the training function counts no tokens.

    values: the fields in which its configuration differs from the base.
    """
    tokens = (flatten(snapshot.spec["base"]) | dict(values)).get("run.tokens")
    if tokens is None and snapshot.rung_tokens:
        tokens = snapshot.rungs * snapshot.rung_tokens
    return f"{snapshot.rungs} rungs" if tokens is None else f"{tokens:,.0f} tokens"


def _complete(snapshot: Snapshot, runs: Runs) -> Runs:
    return {seed: run for seed, run in runs.items() if final_score(snapshot, run) is not None}


def _seed(snapshot: Snapshot, trial: Trial) -> int:
    values = flatten(snapshot.spec["base"]) | dict(_values(trial))
    return int(values.get("run.seed", values.get("seed", 0)))


def _values(trial: Trial) -> Mapping[str, Any]:
    values: Mapping[str, Any] = trial.user_attrs.get(FIXED_VALUES) or trial.params
    return values
