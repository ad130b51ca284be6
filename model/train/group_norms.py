"""Norms of gradients and updates by parameter group, which `run.diagnostics` reports."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.optim.param_groups import GROUP_NAMES, ParamGroup


class GroupNorms:
    """Of the last watched update of K runs: gradient norms and update-to-weight ratios, (K, groups) each."""

    def __init__(self, groups: Sequence[ParamGroup], size: int, device: torch.device) -> None:
        """Allocate the tensors. groups: the parameter groups of a row. size: number of runs, K."""
        self.grad_norms, self.update_ratios = (torch.zeros(size, len(GROUP_NAMES), device=device) for _ in range(2))
        self._columns = dict(_group_columns(groups))

    def reset(self, lane: int) -> None:
        self.grad_norms[lane] = self.update_ratios[lane] = 0

    def read(self, lane: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return gradient norms and update-to-weight ratios of one run by the name of the group."""
        norms, ratios = self.grad_norms[lane].tolist(), self.update_ratios[lane].tolist()
        names = {GROUP_NAMES[i]: i for i in self._columns}
        return {name: norms[i] for name, i in names.items()}, {name: ratios[i] for name, i in names.items()}

    def of(self, rows: Tensor) -> Tensor:
        """Return L2 norms by parameter group, (n, groups); 0 for a group without parameters. rows: (n, P)."""
        norms = rows.new_zeros(len(rows), len(GROUP_NAMES))
        for i, columns in self._columns.items():
            norms[:, i] = rows[:, columns].norm(dim=1)
        return norms

    def store(
        self, lanes: Tensor, grad_norms: Tensor, before: Tensor, after: Tensor, accepted: Tensor | None = None
    ) -> None:
        """Store the norms of n lanes; those of a step that is not taken stay as they are.

        lanes: (n,). grad_norms: (n, groups). before, after: weights, (n, P). accepted: the lanes that take the step,
        (n,) bool; None: all.
        """
        ratios = self.of(after - before) / self.of(before)
        ratios = ratios.where(ratios.isfinite(), 0)
        for target, new in ((self.grad_norms, grad_norms), (self.update_ratios, ratios)):
            target[lanes] = new if accepted is None else new.where(accepted[:, None], target[lanes])


def _group_columns(groups: Sequence[ParamGroup]) -> Iterator[tuple[int, slice]]:
    """Yield the number and the columns of each parameter group that has parameters."""
    for i, name in enumerate(GROUP_NAMES):
        own = [group for group in groups if group.name == name]
        if own:
            yield i, slice(own[0].start, own[-1].stop)
