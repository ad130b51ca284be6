"""The search of `hpo limits`: which batch size to test next, from memory estimates and measurements."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.config import TrainConfig
from model.section import updated

BATCH = "run.batch_size"
MAX_TRIAL_RUNS = 8


@dataclass
class BatchSearch:
    """The estimates and measurements of the batch sizes of one configuration."""

    config: TrainConfig
    vocab_size: int
    runs: int
    device: str
    room: int
    """Bytes of memory that the runs may use."""
    cap: int
    """The largest batch size that makes sense."""
    estimates: dict[int, int] = field(default_factory=dict)
    """Estimated bytes by batch size."""
    results: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Results of the trial runs by batch size."""
    best: int = 0
    """The largest batch size that fits."""
    worst: int = 0
    """The smallest batch size that does not fit, or cap + 1."""

    def __post_init__(self) -> None:
        self.worst = self.cap + 1

    def estimate(self, batch: int) -> int:
        """Return the estimated bytes of a batch size."""
        from model.memory.estimate import estimate_memory

        if batch not in self.estimates:
            self.estimates[batch] = estimate_memory(self.with_batch(batch), self.vocab_size, self.runs).total
        return self.estimates[batch]

    def with_batch(self, batch: int) -> TrainConfig:
        return updated(self.config, {BATCH: batch})

    def needs(self, batch: int) -> int:
        """Return the estimated bytes of a batch size, corrected by the measurement of the largest batch that fits."""
        from model.memory.capacity import calibrated

        if self.best:
            return round(self.estimate(batch) * self.results[self.best]["peak_bytes"] / self.estimate(self.best))
        return calibrated(self.estimate(batch), self.device)  # corrected by earlier runs on this device

    def next(self) -> int | None:
        """Return the batch size to test next, None if the limit is known well enough."""
        if len(self.results) >= MAX_TRIAL_RUNS or self.worst - self.best <= max(1, self.best // 16):
            return None
        if self.worst <= self.cap:  # one did not fit, so the estimate was too low: bisect
            return self.worst * 3 // 4 if self.best == 0 and self.worst > 2 else (self.best + self.worst) // 2
        guess = largest_that_fits(self.needs, self.room, self.cap)
        return guess if guess > self.best else min(self.cap, self.best + max(1, self.best // 8))

    def add(self, batch: int, result: Mapping[str, Any]) -> None:
        """Record whether a batch fits, and correct the memory estimate by the measured peak."""
        from model.memory.capacity import record_measurement

        self.results[batch] = result
        measured = result.get("peak_bytes")
        if measured is not None:
            record_measurement(self.estimate(batch), measured, self.device)
        if measured is not None and measured <= self.room:
            self.best = max(self.best, batch)
        else:
            self.worst = min(self.worst, batch)

    def table(self) -> list[dict[str, Any]]:
        """Return a record of each batch size tested, and of each power of two below the limit."""
        powers = {2**n for n in range(self.cap.bit_length()) if 2**n < self.worst}
        return [self._record(batch) for batch in sorted(powers | self.results.keys())]

    def _record(self, batch: int) -> dict[str, Any]:
        result = self.results.get(batch, {})
        measured, speed = result.get("peak_bytes"), result.get("tokens_per_second")
        return {
            "batch_size": batch,
            "estimated_gb": round(self.needs(batch) / 1e9, 3),
            "measured_gb": None if measured is None else round(measured / 1e9, 3),
            "tokens_per_second": None if speed is None else round(speed),
            "fits": None if self.best < batch < self.worst else batch <= self.best,
        }


def largest_that_fits(needs: Callable[[int], float], room: float, cap: int) -> int:
    """Return the largest batch size of at most `cap` that fits into a room; 1 if none fits.

    needs: the memory of a batch size, nearly linear in it. Each call is slow. So the search doubles, and then
    interpolates and bisects in turn.
    """
    low, high = 1, 2
    while high <= cap and needs(high) <= room:
        low, high = high, 2 * high
    high = min(high, cap + 1)
    interpolates = True
    while (width := high - low) > 1:
        guess = low + width // 2
        if interpolates and high <= cap:
            less, more = needs(low), needs(high)
            guess = low + int(width * (room - less) / (more - less)) if more > less else guess
            guess = min(max(guess, low + 1), high - 1)
        low, high = (guess, high) if needs(guess) <= room else (low, guess)
        interpolates = not interpolates
    return low
