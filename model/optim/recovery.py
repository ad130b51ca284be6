"""Recovery from failed steps: steps with a loss or gradient that is not finite, or with a gradient spike.

To add a recovery rule, write one class with a `name` and add it to the union `Recovery` at the end of this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from model.section import Count, Section

MEAN_DECAY = 0.98  # decay per step of the mean gradient norm that spikes are compared with
PATIENCE = 20  # good steps before that mean is used

Action = Literal["go", "skip", "rollback", "stop"]
"""What to do with a step. go: apply it. skip: leave it out. rollback: restore the last rung. stop: end the run."""


class FailureRule(Section):
    """Which steps have failed."""

    spike: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    """An update fails if its gradient norm before clipping exceeds this multiple of the running mean of the norms. The
    check starts after 20 successful updates. None: an update fails only if its loss or gradient is not finite."""


class Stop(FailureRule):
    """End the run at the first failed update. The run is recorded as diverged."""

    name: Literal["stop"] = "stop"

    def action(self, n_failures: int) -> Action:
        """Return what to do after `n_failures` failed steps of the run."""
        return "stop"

    def watches(self) -> bool:
        """Return whether the trainer must read the gradient norm of every step."""
        return self.spike is not None


class Skip(FailureRule):
    """Skip the failed update and continue with the next batch."""

    name: Literal["skip"] = "skip"
    at_most: Count = 3
    """Failed steps that a run survives. The next one ends the run."""

    def action(self, n_failures: int) -> Action:
        return "skip" if n_failures <= self.at_most else "stop"

    def watches(self) -> bool:
        return True


class RollBack(FailureRule):
    """Restore weights and optimizer state of the last rung, lower the learning rate, continue with the next batch."""

    name: Literal["rollback"] = "rollback"
    at_most: Count = 3
    """Failed steps that a run survives. The next one ends the run."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor on all learning rates for the rest of the run, applied again at each failed update."""

    def action(self, n_failures: int) -> Action:
        return "rollback" if n_failures <= self.at_most else "stop"

    def watches(self) -> bool:
        return True


class Health:
    """Count the failed steps of one run and track the mean norm of its gradients."""

    def __init__(self, rule: Stop | Skip | RollBack) -> None:
        self.rule = rule
        self.n_failures, self.n_good = 0, 0
        self.mean_norm = 0.0  # running mean of gradient norms over good steps
        self.lr_scale = 1.0  # factor on all learning rates
        self.mark()

    def mark(self) -> None:
        """Save the mean gradient norm at a rung, because a rollback restores it along with the weights."""
        self.marked = self.n_good, self.mean_norm

    def recoveries(self) -> int:
        """Return the number of failed steps that did not end the run."""
        return sum(self.rule.action(n) != "stop" for n in range(1, self.n_failures + 1))

    def respond(self, norm: float) -> Action:
        """Record a step and return what to do with it. norm: of the step's gradient; nan if the loss is not finite."""
        if not self._failed(norm):
            self.n_good += 1
            self.mean_norm += (norm - self.mean_norm) * max(1 - MEAN_DECAY, 1 / self.n_good)
            return "go"
        self.n_failures += 1
        action = self.rule.action(self.n_failures)
        if isinstance(self.rule, RollBack) and action == "rollback":
            self.lr_scale *= self.rule.lr_factor
            self.n_good, self.mean_norm = self.marked
        return action

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint. The keys are those of version 0.1."""
        return {"failures": self.n_failures, "seen": self.n_good, "mean": self.mean_norm, "cut": self.lr_scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            LookupError: a value is missing.
            TypeError, ValueError: a value is not a number. Nothing was restored.
        """
        counts = int(state["failures"]), int(state["seen"])
        numbers = float(state["mean"]), float(state["cut"])
        (self.n_failures, self.n_good), (self.mean_norm, self.lr_scale) = counts, numbers

    def _failed(self, norm: float) -> bool:
        if not math.isfinite(norm):
            return True
        spike = self.rule.spike
        return spike is not None and self.n_good >= PATIENCE and norm > spike * self.mean_norm


Recovery = Annotated[Stop | Skip | RollBack, Field(discriminator="name")]
