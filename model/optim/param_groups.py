"""Parameter groups: the order of the parameters in a row, and which of them share a learning rate.

A pack stores the parameters of each run as one row of a (K, P) tensor: K runs, P parameters. All parameters of a group
are neighbours in that row, so that an optimizer updates a group with a few operations on long tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from math import prod
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

GroupName = Literal["matrix", "embedding", "head", "scalar"]
GROUP_NAMES: tuple[GroupName, ...] = get_args(GroupName)
"""The groups in the order of a row. scalar: gains, biases, skip weights and routers."""


@dataclass(frozen=True)
class ParamSlice:
    """The columns of one parameter in its group: `n` matrices of shape (rows, cols), or a vector if rows is 1."""

    name: str
    start: int
    """First column, counted from the first column of the group."""
    stop: int
    """Column after the last one."""
    n: int
    rows: int
    cols: int


@dataclass(frozen=True)
class ParamGroup:
    """Neighbouring columns of a row whose parameters share a learning rate."""

    name: GroupName
    depth: int
    """Number of blocks above these parameters: n_layer for the embeddings, 0 for the last block and the head."""
    start: int
    """First column in the row."""
    stop: int
    """Column after the last one."""
    slices: tuple[ParamSlice, ...]

    def columns(self, block: Tensor, offset: int = 0) -> Tensor:
        """Return this group's columns of a (K, P) block. offset: column of the row at which the block starts."""
        return block[:, self.start - offset : self.stop - offset]

    def means(self, x: Tensor) -> Tensor:
        """Return the mean of each parameter, (K, len(slices)). x: (K, n), the columns of this group."""
        import torch

        return torch.stack([columns.mean(dim=1) for columns in x.split(self._sizes(), dim=1)], dim=1)

    def norms(self, x: Tensor) -> Tensor:
        """Return the L2 norm of each parameter, (K, len(slices)). x: (K, n), the columns of this group."""
        import torch

        return torch.stack([columns.norm(dim=1) for columns in x.split(self._sizes(), dim=1)], dim=1)

    def expand(self, x: Tensor) -> Tensor:
        """Repeat one value per parameter over all its columns, (K, n). x: (K, len(slices))."""
        import torch

        columns = zip(x.split(1, dim=1), self._sizes(), strict=True)
        return torch.cat([column.expand(-1, size) for column, size in columns], dim=1)

    def _sizes(self) -> list[int]:
        return [param.stop - param.start for param in self.slices]


def group_of(name: str, shape: Sequence[int]) -> GroupName:
    """Return the group of a parameter. name, shape: as in `Network.named_parameters()`."""
    if name.startswith(("wte.", "wpe.")):
        return "embedding"
    if name.startswith("head."):
        return "head"
    return "scalar" if len(shape) < 2 or ".router." in name else "matrix"


def param_groups(shapes: Mapping[str, Sequence[int]], n_layer: int, by_depth: bool) -> list[ParamGroup]:
    """Assign each parameter to a group and to columns of the row.

    shapes: shape of each parameter by name. by_depth: make one group per layer, for learning rates that differ
    between layers.
    """

    def order(name: str) -> tuple[int, int]:
        group = group_of(name, shapes[name])
        return GROUP_NAMES.index(group), -_depth(name, group, n_layer) if by_depth else 0

    groups: list[ParamGroup] = []
    start = 0
    for (index, depth), names in groupby(sorted(shapes, key=order), key=order):
        slices = _param_slices({name: shapes[name] for name in names})
        groups.append(ParamGroup(GROUP_NAMES[index], -depth, start, start + slices[-1].stop, slices))
        start = groups[-1].stop
    return groups


def merge_groups(groups: Sequence[ParamGroup]) -> ParamGroup:
    """Return one group that holds the slices of all groups, for functions that read a whole row."""
    slices = tuple(
        ParamSlice(param.name, group.start + param.start, group.start + param.stop, param.n, param.rows, param.cols)
        for group in groups
        for param in group.slices
    )
    return ParamGroup("matrix", 0, 0, groups[-1].stop, slices)


def _depth(name: str, group: GroupName, n_layer: int) -> int:
    if group == "embedding" or name.startswith("embedding_"):  # the projection and the norm after the embeddings
        return n_layer
    path = name.split(".")
    return n_layer - 1 - int(path[1]) if path[0] == "blocks" else 0


def _param_slices(shapes: Mapping[str, Sequence[int]]) -> tuple[ParamSlice, ...]:
    ends = list(accumulate(prod(shape) for shape in shapes.values()))
    starts = [0, *ends[:-1]]
    return tuple(
        ParamSlice(name, start, end, *_matrices(name, shape))
        for (name, shape), start, end in zip(shapes.items(), starts, ends, strict=True)
    )


def _matrices(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the number of matrices in a parameter, their rows and their columns."""
    if len(shape) == 3:  # experts
        return shape[0], shape[1], shape[2]
    if name.endswith("qkv.weight"):  # three matrices (queries, keys, values) in one parameter, for speed
        return 3, shape[0] // 3, shape[1]
    return 1, prod(shape[:-1]), shape[-1]
