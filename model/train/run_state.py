"""Where one run of a pack stands: its config, its position in the data, its rung, its health."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.config import TrainConfig
from model.data.batches import TrainingBatches
from model.data.prepare import Split
from model.optim.param_groups import ParamGroup
from model.optim.recovery import Health
from model.seeds import derive
from model.train.params import StepCoefficients


class RunState:
    """Progress of one run, counted in micro-steps (one forward pass over batch_size sequences)."""

    def __init__(self, config: TrainConfig, split: Split) -> None:
        self.config, self.run = config, config.run
        self.order = TrainingBatches(split, config.data, config.model.context, config.run.seed)
        self.marks = [updates * self.run.grad_accum for updates in config.marks()]  # in micro-steps
        self.health = Health(config.recovery)
        self.scale = config.optimizer.scale(config.update_tokens())
        self.micro_step = 0
        self.steps = 0  # updates taken; one that failed is none
        self.seconds = 0.0
        self.diverged = False
        self.begin_rung()

    def begin_rung(self) -> None:
        self.targets = 0  # trained on since the last rung
        self.training = 0.0  # seconds since the last rung, validation left out
        self.began, self.steps_at_rung = self.micro_step, self.steps
        self.health.mark()
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

    def advance(self, counted: bool = True) -> None:
        """Go past the micro-step whose batch was just trained on. counted: its loss enters the mean."""
        B = self.run.batch_size
        self.targets += self.order.targets(self.micro_step * B, B) if counted else 0
        self.micro_step += 1

    def shares(self) -> tuple[float, float]:
        """Return the weights of one token's and of one micro-step's loss in the update that comes next."""
        B, accum = self.run.batch_size, self.run.grad_accum
        update = self.micro_step // accum
        scale = self.fault(update + 1)
        return scale / max(1, self.order.targets(update * accum * B, accum * B)), scale / accum

    def fault(self, update: int) -> float:
        """Return the factor on the loss of update number `update`, counted from 1: an injected fault, else 1."""
        every, scale = self.run.spike_every, self.run.spike_scale
        return scale if every and scale and update % every == 0 else 1.0

    def key(self) -> int:
        """Return the key of the next micro-step's randomness in the forward pass, a signed 32-bit number."""
        return derive(self.run.seed, f"dropout/{self.micro_step}") % 2**32 - 2**31

    def completes_update(self) -> bool:
        return self.micro_step % self.run.grad_accum == 0

    def updates(self) -> int:
        return self.micro_step // self.run.grad_accum

    def steps_since_rung(self) -> int:
        return self.steps - self.steps_at_rung

    def multiplier(self) -> float:
        """Return the factor on all peak rates in the last update."""
        return self.config.schedule.multiplier(self.progress()) * self.scale * self.health.lr_scale

    def progress(self) -> float:
        """Return the fraction of the run at the middle of the last update."""
        return (max(1, self.updates()) - 0.5) / (self.marks[-1] // self.run.grad_accum)

    def lr(self) -> float:
        return self.config.optimizer.rate("matrix") * self.multiplier()

    def step(self, groups: Sequence[ParamGroup]) -> StepCoefficients:
        """Count the update that was just completed and return its numbers."""
        self.steps += 1
        rule, ema = self.config.optimizer, self.config.regularization.ema
        beta1 = getattr(rule, "beta1", None)
        beta1 = None if beta1 is None else self.config.schedule.beta1(self.progress(), beta1)
        coefficients = []
        for group in groups:
            lr = rule.rate(group.name) * rule.layer_decay**group.depth * self.multiplier()
            coefficients.append({**rule.coefficients(group.name, lr, self.steps, beta1), "rate": lr})
        # A young average follows the weights closely, so that it forgets how they began.
        average = 1 - min(ema, (1 + self.steps) / (10 + self.steps)) if ema is not None else 0.0
        return StepCoefficients(coefficients, self.config.clip.numbers(), average)

    def tokens(self) -> int:
        return self.micro_step * self.run.batch_size * self.config.model.context

    def tokens_since_rung(self) -> int:
        return (self.micro_step - self.began) * self.run.batch_size * self.config.model.context

    def rung_reached(self) -> int:
        """Return the rung whose mark was reached, or was being trained for by a run that diverged."""
        passed = sum(mark <= self.micro_step for mark in self.marks)
        return max(passed, self.rung + 1)

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on later must know."""
        progress = {"micro_step": self.micro_step, "steps": self.steps, "seconds": self.seconds}
        return progress | {"health": self.health.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.micro_step, self.steps = int(state["micro_step"]), int(state["steps"])
        self.seconds = float(state["seconds"])
        self.health.load_state_dict(state["health"])
