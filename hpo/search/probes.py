"""Cool-down probes: at which rungs runs are probed, and what pruners compare then.

A probe trains a copy of a run with a falling learning rate for a share of its tokens, and scores it. The run itself
continues unchanged. The module imports neither Optuna nor pydantic, so that `hpo status` starts quickly.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hpo.search.marks import mark_rungs

Curve = Mapping[int, float]  # rung -> value

SHARE = 0.05  # of the run, for each probe
# For `auto`: updates of a probe, between two shares of the run. In runs of 20,000 updates a share of 0.02 ranks as well
# as one of 0.05, in runs of 2,000 updates it ranks worse (docs/transfer.md).
PROBE_UPDATES, MIN_SHARE, MAX_SHARE = 400, 0.02, 0.05
AUTO_UPDATES = 2_000  # updates of a run from which `auto` probes without further evidence
AUTO_RUNS = 8  # finished runs that `auto` needs as evidence
AUTO_LEVEL = 0.5  # rank correlation below which raw losses mislead; among 8 runs it is often 0.7 by chance


class ProbePlan(NamedTuple):
    """What a study probes.

    rungs: at which runs are probed, in ascending order; empty if they are not. share: of a probe, a fraction of the
    tokens of a run. reason: why, as a clause.
    """

    rungs: tuple[int, ...]
    share: float
    reason: str

    def record(self) -> dict[str, Any]:
        """Return the plan as the study stores it."""
        return {"rungs": list(self.rungs), "share": self.share, "reason": self.reason}

    def text(self) -> str:
        """Return the plan as a line."""
        if not self.rungs:
            return f"probes: off, because {self.reason}"
        rungs = ", ".join(map(str, self.rungs))
        return f"probes: at rungs {rungs}, {self.share:.3g} of a run each, because {self.reason}"

    def cost(self, n: int, rungs: int) -> int:
        """Return the tokens of n probes in rungs, rounded up. rungs: number of rungs of a run."""
        return math.ceil(n * self.share * rungs - 1e-9)

    def cost_until(self, rung: int, rungs: int) -> int:
        """Return the tokens of all probes of a run until a rung, in rungs, rounded up."""
        return self.cost(sum(probed <= rung for probed in self.rungs), rungs)


NO_PROBES = ProbePlan((), 0.0, "the study has none")


def plan_of(probe: str | Mapping[str, Any] | None, stored: Mapping[str, Any] | None) -> ProbePlan | None:
    """Return the plan of a study, None while `auto` has not decided.

    probe: the key `probe` of the study as JSON values. stored: what `auto` has decided; None or {}: nothing yet.
    """
    if probe in (None, "off"):
        return NO_PROBES
    if isinstance(probe, Mapping):
        return ProbePlan(tuple(sorted(set(probe["rungs"]))), float(probe["share"]), "the study file states it")
    if not stored:
        return None
    return ProbePlan(tuple(stored["rungs"]), float(stored["share"]), str(stored["reason"]))


def decide_now(pruner: Mapping[str, Any], rungs: int, updates: int, curves: Sequence[Curve] | None) -> ProbePlan | None:
    """Return what `auto` decides, None if it needs more finished runs.

    pruner: the pruner of the study as JSON values. rungs, updates: of a run. curves: raw losses of finished runs, None
    if only the length of a run may decide.
    """
    plan = decide_by_length(pruner, rungs, updates)
    return plan if plan is not None or curves is None else decide_by_runs(pruner, rungs, updates, curves)


def probed_curve(raw: Curve, probes: Mapping[str, float | None]) -> dict[int, float]:
    """Return what pruners compare where runs are probed: the values of the probes, and whether the run has diverged.

    probes: rung, as the storage writes it -> value; None for a probe that diverged.
    """
    values = {int(rung): math.inf if value is None else value for rung, value in probes.items()}
    return values | {rung: value for rung, value in raw.items() if not math.isfinite(value)}


def compared_rungs(pruner: Mapping[str, Any], rungs: int) -> list[int]:
    """Return the rungs at which a pruner that compares probes may stop trials of a run of `rungs` rungs.

    The default of `warmup_rungs` is for raw losses, which mislead early. It does not hold for probes.
    """
    match pruner["name"]:
        case "asha" | "halving" | "hyperband":
            return mark_rungs(pruner["min_rungs"], pruner["factor"], rungs)
        case "none":
            return []
    return list(range(1 + int(pruner.get("warmup_rungs") or 0), rungs))


def decide_by_length(pruner: Mapping[str, Any], rungs: int, updates: int) -> ProbePlan | None:
    """Return what `auto` decides before any run has finished, None if it needs finished runs.

    pruner: the pruner of the study as JSON values. rungs, updates: of a run.
    """
    if pruner["name"] not in ("median", "percentile", "asha", "halving", "hyperband"):
        return ProbePlan((), 0.0, f"pruner {pruner['name']} compares no trials at equal rungs")
    plan = _auto_plan(pruner, rungs, updates)
    if not plan.rungs:
        return plan
    if updates >= AUTO_UPDATES:
        reason = f"runs of {updates:,} updates, {AUTO_UPDATES:,} or more, rank badly by raw losses"
        return plan._replace(reason=reason)
    if pruner["name"] not in ("median", "percentile"):
        reason = f"a run has {updates:,} updates, fewer than {AUTO_UPDATES:,}"
        return ProbePlan((), 0.0, f"{reason}, and {pruner['name']} stops most trials before runs finish")
    return None


def decide_by_runs(pruner: Mapping[str, Any], rungs: int, updates: int, curves: Sequence[Curve]) -> ProbePlan | None:
    """Return what `auto` decides from finished runs, None if it needs more. curves: raw losses of finished runs."""
    complete = [curve for curve in curves if all(math.isfinite(curve.get(r, math.nan)) for r in range(1, rungs + 1))]
    plan = _auto_plan(pruner, rungs, updates)
    if len(complete) < AUTO_RUNS or not plan.rungs:
        return None
    first = plan.rungs[0]
    rho = rank_correlation([curve[first] for curve in complete], [curve[rungs] for curve in complete])
    found = f"raw losses at rung {first} of {len(complete)} finished runs have rank correlation {rho:.2f} with the end"
    if rho < AUTO_LEVEL:
        return plan._replace(reason=f"{found}, below {AUTO_LEVEL:g}")
    return ProbePlan((), 0.0, f"{found}, at least {AUTO_LEVEL:g}")


def _auto_plan(pruner: Mapping[str, Any], rungs: int, updates: int) -> ProbePlan:
    """Return the probes of `auto` where it probes: at a quarter and at half of a run, or at all marks of the pruner."""
    compared = compared_rungs(pruner, rungs)
    if pruner["name"] in ("median", "percentile"):
        wanted = sorted({max(1, round(rungs / 4)), max(1, round(rungs / 2))})
        compared = [rung for rung in wanted if rung in compared] or compared[:1]
    if not compared:
        return ProbePlan((), 0.0, f"pruner {pruner['name']} compares no trials before the last of {rungs} rungs")
    by_updates = max(MIN_SHARE, min(MAX_SHARE, PROBE_UPDATES / updates))
    share = min(by_updates, compared[0] / rungs / 2, 1 - compared[-1] / rungs)
    return ProbePlan(tuple(compared), share, "")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two lists, 0 if one of them is constant."""
    import numpy as np

    x, y = (np.array([_mean_rank(values, value) for value in values]) for values in (a, b))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _mean_rank(values: Sequence[float], value: float) -> float:
    return sum(other < value for other in values) + sum(other == value for other in values) / 2
