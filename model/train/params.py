"""The weights of K runs of one shape in one block of memory, a row a run, and all that is kept beside them.

Elementwise optimizers and clipping then act on a few long tensors instead of dozens of short ones, which at small
sizes is most of their cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.config import TrainConfig
from model.optim.optimizer import STATE_NAMES_0_1
from model.optim.param_groups import GROUP_NAMES, merge_groups, param_groups

AVERAGE = "average"


class StepCoefficients(NamedTuple):
    """The numbers of one run's update."""

    coefficients: Sequence[Mapping[str, float]]
    """The optimizer's, for each parameter group; "rate" is the learning rate itself."""
    clip: Mapping[str, float]
    average: float
    """How far the average of the weights moves towards them."""


class PackParams:
    """Rows of weights and gradients, (K, P), of the optimizer's state, the clipping rule's memory and the average."""

    def __init__(self, config: TrainConfig, shapes: Mapping[str, torch.Size], size: int, device: torch.device) -> None:
        self.optimizer, self.clip = config.optimizer, config.clip
        self.groups = param_groups(shapes, config.model.n_layer, config.optimizer.layer_decay != 1)
        self.params = merge_groups(self.groups)
        self.shapes = {param.name: shapes[param.name] for param in self.params.slices}
        self.spans = {param.name: (param.start, param.stop) for param in self.params.slices}
        P = self.params.stop
        self.p, self.g = (torch.zeros(size, P, device=device) for _ in range(2))  # (K, P)
        self.state: dict[str, Tensor] = {}
        self.offsets = {"weights": 0, AVERAGE: 0}  # column of the row at which each block begins
        for key, names in self.optimizer.state_groups().items():
            groups = [group for group in self.groups if group.name in names]
            self.offsets[key] = groups[0].start if groups else P
            self.state[key] = torch.zeros(size, sum(group.stop - group.start for group in groups), device=device)
        if config.regularization.ema is not None:
            self.state[AVERAGE] = torch.zeros(size, P, device=device)
        self.first = self.clip.initial_state(len(self.params.slices))
        self.memory = {key: torch.full((size, n), value, device=device) for key, (n, value) in self.first.items()}
        self.grad_norms, self.ratios = (torch.zeros(size, len(GROUP_NAMES), device=device) for _ in range(2))
        self.kept: dict[int, list[Tensor]] = {}

    def blocks(self) -> dict[str, Tensor]:
        """Return what a run is, by name: all that must be saved to go on with it."""
        return {"weights": self.p, **self.state, **{f"clip.{key}": block for key, block in self.memory.items()}}

    def tensors(self, lane: int) -> dict[str, Tensor]:
        """Return views of all that a lane holds, by name: "weights.wte.weight", "exp_avg.wte.weight", "clip.gamma"."""
        found = {f"clip.{key}": block[lane] for key, block in self.memory.items()}
        for kind, block in {"weights": self.p, **self.state}.items():
            offset, width = self.offsets[kind], block.shape[1]
            for name, (a, b) in self.spans.items():
                if offset <= a and b <= offset + width:
                    found[f"{kind}.{name}"] = block[lane, a - offset : b - offset].view(self.shapes[name])
        return found

    @torch.no_grad()
    def fill(self, lane: int, initial: Mapping[str, Tensor]) -> None:
        """Put initial weights in a lane, with the average at them and nothing else kept. initial: by parameter."""
        begun = {f"weights.{name}": initial[name] for name in self.shapes}
        if AVERAGE in self.state:
            begun |= {f"{AVERAGE}.{name}": initial[name] for name in self.shapes}
        begun |= {f"clip.{key}": torch.full((n,), value) for key, (n, value) in self.first.items()}
        self.load(lane, begun)

    @torch.no_grad()
    def load(self, lane: int, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors into a lane; what is not given becomes zero."""
        self.g[lane] = 0
        self.forget(lane)
        for name, held in self.tensors(lane).items():
            kind, _, parameter = name.partition(".")
            saved = tensors.get(name, tensors.get(f"{STATE_NAMES_0_1.get(kind)}.{parameter}"))
            held.zero_() if saved is None else held.copy_(saved)

    def forget(self, lane: int) -> None:
        """Forget what was measured by group."""
        self.grad_norms[lane] = self.ratios[lane] = 0

    def keep(self, lane: int) -> None:
        """Remember a lane as it is."""
        self.kept[lane] = [block[lane].clone() for block in self.blocks().values()]

    def go_back(self, lane: int) -> None:
        """Set a lane to what was kept."""
        for block, kept in zip(self.blocks().values(), self.kept[lane], strict=True):
            block[lane] = kept

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the averages in place of the weights for a while."""
        raw = self.p.clone()
        try:
            self.p.copy_(self.state[AVERAGE])
            yield
        finally:
            self.p.copy_(raw)

    def norms(self, lanes: Sequence[int]) -> Tensor:
        """Return the L2 norms of the gradients of some lanes, (n,)."""
        return self._rows(self.g, lanes).norm(dim=1)

    @torch.no_grad()
    def update(
        self, lanes: Sequence[int], steps: Sequence[StepCoefficients], norms: Tensor, watch: Sequence[int] = ()
    ) -> Tensor:
        """Clip, take one optimizer step in some lanes, in ascending order, and clear their gradients.

        norms: (n,), of the gradients. watch: of which lanes gradients and update are measured by group too.
        Returns how much of each was clipped, in [0, 1], (n,).
        """
        p, g = self._rows(self.p, lanes), self._rows(self.g, lanes)
        state = {key: self._rows(block, lanes) for key, block in self.state.items()}
        memory = {key: self._rows(block, lanes) for key, block in self.memory.items()}
        before = p.clone() if watch else None
        grad_norms = self._by_group(g) if watch else None
        numbers = self._columns([step.clip for step in steps])
        clipped = self.clip.clip(g, norms, memory, numbers, self.params)
        bounded = self._step(p, g, state, steps, numbers)
        if AVERAGE in state:
            state[AVERAGE].lerp_(p, self._columns([{"rate": step.average} for step in steps])["rate"])
        if len(lanes) < len(self.p):  # rows were copies
            rows = torch.tensor(lanes, device=self.p.device)
            self.p[rows] = p
            for key, block in {**state, **memory}.items():
                (self.state if key in state else self.memory)[key][rows] = block
        if before is not None and grad_norms is not None:
            at = [list(lanes).index(lane) for lane in watch]
            self.grad_norms[watch] = grad_norms[at]
            ratios = self._by_group(p - before) / self._by_group(before)
            self.ratios[watch] = ratios.where(ratios.isfinite(), 0)[at]
        self.clear(lanes)
        found = clipped if bounded is None else bounded
        return torch.zeros_like(norms) if found is None else found

    def clear(self, lanes: Sequence[int]) -> None:
        """Set the gradients of some lanes to zero."""
        everyone = len(lanes) == len(self.g)
        self.g[slice(None) if everyone else torch.tensor(lanes, device=self.g.device)] = 0

    def _step(
        self, p: Tensor, g: Tensor, state: dict[str, Tensor], steps: Sequence[StepCoefficients], numbers: dict[str, Any]
    ) -> Tensor | None:
        """Update each parameter group; return the fraction of bounded tensors, if the rule bounds any."""
        bounded = []
        for i, group in enumerate(self.groups):
            c = self._columns([step.coefficients[i] for step in steps])
            own = {
                key: group.columns(state[key], self.offsets[key])
                for key, names in self.optimizer.state_groups().items()
                if group.name in names
            }
            rows = group.columns(p)
            before = rows.clone() if self.clip.bounds_updates else None
            self.optimizer.update(rows, group.columns(g), own, c, group)
            if before is not None:
                bounded.append(self.clip.bound_update(rows, before, numbers, c["rate"], group))
        return torch.cat(bounded, dim=1).float().mean(dim=1) if bounded else None

    def _columns(self, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Return the numbers of several runs by name: floats for one run, else (n, 1) tensors."""
        if len(rows) == 1:
            return dict(rows[0])
        device = self.p.device
        return {key: torch.tensor([row[key] for row in rows], device=device)[:, None] for key in rows[0]}

    def _by_group(self, rows: Tensor) -> Tensor:
        """Return L2 norms by group, (n, groups), zero for a group that has no parameters."""
        found = rows.new_zeros(len(rows), len(GROUP_NAMES))
        for i, columns in self._group_columns():
            found[:, i] = rows[:, columns].norm(dim=1)
        return found

    def _group_columns(self) -> Iterator[tuple[int, slice]]:
        for i, name in enumerate(GROUP_NAMES):
            groups = [group for group in self.groups if group.name == name]
            if groups:
                yield i, slice(groups[0].start, groups[-1].stop)

    def _rows(self, block: Tensor, lanes: Sequence[int]) -> Tensor:
        """Return some rows: a view of all, which is updated in lane, or a copy, which must be written back."""
        return block if len(lanes) == len(block) else block[torch.tensor(lanes, device=block.device)]

    def by_group(self, lane: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return gradient norms and update-to-weight ratios by group, as measured at the last watched update."""
        groups = [(GROUP_NAMES[i], i) for i, _ in self._group_columns()]
        norms, ratios = self.grad_norms[lane].tolist(), self.ratios[lane].tolist()
        return {g: norms[i] for g, i in groups}, {g: ratios[i] for g, i in groups}
