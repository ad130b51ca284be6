"""What a study is to reach: targets, the first of which to be met may end it, and milestones on the way of one run."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpo.console import Rounded, number
from hpo.storage.targets import TargetReached

if TYPE_CHECKING:
    pass


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


def target_records(
    wanted: Mapping[str, float], found: Mapping[str, TargetReached], rung_tokens: float | None
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


def milestone_records(found: Iterable[Milestone]) -> dict[str, dict[str, Any]]:
    """Return milestones by their share, as programs read them."""
    return {f"{m.share:g}": m.record() for m in found}
