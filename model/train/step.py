"""Updates: the optimizer steps of a pack, and what is done about those that fail."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.train.pack import Pack
from model.train.run_state import RunState


class PackOptimizer:
    """Who of a pack may take a step, and what their steps since the last rung were like."""

    def __init__(self, pack: Pack) -> None:
        self.pack, self.weights = pack, pack.weights
        self.watched = pack.config.recovery.watches()
        self.measured = torch.zeros(2, pack.size, device=pack.device)  # sums of gradient norms and of clipped shares
        # finite: which runs have not diverged. sound: whose loss was finite since its last update.
        self.finite, self.sound = torch.ones(2, pack.size, dtype=torch.bool, device=pack.device)

    def begin_rung(self, lane: int) -> None:
        """Start the sums of a new rung; what it starts from is what a run may roll back to."""
        self.measured[:, lane], self.sound[lane] = 0, True
        self.weights.forget(lane)
        if self.pack.config.recovery.name == "rollback":
            self.weights.keep(lane)

    def see(self, nats: Tensor) -> Tensor:
        """Look at the losses of a micro-step; return them without those that are in no mean, (K,).

        A loss that is not finite ends a run, and its mean with it, unless the run may recover.
        """
        good = nats.isfinite()
        if self.watched:
            self.sound &= good
            return nats.where(good & self.finite, 0)
        counted = nats.where(self.finite, 0)
        self.finite &= good
        return counted

    def take(self, runs: Mapping[int, RunState], live: Sequence[int]) -> None:
        """Take an optimizer step wherever the last micro-step of an update was just done."""
        # Sorted: a lane that was refilled comes last in the dictionary, but its row stays where it is.
        ended = [lane for lane in sorted(live) if runs[lane].completes_update()]
        due = self._unscaled(runs, ended) if self.pack.config.run.precision == "fp16" else ended
        if due and self.watched:
            seen = self.weights.norms(due).where(self.sound[due], math.nan).tolist()
            due = [lane for lane, norm in zip(due, seen, strict=True) if self._goes_on(lane, runs[lane], norm)]
        if ended and self.watched:
            self.sound[ended] = True
        if not due:
            return
        norms = self.weights.norms(due)
        steps = [runs[lane].step(self.weights.groups) for lane in due]
        watch = [lane for lane in due if runs[lane].to_mark() == 0]
        found = torch.stack((norms, self.weights.update(due, steps, norms, watch)))
        if len(due) == self.pack.size:
            self.measured += found
        else:
            self.measured[:, due] += found

    def mend(self, runs: Mapping[int, RunState], nats: Sequence[float], at_mark: Sequence[int]) -> bool:
        """End the runs at a rung whose score is not finite; return whether one went back, to be scored again.

        Their last update did the harm, which shows only now: it is a failed one.
        """
        back = False
        for lane in at_mark:
            if bool(self.finite[lane]) and not math.isfinite(nats[lane]):
                run = runs[lane]
                self.finite[lane] = run.health.respond(math.nan) == "rollback"
                if self.finite[lane]:
                    self._go_back(lane, run)
                    back = True
        return back

    def _unscaled(self, runs: Mapping[int, RunState], due: list[int]) -> list[int]:
        """Return the lanes whose fp16 gradients did not overflow.

        An overflow costs its update and halves the scale, and is no failure: except at the smallest scale, where the
        loss itself is not finite, or where the fault was injected.
        """
        scales = list(self.pack.scales)
        good = self.pack.unscale(due)
        for lane in due:
            run = runs[lane]
            failed = scales[lane] <= 1 or not bool(self.sound[lane]) or run.fault(run.updates()) != 1
            if lane not in good and failed:
                self._goes_on(lane, run, math.nan)
        return good

    def _goes_on(self, lane: int, run: RunState, norm: float) -> bool:
        """Return whether a step is good; leave it out, roll back or end the run if not."""
        action = run.health.respond(norm)
        if action == "go":
            return True
        self.weights.clear([lane])
        if action == "rollback":
            self._go_back(lane, run)
        elif action == "stop":
            self.finite[lane] = False
        return False

    def _go_back(self, lane: int, run: RunState) -> None:
        self.weights.go_back(lane)
        self.measured[:, lane] = 0
        run.steps = run.steps_at_rung
