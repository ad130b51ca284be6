"""Targets of a study and milestones of a run.

A target is a value of the objective that any trial of the study may reach. A milestone is a value that one run is
expected to reach by a share of its length.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.console import Rounded, format_number
from hpo.search.direction import Direction
from hpo.storage.targets import TargetReached


@dataclass(frozen=True)
class Milestone:
    """One milestone of a run.

    rung: the first rung at or after `share` of the run. value: the objective there, None where it is not known.
    direction: of the study.
    """

    share: float
    rung: int
    expected: float
    value: float | None
    direction: Direction = Direction.MINIMIZE

    @property
    def margin(self) -> float | None:
        """How much better the value is than the expected value, negative for a missed milestone."""
        return None if self.value is None else self.direction.loss(self.expected - self.value)

    def record(self) -> dict[str, Any]:
        """Return the milestone as `--format json` prints it."""
        met = self.margin is not None and self.margin >= 0
        return {"rung": self.rung, "expected": self.expected, "value": self.value, "by": self.margin, "met": met}

    def text(self, decimals: int | None) -> str:
        """Return the milestone as `hpo status` prints it.

        decimals: for values of the objective, None for the default of `number`.
        """
        goal = f"{self.expected:g} by {self.share * 100:g} %"
        if self.margin is None:
            return f"{goal} not reached yet (rung {self.rung})"
        distance = abs(self.margin)
        by = format_number(distance if decimals is None else Rounded(distance, decimals))
        return f"{goal} {'met' if self.margin >= 0 else 'missed'} by {by} (rung {self.rung})"


def target_records(
    targets: Mapping[str, float], reached: Mapping[str, TargetReached], rung_tokens: float | None
) -> dict[str, dict[str, Any]]:
    """Return by name each target, the trial that first reached it, and the tokens trained by then.

    targets: name -> value. reached: the targets that a trial reached. rung_tokens: tokens between two rungs, None
    for a training function that does not count tokens.
    """
    records = {}
    for name, value in targets.items():
        first = reached.get(name)
        records[name] = {
            "target": value,
            **{key: first and getattr(first, key) for key in ("trial", "rung", "value")},
            "tokens": round(first.rung * rung_tokens) if first and rung_tokens else None,
            "study_tokens": round(first.rungs * rung_tokens) if first and rung_tokens else None,
        }
    return records


def milestones(
    expected: Mapping[Any, float],
    rungs: int,
    curve: Mapping[int, float],
    direction: Direction = Direction.MINIMIZE,
) -> list[Milestone]:
    """Return the milestones of a run, the earliest first.

    expected: share of the run -> value of the objective. rungs: number of rungs of a run. curve: rung -> value.
    direction: of the study.
    """
    result = []
    for share, target in sorted((float(share), value) for share, value in expected.items()):
        rung = max(1, math.ceil(share * rungs - 1e-9))  # 0.07 * 100 is 7.000000000000001
        value = curve.get(rung)
        known = value if value is not None and math.isfinite(value) else None
        result.append(Milestone(share, rung, target, known, direction))
    return result


def milestone_records(run: Iterable[Milestone]) -> dict[str, dict[str, Any]]:
    """Return the milestones of a run by their share, as `--format json` prints them."""
    return {f"{milestone.share:g}": milestone.record() for milestone in run}
