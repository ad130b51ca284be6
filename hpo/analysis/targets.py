"""What a study is to reach: targets, the first of which to be met may end it, and milestones on the way of one run."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from hpo.console import Rounded, number
from hpo.storage.trials import Opened, Trial

if TYPE_CHECKING:
    from hpo.analysis.snapshot import Snapshot

# Rows of rungs are numbered as they are written, so that the lowest number is the first in time. The baseline with
# another seed reaches nothing: it is the same configuration with more luck.
_FIRST = """
    SELECT MIN(v.trial_intermediate_value_id)
    FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
    WHERE t.study_id = :study AND v.intermediate_value <= :value AND NOT EXISTS (
        SELECT 1 FROM trial_user_attributes a
        WHERE a.trial_id = t.trial_id AND a.key = 'kind' AND a.value_json = '"seed"'
    )
"""
_WHERE = """
    SELECT t.number, v.step, v.intermediate_value
    FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
    WHERE v.trial_intermediate_value_id = :id
"""
_UNTIL = """
    SELECT COALESCE(SUM(steps), 0) FROM (
        SELECT MAX(v.step) AS steps FROM trial_intermediate_values v JOIN trials t ON t.trial_id = v.trial_id
        WHERE t.study_id = :study AND v.trial_intermediate_value_id <= :id AND NOT EXISTS (
            SELECT 1 FROM trial_user_attributes a
            WHERE a.trial_id = t.trial_id AND a.key = 'kind' AND a.value_json = '"forked"'
        )
        GROUP BY v.trial_id
    ) AS trained
"""


@dataclass(frozen=True)
class Reach:
    """The rung at which a study first came to a target, and the rungs that all its trials had trained by then."""

    trial: int
    rung: int
    value: float
    rungs: int


@dataclass(frozen=True)
class Milestone:
    """What was expected of a run by a share of it, and its value at the first rung there, None where it has none."""

    share: float
    rung: int
    expected: float
    value: float | None

    @property
    def by(self) -> float | None:
        """By how much it was met; below 0: missed."""
        return None if self.value is None else self.expected - self.value

    def record(self) -> dict[str, Any]:
        """Return it as a program reads it."""
        met = self.by is not None and self.by >= 0
        return {"rung": self.rung, "expected": self.expected, "value": self.value, "by": self.by, "met": met}

    def told(self, decimals: int | None) -> str:
        """Return it as a person reads it.

        decimals: of the objective's values, None for as many as usual.
        """

        def said(value: float) -> str:
            return number(value if decimals is None else Rounded(value, decimals))

        what = f"{self.expected:g} by {self.share * 100:g} %"
        if self.value is None or self.by is None:
            return f"{what} not come to (rung {self.rung})"
        return f"{what} {'met' if self.by >= 0 else 'missed'} by {said(abs(self.by))} (rung {self.rung})"


def met(at: Opened, study_id: int, value: float) -> bool:
    """Return whether a trial of the study has come to a value of the objective, at any rung."""
    return _one(at, _FIRST, study=study_id, value=value)[0] is not None


def reached(at: Opened, study_id: int, targets: Mapping[str, float]) -> dict[str, Reach]:
    """Return by name how each target was reached first; those that were not are left out."""
    found = {}
    for name, value in targets.items():
        (first,) = _one(at, _FIRST, study=study_id, value=value)
        if first is not None:
            (rungs,) = _one(at, _UNTIL, study=study_id, id=first)
            trial, rung, objective = _one(at, _WHERE, id=first)
            found[name] = Reach(trial, rung, objective, int(rungs))
    return found


def targets(
    wanted: Mapping[str, float], found: Mapping[str, Reach], rung_tokens: float | None
) -> dict[str, dict[str, Any]]:
    """Return targets by name, and by which trial each was reached first, after how many tokens, as programs read it."""
    records = {}
    for name, value in wanted.items():
        at = found.get(name)
        records[name] = {
            "target": value,
            **{key: at and getattr(at, key) for key in ("trial", "rung", "value")},
            "tokens": round(at.rung * rung_tokens) if at and rung_tokens else None,
            "study_tokens": round(at.rungs * rung_tokens) if at and rung_tokens else None,
        }
    return records


def _one(at: Opened, query: str, **named: float) -> Any:
    def read() -> Any:
        with at.engine.connect() as connection:
            return connection.execute(sa.text(query), named).one()

    return at.retry(read)


def milestones(expected: Mapping[Any, float], rungs: int, curve: Mapping[int, float]) -> list[Milestone]:
    """Return how a run of so many rungs fares against what is expected of it, the earliest share first.

    expected: share of the run -> loss. A share is read at the first rung at or after it.
    """
    found = []
    for share, loss in sorted((float(share), loss) for share, loss in expected.items()):
        rung = max(1, math.ceil(share * rungs - 1e-9))  # 0.07 * 100 is 7.000000000000001
        value = curve.get(rung)
        found.append(Milestone(share, rung, loss, value if value is not None and math.isfinite(value) else None))
    return found


def records(found: Iterable[Milestone]) -> dict[str, dict[str, Any]]:
    """Return milestones by their share, as programs read them."""
    return {f"{m.share:g}": m.record() for m in found}


def milestones_of(of: "Snapshot", trial: Trial) -> list[Milestone]:
    """Return how a trial fares against what its study expects of a run."""
    expected = of.spec.get("milestones")
    return milestones(expected, of.rungs, trial.intermediate_values) if expected else []


def asked(of: "Snapshot", best: Trial | None) -> dict[str, Any]:
    """Return what a program reads of a study that asks for it: noise floor, targets, milestones of its best trial."""
    found: dict[str, Any] = {}
    if of.spec.get("baseline_seeds", 1) > 1:
        floor = of.noise
        found["noise"] = {"n": floor.n, "mean": floor.mean, "sigma": floor.sigma} if floor else None
    if wanted := of.spec.get("targets"):
        found["targets"] = targets(wanted, of.reached, of.rung_tokens)
    if of.spec.get("milestones"):
        found["milestones"] = records(milestones_of(of, best)) if best else {}
    return found
