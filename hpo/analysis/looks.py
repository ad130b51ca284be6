"""What the pairs so far show in a sequential comparison, as JSON fields and as a line of text."""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.snapshot import Snapshot
from hpo.queue import arm_results
from hpo.storage.trials import Trial
from hpo.study.sequential import MIN_PAIRS, Progress, follow_pairs, plan_of

RunsByArm = Mapping[str, Mapping[int, Trial]]  # arm -> seed -> its trial


def runs_by_arm(snapshot: Snapshot) -> RunsByArm:
    """Return the started runs of each arm by seed; the last attempt counts for a run that was retried."""
    return arm_results.group_by_arm(snapshot.spec["arms"], snapshot.spec["space"], snapshot.trials)


def progress_of_arms(snapshot: Snapshot, before: int | None = None) -> dict[str, Progress] | None:
    """Return what the pairs so far show about each arm but the first; None unless the comparison is sequential.

    before: only the pairs before the pair of this seed count.
    """
    bounds = plan_of(snapshot.spec.get("about") or {})
    if bounds is None or not snapshot.spec.get("arms"):
        return None
    seeds = list(snapshot.spec["seeds"])
    known = len(seeds) if before is None else seeds.index(before)
    results = arm_results.results_of_arms(runs_by_arm(snapshot), seeds)
    known_results = {arm: [*values[:known], *[None] * (len(seeds) - known)] for arm, values in results.items()}
    return follow_pairs(bounds, known_results, snapshot.direction)


def look_lines(snapshot: Snapshot) -> list[str]:
    """Return a line with the progress of a sequential comparison, no line for other studies."""
    arms = progress_of_arms(snapshot)
    if arms is None:
        return []
    return [f"sequential: {arm_results.look_text(arms, len(snapshot.spec['seeds']))}"]


def sequential_record(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the progress of a sequential comparison for `--format json`; None for other studies."""
    arms = progress_of_arms(snapshot)
    if arms is None:
        return None
    records = {
        name: {"pairs": len(arm.gains), "t": arm.t[-1] if arm.t else None, "bound": arm.bound, "outcome": arm.outcome}
        for name, arm in arms.items()
    }
    return {"at_most": len(snapshot.spec["seeds"]), "arms": records}


def reason_for_pair(snapshot: Snapshot, seed: int) -> str:
    """Return why a sequential comparison needed the pair of a seed, as a clause; "" for other studies."""
    arms = progress_of_arms(snapshot, before=seed)
    if arms is None:
        return ""
    if not any(arm.t for arm in arms.values()):
        return f"; the first {MIN_PAIRS} pairs run in any case"
    return f"; {arm_results.look_text(arms, len(snapshot.spec['seeds']))}"
