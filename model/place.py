"""Where one run of a pack stands: its config, its place in the data, its rung."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import TrainConfig
from model.data import Split
from model.seeds import derive
from model.windows import TrainingOrder


class Place:
    """Progress of one run, counted in micro-steps (one forward pass over batch_size sequences)."""

    def __init__(self, config: TrainConfig, split: Split) -> None:
        self.config, self.run = config, config.run
        self.order = TrainingOrder(split, config.data.layout, config.model.context, config.run.seed)
        self.marks = [updates * self.run.grad_accum for updates in config.marks()]  # in micro-steps
        self.micro_step = 0
        self.seconds = 0.0
        self.diverged = False
        self.begin_rung()

    def begin_rung(self) -> None:
        self.targets = 0  # trained on since the last rung
        self.training = 0.0  # seconds since the last rung, validation left out
        self.began = self.micro_step
        self.rung = sum(mark <= self.micro_step for mark in self.marks)  # marks passed

    def to_mark(self) -> int:
        """Return the micro-steps left to the next rung mark."""
        return self.marks[min(self.rung, len(self.marks) - 1)] - self.micro_step

    def over(self) -> bool:
        return self.diverged or self.micro_step >= self.marks[-1]

    def batch(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and targets of the next micro-step, (B, T) each."""
        B = self.run.batch_size
        return self.order.batch(self.micro_step * B, B)

    def advance(self) -> None:
        """Count the micro-step whose batch was just trained on."""
        B = self.run.batch_size
        self.targets += self.order.targets(self.micro_step * B, B)
        self.micro_step += 1

    def update_targets(self) -> int:
        """Return the targets of the whole update that the next micro-step belongs to."""
        B, accum = self.run.batch_size, self.run.grad_accum
        first = self.micro_step // accum * accum * B
        return max(1, self.order.targets(first, accum * B))

    def dropout_key(self) -> int:
        """Return the key of the next micro-step's dropout masks, a signed 32-bit number."""
        return derive(self.run.seed, f"dropout/{self.micro_step}") % 2**32 - 2**31

    def completes_update(self) -> bool:
        return self.micro_step % self.run.grad_accum == 0

    def updates(self) -> int:
        return self.micro_step // self.run.grad_accum

    def updates_since_rung(self) -> int:
        return (self.micro_step - self.began) // self.run.grad_accum

    def lr(self) -> float:
        """Return the learning rate of the last update."""
        total = self.marks[-1] // self.run.grad_accum
        progress = (max(1, self.updates()) - 0.5) / total
        return self.config.optimizer.lr * self.config.schedule.multiplier(progress)

    def coefficients(self) -> dict[str, float]:
        """Return the optimizer's numbers for the update that was just completed."""
        return self.config.optimizer.coefficients(self.lr(), self.updates())

    def tokens(self) -> int:
        return self.micro_step * self.run.batch_size * self.config.model.context

    def tokens_since_rung(self) -> int:
        return (self.micro_step - self.began) * self.run.batch_size * self.config.model.context

    def rung_reached(self) -> int:
        """Return the rung whose mark was reached, or was being trained for by a run that diverged."""
        passed = sum(mark <= self.micro_step for mark in self.marks)
        return max(passed, self.rung + 1)

    def progress(self) -> dict[str, Any]:
        return {"micro_step": self.micro_step, "seconds": self.seconds}

    def restore(self, progress: dict[str, Any]) -> None:
        self.micro_step, self.seconds = int(progress["micro_step"]), float(progress["seconds"])
