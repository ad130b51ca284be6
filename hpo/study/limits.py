"""When a study ends, and how long and how large one trial may be."""

from typing import Self

from pydantic import model_validator

from model.section import Count, Positive, Section


class Budget(Section):
    """When a study ends: as soon as one of these limits is reached. At least one limit is required."""

    trials: Count | None = None
    """Number of trials, including baselines and pruned trials. Default: no limit."""
    hours: Positive | None = None
    """Hours after the first launch of the study. No trial starts later; running trials finish. Default: no limit."""
    tokens: Count | None = None
    """Number of tokens on which all trials together train, rounded up to whole rungs. A trial starts only if the rest
    of the budget is enough for a full run. Default: no limit."""
    target: str | None = None
    """Name of an entry of `targets`. When a trial reaches this target, no new trial starts; running trials finish.
    Default: no target."""

    @model_validator(mode="after")
    def _some_end(self) -> Self:
        if self.trials is None and self.hours is None and self.tokens is None and self.target is None:
            raise ValueError("must have trials, hours, tokens or target; add one of them")
        return self


class Limits(Section):
    """Resource limits of one trial. A trial that exceeds a limit is pruned and counts as infeasible, so that the
    sampler avoids similar values."""

    seconds: Positive | None = None
    """Seconds of one trial, including validation, summed over all its attempts. Default: no limit."""
    memory_gb: Positive | None = None
    """Memory of one trial on its device, in GB (1e9 bytes). Default: the memory of the device. With `command`: of
    all its processes on the host, measured each second on Linux; no limit by default."""
