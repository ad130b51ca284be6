"""The branch of a wsd run: the shorter run whose decay begins at a rung of the longer one.

Until its decay begins, a wsd run does not depend on its length. A cool-down probe of its constant phase is therefore
the end of a complete wsd run of fewer tokens.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from hpo.analysis.probes import probe_plan, probe_values
from hpo.analysis.snapshot import Snapshot
from hpo.errors import Problem
from hpo.search.probes import SHARE
from hpo.storage.trials import Trial
from model.config import TrainConfig
from model.section import updated


def branch_config(snapshot: Snapshot, trial: Trial, config: BaseModel, rung: int) -> TrainConfig:
    """Return the configuration of the wsd run that the probe of a trial at a rung is.

    config: of the trial.

    Raises:
        Problem: the trial has no such branch.
    """
    if not isinstance(config, TrainConfig) or config.schedule.name != "wsd":
        name = config.schedule.name if isinstance(config, TrainConfig) else "a configuration of your own"
        raise Problem(f"--cool-down: must be used with a run of schedule wsd, got trial {trial.number} with {name}")
    marks, schedule = config.marks(), config.schedule
    last = [n for n, mark in enumerate(marks, 1) if mark <= marks[-1] * (1 - schedule.decay * (1 - schedule.warmup))]
    first = [n for n, mark in enumerate(marks, 1) if mark >= marks[-1] * schedule.warmup]
    allowed = sorted({*first} & {*last} & {*range(1, len(marks))})
    if rung not in allowed:
        known = f"one of {', '.join(map(str, allowed))}" if allowed else "omitted, because no rung is in this phase"
        raise Problem(f"--cool-down: must be a rung in the constant phase of the run, {known}, got {rung}")
    plan = probe_plan(snapshot)
    share = plan.share if plan is not None and plan.rungs else SHARE
    done, decay = marks[rung - 1], min(max(1, round(share * marks[-1])), marks[-1] - marks[rung - 1])
    return updated(config, _shorter(config, done, decay))


def _shorter(config: TrainConfig, done: int, decay: int) -> dict[str, Any]:
    """Return the changed fields of a run that decays after `done` updates for `decay` updates."""
    total = done + decay
    warmup = config.schedule.warmup * config.marks()[-1] / total
    rungs = next(n for n in range(min(config.run.rungs, total), 0, -1) if total % n == 0)  # so that all rungs are equal
    return {
        "run.tokens": total * config.update_tokens(),
        "run.rungs": rungs,
        "run.align": 0,
        "schedule.warmup": warmup,
        "schedule.decay": decay / (total * (1 - warmup)),
    }


def branch_provenance(trial: Trial, rung: int, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance of a branch: its value is that of the probe, if the trial was probed at the rung."""
    value = probe_values(trial).get(str(rung))
    known = {key: own for key, own in provenance.items() if key not in ("value", "known", "state")}
    return {**known, "cool_down": rung, **({} if value is None else {"value": value})}
