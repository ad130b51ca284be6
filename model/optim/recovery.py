"""What a run does about a failed step: one whose loss or gradient is not finite, or whose gradient is a spike."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from model.section import Count, Section

MEMORY = 0.98  # decay of the mean gradient norm that spikes are measured against
PATIENCE = 20  # steps before that mean is used

Answer = Literal["go", "skip", "rollback", "stop"]


class Recovery(Section):
    """What counts as a failed step."""

    spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """A step whose gradient norm, before clipping, is more than this many times its running mean has failed, from the
    21st good step on; none: only one that is not finite."""


class Stop(Recovery):
    """End the run; it is recorded as diverged."""

    name: Literal["stop"] = "stop"

    def answer(self, failures: int) -> Answer:
        """Return what to do about failure number `failures`."""
        return "stop"

    def watches(self) -> bool:
        """Return whether every step's gradient norm must be looked at."""
        return self.spike is not None


class Skip(Recovery):
    """Leave the update out and go on with the next batch."""

    name: Literal["skip"] = "skip"
    at_most: Count = 3
    """Failed steps of a run; one more ends it."""

    def answer(self, failures: int) -> Answer:
        return "skip" if failures <= self.at_most else "stop"

    def watches(self) -> bool:
        return True


class RollBack(Recovery):
    """Go back to the weights and optimizer state of the last rung and on with the next batch, at a lower rate."""

    name: Literal["rollback"] = "rollback"
    at_most: Count = 3
    """Failed steps of a run; one more ends it."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """All learning rates are multiplied by it, for the rest of the run, at each failure."""

    def answer(self, failures: int) -> Answer:
        return "rollback" if failures <= self.at_most else "stop"

    def watches(self) -> bool:
        return True


class Health:
    """The failures of one run, and the usual size of its gradients."""

    def __init__(self, rule: Stop | Skip | RollBack) -> None:
        self.rule = rule
        self.failures, self.seen = 0, 0
        self.mean = 0.0  # of gradient norms
        self.cut = 1.0  # on all learning rates
        self.mark()

    def mark(self) -> None:
        """Remember the usual size of gradients: a run that goes back to its weights of now has it again."""
        self.marked = self.seen, self.mean

    def recoveries(self) -> int:
        """Return the failures that did not end the run."""
        return sum(self.rule.answer(n) != "stop" for n in range(1, self.failures + 1))

    def judge(self, norm: float) -> Answer:
        """Return what to do about a step. norm: of its gradient, nan where its loss is not finite."""
        if not self._failed(norm):
            self.seen += 1
            self.mean += (norm - self.mean) * max(1 - MEMORY, 1 / self.seen)
            return "go"
        self.failures += 1
        answer = self.rule.answer(self.failures)
        if isinstance(self.rule, RollBack) and answer == "rollback":
            self.cut *= self.rule.lr_factor
            self.seen, self.mean = self.marked
        return answer

    def _failed(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return True
        spike = self.rule.spike
        return spike is not None and self.seen >= PATIENCE and norm > spike * self.mean


Recovering = Annotated[Stop | Skip | RollBack, Field(discriminator="name")]
