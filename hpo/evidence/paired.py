"""What a study of arms shows: each arm against the first one, in pairs of runs of one seed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpo.analysis.snapshot import Snapshot
from hpo.analysis.statistics import LEVEL, Paired, Test, fewest, holm, paired
from hpo.storage.attributes import ARM, FIXED_VALUES, METRICS, SEED
from hpo.storage.trials import State, Trial

RunsByArm = Mapping[str, Mapping[int, Trial]]  # arm -> seed -> its trial


@dataclass(frozen=True)
class ArmComparison:
    """One arm: its runs, their mean, and how it compares with the first arm.

    n: runs that have a value. lost: those that diverged or failed. difference: of the pairs, this arm less
    the first, None for the first itself and for fewer than two pairs. p: corrected for the number of arms compared.
    """

    arm: str
    n: int
    lost: int
    mean: float | None
    sd: float | None
    difference: Paired | None
    p: float | None
    verdict: str


def runs_by_arm(snapshot: Snapshot) -> RunsByArm:
    """Return the runs of each arm that were begun; a run that was tried again counts as its last try."""
    found: dict[str, dict[int, Trial]] = {name: {} for name in snapshot.spec["arms"]}
    seed = next((key for key in ("run.seed", "seed") if key in snapshot.spec["space"]), "")
    for trial in snapshot.trials:
        name, number = trial.user_attrs.get(ARM), trial.user_attrs.get(SEED)
        if name is None and (values := trial.user_attrs.get(FIXED_VALUES)):  # `hpo retry` of one
            own = {key: value for key, value in values.items() if key != seed}
            name = next((n for n, arm in snapshot.spec["arms"].items() if arm == own), None)
            number = values.get(seed)
        if name in found and number is not None:
            found[name][int(number)] = trial
    return found


def final_score(snapshot: Snapshot, trial: Trial, metric: str | None = None) -> float | None:
    """Return a finished run's result, by the objective or another metric of its last rung; None for no finite one."""
    if trial.state != State.COMPLETE:
        return None
    found = trial.values[0] if metric in (None, snapshot.objective) else trial.user_attrs.get(METRICS, {}).get(metric)
    return None if found is None or not math.isfinite(found) else float(found)


def compare_arms(snapshot: Snapshot, metric: str | None = None) -> list[ArmComparison]:
    """Compare each arm with the first one; lower is better.

    An arm is better or worse where the test of its pairs, corrected for the number of arms by Holm's method, is
    significant; the test is that which the study was made for, else Student's. A run that diverged or failed has no
    value: an arm that has more of them than the first one is worse, whatever its other runs say.
    """
    test: Test = snapshot.spec.get("about", {}).get("test", "t")
    found = runs_by_arm(snapshot)
    scores = {name: {s: final_score(snapshot, t, metric) for s, t in trials.items()} for name, trials in found.items()}
    first, *others = scores
    tested = {name: _paired_difference(scores[name], scores[first], test) for name in others}
    corrected = dict(zip(tested, holm([t.p if t else 1.0 for t in tested.values()]), strict=True))
    lost = {name: sum(ended_without_value(snapshot, t) for t in found[name].values()) for name in found}
    least = fewest(test, max(1, len(others)))
    rows = []
    for name, values in scores.items():
        known = [value for value in values.values() if value is not None]
        pairs, p = tested.get(name), corrected.get(name)
        rows.append(
            ArmComparison(
                arm=name,
                n=len(known),
                lost=lost[name],
                mean=float(np.mean(known)) if known else None,
                sd=float(np.std(known, ddof=1)) if len(known) > 1 else None,
                difference=pairs,
                p=p if pairs else None,
                verdict="reference" if name == first else _verdict(pairs, p, lost[name] - lost[first], least),
            )
        )
    return rows


def _paired_difference(mine: Mapping[int, float | None], its: Mapping[int, float | None], test: Test) -> Paired | None:
    pairs = [(mine[s], its[s]) for s in sorted(mine.keys() & its.keys())]
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return paired(differences, test) if len(differences) > 1 else None


def ended_without_value(snapshot: Snapshot, trial: Trial) -> bool:
    """Return whether a run has ended without a value: it diverged, failed, or met a limit."""
    return trial.state in (State.PRUNED, State.FAIL) or (
        trial.state == State.COMPLETE and final_score(snapshot, trial) is None
    )


def _verdict(pairs: Paired | None, p: float | None, lost: int, least: int) -> str:
    """lost: by how many more of its runs the arm lost than the first one."""
    if lost > 0:
        return "worse: runs lost"
    if pairs is None or p is None or pairs.n < least:
        return "better: the first lost runs" if lost < 0 else f"too few pairs, {least} needed"
    if p >= 1 - LEVEL:
        return "no difference shown"
    return "better" if pairs.mean < 0 else "worse"


def comparison_record(row: ArmComparison) -> dict[str, Any]:
    """Return a row as it is printed."""
    return {
        "arm": row.arm,
        "runs": row.n,
        **({"lost": row.lost} if row.lost else {}),
        "mean": row.mean,
        "sd": row.sd,
        "difference": row.difference and row.difference.mean,
        "low": row.difference and row.difference.low,
        "high": row.difference and row.difference.high,
        "p": row.p,
        "verdict": row.verdict,
    }
