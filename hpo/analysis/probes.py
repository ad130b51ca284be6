"""Cool-down probes of a study: what pruners compared, the tokens of the probes, and lines for people."""

from collections.abc import Mapping
from typing import Any

from hpo.analysis.snapshot import Snapshot
from hpo.console import format_number
from hpo.search.probes import NO_PROBES, ProbePlan, plan_of, probed_curve
from hpo.storage.attributes import PROBE_TOKENS, PROBES
from hpo.storage.trials import Trial
from hpo.study.engines import is_gpt


def probe_values(trial: Trial) -> Mapping[str, float | None]:
    """Return the values of the probes of a trial by rung, None for a probe that diverged."""
    values: Mapping[str, float | None] = trial.user_attrs.get(PROBES, {})
    return values


def compared_curve(trial: Trial, probed: bool) -> Mapping[int, float]:
    """Return the values of a trial that a pruner compares. probed: whether it compares probes."""
    return probed_curve(trial.intermediate_values, probe_values(trial)) if probed else trial.intermediate_values


def compared_objective(snapshot: Snapshot, record: Mapping[str, Any]) -> str:
    """Return the name of the metric that a decision compared. record: of the decision."""
    return f"probe_{snapshot.objective}" if record.get("probe") else snapshot.objective


def probe_plan(snapshot: Snapshot) -> ProbePlan | None:
    """Return what the study probes, None while `probe: auto` has not decided."""
    if snapshot.spec.get("arms") or not is_gpt(snapshot.spec):
        return NO_PROBES
    return plan_of(snapshot.spec.get("probe"), snapshot.probe)


def is_probed(snapshot: Snapshot) -> bool:
    """Return whether runs of the study are probed now."""
    plan = probe_plan(snapshot)
    return plan is not None and bool(plan.rungs)


def probe_tokens(snapshot: Snapshot) -> int:
    """Return the tokens of all probes of a study."""
    return sum(int(t.user_attrs.get(PROBE_TOKENS, 0)) for t in snapshot.own) if is_probed(snapshot) else 0


def probe_rungs(snapshot: Snapshot) -> int:
    """Return the tokens of the probes as the budget counts them: in rungs, rounded up for each trial."""
    plan = probe_plan(snapshot)
    if plan is None or not plan.rungs:
        return 0
    return sum(plan.cost(len(probe_values(trial)), snapshot.rungs) for trial in snapshot.own)


def full_rungs(snapshot: Snapshot) -> int:
    """Return the rungs of a whole run, with its probes."""
    plan = probe_plan(snapshot)
    return snapshot.rungs + (plan.cost_until(snapshot.rungs, snapshot.rungs) if plan else 0)


def probe_lines(snapshot: Snapshot) -> list[str]:
    """Return a line with the rungs of the probes and the reason, and a line with the probes of the best trial."""
    probe, plan, best = snapshot.spec.get("probe", "off"), probe_plan(snapshot), snapshot.best()
    if plan is None or snapshot.spec["pruner"]["name"] == "none":
        return []
    if not plan.rungs:
        return [plan.text()] if probe == "auto" and snapshot.probe else []
    values = probe_values(best) if best else {}
    shown = ", ".join(
        f"{'diverged' if value is None else format_number(value)} at rung {rung}"
        for rung, value in sorted(values.items(), key=lambda item: int(item[0]))
    )
    return [plan.text()] + ([f"probe_{snapshot.objective} of trial {best.number}: {shown}"] if best and shown else [])


def probe_record(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return the plan of the probes as an object, None for a study without probes."""
    plan = probe_plan(snapshot)
    if not is_gpt(snapshot.spec) or snapshot.spec.get("probe", "off") == "off" or snapshot.spec.get("arms"):
        return None
    return {"rungs": None} if plan is None else {**plan.record(), "tokens": probe_tokens(snapshot)}
