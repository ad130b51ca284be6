"""The optimizer steps of a pack, and what happens to a run whose update fails."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.train.guard import Guard, GuardedTable
from model.train.pack import Pack
from model.train.run_state import RunState
from model.train.tables import StepTable, build_steps


class PackOptimizer:
    """Takes the optimizer steps of a pack, skips or rolls back failed updates, and measures gradients.

    An update fails if its loss or its gradient norm is not finite, or if the recovery section of the configuration
    says that the norm is too large. A lane is a run's position in the pack.
    """

    def __init__(self, pack: Pack) -> None:
        self.pack, self.params = pack, pack.params
        self.recovers = pack.config.recovery.watches()
        # Decides about each update; None if no update is left out, because the first failure ends a run.
        self.guard = Guard(pack) if self.recovers or pack.config.run.precision == "fp16" else None
        # Sums over the steps since the last rung, (2, K): gradient norms, and fractions clipped.
        self.measured = torch.zeros(2, pack.size, device=pack.device)
        # finite: whether a run has not diverged. sound: whether every loss since its last update was finite. (K,) each
        self.finite, self.sound = torch.ones(2, pack.size, dtype=torch.bool, device=pack.device)
        self.table: StepTable | GuardedTable | None = None
        self.row = 0  # of the table, for the next micro-step

    def load(self, runs: Mapping[int, RunState]) -> None:
        """Copy the state of the runs to the device, before they train to a rung."""
        self.finite.fill_(True)
        if self.guard is not None:
            self.guard.load(runs)

    def store(self, runs: Mapping[int, RunState]) -> None:
        """Read the state of the runs from the device, after they have trained to a rung."""
        if self.guard is not None:
            self.guard.store(runs)

    def prepare(self, runs: Mapping[int, RunState], n: int) -> None:
        """Build the table of the steps in the next n micro-steps."""
        size, groups, self.row = self.pack.size, self.params.groups, 0
        self._copy_lanes(runs, n)
        if self.guard is not None:
            self.table = GuardedTable(runs, size, groups, n, self.guard)
        else:
            self.table = build_steps(runs, size, groups, 1, n, self.pack.device)

    def _copy_lanes(self, runs: Mapping[int, RunState], n: int) -> None:
        """Copy to the device which lanes take a step in each of the next n micro-steps, and which are measured."""
        for row in range(1, n + 1):
            due = [lane for lane in sorted(runs) if (runs[lane].micro_step + row) % runs[lane].run.grad_accum == 0]
            at_mark = [lane for lane in due if runs[lane].micro_steps_to_mark() == row]
            self.params.lanes.index(due)
            self.params.lanes.mask(due)
            self.params.lanes.index(at_mark)
            self.params.lanes.index([due.index(lane) for lane in at_mark])

    def begin_rung(self, lane: int) -> None:
        """Reset the sums of a lane (the run in this row of the pack), and store its state for a rollback."""
        self.measured[:, lane], self.sound[lane] = 0, True
        self.params.norms.reset(lane)
        if self.pack.config.recovery.name == "rollback":
            self.params.backup(lane)

    def observe(self, nats: Tensor) -> Tensor:
        """Record which losses of a micro-step are finite. Return the losses, with 0 for those to exclude from the mean.

        Without recovery, a loss that is not finite ends the run, and its later losses are excluded.

        nats: losses of the runs, (K,). The result has the same shape.
        """
        finite = nats.isfinite()
        if not self.recovers:
            counted = nats.where(self.finite, 0)
            self.finite &= finite
            return counted
        assert isinstance(self.table, GuardedTable)
        assert self.guard is not None
        self.sound &= finite
        counts = finite & self.finite
        self.guard.lanes().targets.add_(self.table.targets[self.row].where(counts, 0))
        return nats.where(counts, 0)

    def step(self, runs: Mapping[int, RunState], live: Sequence[int]) -> None:
        """Take an optimizer step in each live lane whose last micro-step completed an update."""
        row, self.row = self.row, self.row + 1
        # Sorted, because a lane that was refilled comes last in `runs` but keeps its row.
        due = [lane for lane in sorted(live) if runs[lane].completes_update()]
        if not due:
            return
        at_mark = [lane for lane in due if runs[lane].micro_steps_to_mark() == 0]
        if self.pack.graphs is not None:
            self._graph_step(due, at_mark, row)
            for lane in due:
                runs[lane].steps += self.guard is None
            return
        if isinstance(self.table, GuardedTable):
            self._guarded_step(self.table, due, at_mark, row)
            return
        assert self.table is not None
        lanes = None if len(due) == self.pack.size else self.params.lanes.index(due)
        norms, step = self.params.grad_norms(due), self.table.at(row, lanes)
        for lane in due:
            runs[lane].steps += 1
        measured = torch.stack((norms, self.params.update(due, step, norms, at_mark)))
        if lanes is None:
            self.measured += measured
        else:
            self.measured[:, lanes] += measured

    def _guarded_step(self, table: GuardedTable, due: Sequence[int], at_mark: Sequence[int], row: int) -> None:
        """Take the step of the lanes whose update has not failed; skip the others, roll them back or end them."""
        assert self.guard is not None
        index = self.params.lanes.index(due)
        overflow = self.pack.unscale(index) if self.pack.config.run.precision == "fp16" else None
        norms = self.params.grad_norms(due)
        verdict = self.guard.judge(index, norms, self.sound, self.finite, overflow, table.faulty[row])
        step = table.at(row, index)
        clipped = self.params.update(due, step, norms, at_mark, verdict.accepted, verdict.rolled_back)
        measured = self.measured[:, index] + torch.stack((norms, clipped)).where(verdict.accepted, 0)
        if verdict.rolled_back is not None:
            measured = measured.where(~verdict.rolled_back, 0)
        self.measured[:, index] = measured
        self.sound.index_fill_(0, index, True)

    @torch.no_grad()
    def _graph_step(self, due: Sequence[int], at_mark: Sequence[int], row: int) -> None:
        """Take the step of a micro-step by the compiled graph, which computes all lanes and writes those that are due.

        The decisions about updates that may fail are computed outside of the graph.
        """
        assert self.pack.graphs is not None
        params, table = self.params, self.table
        complete = params.lanes.mask(due)
        if isinstance(table, GuardedTable):
            assert self.guard is not None
            index = params.lanes.index(due)
            overflow = self.pack.unscale(index) if self.pack.config.run.precision == "fp16" else None
            norms = params.grads.norm(dim=1)
            verdict = self.guard.judge(index, norms[index], self.sound, self.finite, overflow, table.faulty[row])
            step = table.at(row, params.lanes.index(range(self.pack.size)))
            masks = [complete, *(_spread(complete, index, part) for part in verdict if part is not None)]
            numbers, layout = step.packed(), step.layout()
            self.sound.index_fill_(0, index, True)
        else:
            assert table is not None
            norms, numbers, layout = params.grads.norm(dim=1), table.numbers[row], table.layout
            masks = [complete] if self.pack.size > 1 else []
        watched = params.lanes.index(at_mark)
        if at_mark:
            before, grad_norms = params.weights[watched], params.norms.of(params.grads[watched])
        self.pack.graphs.update(layout, self.measured, norms, numbers, *masks)
        if at_mark:
            taken = masks[1][watched] if len(masks) > 1 else None
            params.norms.store(watched, grad_norms, before, params.weights[watched], taken)

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

    def _roll_back(self, lane: int, run: RunState) -> None:
        self.params.restore(lane)
        self.measured[:, lane] = 0
        run.steps = run.steps_at_rung


def _spread(lanes: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """Return the values of some lanes as those of all lanes, (K,) bool, False in the others. index, values: (L,)."""
    return torch.zeros_like(lanes).index_copy(0, index, values)
