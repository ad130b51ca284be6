"""The progress of one run of a pack: its configuration, its position in the data, its rung and its failures."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.config import TrainConfig
from model.data.batches import EpochRows, TrainingBatches
from model.data.prepared import Split
from model.optim.param_groups import ParamGroup
from model.optim.recovery import Health
from model.optim.schedule import CoolDown, Schedule
from model.seeds import derive


class StepNumbers(NamedTuple):
    """The numbers of the optimizer steps of one run: floats, or arrays with one number per micro-step, (n,)."""

    optimizer: Sequence[Mapping[str, Any]]
    """Coefficients of the optimizer for each parameter group; "rate" is the learning rate itself."""
    clip: Mapping[str, Any]
    """Numbers of the clipping rule."""
    ema_rate: Any
    """Weight of the new weights in the exponential moving average, in [0, 1]."""

    def values(self) -> Iterator[Any]:
        """Yield all numbers, in the order of the fields."""
        for coefficients in self.optimizer:
            yield from coefficients.values()
        yield from self.clip.values()
        yield self.ema_rate


class RunState:
    """Progress of one run, counted in micro-steps. A micro-step is one forward pass over batch_size sequences."""

    def __init__(self, config: TrainConfig, split: Split) -> None:
        self.config, self.run = config, config.run
        self.raw = config.with_raw_fields()  # for the numbers of the steps; a checkpoint holds `config`
        self.batches = TrainingBatches(split, config.data, config.model.context, config.run.seed)
        self.marks = [updates * self.run.grad_accum for updates in config.marks()]  # in micro-steps
        self.health = Health(config.recovery)
        self.schedule: Schedule | CoolDown = config.schedule
        self.optimizer = self.raw.update_rule()
        self.scale = self.optimizer.scale(config.update_tokens())
        self.micro_step = 0
        self.steps = 0  # optimizer steps taken; a failed update is not counted
        self.seconds = 0.0
        self.diverged = False
        self.begin_rung()

    def begin_rung(self) -> None:
        """Reset the counts of the current rung."""
        self.n_targets = 0  # targets in the mean training loss of this rung
        self.training_seconds = 0.0  # of this rung, without validation
        self.rung_start, self.steps_at_rung = self.micro_step, self.steps
        self.health.mark()
        self.rung = sum(mark <= self.micro_step for mark in self.marks)  # marks passed

    def micro_steps_to_mark(self) -> int:
        """Return the number of micro-steps to the next rung mark."""
        return self.marks[min(self.rung, len(self.marks) - 1)] - self.micro_step

    def is_finished(self) -> bool:
        """Return whether the run has diverged or has reached its last mark."""
        return self.diverged or self.micro_step >= self.marks[-1]

    def next_batches(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return inputs and targets of the next n micro-steps, (n B, T) each."""
        B = self.run.batch_size
        return self.batches.batch(self.micro_step * B, n * B)

    def next_rows(self, n: int) -> list[EpochRows]:
        """Return the rows of the same batches, n B together, one part for each epoch."""
        B = self.run.batch_size
        return self.batches.rows(self.micro_step * B, n * B)

    def advance(self, counted: bool = True) -> None:
        """Count the micro-step that has just been trained.

        counted: whether to count its targets here; the device counts those of runs that may recover.
        """
        B = self.run.batch_size
        self.n_targets += self.batches.n_targets(self.micro_step * B, B) if counted else 0
        self.micro_step += 1

    def loss_weights(self, n: int) -> NDArray[np.float64]:
        """Return the weights of one token's loss and of one micro-step's loss in the next n micro-steps, (2, n)."""
        B, accum = self.run.batch_size, self.run.grad_accum
        updates, index = np.unique(np.arange(self.micro_step, self.micro_step + n) // accum, return_inverse=True)
        weights = []
        for update in updates.tolist():
            scale = self.fault_scale(update + 1)
            n_targets = self.batches.n_targets(update * accum * B, accum * B)
            weights.append((scale / max(1, n_targets), scale / accum))
        return np.array(weights)[index].T

    def fault_scale(self, update: int) -> float:
        """Return the factor on the loss of an update: run.spike_scale where a fault is injected, else 1.

        update: number of the update, starting at 1.
        """
        every, scale = self.run.spike_every, self.run.spike_scale
        return scale if every and scale and update % every == 0 else 1.0

    def dropout_keys(self, n: int) -> list[int]:
        """Return the keys of the random numbers of the next n forward passes, signed 32-bit integers."""
        steps = range(self.micro_step, self.micro_step + n)
        return [derive(self.run.seed, f"dropout/{micro_step}") % 2**32 - 2**31 for micro_step in steps]

    def completes_update(self) -> bool:
        """Return whether the last micro-step was the last one of its update."""
        return self.micro_step % self.run.grad_accum == 0

    def n_updates(self) -> int:
        """Return the number of completed updates, failed ones included."""
        return self.micro_step // self.run.grad_accum

    def steps_since_rung(self) -> int:
        """Return the number of optimizer steps taken since the last rung."""
        return self.steps - self.steps_at_rung

    def lr_multiplier(self, update: int) -> float:
        """Return the factor on all peak learning rates in an update. update: its number, starting at 1."""
        return self.schedule_multiplier(update) * self.health.lr_scale

    def schedule_multiplier(self, update: int) -> float:
        """Return the same factor without that of rollbacks."""
        return self.schedule.multiplier(self.progress(update)) * self.scale

    def base_rate(self, group: ParamGroup) -> float:
        """Return the peak learning rate of a group, without the factor of the update size."""
        return self.optimizer.rate(group.name) * self.optimizer.layer_decay**group.depth

    def progress(self, update: int) -> float:
        """Return the fraction of the run that was done at the middle of an update."""
        return (max(1, update) - 0.5) / (self.marks[-1] // self.run.grad_accum)

    def lr(self) -> float:
        """Return the learning rate of the matrices of the last block in the last update."""
        return self.optimizer.rate("matrix") * self.lr_multiplier(self.n_updates())

    def step_numbers(self, groups: Sequence[ParamGroup], first: int, n: int) -> StepNumbers:
        """Return the numbers of the optimizer steps of n micro-steps, as if each completed update took a step.

        first: number of micro-steps from the current one to the first of them.
        """
        optimizer, ema = self.optimizer, self.raw.regularization.ema
        done = self.micro_step + first + np.arange(n)
        updates, index = np.unique(done // self.run.grad_accum, return_inverse=True)
        steps = np.maximum(1, self.steps + np.cumsum(done % self.run.grad_accum == 0)).astype(float)
        multiplier = np.array([self.lr_multiplier(update) for update in updates.tolist()])[index]
        beta1 = self._beta1(updates.tolist(), index)
        coefficients = []
        for group in groups:
            lr = self.base_rate(group) * multiplier
            coefficients.append({**optimizer.coefficients(group.name, lr, steps, beta1), "rate": lr})
        # At the start the average follows the weights closely, so that it forgets the initial weights.
        ema_rate = 0.0 if ema is None else 1 - np.minimum(ema, (1 + steps) / (10 + steps))
        return StepNumbers(coefficients, self.config.clip.numbers(), ema_rate)

    def schedule_numbers(self, first: int, n: int) -> tuple[Any, Any, Any, Any]:
        """Return what the steps of n micro-steps depend on, whichever updates fail, (n,) each.

        The result is the factor of the schedule on the learning rates, beta1 or None if the optimizer has none, whether
        the update has an injected fault, and the number of targets of the micro-step.

        first: number of micro-steps from the current one to the first of them.
        """
        done, B = self.micro_step + first + np.arange(n), self.run.batch_size
        updates, index = np.unique(done // self.run.grad_accum, return_inverse=True)
        multiplier = np.array([self.schedule_multiplier(update) for update in updates.tolist()])[index]
        faulty = np.array([self.fault_scale(update) != 1 for update in updates.tolist()])[index]
        targets = np.array([self.batches.n_targets((micro_step - 1) * B, B) for micro_step in done.tolist()])
        return multiplier, self._beta1(updates.tolist(), index), faulty, targets

    def _beta1(self, updates: Sequence[int], index: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return the beta1 of micro-steps, (n,), None if the optimizer has none. index: of their updates."""
        beta1 = getattr(self.optimizer, "beta1", None)
        if beta1 is None:
            return None
        return np.array([self.schedule.beta1(self.progress(update), beta1) for update in updates])[index]

    def n_tokens(self) -> int:
        """Return the number of tokens trained on so far, padding included."""
        return self.micro_step * self.run.batch_size * self.config.model.context

    def tokens_since_rung(self) -> int:
        """Return the number of tokens trained on since the last rung, padding included."""
        return (self.micro_step - self.rung_start) * self.run.batch_size * self.config.model.context

    def rung_reached(self) -> int:
        """Return the rung whose mark has been reached, or the rung in which the run diverged."""
        passed = sum(mark <= self.micro_step for mark in self.marks)
        return max(passed, self.rung + 1)

    def cooling_down(self, updates: int) -> "RunState":
        """Return a copy that ends after some more updates, in which the learning rate falls to the end of the schedule.

        The copy trains on the batches that this run trains on next.
        """
        branch, done, planned = copy.copy(self), self.n_updates(), self.marks[-1] // self.run.grad_accum
        branch.health = copy.copy(self.health)
        branch.marks = [*self.marks[: self.rung], (done + updates) * self.run.grad_accum]
        branch.schedule = CoolDown(self.config.schedule, done / planned, done / (done + updates))
        branch.begin_rung()
        return branch

    def state_dict(self) -> dict[str, Any]:
        """Return the progress that a checkpoint needs to resume the run."""
        progress = {"micro_step": self.micro_step, "steps": self.steps, "seconds": self.seconds}
        return progress | {"health": self.health.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the progress that `state_dict` returned.

        Raises:
            LookupError: a value is missing.
            TypeError, ValueError: a value has the wrong type, or the run is not at a rung. Nothing was restored.
        """
        micro_step, steps, seconds = int(state["micro_step"]), int(state["steps"]), float(state["seconds"])
        if micro_step not in (0, *self.marks) or steps < 0 or not seconds >= 0:
            raise ValueError(f"its progress is not that of a run at a rung: {micro_step}, {steps}, {seconds}")
        self.health.load_state_dict(state["health"])
        self.micro_step, self.steps, self.seconds = micro_step, steps, seconds
