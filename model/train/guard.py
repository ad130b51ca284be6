"""Runs whose updates may fail: what decides about an update is state on the device, which is read at rungs.

Shapes: K runs, L lanes that complete an update, n micro-steps, G parameter groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.optim.optimizer import UpdateRule
from model.optim.param_groups import GROUP_NAMES, ParamGroup
from model.optim.recovery import MEAN_DECAY, PATIENCE
from model.train.pack import Pack
from model.train.run_state import RunState
from model.train.tables import StepCoefficients, to_device

CLEAN_UPDATES = 2000  # updates without an overflow after which the fp16 loss scale doubles, as in torch.amp.GradScaler


class LaneState(NamedTuple):
    """State and rules of the runs, one number per lane."""

    steps: Any
    """Optimizer steps taken."""
    failures: Any
    """Failed updates."""
    good: Any
    """Updates in the running mean of the gradient norms."""
    mean: Any
    """Running mean of the gradient norms."""
    lr_scale: Any
    """Factor on all learning rates."""
    scale: Any
    """Factor on the fp16 loss."""
    clean: Any
    """Updates since a gradient last overflowed."""
    targets: Any
    """Targets in the mean training loss of this rung."""
    marked_steps: Any
    """Steps at the last rung, which a rollback restores; marked_good and marked_mean are the same for the mean."""
    marked_good: Any
    marked_mean: Any
    spike: Any
    """Multiple of the mean above which a gradient norm is a failure."""
    at_most: Any
    """Failures that the run survives."""
    lr_factor: Any
    """Factor on the learning rates at a rollback."""


EMPTY = LaneState(0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, np.inf, 0, 1)  # of a lane without a run


class Verdict(NamedTuple):
    """What happens to an update of L lanes, (L,) bool each. The lanes of neither leave the update out."""

    accepted: Tensor
    """The optimizer takes the step."""
    rolled_back: Tensor | None
    """The run returns to its last rung; None if its rule never does."""


class Guard:
    """Decides about the updates of a pack: failures and recovery of each run, and the loss scales of fp16."""

    def __init__(self, pack: Pack) -> None:
        self.pack, config = pack, pack.config
        self.recovers, self.rolls_back = config.recovery.watches(), config.recovery.name == "rollback"
        # Apple's GPUs have no double precision.
        self.dtype = torch.float32 if pack.device.type == "mps" else torch.float64
        self.state = torch.zeros(len(EMPTY), pack.size, dtype=self.dtype, device=pack.device)

    def load(self, runs: Mapping[int, RunState]) -> None:
        """Copy the state of the runs to the device."""
        rows = [self._state_of(lane, runs[lane]) if lane in runs else EMPTY for lane in range(self.pack.size)]
        self.state.copy_(torch.tensor(rows, dtype=self.dtype).T)
        self.pack.scales.copy_(self.lanes().scale)

    def store(self, runs: Mapping[int, RunState]) -> None:
        """Read the state of the runs from the device."""
        for lane, row in enumerate(self.state.T.tolist()):
            if lane not in runs:
                continue
            run, state = runs[lane], LaneState(*row)
            run.steps, run.health.n_failures, run.health.n_good = int(state.steps), int(state.failures), int(state.good)
            run.health.mean_norm, run.health.lr_scale = state.mean, state.lr_scale
            run.n_targets = int(state.targets) if self.recovers else run.n_targets
            self.pack.loss_scales[lane], self.pack.clean_updates[lane] = state.scale, int(state.clean)

    def lanes(self) -> LaneState:
        """Return views of the state, (K,) each."""
        return LaneState(*self.state.unbind(0))

    def _state_of(self, lane: int, run: RunState) -> LaneState:
        health, rule = run.health, run.config.recovery
        return LaneState(
            steps=run.steps,
            failures=health.n_failures,
            good=health.n_good,
            mean=health.mean_norm,
            lr_scale=health.lr_scale,
            scale=self.pack.loss_scales[lane],
            clean=self.pack.clean_updates[lane],
            targets=run.n_targets,
            marked_steps=run.steps_at_rung,
            marked_good=health.marked[0],
            marked_mean=health.marked[1],
            spike=np.inf if rule.spike is None else rule.spike,
            at_most=getattr(rule, "at_most", 0),
            lr_factor=getattr(rule, "lr_factor", 1),
        )

    def judge(
        self, index: Tensor, norms: Tensor, sound: Tensor, finite: Tensor, overflow: Tensor | None, faulty: Tensor
    ) -> Verdict:
        """Decide about the updates of L lanes, and count them. Lanes that end are set to False in `finite`.

        The rules are those of `model.optim.recovery.Health`. With fp16, an overflow skips the update and halves the
        loss scale. It is a failure only at the smallest scale, where the loss itself is not finite, or where the fault
        was injected.

        index: the lanes, (L,). norms: of their gradients, (L,). sound: whether all losses of the update were finite,
        (K,). finite: whether a run has not ended, (K,). overflow: of the fp16 gradients, (L,). faulty: whether the
        update has an injected fault, (K,).
        """
        s, live, sound = LaneState(*self.state.index_select(1, index).unbind(0)), finite[index], sound[index]
        norms = norms.to(self.dtype)
        bad = ~(norms.isfinite() & sound) | ((s.good >= PATIENCE) & (norms > s.spike * s.mean))
        bad = bad if self.recovers else torch.zeros_like(bad)
        scale, clean, skipped = s.scale, s.clean, torch.zeros_like(bad)
        if overflow is not None:
            failed = overflow & ((scale <= 1) | ~sound | faulty[index])
            bad, skipped = torch.where(overflow, failed, bad), overflow & ~failed
            clean = (clean + 1).where(~overflow, 0)
            grown = torch.where(clean % CLEAN_UPDATES == 0, 2 * scale, scale)
            scale = torch.where(overflow, (scale / 2).clamp(min=1), grown)
        bad, accepted = bad & live, ~(bad | skipped) & live
        failures = s.failures + bad
        stopped = bad & (failures > s.at_most)
        steps, lr_scale = s.steps + accepted, s.lr_scale
        good, mean = self._averaged(s, norms, accepted)
        rolled_back = bad & ~stopped if self.rolls_back else None
        if rolled_back is not None:
            lr_scale = torch.where(rolled_back, lr_scale * s.lr_factor, lr_scale)
            steps = torch.where(rolled_back, s.marked_steps, steps)
            good, mean = (torch.where(rolled_back, *pair) for pair in ((s.marked_good, good), (s.marked_mean, mean)))
        changed = {"steps": steps, "failures": failures, "good": good, "mean": mean, "lr_scale": lr_scale}
        self.state.index_copy_(1, index, torch.stack(s._replace(**changed, scale=scale, clean=clean)))
        self.pack.scales.copy_(self.lanes().scale)
        finite.index_copy_(0, index, live & ~stopped)
        return Verdict(accepted, rolled_back)

    def _averaged(self, s: LaneState, norms: Tensor, accepted: Tensor) -> tuple[Tensor, Tensor]:
        """Return number and mean of the gradient norms with those of the accepted updates, (L,) each."""
        if not self.recovers:
            return s.good, s.mean
        good = s.good + accepted
        mean = s.mean + (norms - s.mean) * (1 / good).clamp(min=1 - MEAN_DECAY)
        return good, mean.where(accepted, s.mean)


class GuardedTable:
    """The numbers of the optimizer steps in n micro-steps of K runs, for any number of steps that a run has taken.

    Which updates fail is known on the device alone, so the numbers of a step are computed there, in double precision.
    """

    def __init__(
        self, runs: Mapping[int, RunState], size: int, groups: Sequence[ParamGroup], n: int, guard: Guard
    ) -> None:
        """Copy to the device what the steps depend on. size: K. groups: of the parameters."""
        self.n, self.groups, self.guard = n, groups, guard
        lanes = [runs.get(lane, next(iter(runs.values()))) for lane in range(size)]  # empty lanes take no step
        self.optimizer = stacked([run.optimizer for run in lanes], self._on_device)
        self.clip = self._columns([run.config.clip.numbers() for run in lanes])
        self.ema = self._on_device([run.raw.regularization.ema or 0.0 for run in lanes])
        rates = [[run.base_rate(group) for run in lanes] for group in groups]
        self.rates = self._on_device(rates)  # (G, K)
        schedules = [run.schedule_numbers(1, n) for run in lanes]
        multiplier, beta1, faulty, targets = zip(*schedules, strict=True)
        self.multiplier, self.targets = self._on_device(np.stack(multiplier, 1)), self._on_device(np.stack(targets, 1))
        self.faulty = self._on_device(np.stack(faulty, 1)).bool()  # (n, K), as the others
        self.beta1 = None if beta1[0] is None else self._on_device(np.stack(beta1, 1))

    def at(self, row: int, index: Tensor) -> StepCoefficients:
        """Return the numbers of the next steps of L lanes, whose micro-step is in this row of the table."""
        state = self.guard.lanes()
        # At a failed update the numbers of the step are not used.
        steps, multiplier = state.steps.clamp(min=1), self.multiplier[row] * state.lr_scale
        beta1 = None if self.beta1 is None else self.beta1[row]
        groups = []
        for i, group in enumerate(self.groups):
            lr = self.rates[i] * multiplier
            groups.append({**self.optimizer.coefficients(group.name, lr, steps, beta1), "rate": lr})
        ema_rate = 1 - torch.minimum(self.ema, (1 + steps) / (10 + steps))
        numbers = torch.stack([value for own in groups for value in own.values()] + [ema_rate])  # (C, K)
        values = iter(numbers.index_select(1, index).float()[..., None].unbind(0))  # (L, 1) each
        clip = {key: value.index_select(0, index) for key, value in self.clip.items()}
        return StepCoefficients([{key: next(values) for key in own} for own in groups], clip, next(values))

    def _columns(self, numbers: Sequence[Mapping[str, float]]) -> dict[str, Tensor]:
        return {key: self._on_device([own[key] for own in numbers]).float()[:, None] for key in numbers[0]}

    def _on_device(self, numbers: Any) -> Tensor:
        dtype = np.float32 if self.guard.dtype == torch.float32 else np.float64
        return to_device(np.asarray(numbers, dtype), self.guard.pack.device)


def stacked(rules: Sequence[UpdateRule], on_device: Any) -> UpdateRule:
    """Return an optimizer whose numbers are tensors, (K,) each, so that `coefficients` computes those of K runs."""
    first = rules[0]
    numbers = {key: [getattr(rule, key) for rule in rules] for key, value in first if isinstance(value, float)}
    numbers.pop("scale_lr", None)  # part of the factor on the learning rates
    decays = {f"{group}_decay" if group != "matrix" else "weight_decay": group for group in GROUP_NAMES}
    numbers |= {key: [rule.decay(group) for rule in rules] for key, group in decays.items()}
    return first.model_copy(update={key: on_device(values) for key, values in numbers.items()})
