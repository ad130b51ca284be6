"""The optimizer steps of a pack, and what happens to a run whose update fails."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.train.pack import Pack
from model.train.run_state import RunState
from model.train.tables import StepCoefficients, StepTable, build_steps


class PackOptimizer:
    """Takes the optimizer steps of a pack, skips or rolls back failed updates, and measures gradients.

    An update fails if its loss or its gradient norm is not finite, or if the recovery section of the configuration
    says that the norm is too large. A lane is a run's position in the pack.
    """

    def __init__(self, pack: Pack) -> None:
        self.pack, self.params = pack, pack.params
        self.recovers = pack.config.recovery.watches()
        # Sums over the steps since the last rung, (2, K): gradient norms, and fractions clipped.
        self.measured = torch.zeros(2, pack.size, device=pack.device)
        # finite: whether a run has not diverged. sound: whether every loss since its last update was finite. (K,) each
        self.finite, self.sound = torch.ones(2, pack.size, dtype=torch.bool, device=pack.device)
        self.table: StepTable | None = None  # numbers of the steps; None if they have to be computed one by one
        self.row = 0  # of the table, for the next micro-step

    def prepare(self, runs: Mapping[int, RunState], n: int) -> None:
        """Build the table of the steps in the next n micro-steps."""
        self.table, self.row = build_steps(runs, self.pack.size, self.params.groups, 1, n, self.pack.device), 0

    def begin_rung(self, lane: int) -> None:
        """Reset the sums of a lane (the run in this row of the pack), and store its state for a rollback."""
        self.measured[:, lane], self.sound[lane] = 0, True
        self.params.reset_group_norms(lane)
        if self.pack.config.recovery.name == "rollback":
            self.params.backup(lane)

    def observe(self, nats: Tensor) -> Tensor:
        """Record which losses of a micro-step are finite. Return the losses, with 0 for those to exclude from the mean.

        Without recovery, a loss that is not finite ends the run, and its later losses are excluded.

        nats: losses of the runs, (K,). The result has the same shape.
        """
        finite = nats.isfinite()
        if self.recovers:
            self.sound &= finite
            return nats.where(finite & self.finite, 0)
        counted = nats.where(self.finite, 0)
        self.finite &= finite
        return counted

    def step(self, runs: Mapping[int, RunState], live: Sequence[int]) -> None:
        """Take an optimizer step in each live lane whose last micro-step completed an update."""
        row, self.row = self.row, self.row + 1
        # Sorted, because a lane that was refilled comes last in `runs` but keeps its row.
        completed = [lane for lane in sorted(live) if runs[lane].completes_update()]
        due = self._unscale(runs, completed) if self.pack.config.run.precision == "fp16" else completed
        if due and self.recovers:
            norms_or_nan = self.params.grad_norms(due).where(self.sound[due], math.nan).tolist()
            due = [lane for lane, norm in zip(due, norms_or_nan, strict=True) if self._accept(lane, runs[lane], norm)]
        if completed and self.recovers:
            self.sound[completed] = True
        if len(due) < len(completed):  # a failed update changes the numbers of all later steps
            self.table = None
        if not due:
            return
        norms, step = self.params.grad_norms(due), self._coefficients(runs, due, row)
        for lane in due:
            runs[lane].steps += 1
        at_mark = [lane for lane in due if runs[lane].micro_steps_to_mark() == 0]
        measured = torch.stack((norms, self.params.update(due, step, norms, at_mark)))
        if len(due) == self.pack.size:
            self.measured += measured
        else:
            self.measured[:, self.params.index(due)] += measured

    def _coefficients(self, runs: Mapping[int, RunState], due: Sequence[int], row: int) -> StepCoefficients:
        """Return the numbers of the step of the lanes that take one."""
        lanes = None if len(due) == self.pack.size else self.params.index(due)
        if self.table is not None:
            return self.table.at(row, lanes)
        return build_steps(runs, self.pack.size, self.params.groups, 0, 1, self.pack.device).at(0, lanes)

    def recover_at_rung(self, runs: Mapping[int, RunState], nats: Sequence[float], at_mark: Sequence[int]) -> bool:
        """End the runs whose validation loss is not finite, or roll them back.

        The last update of such a run counts as failed, although its own loss and gradients were finite.

        Returns whether a run was rolled back and has to be scored again.
        """
        rolled_back = False
        for lane in at_mark:
            if bool(self.finite[lane]) and not math.isfinite(nats[lane]):
                run = runs[lane]
                self.finite[lane] = run.health.respond(math.nan) == "rollback"
                if self.finite[lane]:
                    self._roll_back(lane, run)
                    rolled_back = True
        return rolled_back

    def _unscale(self, runs: Mapping[int, RunState], due: list[int]) -> list[int]:
        """Return the lanes whose fp16 gradients did not overflow.

        An overflow skips the update and halves the loss scale. It counts as a failure only at the smallest scale,
        where the loss itself is not finite, or where the fault was injected.
        """
        scales = list(self.pack.loss_scales)
        finite = self.pack.unscale(due)
        for lane in due:
            run = runs[lane]
            failed = scales[lane] <= 1 or not bool(self.sound[lane]) or run.fault_scale(run.n_updates()) != 1
            if lane not in finite and failed:
                self._accept(lane, run, math.nan)
        return finite

    def _accept(self, lane: int, run: RunState, norm: float) -> bool:
        """Return whether to take a step; if not, skip it, roll the run back or end the run."""
        action = run.health.respond(norm)
        if action == "go":
            return True
        self.params.zero_grad([lane])
        if action == "rollback":
            self._roll_back(lane, run)
        elif action == "stop":
            self.finite[lane] = False
        return False

    def _roll_back(self, lane: int, run: RunState) -> None:
        self.params.restore(lane)
        self.measured[:, lane] = 0
        run.steps = run.steps_at_rung
