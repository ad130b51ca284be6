"""The weights of K runs of equal shape in one tensor, one row per run, with all state that belongs to them.

Elementwise optimizers and clipping then process a few long tensors instead of dozens of short ones. At small sizes
the number of tensors dominates the cost. A lane is a run's position in the pack, which is its row here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from model.config import TrainConfig
from model.optim.optimizer import STATE_NAMES_0_1
from model.optim.param_groups import ParamGroup, merge_groups, param_groups
from model.train.group_norms import GroupNorms
from model.train.lanes import LaneSets
from model.train.tables import StepCoefficients

AVERAGE = "average"  # name of the exponential moving average of the weights among the state


class PackParams:
    """Weights and gradients of K runs, (K, P) each, optimizer state, clipping state and averaged weights."""

    def __init__(self, config: TrainConfig, shapes: Mapping[str, torch.Size], size: int, device: torch.device) -> None:
        """Allocate the tensors.

        shapes: of the parameters of one run, by name. size: number of runs, K.
        """
        self.optimizer, self.clip = config.optimizer, config.clip
        self.groups = param_groups(shapes, config.model.n_layer, config.optimizer.layer_decay != 1)
        self.row = merge_groups(self.groups)  # all parameters of a run as one group
        self.shapes = {param.name: shapes[param.name] for param in self.row.slices}
        self.spans = {param.name: (param.start, param.stop) for param in self.row.slices}
        P = self.row.stop
        self.weights, self.grads = (torch.zeros(size, P, device=device) for _ in range(2))  # (K, P)
        self.state: dict[str, Tensor] = {}
        self.offsets = {"weights": 0, AVERAGE: 0}  # column of the row at which each state tensor starts
        for key, names in self.optimizer.state_groups().items():
            groups = [group for group in self.groups if group.name in names]
            self.offsets[key] = groups[0].start if groups else P
            self.state[key] = torch.zeros(size, sum(group.stop - group.start for group in groups), device=device)
        if config.regularization.has_average():
            self.state[AVERAGE] = torch.zeros(size, P, device=device)
        self.initial_clip_state = self.clip.initial_state(len(self.row.slices))
        self.clip_state = {
            key: torch.full((size, n), value, device=device) for key, (n, value) in self.initial_clip_state.items()
        }
        self.norms = GroupNorms(self.groups, size, device)
        self.backups: dict[str, Tensor] = {}  # of the blocks at the last rung
        self.lanes = LaneSets(size, device)

    def blocks(self) -> dict[str, Tensor]:
        """Return all tensors that make up the state of the runs, by name, each with one row per run."""
        clip_state = {f"clip.{key}": block for key, block in self.clip_state.items()}
        return {"weights": self.weights, **self.state, **clip_state}

    def tensors(self, lane: int) -> dict[str, Tensor]:
        """Return views of the state of one run, by name: "weights.wte.weight", "exp_avg.wte.weight", "clip.gamma"

        A checkpoint stores the tensors under these names.
        """
        tensors = {f"clip.{key}": block[lane] for key, block in self.clip_state.items()}
        for kind, block in {"weights": self.weights, **self.state}.items():
            offset, width = self.offsets[kind], block.shape[1]
            for name, (a, b) in self.spans.items():
                if offset <= a and b <= offset + width:
                    tensors[f"{kind}.{name}"] = block[lane, a - offset : b - offset].view(self.shapes[name])
        return tensors

    @torch.no_grad()
    def initialize(self, lane: int, initial: Mapping[str, Tensor]) -> None:
        """Set the weights and their average to initial weights, and the rest of the state to its start.

        initial: tensors by parameter name.
        """
        tensors = {f"weights.{name}": initial[name] for name in self.shapes}
        if AVERAGE in self.state:
            tensors |= {f"{AVERAGE}.{name}": initial[name] for name in self.shapes}
        tensors |= {f"clip.{key}": torch.full((n,), value) for key, (n, value) in self.initial_clip_state.items()}
        self.load(lane, tensors)

    @torch.no_grad()
    def load(self, lane: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a lane by the names of `tensors()`. Other state becomes zero."""
        self.grads[lane] = 0
        self.norms.reset(lane)
        for name, target in self.tensors(lane).items():
            target.copy_(tensors[name]) if name in tensors else target.zero_()

    def checked(self, lane: int, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a checkpoint by the names of `tensors()`; version 0.1 had other names.

        Raises:
            ValueError: names, shapes or types are not those of a run in this lane.
        """
        expected, found = self.tensors(lane), {}
        rest = dict(saved)
        for name, target in expected.items():
            kind, _, parameter = name.partition(".")
            tensor = rest.pop(name, None)
            tensor = rest.pop(f"{STATE_NAMES_0_1.get(kind)}.{parameter}", None) if tensor is None else tensor
            if tensor is None:
                raise ValueError(f"lacks the tensor {name}")
            if (tensor.shape, tensor.dtype) != (target.shape, target.dtype):
                shapes = f"{list(target.shape)} {target.dtype}, got {list(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{name} must be {shapes}")
            found[name] = tensor
        if rest:
            raise ValueError(f"holds {', '.join(sorted(rest))}, which the run does not have")
        return found

    def backup(self, lane: int) -> None:
        """Copy the state of a lane on the device, for `restore` and for rollbacks."""
        for name, block in self.blocks().items():
            self.backups.setdefault(name, torch.zeros_like(block))[lane] = block[lane]

    def restore(self, lane: int) -> None:
        """Set a lane to its last backup."""
        for name, block in self.blocks().items():
            block[lane] = self.backups[name][lane]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the weights by their exponential moving averages inside a `with` block."""
        raw = self.weights.clone()
        try:
            self.weights.copy_(self.state[AVERAGE])
            yield
        finally:
            self.weights.copy_(raw)

    def grad_norms(self, lanes: Sequence[int]) -> Tensor:
        """Return the L2 norms of the gradients of some lanes, (n,)."""
        return self._rows(self.grads, lanes).norm(dim=1)

    @torch.no_grad()
    def update(
        self,
        lanes: Sequence[int],
        step: StepCoefficients,
        norms: Tensor,
        watch: Sequence[int] = (),
        accepted: Tensor | None = None,
        rolled_back: Tensor | None = None,
    ) -> Tensor:
        """Clip the gradients, take one optimizer step and set the gradients to zero, in some lanes.

        lanes: n lanes in ascending order. step: numbers of the step, (n, 1) each. norms: of the gradients, (n,).
        watch: lanes whose gradient norms and update ratios are measured by parameter group. accepted: the lanes that
        take the step, (n,) bool; None: all. rolled_back: the lanes that return to their backup, (n,) bool.

        Returns the fraction of each lane that was clipped, in [0, 1], (n,).
        """
        copied = accepted is not None or len(lanes) < len(self.weights)
        blocks = {name: self._rows(block, lanes, copied) for name, block in self.blocks().items()}
        p, g = blocks["weights"], self._rows(self.grads, lanes)
        state = {key: blocks[key] for key in self.state}
        clip_state = {key: blocks[f"clip.{key}"] for key in self.clip_state}
        before = p.clone() if watch else None
        grad_norms = self.norms.of(g) if watch else None
        clipped = self.clip.clip(g, norms, clip_state, step.clip, self.row)
        bounded = self._step(p, g, state, step)
        if AVERAGE in state:
            state[AVERAGE].lerp_(p, step.ema_rate)
        if before is not None and grad_norms is not None:
            n = self.lanes.index([list(lanes).index(lane) for lane in watch])
            taken = None if accepted is None else accepted[n]
            self.norms.store(self.lanes.index(watch), grad_norms[n], before[n], p[n], taken)
        if copied:
            self._write(lanes, blocks, accepted, rolled_back)
        self.zero_grad(lanes)
        fractions = clipped if bounded is None else bounded
        return torch.zeros_like(norms) if fractions is None else fractions

    def _write(
        self,
        lanes: Sequence[int],
        rows: Mapping[str, Tensor],
        accepted: Tensor | None,
        rolled_back: Tensor | None,
    ) -> None:
        """Write copies of rows back where a step was accepted, and backups where a lane is rolled back."""
        index = self.lanes.index(lanes)
        for name, block in self.blocks().items():
            new = rows[name]
            if accepted is not None:
                old = block[index]
                if rolled_back is not None:
                    old = torch.where(rolled_back[:, None], self.backups[name][index], old)
                new = torch.where(accepted[:, None], new, old)
            block[index] = new

    def zero_grad(self, lanes: Sequence[int]) -> None:
        """Set the gradients of some lanes to zero."""
        if len(lanes) == len(self.grads):
            self.grads.zero_()
        else:
            self.grads.index_fill_(0, self.lanes.index(lanes), 0)

    def _step(self, p: Tensor, g: Tensor, state: dict[str, Tensor], step: StepCoefficients) -> Tensor | None:
        """Update each parameter group by the optimizer's rule.

        Returns the fraction of tensors whose update the clipping rule bounded, (n,), None if it bounds no updates.
        """
        bounded = []
        for group, coefficients in zip(self.groups, step.optimizer, strict=True):
            group_state = {
                key: group.columns(state[key], self.offsets[key])
                for key, names in self.optimizer.state_groups().items()
                if group.name in names
            }
            rows, grads = group.columns(p), group.columns(g)
            of_group = self.step_group(group, rows, grads, group_state, coefficients, step.clip)
            bounded += [] if of_group is None else [of_group]
        return torch.cat(bounded, dim=1).float().mean(dim=1) if bounded else None

    def step_group(
        self,
        group: ParamGroup,
        rows: Tensor,
        grads: Tensor,
        state: Mapping[str, Tensor],
        coefficients: Mapping[str, Tensor],
        clip: Mapping[str, Tensor],
    ) -> Tensor | None:
        """Update the columns of one group in place. Return which tensors the clipping rule bounded, None if it cannot.

        rows, grads and state: (n, columns) each. coefficients and clip: numbers of the step, (n, 1) each.
        """
        before = rows.clone() if self.clip.bounds_updates else None
        self.optimizer.update(rows, grads, state, coefficients, group)
        if before is None:
            return None
        return self.clip.bound_update(rows, before, clip, coefficients["rate"], group)

    def _rows(self, block: Tensor, lanes: Sequence[int], copied: bool = False) -> Tensor:
        """Return the rows of some lanes: a view if these are all lanes, else a copy that must be written back.

        copied: return a copy in any case.
        """
        return block if len(lanes) == len(block) and not copied else block[self.lanes.index(lanes)]
